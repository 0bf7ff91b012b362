"""Cross-Stitch: a network per task, whose features are mixed after every stage.

Misra, Shrivastava, Gupta and Hebert, "Cross-stitch networks for multi-task learning", CVPR 2016.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from functools import partial
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from experiments.models.segnet import SegNet
from experiments.mtl.network import MultiTaskModule, make_trunks, prefixed
from ktlib.mtl.layers import layers_of

# The forward pass of a trunk, made to stop: yields the features of every stage, goes on with the
# features that it is sent, and returns those of the trunk.
Walk: TypeAlias = Generator[Tensor, Tensor, Tensor]


class CrossStitch(MultiTaskModule):
    """Trunks of several tasks in lockstep, with a cross-stitch unit after each of the stages.

    Channel ``c`` of task ``i`` goes on as ``sum_j alpha_ij[c] x_j[c]``. As in the paper the units
    are trained with a learning rate of their own, which :meth:`parameter_groups` sets. The paper
    also starts from trunks that were trained on the single tasks: load their weights into
    ``trunks``. Other implementations start with all ``alpha`` 1, so that features grow with every
    unit, or with one set of features for all tasks after it (https://github.com/lorenmt/mtan).

    Args:
        make_trunk: makes a task's trunk, images -> features; called once for each task.
        heads: task -> module; at least two.
        stages: after which stages there is a unit. For an ``nn.Sequential`` trunk, names of its
            children. For any other trunk, a function of the trunk and of images: a generator that
            computes what the trunk computes, ``features = yield features`` after each stage, and
            returns the result; :func:`stops_of_segnet` is that of SegNet.
        example: images to find the channels of every stage with.
        keep: initial ``alpha_ii``; the other tasks have ``(1 - keep) / (T - 1)`` each. The paper
            recommends weights that add up to 1.

    Attributes:
        trunks: trunk of every task.
        units: of every stage, task -> its mixing weights ``(T, channels)``.

    Raises:
        ValueError: there are fewer than two tasks, a stage is unknown, there is no stage, ``keep``
            does not lie in [0, 1], or as :class:`~experiments.mtl.network.MultiTaskModule`.
        TypeError: names of stages, and the trunk is not an ``nn.Sequential``.
    """

    def __init__(
        self,
        make_trunk: Callable[[], nn.Module],
        heads: Mapping[str, nn.Module],
        *,
        stages: Sequence[str] | Callable[[nn.Module, Tensor], Walk],
        example: Tensor,
        keep: float = 0.9,
    ) -> None:
        super().__init__(heads)
        tasks = len(self.tasks)
        if tasks < 2:
            raise ValueError(f"heads must be of at least 2 tasks. Found {list(self.tasks)}.")
        if not 0 <= keep <= 1:
            raise ValueError(f"keep must lie in [0, 1]. Found keep={keep!r}.")
        trunks = make_trunks(make_trunk, tasks)
        self._walk = stages if callable(stages) else _stops(trunks[0], stages)
        self.trunks = nn.ModuleDict(dict(zip(self.tasks, trunks, strict=True)))
        self.units = nn.ModuleList(
            _unit(self.tasks, channels, keep).to(example.device)
            for channels in _channels(trunks[0], self._walk, example)
        )

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> features of its trunk, every stage mixed with those of the others."""
        # A trunk may work in place on its input.
        walks = [self._walk(self.trunks[task], images.clone()) for task in self.tasks]
        values = [next(walk) for walk in walks]
        for number, unit in enumerate(self.units):
            stacked = torch.stack(values)
            mixed = [_mix(weight, stacked) for weight in unit.parameters()]
            if number + 1 < len(self.units):
                values = [walk.send(value) for walk, value in zip(walks, mixed, strict=True)]
            else:
                values = [_finish(walk, value) for walk, value in zip(walks, mixed, strict=True)]
        return dict(zip(self.tasks, values, strict=True))

    def unit_parameters(self) -> list[nn.Parameter]:
        """All ``alpha``."""
        return list(self.units.parameters())

    def parameter_groups(self, lr: float, unit_lr: float) -> list[dict[str, object]]:
        """For an optimiser: everything else with ``lr``, and the units with ``unit_lr``.

        The paper's ``unit_lr`` is 100 to 1000 times the ``lr``. Weight decay would draw ``alpha``
        to 0, not to the identity: their group has none.
        """
        units = set(self.unit_parameters())
        rest = [parameter for parameter in self.parameters() if parameter not in units]
        return [
            {"params": rest, "lr": lr},
            {"params": list(self.unit_parameters()), "lr": unit_lr, "weight_decay": 0.0},
        ]

    def shared_layers(self, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
        """The layers of all trunks, and the units: ``trunks.<task>.<name>``, ``units.<number>``.

        The loss of every task reaches all of them through the units. What comes behind the last
        unit is reached by its own task alone; other tasks have the gradient 0 there, which no
        cosine counts.
        """
        found: dict[str, list[nn.Parameter]] = {}
        for task in self.tasks:
            found |= prefixed(f"trunks.{task}", layers_of(self.trunks[task], batch_norm))
        for number, unit in enumerate(self.units):
            found[f"units.{number}"] = list(unit.parameters())
        return found

    def own_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Task -> parameters of its head."""
        return {task: list(self.heads[task].parameters()) for task in self.tasks}


def stops_of_segnet(trunk: nn.Module, images: Tensor) -> Walk:
    """The forward pass of SegNet (``experiments.models.segnet``), with stops between its stages.

    It stops after the pooling of each encoder stage and after each decoder stage but the last,
    which the heads read: nine units, where the Cross-Stitch SegNet of
    https://github.com/lorenmt/mtan has them. A task unpools to the places of its own maxima.
    """
    segnet = cast(SegNet, trunk)
    features, memory = images, []
    for stage in segnet.encoder:
        for block in cast(nn.ModuleList, stage):
            features = block(features)
        large = features
        features, places = segnet.pool(large)
        memory.append((places, large))
        features = yield features
    for number, stage in enumerate(segnet.decoder):
        if number:
            features = yield features
        features = segnet.unpool(features, *memory.pop())
        for block in cast(nn.ModuleList, stage):
            features = block(features)
    return features


def _stops(trunk: nn.Module, stages: Sequence[str]) -> Callable[[nn.Module, Tensor], Walk]:
    """The forward pass of an ``nn.Sequential`` with a stop after some of its children."""
    if not isinstance(trunk, nn.Sequential):
        raise TypeError(
            "stages must be a function of the trunk and of images, unless the trunk is an "
            f"nn.Sequential. Found names for a {type(trunk).__name__}."
        )
    known = [name for name, _ in trunk.named_children()]
    chosen = [stages] if isinstance(stages, str) else list(stages)
    unknown = [name for name in chosen if name not in known]
    if unknown or not chosen:
        raise ValueError(f"stages must name children of the trunk, {known}. Found {chosen}.")
    return partial(_walk, chosen=chosen)


def _walk(trunk: nn.Module, images: Tensor, *, chosen: Sequence[str]) -> Walk:
    features = images
    for name, part in trunk.named_children():
        features = part(features)
        if name in chosen:
            features = yield features
    return features


@torch.no_grad()
def _channels(
    trunk: nn.Module, walk: Callable[[nn.Module, Tensor], Walk], example: Tensor
) -> list[int]:
    """Channels at every stop."""
    training = trunk.training
    trunk.eval()
    found: list[int] = []
    try:
        steps = walk(trunk, example.clone())
        features = next(steps, None)
        while features is not None:
            found.append(features.shape[1])
            try:
                features = steps.send(features)
            except StopIteration:
                features = None
    finally:
        trunk.train(training)
    if not found:
        raise ValueError("stages must stop the trunk at least once. Found a walk without a stop.")
    return found


def _finish(walk: Walk, features: Tensor) -> Tensor:
    """What the walk returns after its last stop."""
    try:
        walk.send(features)
    except StopIteration as end:
        result: Tensor = end.value
        return result
    raise RuntimeError("the walk of a trunk must stop as often for every batch as for the example.")


def _unit(tasks: Sequence[str], channels: int, keep: float) -> nn.ParameterDict:
    """Task -> the weights ``(T, channels)`` with which the tasks' features enter its own."""
    rest = (1 - keep) / (len(tasks) - 1)
    identity = torch.eye(len(tasks))
    alpha = keep * identity + rest * (1 - identity)
    return nn.ParameterDict(
        {task: row.unsqueeze(1).repeat(1, channels) for task, row in zip(tasks, alpha, strict=True)}
    )


def _mix(weight: Tensor, features: Tensor) -> Tensor:
    """``(T, channels)`` weights and ``(T, batch, channels, ...)`` features: their sum over T."""
    shape = (weight.shape[0], 1, weight.shape[1], *[1] * (features.dim() - 3))
    return (weight.view(shape) * features).sum(dim=0)
