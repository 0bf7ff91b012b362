"""Make chosen layers of any network task-specific; the others stay shared.

The step "Recon" of Shi et al. (ICLR 2023): the layers in which the gradients of the tasks conflict
most get a copy per task. Nothing in the network is re-written for it; the part of the network in
front of the first task-specific layer is computed once for all tasks.
"""

from __future__ import annotations

import copy
import operator
import threading
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from ktlib.mtl.layers import check_layers, layers_of

# Tracing replaces methods of nn.Module for its length: two at once would trace each other.
_TRACING = threading.Lock()

_WITH_STATISTICS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip

# Functions that leave their arguments alone and whose result is a tensor of its own.
_READERS: set[Any] = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul,
    torch.add, torch.sub, torch.mul, torch.div, torch.matmul, torch.cat, torch.stack, getattr,
}  # fmt: skip

# `x += y` would be traced as `x = x + y`, which differs where x has a second name.
_WRITERS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")


def split(
    trunk: nn.Module,
    layers: Iterable[str],
    tasks: Sequence[str],
    *,
    share_prefix: bool = True,
    own_statistics: bool = False,
) -> SplitTrunk:
    """Give every task a trunk of its own, in which only ``layers`` are its own.

    The part in front of the first of ``layers`` is computed once, skip connections included, if
    :mod:`torch.fx` can trace the trunk. Otherwise every task computes its whole trunk, with a
    warning: results are the same, without the saving. Modules without children are never looked
    into; of the others, ``forward`` is read once, with the attributes that it has now.

    Args:
        trunk: images ``(batch, ...)`` -> features, any network. It is copied, not changed.
        layers: names as in :func:`layers_of`, with or without batch norms among them.
        tasks: names of the tasks.
        share_prefix: False computes the whole trunk for every task, without tracing. For a trunk
            whose ``forward`` depends on more than its input, such as numbers of Python's
            ``random`` or an attribute that changes during training.
        own_statistics: whether every task keeps running statistics of its own in the shared norms
            behind the split; see :class:`SplitTrunk`.

    Raises:
        ValueError: a layer is unknown or has two names (see :func:`layers_of`), or a task has no
            name, a name with a dot, one that another task has, or one that ``nn.Module`` uses.
    """
    return SplitTrunk(
        trunk, layers, tasks, share_prefix=share_prefix, own_statistics=own_statistics
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
    """

    def __init__(
        self,
        trunk: nn.Module,
        layers: Iterable[str],
        tasks: Sequence[str],
        *,
        share_prefix: bool = True,
        own_statistics: bool = False,
    ) -> None:
        super().__init__()
        self.tasks = _checked_tasks(tasks)
        self.layers = check_layers(trunk, layers)
        whole = copy.deepcopy(trunk)
        graph = _trace(whole) if self.layers and share_prefix else None
        self.shares_prefix = graph is not None or not self.layers
        apart = set(self.layers)
        if self.layers and own_statistics:
            apart |= _norms_behind(whole, graph, apart)
        self._views = {task: _copy_with_own(whole, set(self.layers), apart) for task in self.tasks}
        self.shared, self.own = _trees(whole, self._views, set(self.layers), apart)
        self.training = trunk.training
        self._programs = self._cut(graph)

    def forward(self, images: Tensor) -> dict[str, Any]:
        """Compute every task's features.

        Args:
            images: ``(batch, ...)``, as the trunk takes them.

        Returns:
            Task -> what the trunk returns.
        """
        if not self.layers:
            return dict.fromkeys(self.tasks, self.shared(images))
        if self._programs is None:
            # A trunk may work in place on its input: each task gets one of its own.
            return {task: view(images.clone()) for task, view in self._views.items()}
        values = self._programs.prefix(images)
        return {
            task: tail(*self._programs.for_one_task(values))
            for task, tail in self._programs.tails.items()
        }

    def trunk_of(self, task: str) -> nn.Module:
        """The whole trunk of one task, an object of the class of the trunk that was split.

        It is a view: its layers are those of this object, not copies.

        Raises:
            ValueError: there is no such task.
        """
        self._check(task)
        return self._views[task]

    def shared_layers(self, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
        """The layers that are still shared, as :func:`layers_of` gives them."""
        everything = layers_of(self._views[self.tasks[0]], batch_norm)
        return {name: own for name, own in everything.items() if name not in self.layers}

    def shared_parameters(self) -> list[nn.Parameter]:
        """Parameters that all tasks use, frozen ones included, each once."""
        return list(self.shared.parameters())

    def task_parameters(self, task: str) -> list[nn.Parameter]:
        """Parameters of one task alone, frozen ones included, each once.

        Raises:
            ValueError: there is no such task.
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

    def _cut(self, graph: fx.Graph | None) -> _Programs | None:
        """What is computed once and what per task; None if everything is computed per task."""
        if graph is None:
            return None
        nodes = list(graph.nodes)
        first = _first_of(nodes, set(self.layers))
        before, after = nodes[:first], dict.fromkeys(nodes[first:])
        # Values from before the cut that are used behind it: with skip connections several.
        crossing = [node for node in before if any(user in after for user in node.users)]
        prefix, tail = fx.Graph(), fx.Graph()
        copied: dict[fx.Node, fx.Node] = {}
        for node in before:
            copied[node] = prefix.node_copy(node, copied.__getitem__)
        prefix.output(tuple(copied[node] for node in crossing))
        copied = {node: tail.placeholder(f"value_{i}") for i, node in enumerate(crossing)}
        for node in after:
            copied[node] = tail.node_copy(node, copied.__getitem__)
        some = self._views[self.tasks[0]]
        return _Programs(
            _program(some, prefix),
            {task: _program(view, tail) for task, view in self._views.items()},
            [
                not all(_only_reads(some, user, node) for user in node.users if user in after)
                for node in crossing
            ],
        )

    def __getstate__(self) -> dict[str, Any]:
        """All but the programs, which are derived and hold layers that are listed already."""
        return {key: value for key, value in self.__dict__.items() if key != "_programs"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        traced = self.layers and self.shares_prefix
        self._programs = self._cut(_trace(self._views[self.tasks[0]]) if traced else None)


def parameter_megabytes(module: nn.Module) -> float:
    """Size of all parameters in MB (2^20 bytes) of float32: ``#P`` in the tables of the thesis."""
    return sum(parameter.numel() for parameter in module.parameters()) * 4 / 2**20


def forward_flops(module: nn.Module, images: Tensor) -> int:
    """Floating-point operations of one forward pass in evaluation mode, for the whole batch.

    Counted from shapes by :mod:`torch.utils.flop_counter`: matrix products and convolutions, a
    multiplication and an addition each; all else, such as batch norms, counts as nothing. The
    module is copied for it: its modes and statistics stay as they are.
    """
    # Gradients stay on: without them some modules of torch take fused ways that are not counted.
    probe = copy.deepcopy(module).eval()
    with FlopCounterMode(display=False) as counter:
        probe(images)
    return int(counter.get_total_flops())


@dataclass(frozen=True)
class _Programs:
    """The trunk cut in two: computed once, and computed by each task."""

    prefix: fx.GraphModule
    tails: dict[str, fx.GraphModule]
    may_be_written: list[bool]  # by value that the prefix hands on

    def for_one_task(self, values: Sequence[Any]) -> list[Any]:
        """The prefix's values; a copy of those that the first task could spoil for the second."""
        return [
            tree_map_only(Tensor, torch.clone, value) if written else value
            for value, written in zip(values, self.may_be_written, strict=True)
        ]


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is."""


def _recorded(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy(
        "call_function", function, (self, other), {}
    )


for _name in _WRITERS:
    setattr(_Proxy, f"__{_name}__", _recorded(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Looks into blocks only: a module without children is one step, whatever it does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return _is_single(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)


def _trace(trunk: nn.Module) -> fx.Graph | None:
    """The steps of a trunk's forward pass; None, with a warning, if they cannot be told."""
    # A copy, as forward may store what it computes: here these are no tensors.
    probe = copy.deepcopy(trunk)
    try:
        with _TRACING, torch.random.fork_rng(devices=[]):
            graph, other = (_Tracer().trace(probe.train(mode)) for mode in (True, False))
        reason = _not_exact(probe, graph, other)
    except Exception as error:  # noqa: BLE001 - fx raises many kinds, from TraceError to TypeError
        reason = str(error)
    if not reason:
        return graph
    warnings.warn(
        f"{type(trunk).__name__} cannot be traced ({reason}); every task computes its whole "
        "trunk: exact, but slower.",
        stacklevel=4,
    )
    return None


def _not_exact(trunk: nn.Module, train: fx.Graph, evaluation: fx.Graph) -> str:
    """Why the traced steps would not be what the trunk computes; empty if they are."""
    steps = [
        [(node.op, node.target, repr(node.args), repr(node.kwargs)) for node in graph.nodes]
        for graph in (train, evaluation)
    ]
    if steps[0] != steps[1]:
        return "a block works differently in training and evaluation mode, or at random"
    known = {name for name, _ in trunk.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in trunk.named_buffers(remove_duplicate=False)}
    for node in train.nodes:
        if node.op == "get_attr" and node.target not in known:
            return "a block makes a tensor in its forward pass or keeps one that is no buffer"
    return ""


def _is_single(module: nn.Module) -> bool:
    return next(module.children(), None) is None


def _holds(step: str, layer: str) -> bool:
    """Whether the module named ``step`` is the layer or has it inside."""
    return step in ("", layer) or layer.startswith(f"{step}.")


def _first_of(nodes: Sequence[fx.Node], layers: set[str]) -> int:
    """Position of the first step that uses a layer's parameters; that of the output if none does.

    Parameters are used by a module that is called or, in a block that owns some, read by name.
    """
    for i, node in enumerate(nodes):
        target = str(node.target)
        if node.op == "call_module" and any(_holds(target, layer) for layer in layers):
            return i
        if node.op == "get_attr" and target.rpartition(".")[0] in layers:
            return i
    return len(nodes) - 1


def _norms_behind(whole: nn.Module, graph: fx.Graph | None, layers: set[str]) -> set[str]:
    """Names of the norms with running statistics that are not computed in front of the split."""
    before: list[str] = []
    if graph is not None:
        nodes = list(graph.nodes)
        steps = nodes[: _first_of(nodes, layers)]
        before = [str(node.target) for node in steps if node.op == "call_module"]
    return {
        name
        for name, part in whole.named_modules()
        if isinstance(part, _WITH_STATISTICS)
        and part.running_mean is not None
        and not any(_holds(step, name) for step in before)
    }


def _copy_with_own(whole: nn.Module, layers: set[str], apart: set[str]) -> nn.Module:
    """A copy of the trunk with copies of ``layers`` and the other layers themselves.

    Args:
        whole: the trunk.
        layers: names of modules whose parameters are copied.
        apart: names of modules whose buffers are copied.
    """
    memo: dict[int, Any] = {}
    for name, part in whole.named_modules():
        if not any(_holds(name, other) for other in apart):
            memo[id(part)] = part
        if name not in layers:
            memo.update((id(tensor), tensor) for tensor in part.parameters(recurse=False))
        if name not in apart:
            memo.update((id(tensor), tensor) for tensor in part.buffers(recurse=False))
    return copy.deepcopy(whole, memo)


def _trees(
    whole: nn.Module, views: dict[str, nn.Module], layers: set[str], apart: set[str]
) -> tuple[nn.Module, nn.Module]:
    """The shared layers, and each task's own, as modules that list each tensor once.

    Where a view has a block of its own, the block and the tree hold the same dictionary of
    tensors: a tensor that is exchanged in one, as moving to a device does, is exchanged in both.
    """
    own = nn.Module()
    for task in views:
        own.add_module(task, nn.Module())
    if not apart:
        return whole, own
    shared = nn.Module()
    for name, part in whole.named_modules():
        if not any(_holds(name, other) for other in apart):
            parent, _, last = name.rpartition(".")
            if any(_holds(parent, other) for other in apart):
                _node(shared, parent).add_module(last, part)
            continue
        for task, view in views.items():
            mine, tree = view.get_submodule(name), own.get_submodule(task)
            if name in layers and name and _is_single(part):
                parent, _, last = name.rpartition(".")
                _node(tree, parent).add_module(last, mine)
                continue
            for kind, kept in (("_parameters", name in layers), ("_buffers", name in apart)):
                if not part.__dict__[kind]:
                    continue
                # A shared one starts as the trunk's, one of its own as the copy in the view.
                node, start = _node(tree if kept else shared, name), mine if kept else part
                if not node.__dict__[kind]:
                    node.__dict__[kind] = start.__dict__[kind]
                    unsaved = "_non_persistent_buffers_set"
                    node.__dict__[unsaved] = node.__dict__[unsaved] | start.__dict__[unsaved]
                mine.__dict__[kind] = node.__dict__[kind]
    return shared, own


def _node(tree: nn.Module, name: str) -> nn.Module:
    """The module of that name; empty ones are made on the way."""
    for part in filter(None, name.split(".")):
        if part not in dict(tree.named_children()):
            tree.add_module(part, nn.Module())
        tree = tree.get_submodule(part)
    return tree


def _program(view: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The steps, with the modules and parameters of a view."""
    program = fx.GraphModule(view, graph)
    for node in graph.nodes:
        if node.op == "get_attr":
            block = str(node.target).rpartition(".")[0]
            mine, theirs = program.get_submodule(block), view.get_submodule(block)
            for kind in ("_parameters", "_buffers"):
                mine.__dict__[kind] = theirs.__dict__[kind]
    return program


def _only_reads(view: nn.Module, user: fx.Node, value: fx.Node) -> bool:
    """Whether a step surely leaves a value alone and returns no other view of it."""
    if user.op == "call_module":
        module = view.get_submodule(str(user.target))
        known = type(module).__module__.startswith("torch.nn.modules.")
        return known and next(module.parameters(recurse=False), None) is not None
    if user.op != "call_function":
        return False
    if getattr(user.target, "__name__", "") in _WRITERS:
        return user.args[0] is not value
    return user.target in _READERS and "out" not in user.kwargs


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
