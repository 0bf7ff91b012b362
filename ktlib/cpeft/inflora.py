"""InfLoRA: low-rank updates that start where old inputs are not.

Liang and Li, "InfLoRA: Interference-free low-rank adaptation for continual learning", CVPR 2024.
The update of a layer is ``B A``. ``A`` is fixed before the training: its rows lie in the span of
the new task's inputs, where the gradients are, and are orthogonal to what the memory keeps of the
old tasks' inputs, so that ``B A x`` is zero for these. Only ``B`` is trained, and the task's head.
(The paper calls ``A`` here ``B_t``, and ``B`` here ``A_t``.)
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from ktlib.checks import ImagePool
from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.gpm import ZERO_ENERGY, DualGPM, EnergyName, threshold_for
from ktlib.cpeft.heads import JoinedHead, feature_dim
from ktlib.cpeft.inputs import InputMoment, input_moments
from ktlib.cpeft.tasks import ClassTask
from ktlib.cpeft.training import train_task
from ktlib.fcl.protocol import positions_of
from ktlib.seeding import generator

OnFull = Literal["error", "shrink"]


def design_down(
    moment: InputMoment, memory: DualGPM, rank: int, *, layer: str = "the layer"
) -> Tensor:
    """The fixed matrix ``A`` of a new task, from its inputs and the memory of the old ones.

    Its rows are the ``rank`` top left singular vectors of ``H - M M^T H``, where ``H`` is the
    moment of the new inputs and ``M`` the basis of the old space, each divided by the square root
    of 3: the released code does that, as if to give the entries the spread of a Kaiming start. They
    are computed in coordinates of the complement and are orthogonal to ``M`` up to rounding, also
    where the singular values are small.

    Args:
        moment: of the layer's inputs in the new task, computed before the training.
        memory: of the old tasks' inputs.
        rank: how many rows.
        layer: its name, for messages.

    Returns:
        ``(rank, d_in)``, float64, on the CPU.

    Raises:
        ValueError: the rank is below 1, or larger than the free space; or the new inputs reach
            fewer directions of the free space than it asks for (singular values up to
            :data:`~ktlib.cpeft.gpm.ZERO_ENERGY` of the energy count as zero): further rows would
            be drawn from rounding errors.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1. Found rank={rank}.")
    if rank > memory.free_rank:
        raise ValueError(
            f"{layer}: rank must be at most {memory.free_rank}, what the old tasks leave free of "
            f"{memory.size} dimensions. Found rank={rank}."
        )
    values, vectors = _projected(moment, memory)
    reached = len(values)
    if rank > reached:
        raise ValueError(
            f"{layer}: rank must be at most {reached}, the rank of the new task's inputs in the "
            f"{memory.free_rank} dimensions that are free. Found rank={rank}."
        )
    return vectors[:, :rank].T / math.sqrt(3)


def usable_rank(moment: InputMoment, memory: DualGPM) -> int:
    """The largest rank that :func:`design_down` accepts; 0 if there is none."""
    return len(_projected(moment, memory)[0])


def _projected(moment: InputMoment, memory: DualGPM) -> tuple[Tensor, Tensor]:
    """Singular values above zero ``(k,)``, falling, and left vectors ``(d, k)`` of H - M M^T H."""
    if len(moment.matrix) != memory.size:
        raise ValueError(
            f"moment must be of inputs of size {memory.size}. Found {len(moment.matrix)}."
        )
    free = memory.free_basis()
    # With the basis F of the complement, H - M M^T H = F (F^T H).
    left, values, _ = torch.linalg.svd(free.T @ moment.matrix.cpu(), full_matrices=False)
    number = int((values > ZERO_ENERGY * moment.energy).sum())
    return values[:number], free @ left[:, :number]


class InfLora:
    """A :class:`~ktlib.cpeft.tasks.ContinualLearner` that adapts without disturbing old tasks.

    For each task: the moments of its inputs, ``A`` of each layer by :func:`design_down`, training
    of ``B`` and of a new head with the cross-entropy over the task's classes, the update merged
    into the weights, the moments again with the merged network, and with them the memories. No
    image is kept.

    Args:
        backbone: encoder with ``dim`` features; copied.
        layers: which linear layers are adapted, as in
            :class:`~ktlib.cpeft.adapters.LoraBackbone`.
        rank: of each update; released: 10.
        epochs: passes over each task; released: 20 (CIFAR-100), 50 (ImageNet-R).
        batch_size: images in a step, and in a pass without training; released: 128.
        lr: of Adam; released: 5e-4.
        seed: decides the heads and the order of the images.
        tasks: how many tasks there will be, for the threshold.
        scale: factor of ``B A``; released: 1.
        first_threshold: as ``first`` in :func:`~ktlib.cpeft.gpm.threshold_for`; released: 0.95
            (CIFAR-100), 0.98 (ImageNet-R).
        last_threshold: as ``last`` there; released: 1.
        energy: what they are shares of, see :class:`~ktlib.cpeft.gpm.DualGPM`; the released code
            has ``"moment"``.
        on_full: if a layer has less than ``rank`` directions left that are free and that the new
            inputs reach: ``"error"`` stops, ``"shrink"`` uses those that are left; the other rows
            of ``A`` are zero, and with none left the layer stays as it is.

    Attributes:
        backbone: the adapted encoder.
        head: the heads of all tasks so far.
        memories: layer -> :class:`~ktlib.cpeft.gpm.DualGPM`.
        history: a row for each task and layer: ``task``, ``layer``, ``rank`` used, ``threshold``,
            ``occupied`` share of the dimensions after the task, ``free`` dimensions left, and
            ``discarded``, the share of the energy of the task's inputs outside the memory.
        losses: task -> mean loss of each epoch.

    Raises:
        ValueError: an argument outside its range.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        layers: Sequence[str],
        rank: int,
        epochs: int,
        batch_size: int,
        lr: float,
        seed: int,
        tasks: int,
        scale: float = 1.0,
        first_threshold: float = 0.95,
        last_threshold: float = 1.0,
        energy: EnergyName = "activations",
        on_full: OnFull = "error",
    ) -> None:
        threshold_for(1, tasks, first_threshold, last_threshold)  # checks the three
        if on_full not in get_args(OnFull):
            raise ValueError(f"on_full must be one of {get_args(OnFull)}. Found {on_full!r}.")
        self.backbone = LoraBackbone(backbone, layers=layers, rank=rank, scale=scale, seed=seed)
        device = next(self.backbone.parameters()).device
        self.head = JoinedHead(feature_dim(backbone)).to(device)
        self.memories = {
            name: DualGPM(self.backbone.linear(name).in_features, energy=energy)
            for name in self.backbone.layers
        }
        self.epochs, self.batch_size, self.lr, self.seed = epochs, batch_size, lr, seed
        self.tasks, self.on_full = tasks, on_full
        self.thresholds = first_threshold, last_threshold
        self.history: list[dict[str, Any]] = []
        self.losses: dict[int, list[float]] = {}

    @property
    def classes(self) -> Tensor:
        """``(k,)`` classes learned so far, in the order of the columns of :meth:`scores`."""
        return self.head.classes

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Learn one task, see the class.

        Raises:
            ValueError: more tasks than announced, or no room in a layer with
                ``on_full="error"``; the message names the layer.
            FloatingPointError: the loss is no longer finite.
        """
        threshold = threshold_for(task.number, self.tasks, *self.thresholds)
        down = self._design(self._moments(images, task.train))
        self.backbone.start(self.seed, down=down)
        self._train(task, images, labels)
        self.backbone.merge()
        self._remember(self._moments(images, task.train), task.number, threshold, down)

    def scores(self, images: Tensor) -> Tensor:
        """``(n, k)`` logits of all classes so far: the heads side by side."""
        device = next(self.backbone.parameters()).device
        with torch.no_grad():
            logits: Tensor = self.head(self.backbone(images.to(device)))
        return logits

    def _moments(self, images: ImagePool, rows: Tensor) -> dict[str, InputMoment]:
        return input_moments(self.backbone, self.backbone.layers, images, rows, self.batch_size)

    def _remember(
        self,
        moments: dict[str, InputMoment],
        task: int,
        threshold: float,
        down: dict[str, Tensor],
    ) -> None:
        """Take the inputs of a task into the memories, and note how full they are."""
        for name, memory in self.memories.items():
            memory.update(moments[name], threshold)
            self.history.append(
                {
                    "task": task,
                    "layer": name,
                    "rank": int(down[name].any(1).sum()),
                    "threshold": threshold,
                    "occupied": memory.old_rank / memory.size,
                    "free": memory.free_rank,
                    "discarded": memory.discarded[-1],
                }
            )

    def _design(self, moments: dict[str, InputMoment]) -> dict[str, Tensor]:
        """``A`` of each layer, ``(rank, d_in)``."""
        rank = self.backbone.rank
        down = {}
        for name, moment in moments.items():
            memory = self.memories[name]
            used = rank if self.on_full == "error" else min(rank, usable_rank(moment, memory))
            down[name] = torch.zeros(rank, memory.size, dtype=torch.float64)
            if used:
                down[name][:used] = design_down(moment, memory, used, layer=name)
        return down

    def _train(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Train ``B`` of every layer and the task's head."""
        number = self.head.add(task.classes, self.seed)
        self.losses[task.number] = train_task(
            self.backbone,
            partial(self.head.of_task, number),
            [*self.backbone.trained(), *self.head.head(number).parameters()],
            images,
            positions_of(labels, task.classes),
            task.train,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            generator=generator(self.seed, "batches", task.number),
        )
