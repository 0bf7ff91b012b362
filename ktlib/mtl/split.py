"""Make chosen layers of any network task-specific; the others stay shared.

The step "Recon" of Shi et al. (ICLR 2023): the layers in which the gradients of the tasks conflict
most get a copy per task. Nothing in the network is re-written for it; the part of the network in
front of the first task-specific layer is computed once for all tasks.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterable, Sequence
from typing import Any, Self

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from ktlib.mtl.layers import check_layers, layers_of
from ktlib.mtl.programs import (
    Programs,
    norms_behind,
    split_at_first_task_layer,
    writes_through_views,
)
from ktlib.mtl.sharing import copy_with_own, shared_and_task_modules
from ktlib.tracing import Call, as_call, call_of, default_call, differing, trace, warn_whole

_CONSEQUENCE = "every task computes its whole trunk"


def split(
    trunk: nn.Module,
    layers: Iterable[str],
    tasks: Sequence[str],
    *,
    share_prefix: bool = True,
    own_statistics: bool = False,
    example: Any = None,
) -> SplitTrunk:
    """Give every task a trunk of its own, in which only ``layers`` are its own.

    The part in front of the first of ``layers`` is computed once, skip connections included, if
    :mod:`torch.fx` can trace the trunk. Otherwise every task computes its whole trunk, with a
    warning that gives the reason: results are the same, without the saving. Modules without
    children and blocks with hooks are never looked into; of the others, ``forward`` is read once,
    with the attributes and hooks that it has now; choices by ``type(x)`` or ``hasattr(x, ...)``
    show only in a run: give an ``example``. The tasks share the random numbers that are drawn in
    front of the split, such as the mask of a dropout.

    Args:
        trunk: images ``(batch, ...)`` -> features, any network. It is copied, not changed.
        layers: names as in :func:`layers_of`, with or without batch norms among them.
        tasks: names of the tasks.
        share_prefix: False computes the whole trunk for every task, without tracing. For a trunk
            whose ``forward`` depends on more than its input, such as numbers of Python's
            ``random`` or an attribute that changes during training.
        own_statistics: whether every task keeps running statistics of its own in the shared norms
            behind the split; see :class:`SplitTrunk`.
        example: what the trunk takes: its input, a tuple of inputs or a mapping of keywords. The
            split trunk and whole ones are then run on it, and their outputs and gradients compared,
            in training and evaluation mode; where they differ, every task computes its whole trunk.
            Nothing but time is used: neither random numbers nor running statistics.

    Raises:
        ValueError: a layer is unknown or has two names (see :func:`layers_of`), a task has no name,
            a name with a dot, one that another task has, or one that ``nn.Module`` uses, or the
            trunk cannot be called with the example.

    Example:
        >>> trunk = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
        >>> network = split(trunk, ["2"], ["left", "right"])
        >>> import torch
        >>> {task: tuple(out.shape) for task, out in network(torch.zeros(5, 4)).items()}
        {'left': (5, 2), 'right': (5, 2)}
        >>> list(network.shared_layers()), [tuple(p.shape) for p in network.task_parameters("left")]
        (['0'], [(2, 8), (2,)])
    """
    return SplitTrunk(
        trunk,
        layers,
        tasks,
        share_prefix=share_prefix,
        own_statistics=own_statistics,
        example=example,
    )


class SplitTrunk(nn.Module):
    """Trunks of several tasks that share all layers but the chosen ones; made by :func:`split`.

    Shared layers are the same module objects in every task's trunk. Without chosen layers this is
    the shared network itself and every task gets the same tensor; with all layers chosen it is one
    independent network per task.

    **Statistics of shared norms.** In training mode a shared batch norm behind the split normalises
    each task's features by their own mean and variance, but keeps one set of running statistics,
    updated once per task and batch: a mixture in which the last task weighs most, and with which in
    evaluation mode no task is normalised as it was in training. So it is in the published method.
    With ``own_statistics=True`` weight and bias stay shared and the running statistics are each
    task's own. Norms in front of the split see each batch once and need neither.

    Parameters and buffers are named ``shared.<name in the trunk>`` and
    ``own.<task>.<name in the trunk>``, each once.

    Attributes:
        layers: names of the task-specific layers, in the order of the trunk.
        tasks: names of the tasks.
        shares_prefix: whether what comes before the first task-specific layer is computed once.
        shared: the shared layers, under their names in the trunk.
        own: for every task its own layers, under their names in the trunk.

    Example:
        >>> network = SplitTrunk(nn.Sequential(nn.Linear(4, 8), nn.Linear(8, 2)), ["1"], ["a", "b"])
        >>> network.trunk_of("a")[0] is network.trunk_of("b")[0]
        True
        >>> sorted(network.state_dict())[:3]
        ['own.a.1.bias', 'own.a.1.weight', 'own.b.1.bias']
    """

    def __init__(
        self,
        trunk: nn.Module,
        layers: Iterable[str],
        tasks: Sequence[str],
        *,
        share_prefix: bool = True,
        own_statistics: bool = False,
        example: Any = None,
    ) -> None:
        super().__init__()
        self.tasks = _checked_tasks(tasks)
        self.layers = check_layers(trunk, layers)
        whole = copy.deepcopy(trunk)
        graph, task_specific = None, set(self.layers)
        call = default_call(trunk) if example is None else call_of(*as_call(example))
        if self.layers and share_prefix:
            graph, reason = trace(whole, call)
            if graph is not None:
                apart = norms_behind(whole, graph, task_specific) if own_statistics else set()
                reason = self._not_exact(whole, graph, task_specific | apart, example)
                graph = None if reason else graph
            warn_whole(whole, reason, _CONSEQUENCE, 3)
        self.shares_prefix = graph is not None or not self.layers
        if self.layers and own_statistics:
            task_specific |= norms_behind(whole, graph, task_specific)
        self._views = {
            task: copy_with_own(whole, set(self.layers), task_specific) for task in self.tasks
        }
        self.shared, self.own = shared_and_task_modules(
            whole, self._views, set(self.layers), task_specific
        )
        self.training = trunk.training
        self._apart = task_specific
        self._programs: dict[Call, Programs | None] = {}
        if graph is not None:
            self._programs[call] = split_at_first_task_layer(graph, self._views, task_specific)

    def forward(self, *inputs: Any, **options: Any) -> dict[str, Any]:
        """Compute every task's features.

        Args:
            *inputs: such as images ``(batch, ...)``, as the trunk takes them.
            **options: as the trunk takes them.

        Returns:
            Task -> what the trunk returns.
        """
        if not self.layers:
            return dict.fromkeys(self.tasks, self.shared(*inputs, **options))
        programs = self._programs_of(call_of(inputs, options)) if self.shares_prefix else None
        if programs is None:
            # A trunk may work in place on its input: each task gets one of its own.
            given = [tree_map_only(Tensor, Tensor.clone, (inputs, options)) for _ in self.tasks]
            return {
                task: view(*inputs, **options)
                for (task, view), (inputs, options) in zip(self._views.items(), given, strict=True)
            }
        values = programs.prefix(*inputs, *options.values())
        return {task: tail(*programs.for_one_task(values)) for task, tail in programs.tails.items()}

    def trunk_of(self, task: str) -> nn.Module:
        """The whole trunk of one task, an object of the class of the trunk that was split.

        It is a view: its layers are those of this object, not copies.

        Raises:
            ValueError: the task is unknown.
        """
        self._check(task)
        return self._views[task]

    def shared_layers(self, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
        """The layers that are still shared, under the names that :func:`layers_of` gives them."""
        everything = layers_of(self._views[self.tasks[0]], batch_norm)
        return {name: own for name, own in everything.items() if name not in self.layers}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that all tasks use, frozen ones included, each once."""
        return list(self.shared.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Parameters of one task alone, frozen ones included, each once.

        Raises:
            ValueError: the task is unknown.
        """
        self._check(task)
        return list(self.own.get_submodule(task).parameters())

    def train(self, mode: bool = True) -> Self:
        """Set training mode, also in the blocks that hold both shared and own layers."""
        super().train(mode)
        for view in self._views.values():
            view.train(mode)
        return self

    def _check(self, task: str) -> None:
        if task not in self.tasks:
            raise ValueError(f"task must be one of {list(self.tasks)}. Found task={task!r}.")

    def __getstate__(self) -> dict[str, Any]:
        """All but the programs, which are derived and hold layers that are listed already."""
        return {key: value for key, value in self.__dict__.items() if key != "_programs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._programs = {}

    def _programs_of(self, call: Call) -> Programs | None:
        """What is computed once and what per task, of a call that may be the first of its kind."""
        if call not in self._programs:
            some, programs = self._views[self.tasks[0]], None
            graph, reason = trace(some, call)
            if graph is not None:
                reason = self._not_exact(some, graph, self._apart, None)
                if not reason:
                    programs = split_at_first_task_layer(graph, self._views, self._apart)
            warn_whole(some, reason, _CONSEQUENCE, 3)
            self._programs[call] = programs
        return self._programs[call]

    def _not_exact(self, whole: nn.Module, graph: fx.Graph, apart: set[str], example: Any) -> str:
        """Why the tasks must compute the whole trunk; empty if they need not."""
        reason = writes_through_views(graph, whole, apart)
        if reason or example is None:
            return reason
        whole = copy.deepcopy(whole)
        views = {task: copy_with_own(whole, set(self.layers), apart) for task in self.tasks[:2]}
        programs = split_at_first_task_layer(graph, views, apart)
        tails = [
            lambda values, tail=tail: tail(*programs.for_one_task(values))
            for tail in programs.tails.values()
        ]
        return differing(list(views.values()), programs.prefix, tails, example)


def _checked_tasks(tasks: Collection[str]) -> tuple[str, ...]:
    names = (tasks,) if isinstance(tasks, str) else tuple(tasks)
    if isinstance(tasks, str) or not names:
        raise ValueError(f"tasks must be a list of at least one name. Found tasks={tasks!r}.")
    for i, name in enumerate(names):
        if not isinstance(name, str) or not name or "." in name or hasattr(nn.Module(), name):
            raise ValueError(
                "tasks must have names without dots that nn.Module does not use itself. "
                f"Found {name!r}."
            )
        if name in names[:i]:
            raise ValueError(f"tasks must have different names. Found {name!r} twice.")
    return names
