"""iCaRL: exemplars chosen by herding, distillation, and the nearest mean of exemplars.

Rebuffi, Kolesnikov, Sperl and Lampert, "iCaRL: incremental classifier and representation learning",
CVPR 2017: algorithms 1 (classification), 3 (update of the representation) and 4 (herding).

Simplified, and different from the paper:

- The base session is trained beforehand, here with softmax cross-entropy as for every other method;
  the paper trains it with the sigmoid outputs of :func:`classification_loss`.
- The budget is a fixed number of images per class (the thesis: 2), not a total ``K`` that is shared
  by ever more classes; nothing is ever taken out of an exemplar set.
- By default the tuned weights alone are trained. Batch norm keeps its statistics, images are not
  augmented, and the learning rate falls by a cosine where the paper divides it in steps.
- Losses are summed over the classes and averaged over the images. The authors' code averages over
  100 outputs, also those of classes not seen yet; learning rates differ by that factor.
- Means are not averaged with those of mirrored images, as the authors' code does.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from experiments.fcl.baselines.features import Features
from experiments.fcl.baselines.session_training import (
    ExemplarLearner,
    TrainingOptions,
    extend_linear,
)
from ktlib.checks import require_at_least
from ktlib.fcl.protocol import positions_of
from ktlib.fcl.prototypes import class_means, nearest_class_mean
from ktlib.fcl.split import SplitNetwork


def classification_loss(scores: Tensor, targets: Tensor) -> Tensor:
    """Binary cross-entropy of a sigmoid per class, first part of algorithm 3.

    Args:
        scores: ``(n, k)`` before the sigmoid, of the new classes.
        targets: ``(n,)`` column of each image's class; one of no column (such as -1) belongs to
            none of these classes.

    Returns:
        Scalar: sum over the classes, mean over the images.
    """
    columns = torch.arange(scores.shape[1], device=scores.device)
    targets = (targets[:, None] == columns).to(scores.dtype)  # (n, k)
    summed = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
    return summed / len(scores)


def distillation_loss(scores: Tensor, old_scores: Tensor) -> Tensor:
    """Binary cross-entropy towards the old network's outputs, second part of algorithm 3.

    Args:
        scores: ``(n, k)`` before the sigmoid, of the old classes.
        old_scores: ``(n, k)`` those of the network before this session; no gradient reaches them.

    Returns:
        Scalar: sum over the classes, mean over the images. Its minimum, where both agree, is the
        entropy of the old outputs, not 0.
    """
    targets = old_scores.detach().sigmoid()
    summed = F.binary_cross_entropy_with_logits(scores, targets, reduction="sum")
    return summed / len(scores)


class ICaRL(ExemplarLearner):
    """Train on new images and exemplars with distillation; classify by the mean of exemplars.

    The linear classifier serves training only. For classification, features and class means have
    norm 1, and the means of all classes, base classes too, are those of their exemplars in the
    present network.

    Args:
        split: network trained on the base session.
        classifier: the linear classifier trained with it; left as it is.
        base_classes: ``(k,)`` class number of each row of ``classifier``.
        base_exemplars: images kept per base class.
        new_exemplars: images kept per new class.
        training: see :class:`~experiments.fcl.baselines.session_training.SessionTrainer`; the
            generator draws the new rows, too.

    Raises:
        ValueError: if a class would have no exemplar, and so no mean.
    """

    name: ClassVar[str] = "icarl"

    def __init__(
        self,
        split: SplitNetwork,
        classifier: nn.Linear,
        base_classes: Tensor,
        *,
        base_exemplars: int = 2,
        new_exemplars: int = 2,
        **training: Unpack[TrainingOptions],
    ) -> None:
        require_at_least("base_exemplars", base_exemplars, 1)
        require_at_least("new_exemplars", new_exemplars, 1)
        super().__init__(
            split,
            classifier.out_features,
            base_classes,
            base_exemplars=base_exemplars,
            new_exemplars=new_exemplars,
            **training,
        )
        self.classifier = classifier

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        inputs, joined_labels = self.joined_inputs(images, labels)
        with torch.no_grad():
            old_scores = self.classifier(self.trainer.embed(inputs))  # (n, old classes)
        new_classes = labels.unique()
        self.classifier = extend_linear(self.classifier, len(new_classes), self.trainer.generator)
        self.classes = torch.cat([self.classes, new_classes])
        targets = positions_of(joined_labels, self.classes)
        self.trainer.minimise(
            lambda rows: sum_of(self.loss_terms(inputs[rows], targets[rows], old_scores[rows])),
            len(targets),
            [*self.trainer.parameters, *self.classifier.parameters()],
        )
        self.remember(images, labels, base=False)

    def loss_terms(self, inputs: Tensor, targets: Tensor, old_scores: Tensor) -> dict[str, Tensor]:
        """The two terms of algorithm 3 on one batch.

        The targets of old classes come from the old network: labels of exemplars are not used.

        Args:
            inputs: from :meth:`SessionTrainer.inputs`.
            targets: ``(n,)`` rows of the classifier.
            old_scores: ``(n, old)`` of the network before this session.
        """
        old = old_scores.shape[1]
        scores = self.classifier(self.trainer.trained(inputs))
        return {
            "classification": classification_loss(scores[:, old:], targets - old),
            "distillation": distillation_loss(scores[:, :old], old_scores),
        }

    @override
    def remember(self, images: Tensor, labels: Tensor, *, base: bool) -> None:
        """Choose exemplars of these classes, then compute the means of all classes anew."""
        super().remember(images, labels, base=base)
        kept, kept_labels = self.kept.all()
        self.means = F.normalize(class_means(self.unit_embeddings(kept), kept_labels, self.classes))

    @override
    def classify(self, features: Features) -> Tensor:
        embeddings = F.normalize(self.trainer.embed(features))
        return self.classes[nearest_class_mean(embeddings, self.means)]


def sum_of(terms: dict[str, Tensor]) -> Tensor:
    """Sum of the terms of a loss."""
    return torch.stack(list(terms.values())).sum()
