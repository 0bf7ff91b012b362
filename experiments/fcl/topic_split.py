"""Sessions of the TOPIC protocol, the fixed split behind tables 3.9 to 3.11 of the thesis."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from data_prep.common.topic import TopicLists
from ktlib.fcl.protocol import Session


def topic_sessions(
    lists: TopicLists,
    labels: Tensor,
    keys: Sequence[str] | None = None,
    *,
    validation_images: int = 0,
    seed: int = 0,
) -> list[Session]:
    """Turn the lists of a data set into sessions, as :func:`few_shot_sessions` gives them.

    Session 1 has the first classes of the data set, every later one the next ``ways``, in the
    order of their numbers. Its images keep the order of the list::

        train = load("cub200", "train")
        sessions = topic_sessions(topic_lists("cub200"), train.labels, topic_keys("cub200"))

    Args:
        lists: from :func:`data_prep.common.topic.topic_lists`.
        labels: ``(n,)`` class of every training image.
        keys: ``n`` names by which the lists call the images; None where they hold positions.
        validation_images: images per class held out: of a base class they are taken out of its
            training images, of a new class they come from its images that no list names.
        seed: draws the images held out.

    Returns:
        ``1 + sessions`` sessions with disjoint classes and images.

    Raises:
        ValueError: if an image is unknown, listed twice or in the wrong session, or if the numbers
            of classes and images are not those of the protocol.
    """
    protocol = lists.protocol
    classes = protocol.base_classes + protocol.sessions * protocol.ways
    present = labels.unique().tolist()
    if present != list(range(classes)):
        raise ValueError(
            f"labels must have the {classes} classes 0 to {classes - 1} of the protocol. "
            f"Found {len(present)} classes from {min(present)} to {max(present)}."
        )
    if validation_images < 0:
        raise ValueError(
            f"validation_images must be at least 0. Found validation_images={validation_images!r}."
        )
    if len(lists.few_shot) != protocol.sessions:
        raise ValueError(
            f"lists must have {protocol.sessions} few-shot sessions. Found {len(lists.few_shot)}."
        )
    numbers: NDArray[np.int64] = labels.cpu().numpy()
    chosen = _positions(lists, numbers, keys)
    _require_disjoint(chosen)
    for session, own in enumerate(chosen, start=1):
        _require_sizes(lists, session, numbers[own])
    listed = np.concatenate(chosen)
    draw = np.random.RandomState(seed)
    result = []
    for session, own in enumerate(chosen, start=1):
        wanted = _classes_of(lists, session)
        validation = np.empty(0, dtype=np.int64)
        if validation_images:
            free = own if session == 1 else np.setdiff1d(np.arange(len(numbers)), listed)
            validation = _held_out(draw, numbers, free, wanted, validation_images)
        result.append(
            Session(
                session,
                torch.as_tensor(wanted),
                torch.as_tensor(own[~np.isin(own, validation)]),
                torch.as_tensor(validation),
            )
        )
    return result


def _classes_of(lists: TopicLists, session: int) -> NDArray[np.int64]:
    """The class numbers of a session, in their order."""
    protocol = lists.protocol
    if session == 1:
        return np.arange(protocol.base_classes)
    first = protocol.base_classes + (session - 2) * protocol.ways
    return np.arange(first, first + protocol.ways)


def _positions(
    lists: TopicLists, labels: NDArray[np.int64], keys: Sequence[str] | None
) -> list[NDArray[np.int64]]:
    """Positions of the images of each session, in the order of its list."""
    names = [str(i) for i in range(len(labels))] if keys is None else list(keys)
    if len(names) != len(labels):
        raise ValueError(
            f"keys must have one name per label, {len(labels)}. Found {len(names)} names."
        )
    position = {name: i for i, name in enumerate(names)}
    if len(position) != len(names):
        raise ValueError(f"keys must be unique. Found {len(names) - len(position)} repeated names.")
    result = []
    for session, images in enumerate((lists.base, *lists.few_shot), start=1):
        if images is None:
            result.append(np.flatnonzero(labels < lists.protocol.base_classes))
            continue
        unknown = [image for image in images if image not in position]
        if unknown:
            raise ValueError(
                f"the list of session {session} must name training images. Found {unknown[0]!r}, "
                f"which is not one ({len(unknown)} such entries)."
            )
        result.append(np.array([position[image] for image in images], dtype=np.int64))
    return result


def _require_disjoint(chosen: Sequence[NDArray[np.int64]]) -> None:
    """Refuse an image that is named twice, in one session or in two."""
    seen: dict[int, int] = {}
    for session, own in enumerate(chosen, start=1):
        for image in own.tolist():
            if image in seen:
                raise ValueError(
                    f"sessions must not share images. Found the image at position {image} in "
                    f"session {seen[image]} and again in session {session}."
                )
            seen[image] = session


def _require_sizes(lists: TopicLists, session: int, labels: NDArray[np.int64]) -> None:
    """Refuse a session with other classes or another number of images than the protocol says."""
    protocol = lists.protocol
    wanted = _classes_of(lists, session)
    foreign = labels[~np.isin(labels, wanted)]
    if len(foreign):
        raise ValueError(
            f"session {session} must have images of the classes {wanted[0]} to {wanted[-1]} only. "
            f"Found one of class {foreign[0]}."
        )
    number = protocol.base_images if session == 1 else protocol.ways * protocol.shots
    if len(labels) != number:
        raise ValueError(f"session {session} must have {number} images. Found {len(labels)}.")
    counts = np.bincount(labels, minlength=wanted[-1] + 1)[wanted]
    if session == 1 and not counts.all():
        raise ValueError(f"session 1 must have images of all {len(wanted)} base classes.")
    if session > 1 and set(counts) != {protocol.shots}:
        raise ValueError(
            f"session {session} must have {protocol.shots} images of each class. "
            f"Found {counts.tolist()}."
        )


def _held_out(
    draw: np.random.RandomState,
    labels: NDArray[np.int64],
    free: NDArray[np.int64],
    classes: NDArray[np.int64],
    number: int,
) -> NDArray[np.int64]:
    """``number`` of the free positions of each class."""
    result = []
    for label in classes:
        pool = draw.permutation(free[labels[free] == label])
        if len(pool) <= number:
            raise ValueError(
                f"validation_images must be below {len(pool)}, the free training images of class "
                f"{label}. Found validation_images={number!r}."
            )
        result.append(pool[:number])
    return np.concatenate(result)
