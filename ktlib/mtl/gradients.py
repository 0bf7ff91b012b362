"""Gradients of every task on the shared parameters, and writing the one update made of them.

How the update is made of them is the matter of :mod:`ktlib.mtl.aggregation`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ktlib.mtl.split import SplitTrunk

if TYPE_CHECKING:
    from ktlib.mtl.aggregation import SumScale


@dataclass(frozen=True)
class TaskGradients:
    """The gradient of every task, from one forward pass.

    Attributes:
        tasks: names of the T tasks, in the order of the rows.
        parameters: the shared parameters, in the order of the columns.
        matrix: ``(T, n)`` gradients on the shared parameters, in float32 or wider.
        own: each parameter that tasks have for themselves, with the gradient of their loss; of the
            sum of their losses where several share it.
    """

    tasks: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    matrix: Tensor
    own: tuple[tuple[nn.Parameter, Tensor], ...] = ()


@dataclass(frozen=True)
class TaskGramians:
    """Inner products of the gradients of every task, whose gradients were not kept.

    Attributes:
        tasks: names of the T tasks.
        layers: name of a layer -> ``(T, T)`` inner products of its gradients, float64 on the CPU.
        shared: ``(T, T)``, the same over all shared parameters.
        own: as in :class:`TaskGradients`.
    """

    tasks: tuple[str, ...]
    layers: dict[str, Tensor]
    shared: Tensor
    own: tuple[tuple[nn.Parameter, Tensor], ...] = ()


def task_gradients(
    losses: Mapping[str, Tensor],
    parameters: Iterable[nn.Parameter],
    *,
    task_parameters: Mapping[str, Iterable[nn.Parameter]] | None = None,
    retain_graph: bool = False,
) -> TaskGradients:
    """The gradient of every task, by one backward pass per task through the shared graph.

    Args:
        losses: task -> its scalar loss; all from one forward pass of the shared parameters.
        parameters: the shared ones. A task may leave some of them out: its gradient is 0 there.
        task_parameters: task -> parameters of this task alone, such as those of its head; their
            gradients come from the same backward pass.
        retain_graph: keep the graph for another backward pass.

    Raises:
        ValueError: there are fewer than two tasks; a loss is not a scalar or does not depend on
            the shared parameters; a parameter is frozen, or both shared and a task's own.

    Example:
        >>> shared = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> losses = {"sum": shared.sum(), "square": shared.square().sum()}
        >>> task_gradients(losses, [shared]).matrix
        tensor([[1., 1.],
                [2., 4.]])
    """
    shared = tuple(dict.fromkeys(parameters))
    mine = check_tasks(losses, shared, task_parameters)
    sizes = [parameter.numel() for parameter in shared]
    matrix = empty_rows(len(losses), shared, shared)
    found = OwnGradients()
    with no_autocast(shared[0].device):
        for row, (task, loss) in enumerate(losses.items()):
            keep = retain_graph or row + 1 < len(losses)
            gradients = torch.autograd.grad(
                loss, [*shared, *mine[task]], retain_graph=keep, allow_unused=True
            )
            if all(gradient is None for gradient in gradients[: len(shared)]):
                raise independent(task)
            found.add(mine[task], gradients[len(shared) :])
            fill_row(matrix[row], sizes, gradients[: len(shared)])
    return TaskGradients(tuple(losses), shared, matrix, found.pairs())


def apply_gradients(
    trunk: nn.Module | Mapping[str, Sequence[nn.Parameter]],
    gradients: TaskGradients,
    aggregator: Callable[[Tensor], Tensor],
) -> None:
    """Write ``.grad``: of shared parameters the aggregated one, of a task's own ones its own.

    What was in these ``.grad`` is replaced, not added to.

    Args:
        trunk: the module of the shared parameters, or its layers: name -> parameters.
        gradients: of :func:`task_gradients` or :meth:`ktlib.mtl.conflict.ConflictMeter.observe`.
        aggregator: of :func:`ktlib.mtl.aggregation.aggregator`, or any aggregator of torchjd, then
            on its own scale.

    Raises:
        ValueError: the gradients belong to other parameters than the trunk's.

    Example:
        >>> shared = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> losses = {"sum": shared.sum(), "square": shared.square().sum()}
        >>> gradients = task_gradients(losses, [shared])
        >>> apply_gradients({"layer": [shared]}, gradients, lambda matrix: matrix.mean(dim=0))
        >>> shared.grad
        tensor([1.5000, 2.5000])
    """
    _check_same(parameters_of(trunk), gradients.parameters)
    combined: Tensor = aggregator(gradients.matrix)
    sizes = [parameter.numel() for parameter in gradients.parameters]
    for parameter, part in zip(gradients.parameters, combined.split(sizes), strict=True):
        parameter.grad = part.view(parameter.shape).to(parameter.dtype)
    for parameter, gradient in gradients.own:
        parameter.grad = gradient


def apply_gramians(
    trunk: nn.Module | Mapping[str, Sequence[nn.Parameter]],
    losses: Mapping[str, Tensor],
    gramians: TaskGramians,
    aggregator: SumScale,
) -> None:
    """As :func:`apply_gradients`, without the gradients: one backward pass of weighted losses.

    Args:
        trunk: the module of the shared parameters, or its layers: name -> parameters.
        losses: those that ``gramians`` come from, their graph retained.
        gramians: of :meth:`ktlib.mtl.conflict.ConflictMeter.observe_gramians`.
        aggregator: of :func:`ktlib.mtl.aggregation.aggregator`; only methods that need no more than
            inner products: joint training, MGDA, PCGrad, GradVac, CAGrad, UPGrad, DualProj, IMTL-G,
            FairGrad, Aligned-MTL and the like; neither GradDrop nor NashMTL.

    Raises:
        ValueError: the method needs the gradients, or the tasks are others.

    Example:
        >>> from ktlib.mtl import ConflictMeter, aggregator
        >>> shared = nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> losses = {"sum": shared.sum(), "square": shared.square().sum()}
        >>> layers = {"layer": [shared]}
        >>> gramians = ConflictMeter(layers).observe_gramians(losses, retain_graph=True)
        >>> apply_gramians(layers, losses, gramians, aggregator("joint"))
        >>> shared.grad
        tensor([3., 5.])
    """
    if tuple(losses) != gramians.tasks:
        raise ValueError(f"losses must be of {gramians.tasks}. Found {tuple(losses)}.")
    weights = aggregator.weights(gramians.shared).tolist()
    shared = parameters_of(trunk)
    with no_autocast(shared[0].device):
        total = torch.stack(
            [weight * loss.float() for weight, loss in zip(weights, losses.values(), strict=True)]
        ).sum()
        found = torch.autograd.grad(total, shared, allow_unused=True, materialize_grads=True)
    for parameter, gradient in zip(shared, found, strict=True):
        parameter.grad = gradient
    for parameter, gradient in gramians.own:
        parameter.grad = gradient


def gramian(rows: Tensor) -> Tensor:
    """Inner products ``(T, T)`` of ``(T, n)`` rows, added up in float64.

    The products of a chunk are formed in the rows' own precision; what float64 is for is the sum
    over millions of entries.
    """
    # Shorter on a CPU, whose products lose digits with length, than on a GPU, where calls cost.
    chunks = rows.split(2**20 if rows.is_cuda else 2**15, dim=1)
    with no_autocast(rows.device):
        products = [(chunk @ chunk.T).double() for chunk in chunks]
    return products[0] if len(products) == 1 else torch.stack(products).sum(dim=0)


def parameters_of(
    trunk: nn.Module | Mapping[str, Sequence[nn.Parameter]],
) -> tuple[nn.Parameter, ...]:
    """The shared parameters, each once: of a module those that are trained, of layers all."""
    if isinstance(trunk, nn.Module):
        shared = trunk.shared if isinstance(trunk, SplitTrunk) else trunk
        return tuple(parameter for parameter in shared.parameters() if parameter.requires_grad)
    return tuple(dict.fromkeys(parameter for layer in trunk.values() for parameter in layer))


def check_tasks(
    losses: Mapping[str, Tensor],
    shared: Sequence[nn.Parameter],
    task_parameters: Mapping[str, Iterable[nn.Parameter]] | None,
) -> dict[str, list[nn.Parameter]]:
    """Check the losses; return the trained parameters that belong to one task each, as lists."""
    if len(losses) < 2:
        raise ValueError(f"losses must be of at least 2 tasks. Found {list(losses)}.")
    if not shared:
        raise ValueError("the trunk must have parameters that require gradients. Found none.")
    frozen = sum(not parameter.requires_grad for parameter in shared)
    if frozen:
        raise ValueError(
            f"shared parameters must require gradients. Found {frozen} of {len(shared)} frozen: "
            "leave them out of the trunk's layers, or unfreeze them."
        )
    given = task_parameters or {}
    unknown = sorted(set(given) - set(losses))
    if unknown:
        raise ValueError(f"task_parameters must name tasks of {list(losses)}. Found {unknown}.")
    mine: dict[str, list[nn.Parameter]] = {}
    known = set(shared)
    for task, loss in losses.items():
        if loss.numel() != 1:
            raise ValueError(
                f"the loss of task {task!r} must be a scalar. Found shape {tuple(loss.shape)}."
            )
        if not loss.requires_grad:
            raise independent(task)
        # A frozen parameter of a head has no gradient, and needs none.
        mine[task] = [p for p in dict.fromkeys(given.get(task, ())) if p.requires_grad]
        if known & set(mine[task]):
            raise ValueError(f"task {task!r} has parameters of its own that are also shared.")
    return mine


def independent(task: str) -> ValueError:
    """The error of a loss without a path to the shared parameters."""
    return ValueError(f"the loss of task {task!r} does not depend on the shared parameters.")


def matrix_dtype(parameters: Sequence[nn.Parameter]) -> torch.dtype:
    """float32, or float64 where a parameter has it: half precision is too coarse for cosines."""
    wide = any(parameter.dtype == torch.float64 for parameter in parameters)
    return torch.float64 if wide else torch.float32


def empty_rows(
    tasks: int, columns: Sequence[nn.Parameter], parameters: Sequence[nn.Parameter]
) -> Tensor:
    """Room for the gradients on some of the parameters, one row per task."""
    width = sum(parameter.numel() for parameter in columns)
    kind = matrix_dtype(parameters)
    return torch.empty((tasks, width), dtype=kind, device=parameters[0].device)


def no_autocast(device: torch.device) -> torch.autocast:
    """Autocast off: it would compute inner products in half precision."""
    return torch.autocast(device.type, enabled=False)


def fill_row(row: Tensor, sizes: Sequence[int], gradients: Sequence[Tensor | None]) -> None:
    """Copy gradients into one row, zeros where a task has none."""
    parts = [
        row.new_zeros(size) if gradient is None else gradient.reshape(-1)
        for size, gradient in zip(sizes, gradients, strict=True)
    ]
    if parts:
        torch.cat(parts, out=row)


class OwnGradients:
    """Gradients of the tasks' own parameters, added up where tasks share one."""

    def __init__(self) -> None:
        self._sums: dict[nn.Parameter, Tensor] = {}

    def add(self, parameters: Sequence[nn.Parameter], gradients: Sequence[Tensor | None]) -> None:
        """Take the gradients of one task."""
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                before = self._sums.get(parameter)
                self._sums[parameter] = gradient if before is None else before + gradient

    def pairs(self) -> tuple[tuple[nn.Parameter, Tensor], ...]:
        """Each parameter with its gradient."""
        return tuple(self._sums.items())


def _check_same(expected: Sequence[nn.Parameter], found: Sequence[nn.Parameter]) -> None:
    if {id(parameter) for parameter in expected} != {id(parameter) for parameter in found}:
        raise ValueError(
            "gradients must belong to the trunk's parameters. Found gradients of "
            f"{len(found)} parameters and a trunk of {len(expected)} others."
        )
