"""Running statistics of shared batch norms: a set for each task, beside the one set as published.

A batch norm that stays shared behind the split normalises the features of each task by themselves
in training. The published method keeps one set of running statistics for all tasks, a mixture with
which no task is normalised when the network is tested. Statistics play no part in training: so one
training serves both, and what they do to the scores can be told to the last digit.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ktlib.mtl.split import SplitTrunk

_NAMES = ("running_mean", "running_var")


class MixedStatistics:
    """The one set of statistics that norms would keep which have a set for each task.

    A norm with momentum ``m`` moves each set by ``r -> (1 - m) r + m b`` towards a batch. From a
    set before and after, the one that moves towards the batches of all tasks in turn follows.

    Args:
        network: before it is trained. Of the split trunks in it those norms count that share their
            weights and keep statistics of their own; there may be none.
    """

    def __init__(self, network: nn.Module) -> None:
        trunks = [part for part in network.modules() if isinstance(part, SplitTrunk)]
        self.norms = [norms for trunk in trunks for norms in _apart(trunk)]
        self._before = [[_copy(norm) for norm in norms] for norms in self.norms]
        self._mixed = [_copy(norms[0]) for norms in self.norms]

    @torch.no_grad()
    def update(self) -> None:
        """Follow one forward pass in training mode; to be called after each of them."""
        for norms, before, mixed in zip(self.norms, self._before, self._mixed, strict=True):
            for norm, known in zip(norms, before, strict=True):  # the tasks in turn
                kept = 1.0 - (norm.momentum or 0.0)
                for name in _NAMES:
                    after: Tensor = getattr(norm, name)
                    mixed[name].sub_(known[name]).mul_(kept).add_(after)
                    known[name].copy_(after)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Within the block, every task is normalised by the one set."""
        own = [[_copy(norm) for norm in norms] for norms in self.norms]
        try:
            _write(
                self.norms, [[mixed] * len(n) for n, mixed in zip(own, self._mixed, strict=True)]
            )
            yield
        finally:
            _write(self.norms, own)


def _apart(trunk: SplitTrunk) -> Iterator[list[_BatchNorm]]:
    """Of each shared norm with statistics for each task, those of the tasks."""
    views = [trunk.trunk_of(task) for task in trunk.tasks]
    for name, first in views[0].named_modules():
        norms = [view.get_submodule(name) for view in views]
        if not isinstance(first, _BatchNorm) or first.running_mean is None or len(norms) < 2:
            continue
        one = norms[1]
        shared = one.weight is first.weight and first.weight is not None
        if shared and one.running_mean is not first.running_mean:
            yield [norm for norm in norms if isinstance(norm, _BatchNorm)]


def _copy(norm: _BatchNorm) -> dict[str, Tensor]:
    return {name: getattr(norm, name).detach().clone() for name in _NAMES}


@torch.no_grad()
def _write(norms: list[list[_BatchNorm]], values: list[list[dict[str, Tensor]]]) -> None:
    for group, several in zip(norms, values, strict=True):
        for norm, value in zip(group, several, strict=True):
            for name in _NAMES:
                getattr(norm, name).copy_(value[name])
