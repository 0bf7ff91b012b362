"""Few-shot continual learning by flat minima (thesis, chapter 3). Explained in ``chapters/fcl.py``.

A few lines on a network of your own::

    split = split_network(backbone, last_convolutions(backbone, 4), example=images)
    for images, labels in batches:                          # base session
        optimizer.zero_grad()
        loss = f2m_loss(split, classifier, images, labels, bound=0.01, draws=2,
                        prototype_weight=1.0, generator=noise)
        loss.total.backward()
        optimizer.step()
    region = FlatRegion(split.tuned, bound=0.01)            # at its end
    learn_session(split, region, shots, shot_labels, prototypes, base_labels, epochs=6, lr=0.01)
"""

from ktlib.fcl.evaluation import embed
from ktlib.fcl.f2m import (
    PRINTED,
    PRINTED_SESSION,
    RELEASED,
    RELEASED_SESSION,
    F2MLoss,
    F2MVariant,
    SessionVariant,
    f2m_loss,
    learn_session,
)
from ktlib.fcl.flatness import Flatness, flatness
from ktlib.fcl.noise import draw_noise, noise_mean, noise_variance
from ktlib.fcl.protocol import Session, few_shot_sessions, positions_of
from ktlib.fcl.prototypes import (
    class_means,
    few_shot_loss,
    nearest_class_mean,
    normalise_prototypes,
)
from ktlib.fcl.region import FlatRegion
from ktlib.fcl.split import SplitNetwork, last_convolutions, split_network
from ktlib.fcl.training import BaseTraining, random_crop, train_base

__all__ = [
    "PRINTED",
    "PRINTED_SESSION",
    "RELEASED",
    "RELEASED_SESSION",
    "BaseTraining",
    "F2MLoss",
    "F2MVariant",
    "FlatRegion",
    "Flatness",
    "Session",
    "SessionVariant",
    "SplitNetwork",
    "class_means",
    "draw_noise",
    "embed",
    "f2m_loss",
    "few_shot_loss",
    "few_shot_sessions",
    "flatness",
    "last_convolutions",
    "learn_session",
    "nearest_class_mean",
    "noise_mean",
    "noise_variance",
    "normalise_prototypes",
    "positions_of",
    "random_crop",
    "split_network",
    "train_base",
]
