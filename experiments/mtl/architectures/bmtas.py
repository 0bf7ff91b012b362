"""BMTAS: a search for the tree in which a multi-task network branches.

Bruggemann, Kanakis, Georgoulis and Van Gool, "Automated search for resource-efficient branched
multi-task networks", BMVC 2020; settings as in their code, https://github.com/brdav/bmtas.
"""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from experiments.mtl.architectures.branched import split_into_blocks
from experiments.mtl.network import MultiTaskModule, make_trunks, prefixed
from ktlib.mtl.cost import forward_flops
from ktlib.mtl.layers import layers_of

HOTTEST, COLDEST = 5.0, 0.1  # temperatures at which the search starts and ends
_WARM_UP = 20  # one epoch in so many trains weights alone
_MOST_TASKS = 6  # there are 203 ways to group six tasks, and T^T choices per block


class BMTAS(MultiTaskModule):
    """The supergraph of the search: T copies of every block, of which each task mixes its own.

    Task ``t`` weights the copies of block ``l`` by a Gumbel softmax of ``logits[l, t]``, drawn anew
    in every forward pass in training mode. Tasks whose largest logits point to the same copies, in
    this and all blocks before, share; :meth:`branches` is that tree, and a
    :class:`~experiments.mtl.architectures.branched.BranchedNetwork` of it is trained from scratch.

    In the released search every epoch calls :meth:`anneal`; trains ``logits`` on a fifth of the
    data (Adam, lr 0.01, weight decay 5e-5) by the losses plus a weight, 0.05 there, times the
    :meth:`resource_loss`; then the other parameters on the rest (Adam, lr 0.001, weight decay
    1e-4), with both optimisers' states dropped in between. It steps after each task and has no
    affine parameters in the last batch norm of a block; here one forward pass serves all tasks and
    blocks are as they come. That costs T^2 blocks for one.

    In evaluation mode, and in the warm-up where task ``t`` has the copies ``t``, nothing is random:
    a task uses the copies of its largest logits.

    Args:
        make_trunk: makes an ``nn.Sequential``, images -> features; called once per task, so that
            the copies of a block start from different weights.
        heads: task -> module, of 2 to 6 tasks.
        blocks: where blocks begin, as in
            :func:`~experiments.mtl.architectures.branched.split_into_blocks`. All tasks share what
            comes before the first.
        example: images that the operations of a block are counted with.
        cost: what the resource loss counts.
        generator: draws the Gumbel noise.

    Attributes:
        logits: ``(blocks, T, T)``: of task (row) for copy (column).
        temperature: of the Gumbel softmax; None in the warm-up, where the search starts.
        costs: share ``(blocks,)`` of every block in the cost of one trunk without what precedes.

    Raises:
        ValueError: the number of tasks, a block or ``cost`` is not valid; also as
            :class:`~experiments.mtl.network.MultiTaskModule`.
        TypeError: the trunk is not an ``nn.Sequential``.
    """

    costs: Tensor
    _choices: Tensor
    _grouping_of_choice: Tensor
    _common_grouping: Tensor
    _sizes: Tensor

    def __init__(
        self,
        make_trunk: Callable[[], nn.Module],
        heads: Mapping[str, nn.Module],
        *,
        blocks: Sequence[str],
        example: Tensor,
        cost: Literal["flops", "parameters"] = "flops",
        generator: torch.Generator,
    ) -> None:
        super().__init__(heads)
        tasks = len(self.tasks)
        if not 2 <= tasks <= _MOST_TASKS:
            raise ValueError(f"heads must be of 2 to {_MOST_TASKS} tasks. Found {tasks}.")
        if cost not in ("flops", "parameters"):
            raise ValueError(f"cost must be 'flops' or 'parameters'. Found cost={cost!r}.")
        copies = [split_into_blocks(trunk, blocks) for trunk in make_trunks(make_trunk, tasks)]
        self.stem = copies[0][0]
        self.blocks = tuple(blocks)
        self.copies = nn.ModuleList(
            nn.ModuleList(parts[name] for _, parts in copies) for name in self.blocks
        )
        self.logits = nn.Parameter(torch.zeros(len(self.blocks), tasks, tasks))
        self.temperature: float | None = None
        self.generator = generator
        spent = torch.tensor(_costs(self.stem, copies[0][1].values(), example, cost))
        self.register_buffer("costs", (spent / spent.sum()).float(), persistent=False)
        for name, table in _groupings(tasks).items():
            self.register_buffer(name, table, persistent=False)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> the features of its path through the supergraph."""
        values = [self.stem(images)] * len(self.tasks)
        for block, operations in enumerate(self.copies):
            values = [
                _mixed(operations, weights, value)
                for weights, value in zip(self._weights(block), values, strict=True)
            ]
        return dict(zip(self.tasks, values, strict=True))

    def anneal(self, epoch: int, epochs: int) -> None:
        """Set the temperature of one epoch: warm-up for a 20th of them, then falling linearly.

        Args:
            epoch: counted from 1.
            epochs: of the whole search. Below 20 there is no warm-up.

        Raises:
            ValueError: ``epoch`` is not one of them.
        """
        if not 1 <= epoch <= epochs:
            raise ValueError(f"epoch must lie in 1 to {epochs}. Found epoch={epoch!r}.")
        passed = epoch - 1 - epochs // _WARM_UP
        steps = max(epochs - 1 - epochs // _WARM_UP, 1)
        self.temperature = HOTTEST - passed / steps * (HOTTEST - COLDEST) if passed >= 0 else None

    def expected_branches(self) -> Tensor:
        """Expected number ``(blocks,)`` of copies that the tree has of every block.

        Exact for choices drawn from the softmax of the logits, where tasks share a block if they
        made the same choices up to it. The released code computes the same for two tasks; for
        three and more it counts some shared blocks as separate ones.
        """
        together = torch.zeros_like(self._sizes)
        together[int(self._sizes.argmin())] = 1.0
        rows = torch.arange(len(self.tasks), device=self.logits.device)
        expected = []
        for probabilities in self.logits.softmax(dim=-1):
            chosen = probabilities[rows, self._choices].prod(dim=1)
            grouped = torch.zeros_like(together).index_add(0, self._grouping_of_choice, chosen)
            pairs = torch.outer(together, grouped).flatten()
            together = torch.zeros_like(together).index_add(0, self._common_grouping, pairs)
            expected.append(together @ self._sizes)
        return torch.stack(expected)

    def resource_loss(self) -> Tensor:
        """Expected cost of the tree, in trunks: from 1, all is shared, to T, nothing is."""
        return self.costs @ self.expected_branches()

    def branches(self) -> dict[str, tuple[tuple[str, ...], ...]]:
        """The tree so far: block -> groups of tasks that share it. Equal logits choose copy 0."""
        path: dict[str, tuple[int, ...]] = dict.fromkeys(self.tasks, ())
        tree = {}
        for block, choices in zip(self.blocks, self.logits.argmax(dim=-1).tolist(), strict=True):
            groups: dict[tuple[int, ...], list[str]] = {}
            for task, choice in zip(self.tasks, choices, strict=True):
                path[task] = (*path[task], choice)
                groups.setdefault(path[task], []).append(task)
            tree[block] = tuple(tuple(group) for group in groups.values())
        return tree

    def weight_parameters(self) -> list[nn.Parameter]:
        """Everything but the logits, for the first optimiser; the second has ``[logits]``."""
        return [parameter for parameter in self.parameters() if parameter is not self.logits]

    def shared_layers(self, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
        """The layers in front of the blocks, and of every copy: ``<copy>.<name in the trunk>``.

        Without the logits, which are no layer of a network.
        """
        found = prefixed("stem", layers_of(self.stem, batch_norm))
        for operations in self.copies:
            for number, part in enumerate(operations.children()):
                found |= prefixed(f"{number}", layers_of(part, batch_norm))
        return found

    def own_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Task -> parameters of its head."""
        return {task: list(self.heads[task].parameters()) for task in self.tasks}

    def get_extra_state(self) -> dict[str, Any]:
        """The temperature and the state of the random stream, for the ``state_dict``."""
        return {"temperature": self.temperature, "generator": self.generator.get_state()}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with those of a ``state_dict``."""
        self.temperature = state["temperature"]
        self.generator.set_state(state["generator"].cpu())

    def __deepcopy__(self, memo: dict[int, Any]) -> BMTAS:
        """A copy with a random stream of its own, at the same place."""
        stream = torch.Generator(self.generator.device)
        stream.set_state(self.generator.get_state())
        memo[id(self.generator)] = stream
        twin = type(self).__new__(type(self))
        memo[id(self)] = twin
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def _weights(self, block: int) -> list[Sequence[Tensor | None]]:
        """Weight of every copy for every task; None for a copy that is not used at all."""
        tasks = len(self.tasks)
        if self.training and self.temperature is not None:
            drawn = torch.empty(tasks, tasks, device=self.generator.device)
            drawn = drawn.exponential_(generator=self.generator).add_(1e-10)
            noise = -drawn.log().to(self.logits)
            soft = ((self.logits[block] + noise) / self.temperature).softmax(dim=-1)
            return [list(row.unbind()) for row in soft]
        chosen = list(range(tasks))
        if self.temperature is not None:
            chosen = self.logits[block].argmax(dim=-1).tolist()
        one = self.logits.new_ones(())
        return [[one if i == choice else None for i in range(tasks)] for choice in chosen]


def _mixed(operations: nn.Module, weights: Sequence[Tensor | None], value: Tensor) -> Tensor:
    """The copies of a block on one value, weighted."""
    # A block may work in place on its input, which the next copy needs as it is.
    return torch.stack(
        [
            weight * operation(value.clone())
            for weight, operation in zip(weights, operations.children(), strict=True)
            if weight is not None
        ]
    ).sum(dim=0)


@torch.no_grad()
def _costs(stem: nn.Module, blocks: Iterable[nn.Module], example: Tensor, cost: str) -> list[float]:
    """What every block costs."""
    value = copy.deepcopy(stem).eval()(example.clone())
    found = []
    for block in blocks:
        if cost == "flops":
            with torch.enable_grad():
                found.append(float(forward_flops(block, value)))
            value = copy.deepcopy(block).eval()(value)
        else:
            found.append(float(sum(parameter.numel() for parameter in block.parameters())))
    if sum(found) == 0:
        raise ValueError(f"blocks must have a cost. Found none in {cost}.")
    return found


def _groupings(tasks: int) -> dict[str, Tensor]:
    """Tables of all ways to group tasks, numbered.

    Returns:
        ``_choices`` ``(T^T, T)``, the copies that the tasks may choose; ``_grouping_of_choice``
        ``(T^T,)``; ``_sizes``, the number of groups in each grouping; and ``_common_grouping``, for
        all ordered pairs of groupings, the one whose groups lie inside groups of both.
    """
    choices = list(itertools.product(range(tasks), repeat=tasks))
    number = {grouping: i for i, grouping in enumerate(sorted({_labels(c) for c in choices}))}
    pairs = itertools.product(number, number)
    return {
        "_choices": torch.tensor(choices),
        "_grouping_of_choice": torch.tensor([number[_labels(choice)] for choice in choices]),
        "_sizes": torch.tensor([float(len(set(grouping))) for grouping in number]),
        "_common_grouping": torch.tensor(
            [number[_labels(list(zip(a, b, strict=True)))] for a, b in pairs]
        ),
    }


def _labels(marks: Sequence[Hashable]) -> tuple[int, ...]:
    """Equal marks as equal numbers, counted in the order in which they appear."""
    first: dict[Hashable, int] = {}
    return tuple(first.setdefault(mark, len(first)) for mark in marks)
