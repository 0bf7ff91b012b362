"""LUCIR: one cosine classifier for old and new classes, held in balance.

Hou, Pan, Loy, Wang and Lin, "Learning a unified classifier incrementally via rebalancing",
CVPR 2019. The network must have been trained with a :class:`CosineClassifier` in the base session.

Simplified, and different from the paper or its code:

- The backbone keeps the ReLU in front of its embedding, which the authors' network leaves out, so
  that all cosines between embeddings are at least 0.
- By default the tuned weights alone are trained. Batch norm keeps its statistics, images are not
  augmented, and the learning rate falls by a cosine where the authors divide it in steps.
- The optional fine-tuning on a class-balanced set at the end of a session is left out.
- The budget is a fixed number of images per class (the thesis: 2).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from experiments.fcl.baselines.features import Features
from experiments.fcl.baselines.session_training import ExemplarLearner, TrainingOptions
from ktlib.checks import require_at_least, require_bound, require_positive
from ktlib.fcl.protocol import positions_of
from ktlib.fcl.prototypes import class_means
from ktlib.fcl.split import SplitNetwork


def cosines(embeddings: Tensor, weight: Tensor) -> Tensor:
    """Cosine ``(n, k)`` between each embedding ``(n, dim)`` and each row of ``weight (k, dim)``."""
    return F.normalize(embeddings) @ F.normalize(weight).T


class CosineClassifier(nn.Module):
    """Scores ``scale * cos(embedding, weight row)``: neither norms nor biases favour a class.

    It goes wherever a linear classifier goes, :func:`ktlib.fcl.train_base` included.

    Args:
        dim: size of an embedding.
        classes: number of rows.
        generator: draws the rows from the uniform law on ``+-1 / sqrt(dim)``.
        scale: first value of the learned scale; the authors' code starts at 1.

    Raises:
        ValueError: for ``dim`` or ``classes`` below 1, or ``scale`` not above 0.
    """

    def __init__(
        self, dim: int, classes: int, *, generator: torch.Generator, scale: float = 1.0
    ) -> None:
        super().__init__()
        require_at_least("dim", dim, 1)
        require_at_least("classes", classes, 1)
        require_positive("scale", scale)
        drawn = torch.rand(classes, dim, generator=generator, device=generator.device)
        self.weight = nn.Parameter((2 * drawn - 1) / math.sqrt(dim))
        self.scale = nn.Parameter(torch.tensor(float(scale), device=generator.device))

    @override
    def forward(self, embeddings: Tensor) -> Tensor:
        """Scores ``(n, classes)`` of embeddings ``(n, dim)``."""
        return self.scale * cosines(embeddings, self.weight)


def less_forget_loss(embeddings: Tensor, old_embeddings: Tensor) -> Tensor:
    """Mean of ``1 - cos`` between the embeddings now and before this session.

    Args:
        embeddings: ``(n, dim)``.
        old_embeddings: ``(n, dim)`` of the same images; no gradient reaches them.
    """
    return (1 - F.cosine_similarity(embeddings, old_embeddings.detach())).mean()


def less_forget_weight(base: float, old: int, new: int) -> float:
    """Weight of the less-forget loss, larger the more there is to forget.

    Args:
        base: ``lambda_base``; the authors take 5 on CIFAR-100 and 10 on ImageNet.
        old: number of old classes.
        new: number of classes of this session.

    Returns:
        ``lambda = lambda_base * sqrt(old / new)``.
    """
    return base * math.sqrt(old / new)


def margin_ranking_loss(
    scores: Tensor, targets: Tensor, old: int, *, margin: float = 0.5, nearest: int = 2
) -> Tensor:
    """Keep images of old classes away from the new classes that score highest on them.

    Args:
        scores: ``(n, k)`` cosines, before the scale; the first ``old`` columns are old classes.
        targets: ``(n,)`` columns.
        old: number of old classes.
        margin: how far the score of the own class should lie above.
        nearest: number ``K`` of new classes to compare with; all if there are fewer.

    Returns:
        Scalar: mean of ``max(0, margin - own + other)`` over the images of old classes and the
        ``K`` new classes, as in the authors' code; 0 without such images.
    """
    is_old = targets < old
    if not bool(is_old.any()):
        return scores.new_zeros(())
    scores, targets = scores[is_old], targets[is_old]
    own = scores.gather(1, targets[:, None])  # (m, 1)
    others = scores[:, old:]
    hardest = others.topk(min(nearest, others.shape[1]), dim=1).values  # (m, K)
    return (margin - own + hardest).clamp(min=0).mean()


def imprinted_rows(embeddings: Tensor, labels: Tensor, old_weight: Tensor) -> Tensor:
    """First rows of new classes: the mean direction of their images.

    Args:
        embeddings: ``(n, dim)`` of the new images.
        labels: ``(n,)`` their classes.
        old_weight: ``(old, dim)`` rows of the old classes.

    Returns:
        ``(new, dim)`` in the order of the sorted classes, each of the mean norm of the old rows.
    """
    directions = F.normalize(class_means(F.normalize(embeddings), labels))
    norm: Tensor = old_weight.norm(dim=1).mean()
    return directions * norm


@dataclass(frozen=True)
class LucirSettings:
    """Weights of LUCIR's losses.

    Attributes:
        less_forget: ``lambda_base`` of :func:`less_forget_weight`.
        ranking: weight of :func:`margin_ranking_loss`.
        margin: see :func:`margin_ranking_loss`.
        nearest: see :func:`margin_ranking_loss`.

    Raises:
        ValueError: for a negative weight, or ``nearest`` below 1.
    """

    less_forget: float = 5.0
    ranking: float = 1.0
    margin: float = 0.5
    nearest: int = 2

    def __post_init__(self) -> None:
        require_bound("less_forget", self.less_forget)
        require_bound("ranking", self.ranking)
        require_at_least("nearest", self.nearest, 1)


class LUCIR(ExemplarLearner):
    """Cosine classifier, less-forget loss, margin ranking and imprinted new rows.

    The rows of old classes are not updated; the scale is.

    Args:
        split: network trained on the base session with ``classifier``.
        classifier: left as it is.
        base_classes: ``(k,)`` class number of each row of ``classifier``.
        settings: weights of the losses; by default those of the paper.
        base_exemplars: images kept per base class.
        new_exemplars: images kept per new class.
        training: see :class:`~experiments.fcl.baselines.session_training.SessionTrainer`; the
            weight decay is not applied to the rows of old classes.
    """

    name: ClassVar[str] = "lucir"

    def __init__(
        self,
        split: SplitNetwork,
        classifier: CosineClassifier,
        base_classes: Tensor,
        *,
        settings: LucirSettings | None = None,
        base_exemplars: int = 2,
        new_exemplars: int = 2,
        **training: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(
            split,
            len(classifier.weight),
            base_classes,
            base_exemplars=base_exemplars,
            new_exemplars=new_exemplars,
            **training,
        )
        self.settings = settings or LucirSettings()
        self.weight = classifier.weight.detach().clone()
        self.scale = classifier.scale.detach().clone().requires_grad_()

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        inputs, joined_labels = self.joined_inputs(images, labels)
        before = self.trainer.embed(inputs)
        # The new images come last.
        new_rows = imprinted_rows(before[-len(labels) :], labels, self.weight).requires_grad_()
        self.classes = torch.cat([self.classes, labels.unique()])
        targets = positions_of(joined_labels, self.classes)

        def loss(rows: Tensor) -> Tensor:
            terms = self.loss_terms(inputs[rows], targets[rows], before[rows], new_rows)
            return torch.stack(list(terms.values())).sum()

        self.trainer.minimise(loss, len(targets), [*self.trainer.parameters, new_rows, self.scale])
        self.weight = torch.cat([self.weight, new_rows.detach()])
        self.remember(images, labels, base=False)

    def loss_terms(
        self, inputs: Tensor, targets: Tensor, before: Tensor, new_rows: Tensor
    ) -> dict[str, Tensor]:
        """The three weighted terms on one batch.

        Args:
            inputs: from :meth:`SessionTrainer.inputs`.
            targets: ``(n,)`` columns of old and new classes.
            before: ``(n, dim)`` embeddings before this session.
            new_rows: ``(new, dim)`` rows of the new classes.
        """
        old, new, s = len(self.weight), len(new_rows), self.settings
        embeddings = self.trainer.trained(inputs)  # (n, dim)
        scores = cosines(embeddings, torch.cat([self.weight, new_rows]))  # (n, old + new)
        return {
            "cross entropy": F.cross_entropy(self.scale * scores, targets),
            "less forget": less_forget_weight(s.less_forget, old, new)
            * less_forget_loss(embeddings, before),
            "ranking": s.ranking
            * margin_ranking_loss(scores, targets, old, margin=s.margin, nearest=s.nearest),
        }

    @override
    def classify(self, features: Features) -> Tensor:
        embeddings = self.trainer.embed(features)
        return self.classes[cosines(embeddings, self.weight).argmax(dim=1)]
