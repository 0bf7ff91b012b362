"""Sessions whose new classes show a garment or a digit that no base class has.

With a random split of the pairs, a new class is a new *combination*: a frozen network has seen both
of its parts. Here it has not, so that there is something to learn.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from data_prep.pairs import KINDS
from ktlib.fcl.protocol import Session, draw_images

SEEN = 8
"""Garments, and digits, that base classes show, of ten each."""


def unseen_parts_sessions(
    labels: Tensor,
    *,
    base_classes: int,
    sessions: int,
    ways: int,
    shots: int,
    class_seed: int,
    seed: int,
    base_images: int | None = None,
    validation_images: int = 0,
) -> list[Session]:
    """Session 1 of pairs of eight garments and eight digits, then pairs with an unseen part.

    Arguments and result are those of :func:`ktlib.fcl.few_shot_sessions`, for the 100 classes
    ``10 * garment + digit`` of the data set ``pairs``: at most 64 base classes and 36 new ones.

    Raises:
        ValueError: there are not so many classes of a kind, or too few images.
    """
    order = np.random.RandomState(class_seed)
    garments, digits = (order.permutation(KINDS)[:SEEN] for _ in range(2))
    pairs = order.permutation(KINDS * KINDS)
    seen = np.isin(pairs // KINDS, garments) & np.isin(pairs % KINDS, digits)
    base, new = pairs[seen][:base_classes], pairs[~seen][: sessions * ways]
    if (len(base), len(new)) != (base_classes, sessions * ways):
        raise ValueError(
            f"base_classes must be at most {seen.sum()} and sessions x ways at most "
            f"{(~seen).sum()}. Found {base_classes} and {sessions} x {ways} = {sessions * ways}."
        )
    positions, draw = labels.cpu().numpy(), np.random.RandomState(seed)
    first = draw_images(positions, base, draw, validation_images, base_images=base_images)
    found = [Session(1, torch.as_tensor(base), *first)]
    for number, own in enumerate(np.split(new, sessions), start=2):
        images = draw_images(positions, own, draw, validation_images, shots=shots)
        found.append(Session(number, torch.as_tensor(own), *images))
    return found
