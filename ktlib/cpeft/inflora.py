"""InfLoRA: low-rank updates in directions that the inputs of old tasks do not use.

Liang and Li, "InfLoRA: Interference-free low-rank adaptation for continual learning", CVPR 2024.
The update of a layer is ``B A``. ``A`` is fixed before the training: its rows lie in the span of
the new task's inputs, where the gradients are, and are orthogonal to what the memory keeps of the
old tasks' inputs, so that ``B A x`` is zero for these. Only ``B`` is trained, and the task's head.
(The paper calls ``A`` here ``B_t``, and ``B`` here ``A_t``.)
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktlib.checks import ImagePool
from ktlib.cpeft.gpm import ZERO_ENERGY, DualGPM, EnergyName, threshold_for
from ktlib.cpeft.inputs import InputMoment, input_moments
from ktlib.cpeft.tasks import ClassTask
from ktlib.cpeft.training import LoraLearner, LoraTraining

OnFull = Literal["error", "shrink"]

SQUARED = 1e-3
"""Singular values are taken from squares down to this share of the largest, where rounding of the
squares costs less than a billionth of them; see :func:`design_down`."""


def design_down(
    moment: InputMoment,
    memory: DualGPM,
    rank: int,
    *,
    layer: str = "the layer",
    on_full: OnFull = "error",
) -> Tensor:
    """The fixed matrix ``A`` of a new task, from its inputs and the memory of the old ones.

    Its rows are the ``rank`` top left singular vectors of ``G = H - M M^T H``, where ``H`` is the
    moment of the new inputs and ``M`` the basis of the old space, each divided by the square root
    of 3: the released code does that, as if to give the entries the spread of a Kaiming start. They
    are computed in coordinates of the complement and are orthogonal to ``M`` up to rounding, also
    where the singular values are small. They are the top eigenvectors of ``G G^T``, which is far
    cheaper than all singular vectors; these are computed only if one of the ``rank`` largest
    singular values is below :data:`SQUARED` times the first and would drown in the rounding.

    Args:
        moment: of the layer's inputs in the new task, computed before the training.
        memory: of the old tasks' inputs.
        rank: how many rows.
        layer: its name, for messages.
        on_full: what to do if there are fewer: ``"error"``, or ``"shrink"`` to the rows there are.

    Returns:
        ``(rank, d_in)``, or fewer rows with ``"shrink"``; float64, on the CPU.

    Raises:
        ValueError: the rank is below 1. With ``"error"`` also if it is larger than the free space;
            or the new inputs reach fewer directions of the free space than it asks for (singular
            values up to :data:`~ktlib.cpeft.gpm.ZERO_ENERGY` of the energy count as zero): further
            rows would be drawn from rounding errors.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1. Found rank={rank}.")
    if rank > memory.free_rank and on_full == "error":
        raise ValueError(
            f"{layer}: rank must be at most {memory.free_rank}, what the old tasks "
            f"leave free of {memory.size} dimensions. Found "
            f"rank={rank}."
        )
    free, projected = _projected(moment, memory)  # (d, f), (f, d)
    values, vectors = _top_directions(projected, min(rank, len(projected)))  # (k,), (f, k)
    vectors = vectors[:, values > ZERO_ENERGY * moment.energy]  # (f, reached)
    if vectors.shape[1] < rank and on_full == "error":
        raise ValueError(
            f"{layer}: rank must be at most {vectors.shape[1]}, the rank of the new task's "
            f"inputs in the {memory.free_rank} dimensions that are free. Found "
            f"rank={rank}."
        )
    return (free @ vectors).T / math.sqrt(3)  # (rank, d)


def usable_rank(moment: InputMoment, memory: DualGPM) -> int:
    """The largest rank that :func:`design_down` accepts; 0 if there is none."""
    values = torch.linalg.svdvals(_projected(moment, memory)[1])  # (f,)
    return int((values > ZERO_ENERGY * moment.energy).sum())


def _projected(moment: InputMoment, memory: DualGPM) -> tuple[Tensor, Tensor]:
    """A basis F of the complement ``(d, f)``, and F^T H ``(f, d)``: H - M M^T H = F (F^T H)."""
    free = memory.free_basis()
    return free, free.T @ memory.matrix_of(moment)


def _top_directions(matrix: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The largest singular values ``(number,)``, falling, and left vectors ``(f, number)``."""
    if number:
        from scipy import linalg  # takes time to import

        place = len(matrix) - number, len(matrix) - 1
        squares, left = linalg.eigh((matrix @ matrix.T).numpy(), subset_by_index=place)  # rising
        values = torch.from_numpy(squares).clamp(min=0).sqrt().flip(0)
        if values[-1] > SQUARED * values[0]:
            return values, torch.from_numpy(left).flip(1)
    left, values, _ = torch.linalg.svd(matrix, full_matrices=False)  # (f, f), (f,)
    return values[:number], left[:, :number]


class InfLora(LoraLearner):
    """A :class:`~ktlib.cpeft.tasks.ContinualLearner` that adapts without disturbing old tasks.

    For each task: the moments of its inputs, ``A`` of each layer by :func:`design_down`, training
    of ``B`` and of a new head with the cross-entropy over the task's classes, the update merged
    into the weights, the moments again with the merged network, and with them the memories. No
    image is kept. Liang and Li, "InfLoRA", CVPR 2024, algorithm 1.

    Args:
        backbone: encoder with ``dim`` features; copied.
        training: of adapters and heads. Released: rank 10, 20 epochs (CIFAR-100) or 50
            (ImageNet-R), batches of 128, learning rate 5e-4, scale 1.
        tasks: how many tasks there will be, for the threshold.
        first_threshold: as ``first`` in :func:`~ktlib.cpeft.gpm.threshold_for`; released: 0.95
            (CIFAR-100), 0.98 (ImageNet-R).
        last_threshold: as ``last`` there; released: 1.
        energy: what they are shares of, see :class:`~ktlib.cpeft.gpm.DualGPM`; the released code
            has ``"moment"``.
        on_full: what to do if fewer than ``rank`` directions of a layer are free and reached by the
            new inputs: ``"error"`` stops; ``"shrink"`` uses those that are left. The other rows of
            ``A`` are then zero, and with none left the layer stays as it is.

    Attributes:
        memories: layer -> :class:`~ktlib.cpeft.gpm.DualGPM`.
        history: a row for each task and layer: ``task``, ``layer``, ``rank`` used, ``threshold``,
            ``occupied`` share of the dimensions after the task, ``free`` dimensions left, and
            ``discarded``, the share of the energy of the task's inputs outside the memory.

    Raises:
        ValueError: an argument outside its range.

    Example:
        >>> from ktlib.cpeft import InfLora, LoraTraining, class_tasks
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
        >>> encoder.dim = 8
        >>> images, labels = torch.rand(12, 1, 4, 4), torch.arange(12) % 4
        >>> training = LoraTraining(layers=["1"], rank=2, epochs=1, batch_size=4, lr=0.01, seed=0)
        >>> learner = InfLora(encoder, training, tasks=2)
        >>> learner.learn(class_tasks(labels, classes=range(4), tasks=2)[0], images, labels)
        >>> [(row["layer"], row["rank"]) for row in learner.history]
        [('1', 2)]
    """

    def __init__(
        self,
        backbone: nn.Module,
        training: LoraTraining,
        *,
        tasks: int,
        first_threshold: float = 0.95,
        last_threshold: float = 1.0,
        energy: EnergyName = "activations",
        on_full: OnFull = "error",
    ) -> None:
        threshold_for(1, tasks, first_threshold, last_threshold)  # checks the three
        if on_full not in get_args(OnFull):
            raise ValueError(f"on_full must be one of {get_args(OnFull)}. Found {on_full!r}.")
        super().__init__(backbone, training)
        self.memories = {
            name: DualGPM(self.backbone.linear(name).in_features, energy=energy)
            for name in self.backbone.layers
        }
        self.tasks, self.on_full = tasks, on_full
        self.thresholds = first_threshold, last_threshold
        self.history: list[dict[str, Any]] = []

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Learn one task, see the class.

        Raises:
            ValueError: more tasks than announced, or no room in a layer with
                ``on_full="error"``; the message names the layer.
            FloatingPointError: the loss is no longer finite.
        """
        threshold = threshold_for(task.number, self.tasks, *self.thresholds)
        labels = task.labels_from(labels, self.classes)
        down = self._design(self._moments(images, task.train))
        self.backbone.start(self.training.seed, down=down)
        self._train_new_head(task, images, labels)  # B of every layer, and the head
        self.backbone.merge()
        self._remember(self._moments(images, task.train), task.number, threshold, down)

    def _moments(self, images: ImagePool, rows: Tensor) -> dict[str, InputMoment]:
        size = self.training.batch_size
        return input_moments(self.backbone, self.backbone.layers, images, rows, size)

    def _remember(
        self, moments: dict[str, InputMoment], task: int, threshold: float, down: dict[str, Tensor]
    ) -> None:
        """Add the inputs of a task to the memories, and record how full they are."""
        twins = self._twins(moments)
        for name, memory in self.memories.items():
            if twins[name] == name:
                memory.update(moments[name], threshold)
            else:
                memory.load_state_dict(self.memories[twins[name]].state_dict())
            row = {"task": task, "layer": name, "rank": int(down[name].any(1).sum())}
            row |= {"threshold": threshold, "occupied": memory.old_rank / memory.size}
            row |= {"free": memory.free_rank, "discarded": memory.discarded[-1]}
            self.history.append(row)

    def _design(self, moments: dict[str, InputMoment]) -> dict[str, Tensor]:
        """``A`` of each layer, ``(rank, d_in)``."""
        rank, twins = self.backbone.rank, self._twins(moments)
        rows = {
            name: design_down(
                moments[name], self.memories[name], rank, layer=name, on_full=self.on_full
            )
            for name in self.memories
            if twins[name] == name
        }
        return {name: F.pad(rows[t], (0, 0, 0, rank - len(rows[t]))) for name, t in twins.items()}

    def _twins(self, moments: dict[str, InputMoment]) -> dict[str, str]:
        """Layer -> the first layer with the same inputs and an equal memory, perhaps itself."""
        return {
            name: next(
                other
                for other, memory in self.memories.items()
                if other == name or (moments[other] is moments[name] and _equal(memory, own))
            )
            for name, own in self.memories.items()
        }


def _equal(one: DualGPM, other: DualGPM) -> bool:
    same = one.holds_old == other.holds_old and one.discarded == other.discarded
    return same and torch.equal(one.basis, other.basis)
