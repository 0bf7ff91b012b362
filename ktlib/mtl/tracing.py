"""The steps of a network's forward pass, cut in two where its tasks part."""

from __future__ import annotations

import copy
import operator
import threading
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from ktlib.mtl.sharing import is_inside, is_leaf

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


@dataclass(frozen=True)
class Programs:
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


def trace(trunk: nn.Module) -> fx.Graph | None:
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


def split_at_first_task_layer(
    graph: fx.Graph, views: Mapping[str, nn.Module], task_specific: Collection[str]
) -> Programs:
    """What is computed once and what per task.

    Args:
        graph: of :func:`trace`.
        views: task -> its whole trunk.
        task_specific: names of the modules of which each task has its own; the trunk is split at
            the first use of one.
    """
    nodes = list(graph.nodes)
    first = first_of(nodes, task_specific)
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
    some = next(iter(views.values()))
    return Programs(
        _program(some, prefix),
        {task: _program(view, tail) for task, view in views.items()},
        [
            not all(_only_reads(some, user, node) for user in node.users if user in after)
            for node in crossing
        ],
    )


def norms_behind(whole: nn.Module, graph: fx.Graph | None, layers: Collection[str]) -> set[str]:
    """Names of the norms with running statistics that the tasks compute for themselves.

    A norm that is called both in front of the split and behind it is among them: the tasks part at
    its first call.
    """
    norms = {
        name
        for name, part in whole.named_modules()
        if isinstance(part, _WITH_STATISTICS) and part.running_mean is not None
    }
    if graph is None:
        return norms
    nodes = list(graph.nodes)
    task_specific: set[str] = set()
    while True:
        first = first_of(nodes, {*layers, *task_specific})
        before, after = _called(nodes[:first]), _called(nodes[first:])
        found = {
            name
            for name in norms
            if any(is_inside(name, step) for step in after)
            or not any(is_inside(name, step) for step in before)
        }
        if found == task_specific:
            return found
        task_specific = found


def first_of(nodes: Sequence[fx.Node], layers: Collection[str]) -> int:
    """Position of the first step that uses a layer's parameters; that of the output if none does.

    Parameters are used by a module that is called or, in a block that owns some, read by name.
    """
    for i, node in enumerate(nodes):
        target = str(node.target)
        if node.op == "call_module" and any(is_inside(layer, target) for layer in layers):
            return i
        if node.op == "get_attr" and target.rpartition(".")[0] in layers:
            return i
    return len(nodes) - 1


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


def _called(nodes: Sequence[fx.Node]) -> list[str]:
    """Names of the modules that these steps call."""
    return [str(node.target) for node in nodes if node.op == "call_module"]


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
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)
