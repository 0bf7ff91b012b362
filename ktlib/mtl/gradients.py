"""Gradients of every task on the shared parameters, and writing the one update made of them.

How the update is made of them is the matter of :mod:`ktlib.mtl.aggregation`.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.nn.utils import get_total_norm

from ktlib.mtl.split import SplitTrunk

if TYPE_CHECKING:
    from ktlib.mtl.aggregation import SumScale


@dataclass(frozen=True, kw_only=True)
class TaskStep:
    """What an update needs beside the gradients on shared parameters.

    Attributes:
        own: each parameter that tasks have for themselves, with the gradient of their loss; of the
            sum of their losses where several share it.
        absent: own parameters of tasks that the meter knows and that have no loss this time.
        unclaimed: other parameters that losses depend on, with the name of the first such task.
        loss_scale: factor with which gradients are written; NaN where scaled losses overflowed.
    """

    own: tuple[tuple[nn.Parameter, Tensor], ...] = ()
    absent: tuple[nn.Parameter, ...] = ()
    unclaimed: tuple[tuple[str, nn.Parameter], ...] = ()
    loss_scale: float = 1.0


@dataclass(frozen=True)
class TaskGradients(TaskStep):
    """The gradient of every task, from one forward pass.

    Attributes:
        tasks: names of the T tasks, in the order of the rows.
        parameters: the shared parameters, in the order of the columns.
        matrix: ``(T, n)`` gradients on the shared parameters, in float32 or wider.
    """

    tasks: tuple[str, ...]
    parameters: tuple[nn.Parameter, ...]
    matrix: Tensor


@dataclass(frozen=True)
class TaskGramians(TaskStep):
    """Inner products of the gradients of every task, whose gradients were not kept.

    Attributes:
        tasks: names of the T tasks.
        layers: name of a layer -> ``(T, T)`` inner products of its gradients, float64 on the CPU.
        shared: ``(T, T)``, the same over all shared parameters.
    """

    tasks: tuple[str, ...]
    layers: dict[str, Tensor]
    shared: Tensor


def task_gradients(
    losses: Mapping[str, Tensor],
    parameters: Iterable[nn.Parameter],
    *,
    task_parameters: Mapping[str, Iterable[nn.Parameter]] | None = None,
    retain_graph: bool = False,
) -> TaskGradients:
    """The gradient of every task, by one backward pass per task through the shared graph.

    They may be infinite or NaN: :meth:`ktlib.mtl.ConflictMeter.observe` refuses those. Sparse ones,
    as an embedding may have, are made dense on shared parameters.

    Args:
        losses: task -> its scalar loss; all from one forward pass of the shared parameters. Of one
            task alone, as a batch may have it, the update is its gradient.
        parameters: the shared ones. A task may leave some of them out: its gradient is 0 there.
        task_parameters: task -> parameters of this task alone, such as those of its head; their
            gradients come from the same backward pass.
        retain_graph: keep the graph for another backward pass.

    Raises:
        ValueError: there is no task; a loss is no scalar tensor or does not depend on
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
    found = gradients_of(losses, shared, mine, retain_graph=retain_graph)
    return replace(found, unclaimed=unclaimed_parameters(losses, shared, mine))


def gradients_of(
    losses: Mapping[str, Tensor],
    shared: tuple[nn.Parameter, ...],
    mine: Mapping[str, Sequence[nn.Parameter]],
    *,
    retain_graph: bool,
) -> TaskGradients:
    """As :func:`task_gradients`, of what :func:`check_tasks` has seen."""
    sizes = [parameter.numel() for parameter in shared]
    matrix = empty_rows(len(losses), shared, shared)
    found: dict[nn.Parameter, Tensor] = {}
    with no_autocast(shared[0].device):
        for row, (task, loss) in enumerate(losses.items()):
            keep = retain_graph or row + 1 < len(losses)
            gradients = torch.autograd.grad(
                loss, [*shared, *mine[task]], retain_graph=keep, allow_unused=True
            )
            if all(gradient is None for gradient in gradients[: len(shared)]):
                raise independent(task)
            add_own(found, mine[task], gradients[len(shared) :])
            fill_row(matrix[row], sizes, gradients[: len(shared)])
    return TaskGradients(tuple(losses), shared, matrix, own=tuple(found.items()))


def apply_gradients(
    trunk: nn.Module | Mapping[str, Sequence[nn.Parameter]],
    gradients: TaskGradients,
    aggregator: Callable[[Tensor], Tensor],
    *,
    accumulate: bool = False,
) -> None:
    """Write ``.grad``: of shared parameters the aggregated one, of a task's own ones its own.

    What was in these ``.grad`` is replaced; that of tasks the meter knows from earlier batches and
    that have no loss this time becomes None. Parameters that losses depend on and that are neither
    shared nor a task's own stay as they are, with a warning: nothing trains them.

    Args:
        trunk: the module of the shared parameters, or its layers: name -> parameters.
        gradients: of :func:`task_gradients` or :meth:`ktlib.mtl.conflict.ConflictMeter.observe`.
        aggregator: of :func:`ktlib.mtl.aggregation.aggregator`, or any aggregator of torchjd, then
            on its own scale.
        accumulate: add to what is in ``.grad``, for several small batches before one step, each
            aggregated by itself. Call ``optimizer.zero_grad()`` before the first.

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
    # Solvers cannot take what is not finite, and a GradScaler only has to see that it is not.
    overflow = math.isnan(gradients.loss_scale)
    combined = gradients.matrix[0] if overflow else aggregator(gradients.matrix)
    sizes = [parameter.numel() for parameter in gradients.parameters]
    parts = zip(gradients.parameters, combined.split(sizes), strict=True)
    found = [(p, part.view(p.shape).to(p.dtype)) for p, part in parts]
    _write(found, gradients, accumulate)


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
    _write(list(zip(shared, found, strict=True)), gramians, accumulate=False)


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
    for name, value in (("losses", losses), ("task_parameters", task_parameters or {})):
        if not isinstance(value, Mapping):
            raise _wrong(f"{name} must be a dict with the names of tasks", value)
    if not losses:
        raise ValueError("losses must be of at least 1 task. Found {}.")
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
        if not isinstance(loss, Tensor):
            raise _wrong(f"the loss of task {task!r} must be a tensor with its graph", loss)
        own = given.get(task, ())
        if isinstance(own, (nn.Module, Tensor)):
            raise _wrong(f"task_parameters of task {task!r} must be a list of parameters", own)
        if loss.numel() != 1:
            raise ValueError(
                f"the loss of task {task!r} must be a scalar. Found shape {tuple(loss.shape)}."
            )
        if not loss.requires_grad:
            raise independent(task)
        # A frozen parameter of a head has no gradient, and needs none.
        mine[task] = [p for p in dict.fromkeys(own) if p.requires_grad]
        if known & set(mine[task]):
            raise ValueError(f"task {task!r} has parameters of its own that are also shared.")
    return mine


def _wrong(rule: str, found: object) -> ValueError:
    return ValueError(f"{rule}. Found {type(found).__name__}.")


def independent(task: str) -> ValueError:
    """The error of a loss without a path to the shared parameters."""
    return ValueError(f"the loss of task {task!r} does not depend on the shared parameters.")


def unclaimed_parameters(
    losses: Mapping[str, Tensor],
    shared: Sequence[nn.Parameter],
    mine: Mapping[str, Sequence[nn.Parameter]],
) -> tuple[tuple[str, nn.Parameter], ...]:
    """Parameters in the graph of the losses that nobody names, each with its first task."""
    known = {*shared, *(parameter for own in mine.values() for parameter in own)}
    seen, found = set(), dict[nn.Parameter, str]()
    for task, loss in losses.items():
        pending = [get_gradient_edge(loss).node]
        while pending:
            node = pending.pop()
            if node not in seen:
                seen.add(node)
                leaf = getattr(node, "variable", None)  # of the nodes that end the graph
                if isinstance(leaf, nn.Parameter) and leaf not in known:
                    found.setdefault(leaf, task)
                pending += [child for child, _ in node.next_functions if child is not None]
    return tuple((task, parameter) for parameter, task in found.items())


def largest(values: Sequence[Tensor]) -> Tensor | None:
    """The largest absolute value, infinite or NaN where one is; None without values."""
    dense = [value.coalesce().values() if value.is_sparse else value for value in values]
    return get_total_norm(dense, math.inf) if dense else None


def check_own(
    own: Sequence[tuple[nn.Parameter, Tensor]], mine: Mapping[str, Sequence[nn.Parameter]]
) -> None:
    """Raise :func:`not_finite` of a task's own parameter whose gradient is not finite."""
    for parameter, value in own:
        if not math.isfinite(get_total_norm([value.to_dense()], math.inf).item()):
            task = next(task for task in mine if any(p is parameter for p in mine[task]))
            raise not_finite(task, f"its own parameter of shape {tuple(parameter.shape)}")


def not_finite(task: str, place: str) -> FloatingPointError:
    """The error of a gradient that is infinite or NaN."""
    return FloatingPointError(
        f"the gradient of task {task!r} is not finite on {place}: lower the lr, or look at the "
        "loss of this task; for losses times the factor of a GradScaler give loss_scale."
    )


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
        row.new_zeros(size)
        if gradient is None
        else (gradient.to_dense() if gradient.is_sparse else gradient).reshape(-1)
        for size, gradient in zip(sizes, gradients, strict=True)
    ]
    if parts:
        torch.cat(parts, out=row)


def add_own(
    sums: dict[nn.Parameter, Tensor],
    parameters: Sequence[nn.Parameter],
    gradients: Sequence[Tensor | None],
) -> None:
    """Add the gradients of one task's own parameters to those of tasks that share them."""
    for parameter, gradient in zip(parameters, gradients, strict=True):
        if gradient is not None:
            sums[parameter] = sums[parameter] + gradient if parameter in sums else gradient


def _write(found: Sequence[tuple[nn.Parameter, Tensor]], step: TaskStep, accumulate: bool) -> None:
    """Put gradients of shared and own parameters into ``.grad``."""
    if step.unclaimed:
        shown = ", ".join(f"{task!r} {tuple(p.shape)}" for task, p in step.unclaimed[:4])
        warnings.warn(
            f"{len(step.unclaimed)} parameters are neither shared nor in task_parameters, so "
            f"nothing trains them. Found of task (and shape) {shown}.",
            stacklevel=3,
        )
    for parameter in () if accumulate else step.absent:
        parameter.grad = None
    for parameter, value in (*found, *step.own):
        scaled = value if step.loss_scale == 1 else value * step.loss_scale
        before = parameter.grad if accumulate else None
        parameter.grad = scaled if before is None else before + scaled


def _check_same(expected: Sequence[nn.Parameter], found: Sequence[nn.Parameter]) -> None:
    if {id(parameter) for parameter in expected} != {id(parameter) for parameter in found}:
        raise ValueError(
            "gradients must belong to the trunk's parameters. Found gradients of "
            f"{len(found)} parameters and a trunk of {len(expected)} others."
        )
