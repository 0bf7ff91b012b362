"""Cutting the backward graph into segments that the tasks pass one after the other.

So that of forty tasks only the gradients of one segment are held at one time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ktlib.mtl.gradients import matrix_dtype


@dataclass(frozen=True)
class GraphSegment:
    """A part of the backward graph.

    Attributes:
        parameters: those whose gradients are complete once the segment has been passed.
        exit: where the gradient flows into the next segment; None at the last one.
    """

    parameters: tuple[nn.Parameter, ...]
    exit: GradientEdge | None


def segment_backward_graph(
    losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]
) -> list[GraphSegment]:
    """Cut the backward graph so that the gradients held at one time are fewest.

    A cut is possible at a node that lies on every path from a loss to the parameters behind it: a
    dominator. Cuts further down leave more parameters in one segment and, in most networks, larger
    tensors to keep: the best choice is found over all of them. No cut is made at a tensor with a
    hook that changes the gradient: it would run at the end of one segment and again in the next;
    and none in a graph with backward hooks of modules, which keep one gradient until they fire.
    """
    hooked: set[Node] = set()
    while True:
        segments = _segments(*_dominators(losses, parameters, hooked), parameters)
        found = {s.exit.node for s in segments if s.exit is not None and _has_hook(s.exit)}
        if not found:
            return segments
        hooked |= found


def _segments(
    chain: Sequence[Node], place: Mapping[nn.Parameter, int], parameters: Sequence[nn.Parameter]
) -> list[GraphSegment]:
    held = [0] * (len(chain) + 1)  # bytes of the parameters behind each node, before the next
    element = matrix_dtype(parameters).itemsize
    for parameter in parameters:
        held[place.get(parameter, 0)] += parameter.numel() * element
    upto = [0, *itertools.accumulate(held)]
    flows = [0, *(_bytes(node) for node in chain)]
    # Among nodes with the same parameters behind them, only the smallest tensor is worth a cut.
    candidates, best = [0], None
    for index in range(1, len(flows)):
        if best is None or flows[index] < flows[best]:
            best = index
        if held[index]:
            candidates.append(best)
            best = None
    ends = [*candidates[1:], len(flows)]
    count = len(candidates)

    def held_at_once(first: int, stop: int) -> int:
        """Bytes per task in the segment between two candidates, both flows included."""
        inside = upto[ends[stop - 1]] - upto[candidates[first]]
        outgoing = flows[candidates[stop]] if stop < count else 0
        return max(flows[candidates[first]], inside + outgoing)

    # From the end: the smallest peak that is possible, then the fewest cuts that reach it.
    peak = [0] * (count + 1)
    for k in reversed(range(count)):
        peak[k] = min(max(held_at_once(k, stop), peak[stop]) for stop in range(k + 1, count + 1))
    plans: dict[int, tuple[int, ...]] = {count: ()}
    for k in reversed(range(count)):
        reached = [stop for stop in plans if stop > k and held_at_once(k, stop) <= peak[0]]
        if reached:
            plans[k] = (candidates[k], *min((plans[stop] for stop in reached), key=len))
    starts = plans[0]
    segments = []
    for start, stop in zip(starts, (*starts[1:], len(flows)), strict=True):
        way_out = GradientEdge(chain[stop - 1], 0) if stop < len(flows) else None
        passed = tuple(p for p in parameters if start <= place.get(p, 0) < stop)
        segments.append(GraphSegment(passed, way_out))
    return segments


def _dominators(
    losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter], without: Collection[Node]
) -> tuple[list[Node], dict[nn.Parameter, int]]:
    """The longest chain of nodes at which the graph can be cut, from the losses down.

    Returns:
        The nodes, and for each parameter that the losses reach, how many of them lie on every path
        to it.
    """
    import networkx as nx  # type: ignore[import-untyped]  # a dependency of torch, slow to import

    start = object()  # stands above all losses
    graph = nx.DiGraph()
    pending = [get_gradient_edge(loss).node for loss in losses.values()]
    graph.add_edges_from((start, root) for root in pending)
    seen = set(pending)
    while pending:
        node = pending.pop()
        for child, _ in node.next_functions:
            if child is not None:
                graph.add_edge(node, child)
                if child not in seen:
                    seen.add(child)
                    pending.append(child)
    dominator = nx.immediate_dominators(graph, start)
    # AccumulateGrad nodes, the leaves, name the parameter whose gradient they complete.
    leaf_of = {id(getattr(node, "variable", None)): node for node in seen}
    paths: dict[nn.Parameter, list[Node]] = {}
    for parameter in parameters:
        if id(parameter) in leaf_of:
            path = [dominator[leaf_of[id(parameter)]]]
            while path[-1] is not start:
                path.append(dominator[path[-1]])
            paths[parameter] = path[-2::-1]
    longest = max(paths.values(), key=len, default=[])
    # Where a node hands over several tensors, the gradient of one of them is not all there is.
    single = [node for node in longest if len(node._input_metadata) == 1]  # noqa: SLF001
    stateful = any(node.name() == "BackwardHookFunctionBackward" for node in seen)
    chain = [node for node in single if node not in without and not stateful]
    kept = set(chain)
    return chain, {p: sum(node in kept for node in path) for p, path in paths.items()}


def _bytes(node: Node) -> int:
    """Size of the gradient that flows into a node."""
    (described,) = node._input_metadata  # noqa: SLF001 - no public way to ask for the shape
    return int(described.dtype.itemsize) * math.prod(int(length) for length in described.shape)


def _has_hook(edge: GradientEdge) -> bool:
    """Whether a gradient that flows into a node is not the one that is found there.

    Hooks that only look see one gradient of zeros here.
    """
    (described,) = edge.node._input_metadata  # noqa: SLF001
    zero = torch.zeros((), dtype=described.dtype, device=described.device).expand(described.shape)
    try:
        (found,) = torch.autograd.grad([edge], [edge], [zero], retain_graph=True)
    except RuntimeError:  # such as a hook that works in place
        return True
    return found is not zero
