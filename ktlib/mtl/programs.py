"""The forward pass of a trunk, split where its tasks part."""

from __future__ import annotations

import operator
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from ktlib.mtl.sharing import is_inside
from ktlib.tracing import WRITERS, program, split_graph

_WITH_STATISTICS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip

# Functions that leave their arguments alone and whose result is a tensor of its own.
_READERS: set[Any] = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul,
    torch.add, torch.sub, torch.mul, torch.div, torch.matmul, torch.cat, torch.stack, getattr,
}  # fmt: skip


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
    prefix, tail, crossing = split_graph(graph, first)
    after, some = set(nodes[first:]), next(iter(views.values()))
    return Programs(
        program(some, prefix),
        {task: program(view, tail) for task, view in views.items()},
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


def _called(nodes: Sequence[fx.Node]) -> list[str]:
    """Names of the modules that these steps call."""
    return [str(node.target) for node in nodes if node.op == "call_module"]


def _only_reads(view: nn.Module, user: fx.Node, value: fx.Node) -> bool:
    """Whether a step surely leaves a value alone and returns no other view of it."""
    if user.op == "call_module":
        module = view.get_submodule(str(user.target))
        known = type(module).__module__.startswith("torch.nn.modules.")
        return known and next(module.parameters(recurse=False), None) is not None
    if user.op != "call_function":
        return False
    if getattr(user.target, "__name__", "") in WRITERS:
        return user.args[0] is not value
    return user.target in _READERS and "out" not in user.kwargs
