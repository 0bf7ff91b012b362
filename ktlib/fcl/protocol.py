"""The few-shot protocol: which classes and images each session has (thesis, section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ktlib.checks import require_at_least


@dataclass(frozen=True)
class Session:
    """What one session may see.

    Attributes:
        number: 1 for the base session.
        classes: ``(k,)`` class numbers that appear first in this session.
        train: ``(n,)`` positions of its training images in the training set.
        validation: ``(m,)`` positions of held-out training-set images of its classes, for choosing
            settings; never trained on. Empty by default.

    Example:
        >>> rows = torch.tensor([0, 5])
        >>> Session(1, classes=torch.tensor([4, 2]), train=rows, validation=rows[:0]).number
        1
    """

    number: int
    classes: Tensor
    train: Tensor
    validation: Tensor


def few_shot_sessions(
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
    """Draw the base session and the ``sessions`` few-shot sessions of ``ways`` classes each.

    Classes are put in a random order by ``class_seed`` (the thesis: 1997); the first
    ``base_classes`` of them form session 1. Images are drawn by ``seed``. Both use NumPy's
    ``RandomState``, whose streams are frozen, so that a split stays the same for ever.

    Args:
        labels: ``(n,)`` class of every training image.
        base_classes: classes of session 1.
        sessions: number of few-shot sessions after it (CIFAR-100: 8).
        ways: new classes per few-shot session (N of N-way).
        shots: training images per new class (K of K-shot).
        class_seed: orders the classes.
        seed: draws the images.
        base_images: training images per base class; all that are left by default.
        validation_images: images per class held out of every class.

    Returns:
        ``1 + sessions`` sessions with disjoint classes and images.

    Raises:
        ValueError: if classes or images do not suffice, naming what is asked and what there is.

    Example:
        >>> sessions = few_shot_sessions(torch.arange(40) % 5, base_classes=3, sessions=2, ways=1,
        ...                              shots=2, class_seed=1997, seed=0)
        >>> [(session.number, len(session.classes), len(session.train)) for session in sessions]
        [(1, 3, 24), (2, 1, 2), (3, 1, 2)]
    """
    require_at_least("base_classes", base_classes, 1)
    require_at_least("sessions", sessions, 0)
    require_at_least("ways", ways, 1)
    require_at_least("shots", shots, 1)
    require_at_least("base_images", 1 if base_images is None else base_images, 1)
    require_at_least("validation_images", validation_images, 0)
    positions = labels.cpu().numpy()
    classes = np.unique(positions)
    wanted = base_classes + sessions * ways
    if wanted > len(classes):
        raise ValueError(
            f"base_classes + sessions x ways must not exceed the {len(classes)} classes of the "
            f"data. Found {base_classes} + {sessions} x {ways} = {wanted}."
        )
    order = np.random.RandomState(class_seed).permutation(classes)
    draw = np.random.RandomState(seed)
    result = []
    for number in range(1, sessions + 2):
        first = 0 if number == 1 else base_classes + (number - 2) * ways
        own = order[first : base_classes if number == 1 else first + ways]
        per_class = base_images if number == 1 else shots
        wanted_images = {("base_images" if number == 1 else "shots"): per_class}
        images = draw_images(positions, own, draw, validation_images, **wanted_images)
        result.append(Session(number, torch.as_tensor(own), *images))
    return result


def draw_images(
    labels: NDArray[np.int64],
    classes: Iterable[int],
    draw: np.random.RandomState,
    validation_images: int,
    **per_class: int | None,
) -> tuple[Tensor, Tensor]:
    """Positions of training images and of held-out ones, class by class.

    Args:
        labels: ``(n,)`` class of every image.
        classes: in the order in which their images are drawn.
        draw: random stream, which goes on.
        validation_images: held out of each class.
        per_class: one number of training images per class, None for all that are left, under the
            name that a message gives it.

    Raises:
        ValueError: a class has too few images.
    """
    ((name, images),) = per_class.items()
    train, validation = [], []
    for label in classes:
        pool = draw.permutation(np.flatnonzero(labels == label))
        if len(pool) < (images or 1) + validation_images:
            raise ValueError(
                f"class {label} has {len(pool)} training images, fewer than {name} + "
                f"validation_images = {images or 1} + {validation_images}."
            )
        validation.append(pool[:validation_images])
        train.append(pool[validation_images:][:images])
    return torch.as_tensor(np.concatenate(train)), torch.as_tensor(np.concatenate(validation))


def positions_of(labels: Tensor, classes: Tensor) -> Tensor:
    """Number the labels as a classifier with one score per entry of ``classes`` needs them.

    Args:
        labels: ``(n,)`` class numbers of the data set.
        classes: ``(k,)`` classes in the order of the scores.

    Returns:
        ``(n,)`` the position of each label in ``classes``, -1 where it is not among them.

    Example:
        >>> positions_of(torch.tensor([7, 3, 9]), torch.tensor([3, 7]))
        tensor([ 1,  0, -1])
    """
    match = labels[:, None] == classes.to(labels.device)[None, :]  # (n, k)
    return torch.where(match.any(dim=1), match.int().argmax(dim=1), -1)
