"""The memory of InfLoRA: the space that the inputs of old tasks fill, for each layer.

Gradient projection memory (Saha et al., "Gradient projection memory for continual learning", ICLR
2021) keeps an orthonormal basis of the directions that hold most of the old inputs' energy. DualGPM
(Liang and Li, "Adaptive plasticity improvement for continual learning", CVPR 2023) keeps the basis
of the complement instead as soon as that is the smaller one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from ktlib.cpeft.inputs import InputMoment

EnergyName = Literal["activations", "moment"]

ZERO_ENERGY = 1e-12
"""Share of a moment's energy that counts as zero: directions with less are ignored.

That is a millionth of the inputs' length. Rounding of float32 activations is about a tenth of it,
so that a direction filled by rounding alone is not taken for one that a task needs.
"""


class DualGPM:
    """The space kept for old tasks in the input space of one layer, or its complement.

    The orthonormal basis that is stored has at most half as many columns as the space has
    dimensions: of the old space while that is the smaller one, and of its complement from then on.
    The old space never shrinks.

    Args:
        size: ``d``, the input size of the layer.
        energy: what a threshold is a share of. ``"activations"``: the mean squared length of the
            inputs, which is the trace of the moment and the sum of the squared singular values of
            the activations; this is what the bound of :mod:`ktlib.cpeft.drift` is about.
            ``"moment"``: the squared singular values of the moment itself, as the released code of
            InfLoRA has it, that is the fourth power of those of the activations. Large directions
            then weigh more, and fewer of them reach the same threshold.

    Attributes:
        basis: ``(d, k)``, float64, on the CPU.
        holds_old: whether ``basis`` spans the old space; if not, its complement.
        discarded: share of the energy of a task's inputs, ``E||x||^2``, that lay outside the old
            space after the update with them; one number an update.

    Raises:
        ValueError: a size below 1, or an unknown energy.

    Example:
        >>> from ktlib.cpeft import DualGPM, InputMoment
        >>> memory = DualGPM(3)
        >>> memory.update(InputMoment.of(torch.tensor([[2.0, 0.0, 0.0]])), threshold=0.95)
        >>> memory.old_rank, memory.project_out(torch.tensor([1.0, 1.0, 1.0]))
        (1, tensor([0., 1., 1.]))
    """

    def __init__(self, size: int, *, energy: EnergyName = "activations") -> None:
        if size < 1:
            raise ValueError(f"size must be at least 1. Found size={size}.")
        if energy not in get_args(EnergyName):
            raise ValueError(f"energy must be one of {get_args(EnergyName)}. Found {energy!r}.")
        self.size = size
        self.energy: EnergyName = energy
        self.basis = torch.zeros(size, 0, dtype=torch.float64)
        self.holds_old = True
        self.discarded: list[float] = []

    @property
    def old_rank(self) -> int:
        """Dimensions of the space kept for old tasks."""
        return self.basis.shape[1] if self.holds_old else self.size - self.basis.shape[1]

    @property
    def free_rank(self) -> int:
        """Dimensions that are left: ``size - old_rank``."""
        return self.size - self.old_rank

    def old_basis(self) -> Tensor:
        """``(d, old_rank)``: an orthonormal basis of the space kept for old tasks, ``M``."""
        return self.basis if self.holds_old else _complement(self.basis)

    def free_basis(self) -> Tensor:
        """``(d, free_rank)``: an orthonormal basis of its complement."""
        return _complement(self.basis) if self.holds_old else self.basis

    def project_out(self, vectors: Tensor) -> Tensor:
        """The part of vectors in the complement, ``(I - M M^T) x``.

        Args:
            vectors: ``(..., d)``, one vector a row.

        Returns:
            The same shape, dtype and device; computed in float64.

        Raises:
            ValueError: the vectors are of another size.
        """
        if vectors.shape[-1] != self.size:
            raise ValueError(
                f"vectors must have {self.size} entries each. Found {tuple(vectors.shape)}."
            )
        given = vectors.cpu().double()  # (..., d)
        inside = given @ self.basis @ self.basis.T  # (..., d)
        return (given - inside if self.holds_old else inside).to(vectors)

    def residual_energy(self, moment: InputMoment) -> float:
        """Energy of inputs outside the old space, ``E||(I - M M^T) x||^2``.

        Raises:
            ValueError: the moment is of another size.
        """
        free = self.free_basis()  # (d, free_rank)
        return max(0.0, float(((self.matrix_of(moment) @ free) * free).sum()))

    def update(self, moment: InputMoment, threshold: float) -> None:
        """Add the inputs of a task to the old space, as far as the threshold asks.

        The energy that the old space already holds counts. Of the part outside it, singular
        directions are added, the largest first, until both together hold the share ``threshold``.
        With threshold 1 all directions with more than :data:`ZERO_ENERGY` of the energy are added.
        (The released code holds a little less after the first task: it stops one direction before
        the threshold is reached.)

        Args:
            moment: of the layer's inputs in the task, computed with the network as it now is.
            threshold: share of the energy, in (0, 1].

        Raises:
            ValueError: a threshold outside (0, 1], a moment of another size, or one without energy.
        """
        if not 0 < threshold <= 1:
            raise ValueError(f"threshold must lie in (0, 1]. Found threshold={threshold!r}.")
        matrix = self.matrix_of(moment)
        if not moment.energy > 0:  # also for NaN
            raise ValueError(f"moment must have an energy above 0. Found {moment.energy}.")
        free = self.free_basis()  # (d, f)
        total, values, directions = self._directions(matrix, free)  # values (f,), directions (f, f)
        values = torch.where(values > ZERO_ENERGY * moment.energy, values, 0)
        if self.energy == "moment":
            values = values**2
        # Energy that stays outside if only the directions before this one are added. Summed from
        # the smallest up: threshold 1 leaves exactly nothing above zero.
        left = values.flip(0).cumsum(0).flip(0)  # (f,)
        self._add(free, directions[:, : int((left > (1 - threshold) * total).sum())])
        self.discarded.append(self.residual_energy(moment) / moment.energy)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state in tensors, numbers and strings, for :meth:`load_state_dict`."""
        return copy.deepcopy(vars(self))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over a state of :meth:`state_dict`.

        Raises:
            ValueError: it is of another input size or energy.
        """
        for name in ("size", "energy"):
            own, found = getattr(self, name), state[name]
            if found != own:
                raise ValueError(f"state must be of a memory with {name}={own!r}. "
                                 f"Found {name}={found!r}.")  # fmt: skip
        vars(self).update(copy.deepcopy(dict(state)))

    def matrix_of(self, moment: InputMoment) -> Tensor:
        """``(d, d)``, on the CPU, if the moment is of inputs of this size."""
        if len(moment.matrix) != self.size:
            raise ValueError(
                f"moment must be of inputs of size {self.size}. Found {len(moment.matrix)}."
            )
        return moment.matrix.cpu()

    def _directions(self, matrix: Tensor, free: Tensor) -> tuple[float, Tensor, Tensor]:
        """Total energy; singular values and directions of the part in the complement, falling.

        The directions are given in coordinates of the complement, so that rounding cannot turn the
        weak ones into the old space.
        """
        if self.energy == "activations":
            values, vectors = torch.linalg.eigh(free.T @ matrix @ free)  # (f,), (f, f), rising
            return float(matrix.trace()), values.flip(0), vectors.flip(1)
        left, values, _ = torch.linalg.svd(free.T @ matrix, full_matrices=False)
        return float(matrix.square().sum()), values, left

    def _add(self, free: Tensor, directions: Tensor) -> None:
        """Move directions ``(free_rank, k)``, in coordinates of ``free``, to the old space."""
        number = directions.shape[1]
        if not number:
            return
        turned = torch.linalg.qr(directions, mode="complete").Q  # (f, f)
        if self.holds_old:
            self.basis = torch.cat([self.basis, free @ turned[:, :number]], dim=1)
        else:
            self.basis = free @ turned[:, number:]
        if self.holds_old and self.basis.shape[1] > self.size / 2:
            self.basis, self.holds_old = _complement(self.basis), False


def threshold_for(task: int, tasks: int, first: float = 0.95, last: float = 1.0) -> float:
    """The share of the energy to keep after a task: it grows linearly, ``first + (last-first)t/T``.

    As in the released settings of InfLoRA, ``t`` counts from 0: the last task has
    ``t = T - 1`` and the threshold stays below ``last``, unless ``first`` is the same.

    Args:
        task: number of the task that was learned, from 1; ``t = task - 1``.
        tasks: ``T``, how many there will be.
        first: share after the first task, in (0, 1].
        last: share that it grows towards, at least ``first`` and at most 1.

    Raises:
        ValueError: an argument outside its range.
    """
    if not 1 <= task <= tasks:
        raise ValueError(f"task must lie in 1 to tasks={tasks}. Found task={task}.")
    if not 0 < first <= last <= 1:
        raise ValueError(f"thresholds must be 0 < first <= last <= 1. Found {first} and {last}.")
    return first + (last - first) * (task - 1) / tasks


def _complement(basis: Tensor) -> Tensor:
    """``(d, d - k)``: an orthonormal basis of all that is orthogonal to ``(d, k)``."""
    size, number = basis.shape
    if not number:
        return torch.eye(size, dtype=basis.dtype)
    turned: Tensor = torch.linalg.qr(basis, mode="complete").Q
    return turned[:, number:]
