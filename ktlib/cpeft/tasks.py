"""A sequence of classification tasks, and the run of a learner through it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ktlib.checks import ImagePool, percent, require_at_least
from ktlib.fcl.protocol import positions_of


@dataclass(frozen=True)
class ClassTask:
    """What one task may see.

    Attributes:
        number: from 1.
        classes: ``(k,)`` class numbers of the data set; no other task has them.
        train: ``(m,)`` positions of its training images in the training set.
        validation: positions of held-out training-set images of its classes, for choosing settings;
            never trained on. Empty unless asked for.
    """

    number: int
    classes: Tensor
    train: Tensor
    validation: Tensor


class ContinualLearner(Protocol):
    """A method of continual learning: it sees one task after the other.

    Attributes:
        classes: ``(k,)`` classes learned so far, in the order of the columns of :meth:`scores`.
    """

    @property
    def classes(self) -> Tensor:
        """``(k,)`` class numbers."""

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Learn a task from ``images[task.train]``, after those learned before.

        Args:
            task: classes never seen before, and where their images are.
            images: ``(n, channels, height, width)`` all that the tasks point into.
            labels: ``(n,)`` their classes.
        """

    def scores(self, images: Tensor) -> Tensor:
        """``(n, k)`` log-probabilities or logits of images ``(n, channels, height, width)``."""


def class_tasks(
    labels: Tensor,
    *,
    classes: Sequence[int],
    tasks: int,
    images: int | None,
    class_seed: int,
    seed: int,
    validation_images: int = 0,
) -> list[ClassTask]:
    """Split classes into tasks of equal size and draw the images of each.

    Classes are put in a random order by ``class_seed``, images are drawn by ``seed``, both with
    NumPy's ``RandomState``, whose streams are frozen. Where ``tasks`` does not divide the number of
    classes, the first tasks have one class more.

    Args:
        labels: ``(n,)`` class of every training image.
        classes: those that are learned, such as all that were not used for pre-training.
        tasks: how many.
        images: training images per class; None for all that are left.
        class_seed: orders the classes.
        seed: draws the images.
        validation_images: images per class held out.

    Raises:
        ValueError: there are more tasks than classes, a class is named twice, or has too few
            images.
    """
    require_at_least("images", 1 if images is None else images, 1)
    require_at_least("validation_images", validation_images, 0)
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes must be different ones. Found classes={list(classes)}.")
    if not 1 <= tasks <= len(classes):
        raise ValueError(f"tasks must lie in 1 to {len(classes)}, the number of classes. "
                         f"Found tasks={tasks!r}.")  # fmt: skip
    order = np.random.RandomState(class_seed).permutation(np.asarray(classes, dtype=np.int64))
    draw = np.random.RandomState(seed)
    numbers = labels.cpu().numpy()
    result = []
    for number, own in enumerate(np.array_split(order, tasks), start=1):
        train, validation = [], []
        for label in own:
            pool = draw.permutation(np.flatnonzero(numbers == label))
            if len(pool) < (images or 1) + validation_images:
                raise ValueError(
                    f"class {label} of task {number} has {len(pool)} training images, fewer than "
                    f"images + validation_images = {images or 1} + {validation_images}."
                )
            validation.append(pool[:validation_images])
            rest = pool[validation_images:]
            train.append(rest[:images])
        result.append(
            ClassTask(
                number,
                torch.as_tensor(own),
                torch.as_tensor(np.concatenate(train)),
                torch.as_tensor(np.concatenate(validation)),
            )
        )
    return result


def predict(learner: ContinualLearner, images: Tensor) -> Tensor:
    """``(n,)`` class numbers with the highest score among all classes learned so far."""
    return _best(learner.scores(images), learner.classes)


def predict_within(learner: ContinualLearner, images: Tensor, classes: Tensor) -> Tensor:
    """The same among the given classes only: what the learner says when it is told the task.

    Args:
        learner: has learned all of ``classes``.
        images: ``(n, channels, height, width)``.
        classes: ``(j,)`` class numbers.

    Raises:
        ValueError: a class was not learned.
    """
    return _best_within(learner.scores(images), learner.classes, classes)


def learn_tasks(
    learner: ContinualLearner,
    tasks: Sequence[ClassTask],
    images: ImagePool,
    labels: Tensor,
    test_images: ImagePool,
    test_labels: Tensor,
    *,
    batch_size: int = 500,
    observe: Callable[[int, ContinualLearner], None] | None = None,
) -> list[dict[str, Any]]:
    """Learn all tasks, testing on every task so far after each of them.

    Args:
        learner: is changed.
        tasks: in the order in which they are learned.
        images: ``(n, channels, height, width)`` what the tasks point into.
        labels: ``(n,)`` their classes.
        test_images: ``(m, channels, height, width)`` images never trained on.
        test_labels: ``(m,)`` their classes.
        batch_size: test images at a time.
        observe: called with the number of the task and the learner after each task.

    Returns:
        A row for each task ``after`` and each ``task`` up to it: ``accuracy`` among all classes so
        far, ``accuracy_within`` if told the task, and ``misallocated``, the share of images that
        are taken for a class of another task; all in percent.

    Raises:
        ValueError: a class belongs to two tasks, or a task has no test images.
        FloatingPointError: a loss is no longer finite; the message names the task.
    """
    require_at_least("batch_size", batch_size, 1)
    tested = _test_rows(tasks, test_labels)
    rows: list[dict[str, Any]] = []
    for last, task in enumerate(tasks):
        try:
            learner.learn(task, images, labels)
        except FloatingPointError as error:
            raise FloatingPointError(f"task {task.number}: {error}") from None
        for past, own in zip(tasks[: last + 1], tested, strict=False):
            row = _accuracies(learner, past.classes, test_images, test_labels, own, batch_size)
            rows.append({"after": task.number, "task": past.number, **row})
        if observe is not None:
            observe(task.number, learner)
    return rows


def _accuracies(
    learner: ContinualLearner,
    classes: Tensor,
    images: ImagePool,
    labels: Tensor,
    rows: Tensor,
    batch_size: int,
) -> dict[str, float]:
    scores = torch.cat([learner.scores(images[part]).cpu() for part in rows.split(batch_size)])
    known, wanted = learner.classes.cpu(), labels[rows].cpu()
    best = _best(scores, known)
    return {
        "accuracy": percent(best == wanted),
        "accuracy_within": percent(_best_within(scores, known, classes) == wanted),
        "misallocated": percent(~torch.isin(best, classes)),
    }


def _best(scores: Tensor, classes: Tensor) -> Tensor:
    return classes.to(scores.device)[scores.argmax(dim=1)]


def _best_within(scores: Tensor, known: Tensor, classes: Tensor) -> Tensor:
    columns = positions_of(classes.to(scores.device), known.to(scores.device))
    if bool((columns < 0).any()):
        raise ValueError(f"classes must be of those learned, {known.tolist()}. "
                         f"Found {classes.tolist()}.")  # fmt: skip
    return _best(scores[:, columns], classes)


def _test_rows(tasks: Sequence[ClassTask], labels: Tensor) -> list[Tensor]:
    """Positions of the test images of each task."""
    first: dict[int, int] = {}
    found = []
    for task in tasks:
        for label in task.classes.tolist():
            if label in first:
                raise ValueError("a class must belong to one task only. Found class "
                                 f"{label} in tasks {first[label]} and {task.number}.")  # fmt: skip
            first[label] = task.number
        found.append(torch.isin(labels.cpu(), task.classes).nonzero()[:, 0])
        if not len(found[-1]):
            raise ValueError(f"task {task.number} must have test images. Found none of its "
                             f"classes {task.classes.tolist()}.")  # fmt: skip
    return found
