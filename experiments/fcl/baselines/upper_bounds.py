"""Upper bounds that keep every training image: ``joint`` and ``crt``.

``crt`` is classifier re-training: Kang et al., "Decoupling representation and classifier for
long-tailed recognition", ICLR 2020. Features are learned with every image drawn equally often; then
a fresh linear classifier is trained on the fixed features with every *class* drawn equally often.
The thesis uses it as the approximate upper bound of few-shot continual learning.

Simplified: features are not learned anew from all data, but on from the network of the sessions
before, with the statistics of batch norm frozen, without augmentation and, by default, in the tuned
weights alone. In session 1, where classes are balanced, the base classifier answers in both.
"""

from __future__ import annotations

from typing import ClassVar, Unpack

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from experiments.fcl.baselines.features import Features, joined
from experiments.fcl.baselines.session_training import (
    SessionLearner,
    TrainingOptions,
    class_balanced_weights,
    extend_linear,
    new_linear,
)
from ktlib.checks import require_at_least, require_positive
from ktlib.fcl.protocol import positions_of
from ktlib.fcl.split import SplitNetwork


class Joint(SessionLearner):
    """Go on training on all images of all sessions so far: ``joint``.

    The linear classifier gets fresh rows for the new classes. Every image comes once an epoch, so
    that few-shot classes are as rare in training as they are in the data.

    Args:
        split: network trained on the base session.
        classifier: the linear classifier trained with it; left as it is.
        base_classes: ``(k,)`` class number of each row of ``classifier``.
        training: see :class:`~experiments.fcl.baselines.session_training.SessionTrainer`; the
            generator draws the new rows, too.
    """

    name: ClassVar[str] = "joint"
    sees_all_data: ClassVar[bool] = True

    def __init__(
        self,
        split: SplitNetwork,
        classifier: nn.Linear,
        base_classes: Tensor,
        **training: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(split, classifier.out_features, base_classes, **training)
        self.classifier = classifier

    @override
    def start(self, images: Tensor, labels: Tensor) -> None:
        super().start(images, labels)
        # The prefix never changes: its features are as good as the images, and less work if kept.
        self.inputs = self.trainer.inputs(images)
        self.labels = labels

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        new_classes = labels.unique()
        self.inputs = joined(self.inputs, images, self.trainer.prefix)
        self.labels = torch.cat([self.labels, labels])
        self.classes = torch.cat([self.classes, new_classes])
        self.classifier = extend_linear(self.classifier, len(new_classes), self.trainer.generator)
        targets = positions_of(self.labels, self.classes)

        def loss(rows: Tensor) -> Tensor:
            scores = self.classifier(self.trainer.trained(self.inputs[rows]))
            return F.cross_entropy(scores, targets[rows])

        self.trainer.minimise(
            loss, len(targets), [*self.trainer.parameters, *self.classifier.parameters()]
        )

    @override
    @torch.no_grad()
    def classify(self, features: Features) -> Tensor:
        scores = self.scores(self.trainer.embed(features))
        return self.classes[scores.argmax(dim=1)]

    def scores(self, embeddings: Tensor) -> Tensor:
        """Scores ``(n, classes)`` that predictions are made with."""
        scores: Tensor = self.classifier(embeddings)
        return scores


class ClassifierRetraining(Joint):
    """The features of :class:`Joint` under a fresh, class-balanced linear classifier: ``crt``.

    Each session trains as :class:`Joint` does, then the fresh classifier on the fixed features; the
    next session goes on from the classifier of :class:`Joint`, not from the fresh one.

    Args:
        split: network trained on the base session.
        classifier: the linear classifier trained with it; left as it is.
        base_classes: ``(k,)`` class number of each row of ``classifier``.
        classifier_epochs: passes of the fresh classifier, each of as many draws as there are
            images; ``epochs`` by default.
        classifier_lr: its first learning rate; ``lr`` by default.
        training: see :class:`~experiments.fcl.baselines.session_training.SessionTrainer`; the
            generator draws the new rows, too.
    """

    name: ClassVar[str] = "crt"

    def __init__(
        self,
        split: SplitNetwork,
        classifier: nn.Linear,
        base_classes: Tensor,
        *,
        classifier_epochs: int | None = None,
        classifier_lr: float | None = None,
        **training: Unpack[TrainingOptions],
    ) -> None:
        super().__init__(split, classifier, base_classes, **training)
        self.classifier_epochs = (
            self.trainer.epochs if classifier_epochs is None else classifier_epochs
        )
        self.classifier_lr = self.trainer.lr if classifier_lr is None else classifier_lr
        require_at_least("classifier_epochs", self.classifier_epochs, 1)
        require_positive("classifier_lr", self.classifier_lr)
        self.balanced = classifier

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        super().learn(images, labels)
        self.retrain()

    def retrain(self) -> None:
        """Train a fresh classifier on the features of everything seen, classes equally often."""
        embeddings = self.trainer.embed(self.inputs)
        targets = positions_of(self.labels, self.classes)
        self.balanced = new_linear(self.classifier, len(self.classes), self.trainer.generator)
        self.trainer.minimise(
            lambda rows: F.cross_entropy(self.balanced(embeddings[rows]), targets[rows]),
            len(targets),
            list(self.balanced.parameters()),
            epochs=self.classifier_epochs,
            lr=self.classifier_lr,
            sampling_weights=class_balanced_weights(targets),
        )

    @override
    def scores(self, embeddings: Tensor) -> Tensor:
        scores: Tensor = self.balanced(embeddings)
        return scores
