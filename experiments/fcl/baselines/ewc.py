"""``ewc_wide``: F2M's sessions in a wider box, with a penalty on weights that mattered.

The box of F2M treats all tuned weights alike. Elastic weight consolidation (Kirkpatrick et al.,
"Overcoming catastrophic forgetting in neural networks", PNAS 2017) instead lets each weight move
the further, the less the base classes depend on it. The thesis names the combination as open: a
wider box, inside which the penalty decides.

The Fisher information of most weights is tiny, so that a penalty which acts is large, 1,000 and
more, and a gradient step on it would be unstable for the weights that matter most. So its step is
an implicit one: after each step on the data, every weight goes to the minimum of the penalty plus
half the squared distance from where it is, over the learning rate. That cannot diverge.

Simplifications: the Fisher information is that of the softmax of equation (3.7) over the base
prototypes, with the prototypes held still, as this is the model that the sessions train and test;
it is diagonal, computed once, on base data at the end of session 1, and not added to later, as a
session of 25 images says little about it. Labels are drawn from the model (one draw per image),
so that it is the Fisher information and not the mean squared gradient of the true labels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from experiments.fcl.baselines.nearest_mean import F2M, FinetuneOptions
from ktlib.checks import require_at_least, require_bound
from ktlib.fcl.evaluation import embed
from ktlib.fcl.prototypes import few_shot_loss
from ktlib.fcl.split import SplitNetwork


class EWCInBox(F2M):
    """F2M's session with ``penalty / 2 * sum_i F_i (phi_i - phi*_i)^2`` added to its loss.

    Penalty 0 is F2M with the same box, bit for bit; box 0 is the frozen network, and so is, for all
    weights with some Fisher information ``F_i``, a penalty that is large enough.

    Args:
        split: network trained on the base session.
        bound: half-width of the box, in units of the weights; several times that of F2M.
        penalty: its weight. ``F`` is a mean squared gradient of the loss: a weight comes half of
            its way back at ``lr * penalty * F_i = 1``.
        epochs: full-batch steps per session.
        lr: learning rate of plain SGD.
        generator: draws the images and the labels that the Fisher information is estimated with.
        fisher_images: base images to estimate it with, drawn at random; all if there are fewer.
        options: see :class:`~experiments.fcl.baselines.nearest_mean.Finetune`.

    Attributes:
        fisher: name -> diagonal of the Fisher information, set by :meth:`start`.

    Raises:
        ValueError: if ``penalty`` is negative or not finite, ``epochs`` or ``fisher_images`` is
            below 1, or ``lr`` is not above 0.
    """

    name: ClassVar[str] = "ewc_wide"

    def __init__(
        self,
        split: SplitNetwork,
        *,
        bound: float,
        penalty: float,
        epochs: int,
        lr: float,
        generator: torch.Generator,
        fisher_images: int = 1000,
        **options: Unpack[FinetuneOptions],
    ) -> None:
        super().__init__(split, bound=bound, epochs=epochs, lr=lr, **options)
        require_bound("penalty", penalty)
        require_at_least("fisher_images", fisher_images, 1)
        self.penalty = penalty
        self.generator = generator
        self.fisher_images = fisher_images

    @override
    def start(self, images: Tensor, labels: Tensor) -> None:
        super().start(images, labels)
        order = torch.randperm(
            len(images), generator=self.generator, device=self.generator.device
        ).to(images.device)
        features = embed(self.split.prefix, images[order[: self.fisher_images]])
        self.fisher = diagonal_fisher(
            self.split, features, self.base_prototypes, generator=self.generator
        )

    @property
    @override
    def proximal(self) -> Callable[[], None]:
        return self.step_back

    @torch.no_grad()
    def step_back(self) -> None:
        """The implicit step of the penalty."""
        for name, parameter in self.split.tuned.items():
            strength = self.lr * self.penalty * self.fisher[name]
            parameter.lerp_(self.region.center[name], strength / (1 + strength))


def diagonal_fisher(
    split: SplitNetwork,
    features: Tensor,
    prototypes: Tensor,
    *,
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Diagonal of the Fisher information of the tuned weights, one drawn label per image.

    Args:
        split: the network; its mode is left at ``eval``.
        features: ``(n, ...)`` output of :attr:`SplitNetwork.prefix`.
        prototypes: ``(k, dim)``, held still.
        generator: draws each label from the softmax of negative distances.

    Returns:
        Name in :attr:`SplitNetwork.tuned` -> tensor of its shape, never negative.
    """
    probabilities = (-torch.cdist(embed(split.tail, features), prototypes)).softmax(dim=1)
    drawn = torch.multinomial(probabilities.to(generator.device), 1, generator=generator)
    return mean_squared_gradients(split, features, drawn[:, 0].to(features.device), prototypes)


def mean_squared_gradients(
    split: SplitNetwork, features: Tensor, targets: Tensor, prototypes: Tensor
) -> dict[str, Tensor]:
    """Mean over the images of the squared gradient of each image's own loss, equation (3.7).

    The square of the mean gradient would be another thing: near 0 at a minimum.

    Args:
        split: the network; its mode is left at ``eval``.
        features: ``(n, ...)`` output of :attr:`SplitNetwork.prefix`.
        targets: ``(n,)`` rows of ``prototypes``.
        prototypes: ``(k, dim)``, held still.
    """
    split.network.eval()
    total = {name: torch.zeros_like(p) for name, p in split.tuned.items()}
    for feature, target in zip(features.split(1), targets.split(1), strict=True):
        loss = few_shot_loss(split.tail_forward(feature), target, prototypes)
        gradients = torch.autograd.grad(loss, list(split.tuned.values()))
        for name, gradient in zip(total, gradients, strict=True):
            total[name] += gradient.square()
    return {name: squares / len(features) for name, squares in total.items()}
