"""MMoE: experts that all tasks share, weighted for each task by a gate of its own.

Ma, Zhao, Yi, Chen, Hong and Chi, "Modeling task relationships in multi-task learning with
multi-gate mixture-of-experts", KDD 2018, equations 6 to 8.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import torch
from torch import Tensor, nn

from experiments.mtl.network import MultiTaskModule, make_trunks, prefixed
from ktlib.mtl.layers import layers_of
from ktlib.mtl.split import SplitTrunk, split


class MMoE(MultiTaskModule):
    """Trunks as experts; a task's head reads their features in the proportions of its gate.

    The gate of a task is the softmax of a linear layer without a bias, as in the paper, on the raw
    image. Here the image is averaged to a grid of ``grid * grid`` cells first: on all pixels, as in
    other implementations, the gates of a dense task on photographs would outweigh the experts.

    Experts are shared, gates are a task's own. With ``layers`` those layers of every expert are
    task-specific ("MMoE + Recon" in the thesis, table 4.1), running statistics included.

    Args:
        make_trunk: makes an expert, images -> features; called once for each of them, so that they
            start from different weights.
        heads: task -> module.
        experts: number of experts.
        channels: of the images.
        grid: cells per side of what a gate sees.
        layers: names of layers of the trunk that every expert has once per task.

    Raises:
        ValueError: a number is below 1; also as :class:`~experiments.mtl.network.MultiTaskModule`
            and :func:`~ktlib.mtl.split.split`.
    """

    def __init__(
        self,
        make_trunk: Callable[[], nn.Module],
        heads: Mapping[str, nn.Module],
        *,
        experts: int = 2,
        channels: int = 1,
        grid: int = 4,
        layers: Iterable[str] = (),
    ) -> None:
        super().__init__(heads)
        for name, value in (("experts", experts), ("channels", channels), ("grid", grid)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Found {name}={value!r}.")
        chosen = [layers] if isinstance(layers, str) else list(layers)
        trunks = make_trunks(make_trunk, experts)
        self.experts = nn.ModuleList(
            split(trunk, chosen, self.tasks, own_statistics=True) if chosen else trunk
            for trunk in trunks
        )
        self.channels = channels
        self.pool = nn.AdaptiveAvgPool2d(grid)
        self.gates_of = nn.ModuleDict(
            {task: nn.Linear(channels * grid**2, experts, bias=False) for task in self.tasks}
        )

    def gates(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> ``(batch, experts)`` proportions, of images ``(batch, channels, h, w)``.

        Raises:
            ValueError: the images have another shape.
        """
        if images.dim() != 4 or images.shape[1] != self.channels:
            raise ValueError(
                f"images must have shape (batch, {self.channels}, height, width). "
                f"Found {tuple(images.shape)}."
            )
        seen = self.pool(images).flatten(1)
        return {task: self.gates_of[task](seen).softmax(dim=1) for task in self.tasks}

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> the features of the experts, in the proportions of the task's gate."""
        gates = self.gates(images)
        made = [_by_task(expert, images, self.tasks) for expert in self.experts]
        mixed = {}
        for task in self.tasks:
            of_task = torch.stack([features[task] for features in made], dim=1)
            shape = (*gates[task].shape, *[1] * (of_task.dim() - 2))
            mixed[task] = (gates[task].view(shape) * of_task).sum(dim=1)
        return mixed

    @torch.no_grad()
    def gate_entropy(self, images: Tensor) -> dict[str, float]:
        """Task -> how evenly its gate uses the experts over a batch, from 0 to 1.

        The entropy of the mean proportions, divided by its largest value, the logarithm of the
        number of experts. At 0 the gate has collapsed to one expert; 1 also if there is only one.
        """
        experts = len(self.experts)
        if experts == 1:
            return dict.fromkeys(self.tasks, 1.0)
        means = {task: gate.mean(dim=0) for task, gate in self.gates(images).items()}
        return {
            task: float(torch.special.entr(mean).sum()) / math.log(experts)
            for task, mean in means.items()
        }

    def shared_layers(self, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
        """The layers of every expert that are not split: ``experts.<number>.<name>``."""
        found: dict[str, list[nn.Parameter]] = {}
        for i, expert in enumerate(self.experts):
            if isinstance(expert, SplitTrunk):
                layers = expert.shared_layers(batch_norm)
            else:
                layers = layers_of(expert, batch_norm)
            found |= prefixed(f"experts.{i}", layers)
        return found

    def own_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Task -> parameters of its layers in split experts, of its gate and of its head."""
        return {
            task: [
                *(
                    parameter
                    for expert in self.experts
                    if isinstance(expert, SplitTrunk)
                    for parameter in expert.task_parameters(task)
                ),
                *self.gates_of[task].parameters(),
                *self.heads[task].parameters(),
            ]
            for task in self.tasks
        }


def _by_task(expert: nn.Module, images: Tensor, tasks: tuple[str, ...]) -> dict[str, Tensor]:
    # An expert may work in place on its input, which the others need as it is.
    found = expert(images.clone())
    return found if isinstance(expert, SplitTrunk) else dict.fromkeys(tasks, found)
