"""RotoGrad: rotated features for every task, so that gradients agree, and gradients of one length.

Javaloy and Valera, "RotoGrad: gradient homogenization in multitask learning", ICLR 2022. The method
is that of ``pytorch_optimizer``; here is what it needs to train the networks of this package:

- It takes its rotations from the package geotorch. Here they come from PyTorch, with the same
  parametrisation: a matrix exponential, from the identity.
- It adds up the gradients of the tasks on the one tensor that all heads read. Behind a split trunk
  each head reads another: :class:`_PerTask` keeps the gradients apart until they are on one length.
- It puts rotations in front of the heads in the list that it is given, and keeps its counters to
  itself. :class:`RotoGrad` leaves the network alone, and has the counters in its ``state_dict``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import torch
from pytorch_optimizer.optimizer.rotograd import RotateModule, RotateOnly
from pytorch_optimizer.optimizer.rotograd import RotoGrad as LibraryRotoGrad
from torch import Tensor, nn
from torch.nn.utils.parametrizations import orthogonal
from torch.utils._pytree import tree_map_only

from experiments.mtl.network import MultiTaskModule


class RotoGrad(MultiTaskModule):
    """A network whose heads read rotated features; trained by :meth:`backward`.

    Task ``k`` reads ``R_k z`` in place of ``z``. Its loss does not train ``R_k``: the rotations are
    trained so that the gradients of the tasks on ``z`` turn towards their mean direction. The
    gradients on ``z`` are then given one common length, a mean of theirs in which those weigh most
    that have shrunk least since the start, and add up: the scale of a sum of losses. ::

        network = RotoGrad(MultiTaskNetwork(trunk, heads), feature_dim=512)
        optimiser = SGD(network.network_parameters(), lr=0.1)
        turning = Adam(network.rotation_parameters(), lr=0.001)
        losses = {task: loss(output, labels[task]) for task, output in network(images).items()}
        optimiser.zero_grad()
        turning.zero_grad()
        network.backward(losses)
        optimiser.step()
        turning.step()

    Rotations want an optimiser of their own, such as the Adam of the authors' example: their
    gradients are of the size of squared gradients on single images, which hardly move plain SGD.

    In training mode the graph is cut at the features, so that losses do not reach the trunk but by
    :meth:`backward`. Conflicts are to be measured on the network itself, or in evaluation mode.

    The tasks share the rotation's frame, not a layer: shared layers and own parameters are those of
    the network, and the rotations belong to neither.

    Args:
        network: what is trained; kept, not copied. Its features must have shape ``(batch, d)``.
        feature_dim: ``d``.
        rotated: how many of the features, from the first, are rotated; all by default. A rotation
            costs a matrix exponential of this size per task and step.
        burn_in: the lengths that gradients are compared with are those of the first step, and from
            step ``burn_in`` on those of that step, counted from 0.

    Attributes:
        network: the network.

    Raises:
        ValueError: a number is below 1, ``rotated`` is above ``feature_dim``, or there are fewer
            than two tasks.
    """

    def __init__(
        self,
        network: MultiTaskModule,
        *,
        feature_dim: int,
        rotated: int | None = None,
        burn_in: int = 20,
    ) -> None:
        nn.Module.__init__(self)  # the heads are the network's
        size = feature_dim if rotated is None else rotated
        if len(network.tasks) < 2:
            raise ValueError(f"network must have at least 2 tasks. Found {list(network.tasks)}.")
        if not 1 <= size <= feature_dim:
            raise ValueError(f"rotated must lie in 1 to {feature_dim}. Found rotated={size!r}.")
        if burn_in < 1:
            raise ValueError(f"burn_in must be at least 1. Found burn_in={burn_in!r}.")
        self.network = network
        self.tasks = network.tasks
        self.feature_dim = feature_dim
        self.rotations = _PerTask(len(self.tasks), size, burn_in)

    def __reduce__(self) -> tuple[Any, ...]:
        """Parametrised modules refuse to be pickled; this makes one anew, for other processes."""
        rotations = self.rotations
        sizes = {"feature_dim": self.feature_dim, "rotated": rotations.latent_size}
        sizes["burn_in"] = rotations.burn_in_period
        return _made_anew, (self.network, sizes, self.state_dict(), self.training)

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> the network's features, rotated as its head reads them.

        Raises:
            ValueError: the features do not have shape ``(batch, feature_dim)``.
        """
        found = self.network.features(images)
        for task, value in found.items():
            if value.dim() != 2 or value.shape[1] != self.feature_dim:
                raise ValueError(
                    f"features must have shape (batch, {self.feature_dim}). Found "
                    f"{tuple(value.shape)} for task {task!r}."
                )
        rotated = self.rotations([found[task] for task in self.tasks])
        return dict(zip(self.tasks, rotated, strict=True))

    def output(self, task: str, features: Tensor) -> Tensor:
        """What the network's head of one task makes of rotated features."""
        return self.network.output(task, features)

    def backward(self, losses: Mapping[str, Tensor]) -> None:
        """Add the gradients of one step to ``.grad`` of heads, trunk and rotations.

        Args:
            losses: task -> its scalar loss, of the last forward pass.

        Raises:
            ValueError: losses are of other tasks.
            RuntimeError: there was no forward pass in training mode since the last call, or a loss
                does not depend on the features.
        """
        if set(losses) != set(self.tasks):
            raise ValueError(f"losses must be of {list(self.tasks)}. Found {list(losses)}.")
        if self.rotations.rep is None:
            raise RuntimeError("backward must follow a forward pass in training mode. Found none.")
        self.rotations.backward([losses[task] for task in self.tasks])
        self.rotations.forget()

    def network_parameters(self) -> list[nn.Parameter]:
        """Those of trunk and heads."""
        return list(self.network.parameters())

    def rotation_parameters(self) -> list[nn.Parameter]:
        """Those of the rotations, one ``(rotated, rotated)`` matrix per task.

        Their authors advise a smaller learning rate than that of the network.
        """
        return list(self.rotations.parameters())

    def rotation(self, task: str) -> Tensor:
        """``R_k`` of one task, ``(rotated, rotated)``."""
        found: Tensor = self.rotations.rotation[self.tasks.index(task)]
        return found.detach()

    def shared_layers(self, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
        """Those of the network."""
        return self.network.shared_layers(batch_norm)

    def own_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Those of the network."""
        return self.network.own_parameters()

    def get_extra_state(self) -> dict[str, Any]:
        """What the method remembers between steps, for the ``state_dict``."""
        return {name: getattr(self.rotations, name) for name in _MEMORY}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Go on with that of a ``state_dict``."""
        device = self.rotations.rotation[0].device
        for name in _MEMORY:
            value = tree_map_only(Tensor, lambda tensor: tensor.to(device), state[name])
            setattr(self.rotations, name, value)


def _made_anew(
    network: MultiTaskModule, sizes: dict[str, int], state: dict[str, Any], training: bool
) -> RotoGrad:
    made = RotoGrad(network, **sizes)
    made.to(next(network.parameters()).device)
    made.load_state_dict(state)
    made.training = made.rotations.training = training  # the network has its own
    return made


# Attributes of the library's class that one step leaves to the next.
_MEMORY = ("counter", "iteration_counter", "initial_grads", "initial_losses")


class _KeepsApart(RotateOnly):
    """Comes between the two steps of the library's ``RotoGrad._rep_grad``, by its place in the MRO.

    After the rotations have had their gradients, the gradient of every task moves to a row of its
    own among zeros. Lengths stay as they are, and the sum that the second step returns holds the
    tasks apart: ``(T, batch, d)``.
    """

    def _rep_grad(self) -> Tensor:
        missing = [task for task, gradient in enumerate(self.original_grads) if gradient is None]
        if missing:
            raise RuntimeError(f"losses must depend on the features. Found {len(missing)} not to.")
        total: Tensor = super()._rep_grad()  # type: ignore[no-untyped-call]
        rows = torch.eye(self.num_tasks, device=total.device, dtype=total.dtype)[:, :, None, None]
        self.original_grads = [
            row * gradient for row, gradient in zip(rows, self.original_grads, strict=True)
        ]
        return total


class _PerTask(LibraryRotoGrad, _KeepsApart):
    """The library's RotoGrad for features of each task, without trunk and heads.

    Args:
        tasks: number of tasks.
        size: of the rotations.
        burn_in: as ``burn_in_period`` of the library.
    """

    def __init__(self, tasks: int, size: int, burn_in: int) -> None:
        nn.Module.__init__(self)  # the library's would ask for geotorch
        self.num_tasks = tasks
        self.latent_size = size
        self.burn_in_period = burn_in
        self.normalize_losses = False
        self.rotate_modules: list[nn.Module] = []
        for task in range(tasks):
            self.rotate_modules.append(RotateModule(self, task))  # type: ignore[no-untyped-call]
            self.register_parameter(f"rotation_{task}", nn.Parameter(torch.eye(size)))
            orthogonal(self, f"rotation_{task}", orthogonal_map="matrix_exp")
        self.losses: list[Any] = [None] * tasks
        self.initial_losses: list[Any] = [None] * tasks
        self.initial_grads = None
        self.iteration_counter = self.counter = 0
        self.forget()

    def forget(self) -> None:
        """Drop the tensors of one step: with them the module could not be copied."""
        self.rep: Any = None
        self.grads: list[Any] = [None] * self.num_tasks
        self.original_grads: list[Any] = [None] * self.num_tasks

    def train(self, mode: bool = True) -> Self:
        """As of any module: there are no trunk and heads to tell."""
        return nn.Module.train(self, mode)

    def forward(self, features: Any) -> list[Tensor]:
        """Rotate the features of every task; in training mode cut off from the trunk."""
        # A rotation in half precision would be none. The features of float64 networks stay so.
        features = [v.to(torch.promote_types(v.dtype, torch.float32)) for v in features]
        if self.training:
            self.rep = torch.stack(features)
            features = [value.detach().clone().requires_grad_() for value in features]
            for task, value in enumerate(features):
                value.register_hook(self._hook(task))  # type: ignore[no-untyped-call]
        with torch.autocast(features[0].device.type, enabled=False):
            return [turn(value) for turn, value in zip(self.rotate_modules, features, strict=True)]
