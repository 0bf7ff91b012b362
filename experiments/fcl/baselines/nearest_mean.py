"""The methods that classify by the nearest class mean: ``ncm``, ``f2m`` and ``finetune``."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypedDict, Unpack

import torch
from torch import Tensor
from typing_extensions import override

from experiments.fcl.baselines.features import Features, embedded, prefix_features
from experiments.fcl.baselines.learner import Learner
from experiments.fcl.baselines.memory import Exemplars
from ktlib.checks import require_at_least, require_positive
from ktlib.fcl.evaluation import embed
from ktlib.fcl.f2m import PRINTED_SESSION, SessionVariant, learn_session
from ktlib.fcl.prototypes import class_means, nearest_class_mean, normalise_prototypes
from ktlib.fcl.region import FlatRegion
from ktlib.fcl.split import SplitNetwork


class NearestMean(Learner):
    """The frozen network with class means: the baseline ``ncm``.

    Args:
        split: network trained on the base session.
        normalise: scale all prototypes to one norm (PN).

    Attributes:
        classes: ``(k,)`` classes seen so far.
        prototypes: ``(k, dim)`` one per class: the mean of its images. As the network does not
            change, a prototype stays right, and no image has to be kept.
    """

    name: ClassVar[str] = "ncm"

    def __init__(self, split: SplitNetwork, *, normalise: bool = True) -> None:
        self.split = split
        self.normalise = normalise

    @override
    def start(self, images: Tensor, labels: Tensor) -> None:
        self.base_classes: Tensor = labels.unique()
        self.classes = self.base_classes
        self.prototypes = self.base_prototypes = self.means(images, labels)

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        self.classes = torch.cat([self.classes, labels.unique()])
        self.prototypes = torch.cat([self.prototypes, self.means(images, labels)])

    def means(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean embedding ``(k, dim)`` of each class in ``labels``, in sorted order."""
        return class_means(embed(self.split.network, images), labels)

    @override
    def features(self, images: Tensor) -> Features:
        return prefix_features(self.split.prefix, images)

    @override
    def classify(self, features: Features) -> Tensor:
        prototypes = normalise_prototypes(self.prototypes) if self.normalise else self.prototypes
        nearest = nearest_class_mean(embedded(self.split.tail, features), prototypes)
        predicted: Tensor = self.classes[nearest]
        return predicted


class NearestMeanOptions(TypedDict, total=False):
    """Keyword arguments of :class:`TunedNearestMean`, for methods that hand them on."""

    normalise: bool
    new_exemplars: int


class TunedNearestMean(NearestMean):
    """Class means in a network that every session changes.

    The prototypes of base classes are the saved ones. Those of all new classes are computed anew
    after each session, from its shots and the exemplars of earlier ones.

    Args:
        split: network trained on the base session.
        normalise: see :class:`NearestMean`.
        new_exemplars: images kept per new class; base images are not kept.
    """

    def __init__(
        self, split: SplitNetwork, *, normalise: bool = True, new_exemplars: int = 5
    ) -> None:
        super().__init__(split, normalise=normalise)
        self.kept = Exemplars(per_base_class=0, per_new_class=new_exemplars)

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        shots, shot_labels = self.kept.joined_with(images, labels)
        self.tune(shots, shot_labels)
        self.classes = torch.cat([self.base_classes, shot_labels.unique()])
        self.prototypes = torch.cat([self.base_prototypes, self.means(shots, shot_labels)])
        self.kept.add_chosen(images, labels, base=False)

    @abstractmethod
    def tune(self, shots: Tensor, labels: Tensor) -> None:
        """Change the network.

        Args:
            shots: ``(n, ...)`` exemplars of earlier new classes, then the shots of this session.
            labels: ``(n,)`` their classes.
        """


class FinetuneOptions(NearestMeanOptions, total=False):
    """Keyword arguments of :class:`Finetune` besides its own, for methods that hand them on."""

    session: SessionVariant | None


class Finetune(TunedNearestMean):
    """Go on training on the few new images, equation (3.7), with nothing to hold the weights.

    Args:
        split: network trained on the base session.
        epochs: full-batch steps per session.
        lr: learning rate of plain SGD.
        session: departures from the printed session; by default there are none.
        options: see :class:`TunedNearestMean`.

    Attributes:
        region: the box that the weights are held in, if there is one.
        gradients: norms at the first step of each session: of the gradient of the loss (``data``),
            and of what :attr:`proximal` moves, over the learning rate (``penalty``).
    """

    name: ClassVar[str] = "finetune"

    def __init__(
        self,
        split: SplitNetwork,
        *,
        epochs: int,
        lr: float,
        session: SessionVariant | None = None,
        **options: Unpack[NearestMeanOptions],
    ) -> None:
        super().__init__(split, **options)
        require_at_least("epochs", epochs, 1)
        require_positive("lr", lr)
        self.epochs = epochs
        self.lr = lr
        self.session = session
        self.region: FlatRegion | None = None
        self.gradients: list[dict[str, float]] = []

    @property
    def proximal(self) -> Callable[[], None] | None:
        """What changes the tuned weights after each gradient step; ``None`` changes nothing."""
        return None

    @override
    def tune(self, shots: Tensor, labels: Tensor) -> None:
        facts: dict[str, float] = {}
        learn_session(
            self.split,
            self.region,
            shots,
            labels,
            self.base_prototypes,
            self.base_classes,
            epochs=self.epochs,
            lr=self.lr,
            proximal=self.proximal,
            variant=self.session or PRINTED_SESSION,
            facts=facts,
        )
        self.gradients.append({"data": facts["data"], "penalty": facts["proximal"]})


class F2M(Finetune):
    """Fine-tuning that never leaves the box around the base minimum (thesis, algorithm 1).

    The network should have been trained with :func:`ktlib.fcl.f2m_loss`.

    Args:
        split: network trained on the base session.
        bound: half-width ``b`` of the box, in units of the weights.
        epochs: full-batch steps per session.
        lr: learning rate of plain SGD.
        options: see :class:`Finetune`.
    """

    name: ClassVar[str] = "f2m"

    def __init__(
        self,
        split: SplitNetwork,
        *,
        bound: float,
        epochs: int,
        lr: float,
        **options: Unpack[FinetuneOptions],
    ) -> None:
        super().__init__(split, epochs=epochs, lr=lr, **options)
        self.region: FlatRegion = FlatRegion(split.tuned, bound)
