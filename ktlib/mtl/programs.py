"""The forward pass of a trunk, split where its tasks part."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map_only

from ktlib.tracing import (
    first_of,
    is_inside,
    may_be_written,
    only_reads,
    origins,
    program,
    split_graph,
)

_WITH_STATISTICS = (
    nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm,
    nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d,
)  # fmt: skip


@dataclass(frozen=True)
class Programs:
    """The trunk cut in two: computed once, and computed by each task."""

    prefix: fx.GraphModule
    tails: dict[str, fx.GraphModule]
    may_be_written: list[bool]  # by value that the prefix hands on

    def for_one_task(self, values: Sequence[Any]) -> list[Any]:
        """The prefix's values; a copy of those that the first task could spoil for the second."""
        return [
            tree_map_only(Tensor, Tensor.clone, value) if written else value
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
    first = first_of(list(graph.nodes), task_specific)
    prefix, tail, crossing = split_graph(graph, first)
    after, some = set(list(graph.nodes)[first:]), next(iter(views.values()))
    return Programs(
        program(some, prefix),
        {task: program(view, tail) for task, view in views.items()},
        [
            not all(only_reads(some, user, node) for user in node.users if user in after)
            for node in crossing
        ],
    )


def writes_through_views(graph: fx.Graph, whole: nn.Module, task_specific: Collection[str]) -> str:
    """Why copies of the values handed on would not do; empty if they do."""
    nodes = list(graph.nodes)
    first = first_of(nodes, task_specific)
    crossing, of = split_graph(graph, first)[2], origins(whole, nodes[:first])
    for node in crossing:
        viewed = any(of[node] & of[other] for other in crossing if other is not node)
        if viewed and may_be_written(whole, node, nodes[first:]):
            return f"{node.name!r} may be written to, and another value be a view of it"
    return ""


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


def _called(nodes: Sequence[fx.Node]) -> list[str]:
    """Names of the modules that these steps call."""
    return [str(node.target) for node in nodes if node.op == "call_module"]
