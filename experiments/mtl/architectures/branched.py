"""A trunk that branches: tasks share its first blocks and part, some sooner than others."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TypeAlias

from torch import Tensor, nn

from experiments.mtl.network import MultiTaskModule, prefixed
from ktlib.mtl.layers import check_layers, layers_of
from ktlib.mtl.split import SplitTrunk, split

# Block of the trunk -> the groups of tasks that share it.
Tree: TypeAlias = Mapping[str, Sequence[Sequence[str]]]


class BranchedNetwork(MultiTaskModule):
    """The network of a tree: every group of tasks has a copy of a block for itself.

    For two tasks there is one question, at which block they part, and the answer is also a split::

        tree = {"layer3": [["left", "right"]], "layer4": [["left"], ["right"]]}
        BranchedNetwork(trunk, tree, heads)

    has the values and the gradients of the split of ``trunk`` at all layers from ``layer4`` on.

    Args:
        trunk: an ``nn.Sequential``, images -> features. It is copied: all branches start equal.
        tree: name of a block -> groups of tasks, in the order of the trunk. A block runs from its
            name up to the next one (see :func:`split_into_blocks`); all tasks share what precedes
            the first.
        heads: task -> module.
        layers: names of layers of the trunk that every task has for itself, wherever in the tree
            they are ("BMTAS + Recon" in the thesis, table 4.4).

    Attributes:
        tree: block -> groups.
        parts: for the part in front of the first block and for each block, group -> its copy. The
            name of a group is that of its tasks, joined by ``+``.

    Raises:
        ValueError: a block or a layer is unknown, or groups are not of every task once or join
            tasks that parted before; also as :class:`~experiments.mtl.network.MultiTaskModule`.
        TypeError: the trunk is not an ``nn.Sequential``.
    """

    def __init__(
        self,
        trunk: nn.Module,
        tree: Tree,
        heads: Mapping[str, nn.Module],
        *,
        layers: Iterable[str] = (),
    ) -> None:
        super().__init__(heads)
        self.tree = _checked(tree, self.tasks)
        chosen = set(check_layers(trunk, layers))
        stem, blocks = split_into_blocks(copy.deepcopy(trunk), list(self.tree))
        self._groups = [(self.tasks,), *self.tree.values()]
        self.parts = nn.ModuleList(
            nn.ModuleDict({_name(group): _part(block, group, chosen) for group in groups})
            for groups, block in zip(self._groups, [stem, *blocks.values()], strict=True)
        )

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> the features of its branch; every branch is computed once."""
        values = dict.fromkeys(self.tasks, images)
        branches = 1
        for groups, parts in zip(self._groups, self.parts, strict=True):
            found: dict[str, Tensor] = {}
            for group in groups:
                entering = {task: values[task] for task in group}
                if len(groups) > branches:  # two groups read one tensor, maybe working in place
                    copies = {id(value): value.clone() for value in entering.values()}
                    entering = {task: copies[id(value)] for task, value in entering.items()}
                found |= _run(parts.get_submodule(_name(group)), entering)
            values, branches = found, len(groups)
        return values

    def shared_layers(self, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
        """The layers of groups of several tasks: ``<group>.<name in the trunk>``.

        A task outside of the group has the gradient 0 there, which no cosine counts.
        """
        found: dict[str, list[nn.Parameter]] = {}
        for group, part in self._all():
            if len(group) > 1:
                found |= prefixed(
                    _name(group),
                    part.shared_layers(batch_norm)
                    if isinstance(part, SplitTrunk)
                    else layers_of(part, batch_norm),
                )
        return found

    def own_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Task -> parameters of the part of its branch that no other task uses, and its head."""
        own: dict[str, list[nn.Parameter]] = {task: [] for task in self.tasks}
        for group, part in self._all():
            for task in group:
                if isinstance(part, SplitTrunk):
                    own[task] += part.task_parameters(task)
                elif len(group) == 1:
                    own[task] += part.parameters()
        return {task: [*own[task], *self.heads[task].parameters()] for task in self.tasks}

    def _all(self) -> Iterator[tuple[tuple[str, ...], nn.Module]]:
        for groups, parts in zip(self._groups, self.parts, strict=True):
            for group in groups:
                yield group, parts.get_submodule(_name(group))


def split_into_blocks(
    trunk: nn.Module, blocks: Sequence[str]
) -> tuple[nn.Sequential, dict[str, nn.Sequential]]:
    """Cut an ``nn.Sequential`` into blocks.

    Args:
        trunk: its children may be ``nn.Sequential`` themselves, as the stages of ResNet18 are.
        blocks: names of modules at which a block begins, such as ``"layer2"`` or ``"layer2.1"``, in
            the order of the trunk. A block ends where the next begins, the last with the trunk.

    Returns:
        What precedes the first block, maybe nothing; and name -> block. They hold the modules of
        the trunk under their names in the trunk.

    Raises:
        TypeError: the trunk is not an ``nn.Sequential``.
        ValueError: there is no block, one is unknown, or they are in another order.
    """
    if not _is_chain(trunk):
        raise TypeError(f"the trunk must be an nn.Sequential. Found a {type(trunk).__name__}.")
    steps = list(_steps(trunk))
    starts = []
    for block in blocks:
        inside = (name == block or name.startswith(f"{block}.") for name, _ in steps)
        start = next((i for i, found in enumerate(inside) if found), None)
        if start is None:
            raise ValueError(
                f"blocks must begin at modules of the trunk, such as {[n for n, _ in steps]}. "
                f"Found {block!r}."
            )
        starts.append(start)
    if not starts or starts != sorted(set(starts)):
        raise ValueError(
            "blocks must be at least one, in the order of the trunk, and begin at different "
            f"modules. Found {list(blocks)}."
        )
    ends = [*starts[1:], len(steps)]
    parts = zip(blocks, starts, ends, strict=True)
    return _nested(steps[: starts[0]]), {name: _nested(steps[a:b]) for name, a, b in parts}


def _checked(tree: Tree, tasks: Sequence[str]) -> dict[str, tuple[tuple[str, ...], ...]]:
    """The tree as tuples, if every block has groups of all tasks that refine those before it."""
    joined = [task for task in tasks if "+" in task]
    if joined:
        raise ValueError(f"heads must have names of tasks without a '+'. Found {joined[0]!r}.")
    found: dict[str, tuple[tuple[str, ...], ...]] = {}
    before: list[set[str]] = [set(tasks)]
    for block, groups in tree.items():
        if sorted(task for group in groups for task in group) != sorted(tasks):
            raise ValueError(
                f"the groups of block {block!r} must be of each of the tasks {list(tasks)} once. "
                f"Found {[list(group) for group in groups]}."
            )
        for group in groups:
            if not any(set(group) <= earlier for earlier in before):
                raise ValueError(
                    f"tree must not join tasks again that have parted. Found {list(group)} at "
                    f"block {block!r}."
                )
        found[block] = tuple(tuple(group) for group in groups if group)
        before = [set(group) for group in groups]
    return found


def _name(group: Sequence[str]) -> str:
    return "+".join(group)


def _part(block: nn.Sequential, group: Sequence[str], layers: set[str]) -> nn.Module:
    """A copy of a block for one group, some of its layers a task's own."""
    chosen = layers & layers_of(block).keys()
    if chosen and len(group) > 1:
        return split(block, chosen, group)
    return copy.deepcopy(block)


def _run(part: nn.Module, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the part of a group makes of the features of its tasks: once if they are the same."""
    first = next(iter(values.values()))
    if all(value is first for value in values.values()):
        made = part(first)
        return made if isinstance(part, SplitTrunk) else dict.fromkeys(values, made)
    if isinstance(part, SplitTrunk):
        return {task: part.trunk_of(task)(value) for task, value in values.items()}
    return {task: part(value) for task, value in values.items()}


def _is_chain(module: nn.Module) -> bool:
    """Whether a module does no more than call its children in turn."""
    return isinstance(module, nn.Sequential) and type(module).forward is nn.Sequential.forward


def _steps(trunk: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The modules that are called in turn, with their names."""
    for name, part in trunk.named_children():
        if _is_chain(part) and len(list(part.children())):
            yield from _steps(part, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", part


def _nested(steps: Sequence[tuple[str, nn.Module]]) -> nn.Sequential:
    """Steps as an ``nn.Sequential``, nested so that they keep their names."""
    children: OrderedDict[str, list[tuple[str, nn.Module]]] = OrderedDict()
    for name, part in steps:
        first, _, rest = name.partition(".")
        children.setdefault(first, []).append((rest, part))
    return nn.Sequential(
        OrderedDict(
            (name, inner[0][1] if inner[0][0] == "" else _nested(inner))
            for name, inner in children.items()
        )
    )
