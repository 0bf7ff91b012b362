"""Cutting the backward graph into stretches that the tasks pass one after the other.

So that of forty tasks only the gradients on one stretch are held at one time.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, Node, get_gradient_edge

from ktlib.mtl.gradients import matrix_dtype


@dataclass(frozen=True)
class Stretch:
    """A part of the backward graph.

    Attributes:
        parameters: those whose gradients are complete once it has been passed.
        exit: what the gradient flows through into the next stretch; nothing behind the last.
    """

    parameters: tuple[nn.Parameter, ...]
    exit: GradientEdge | None


def cut(losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]) -> list[Stretch]:
    """Cut the backward graph so that the gradients held at one time are fewest.

    A cut is possible at a node that lies on every path from a loss to the parameters behind it: a
    dominator. Cuts further down leave more parameters in one stretch and, in most networks, larger
    tensors to keep: the best choice is found over all of them.
    """
    chain, place = _dominators(losses, parameters)
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
        """Bytes per task in the stretch between two candidates, both flows included."""
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
    stretches = []
    for start, stop in zip(starts, (*starts[1:], len(flows)), strict=True):
        way_out = GradientEdge(chain[stop - 1], 0) if stop < len(flows) else None
        passed = tuple(p for p in parameters if start <= place.get(p, 0) < stop)
        stretches.append(Stretch(passed, way_out))
    return stretches


def _dominators(
    losses: Mapping[str, Tensor], parameters: Sequence[nn.Parameter]
) -> tuple[list[Node], dict[nn.Parameter, int]]:
    """The longest chain of nodes at which the graph can be cut, from the losses down.

    Immediate dominators after Cooper, Harvey and Kennedy, "A simple, fast dominance algorithm",
    2001; in a graph without cycles one pass is enough.

    Returns:
        The nodes, and for each parameter that the losses reach, how many of them lie on every path
        to it.
    """
    wanted = {id(parameter): parameter for parameter in parameters}
    roots = [get_gradient_edge(loss).node for loss in losses.values()]
    order = _topological(roots)
    number = {node: index for index, node in enumerate(order)}
    heads = set(roots)
    above: list[list[int]] = [[] for _ in order]
    for node in order:
        for child, _ in node.next_functions:
            if child is not None:
                above[number[child]].append(number[node])
    start = -1  # stands above all losses
    dominator: list[int] = []
    for index, node in enumerate(order):
        common = start if node in heads else None
        for parent in above[index]:
            common = parent if common is None else _meet(common, parent, dominator)
        dominator.append(start if common is None else common)

    def path(index: int) -> list[int]:
        nodes = []
        while index != start:
            index = dominator[index]
            nodes.append(index)
        return nodes[-2::-1]

    leaves = {
        wanted[id(node.variable)]: path(index)  # type: ignore[attr-defined]
        for index, node in enumerate(order)
        if id(getattr(node, "variable", None)) in wanted
    }
    longest = max(leaves.values(), key=len, default=[])
    # Where a node hands over several tensors, the gradient of one of them is not all there is.
    chain = [index for index in longest if len(order[index]._input_metadata) == 1]  # noqa: SLF001
    kept = set(chain)
    place = {
        parameter: sum(index in kept for index in nodes) for parameter, nodes in leaves.items()
    }
    return [order[index] for index in chain], place


def _meet(one: int, other: int, dominator: Sequence[int]) -> int:
    """The lowest node above both in the tree of dominators."""
    while one != other:
        if one > other:
            one = dominator[one]
        else:
            other = dominator[other]
    return one


def _topological(roots: Iterable[Node]) -> list[Node]:
    """All nodes below the roots, every one in front of those that it hands gradients to."""
    finished: list[Node] = []
    seen: set[Node] = set()
    pending: list[tuple[Node, bool]] = [(root, False) for root in roots]
    while pending:
        node, done = pending.pop()
        if done:
            finished.append(node)
        elif node not in seen:
            seen.add(node)
            pending.append((node, True))
            pending.extend((child, False) for child, _ in node.next_functions if child is not None)
    return finished[::-1]


def _bytes(node: Node) -> int:
    """Size of the gradient that flows into a node."""
    (described,) = node._input_metadata  # noqa: SLF001 - no public way to ask for the shape
    size = int(described.dtype.itemsize)
    for length in described.shape:
        size *= int(length)
    return size
