"""A sequence of classification tasks, and the run of a learner through it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ktlib.checks import ImagePool, as_labels, percent, require_at_least
from ktlib.fcl.protocol import draw_images, positions_of


@dataclass(frozen=True)
class ClassTask:
    """Classes and images of one task, which may be given as lists or arrays, too.

    Attributes:
        number: from 1.
        classes: ``(k,)`` class numbers of the data set; no other task has them.
        train: ``(m,)`` positions of its training images in the training set.
        validation: positions of held-out training-set images of its classes, for choosing settings;
            never trained on. Empty unless asked for.

    Example:
        >>> rows = torch.arange(8)
        >>> task = ClassTask(1, classes=torch.tensor([3, 5]), train=rows[:6], validation=rows[6:])
        >>> len(task.train)
        6
    """

    number: int
    classes: Tensor
    train: Tensor
    validation: Tensor

    def __post_init__(self) -> None:
        for name in ("classes", "train", "validation"):
            object.__setattr__(self, name, as_labels(getattr(self, name), "cpu", name=name))

    def labels_from(self, labels: Tensor, known: Tensor) -> Tensor:
        """The labels, on the CPU; a ValueError if it cannot be learned after ``known`` classes."""
        labels, classes = as_labels(labels, "cpu"), self.classes.tolist()
        again = sorted(set(classes) & set(known.tolist()))
        odd = sorted(set(labels[self.train].tolist()) ^ set(classes))
        if not classes or again or len(set(classes)) < len(classes):
            text = f"classes must be new, each once. Found {classes}, of which {again} are known."
        elif odd:
            text = (
                "train must be images of each of its classes, and of no others. Found too few "
                f"or too many of {odd}."
            )
        else:
            return labels
        raise ValueError(f"task {self.number}: {text}")


class ContinualLearner(Protocol):
    """A method of continual learning: it sees one task after the other.

    Attributes:
        classes: ``(k,)`` classes learned so far, in the order of the columns of :meth:`scores`.

    Example:
        >>> from ktlib.cpeft import NearestMean
        >>> learner: ContinualLearner = NearestMean(torch.nn.Linear(4, 8))
        >>> learner.classes
        tensor([], dtype=torch.int64)
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
    images: int | None = None,
    class_seed: int = 0,
    seed: int = 0,
    validation_images: int = 0,
) -> list[ClassTask]:
    """Split classes into tasks of equal size and draw the images of each.

    Classes are put in a random order by ``class_seed``, images are drawn by ``seed``, both with
    NumPy's ``RandomState``, whose streams are frozen. Where ``tasks`` does not divide the number of
    classes, the first tasks have one class more.

    Args:
        labels: ``(n,)`` class of every training image.
        classes: to be learned, such as all that were not used for pre-training.
        tasks: how many.
        images: training images per class; None for all that are left.
        class_seed: orders the classes.
        seed: draws the images.
        validation_images: images per class held out.

    Raises:
        ValueError: there are more tasks than classes, a class is named twice, or has too few
            images.

    Example:
        >>> labels = torch.arange(6).repeat(10)
        >>> tasks = class_tasks(labels, classes=range(6), tasks=3, images=4)
        >>> [(task.classes.tolist(), len(task.train)) for task in tasks]
        [([5, 2], 8), ([1, 3], 8), ([0, 4], 8)]
    """
    require_at_least("images", 1 if images is None else images, 1)
    require_at_least("validation_images", validation_images, 0)
    classes = [operator.index(label) for label in classes]
    if len(set(classes)) < len(classes):
        raise ValueError(f"classes must be different ones. Found classes={classes}.")
    if not 1 <= tasks <= len(classes):
        raise ValueError(f"tasks must lie in 1 to {len(classes)}, the number of classes. "
                         f"Found tasks={tasks!r}.")  # fmt: skip
    order = np.random.RandomState(class_seed).permutation(np.asarray(classes, dtype=np.int64))
    draw = np.random.RandomState(seed)
    numbers = as_labels(labels, "cpu").numpy()
    result = []
    for number, own in enumerate(np.array_split(order, tasks), start=1):
        rows = draw_images(numbers, own, draw, validation_images, images=images)
        result.append(ClassTask(number, torch.as_tensor(own), *rows))
    return result


def predict(learner: ContinualLearner, images: Tensor) -> Tensor:
    """Class-IL prediction: the class with the highest score among all learned so far.

    Args:
        learner: has learned at least one task.
        images: ``(n, channels, height, width)``.

    Returns:
        ``(n,)`` class numbers.

    Raises:
        ValueError: no class has been learned (FloatingPointError: a score is NaN).

    Example:
        >>> from ktlib.cpeft import NearestMean
        >>> images, labels = torch.eye(4).reshape(4, 1, 2, 2), torch.arange(4)
        >>> learner = NearestMean(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8)))
        >>> learner.learn(class_tasks(labels, classes=[1, 3], tasks=1)[0], images, labels)
        >>> predict(learner, images[[3, 1]])
        tensor([3, 1])
    """
    return _best(_scores(learner, images), learner.classes)


def predict_with_task_id(learner: ContinualLearner, images: Tensor, classes: Tensor) -> Tensor:
    """Task-IL prediction: the task is given, and only its classes are compared.

    Args:
        learner: has learned all of ``classes``.
        images: ``(n, channels, height, width)``.
        classes: ``(j,)`` class numbers of the task.

    Raises:
        ValueError: a class has not been learned.
    """
    return _best_within(_scores(learner, images), learner.classes, as_labels(classes))


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
        far (class-IL), ``task_il_accuracy`` among those of the task, and ``routing_error``, the
        share of images that are given a class of another task; all in percent.

    Raises:
        ValueError: a class belongs to two tasks, or a task has no test images.
        FloatingPointError: a loss is no longer finite, or a score NaN; the message names the task.

    Example:
        >>> from ktlib.cpeft import NearestMean
        >>> images, labels = torch.eye(4).reshape(4, 1, 2, 2), torch.arange(4)
        >>> learner = NearestMean(torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 8)))
        >>> tasks = class_tasks(labels, classes=range(4), tasks=2)
        >>> rows = learn_tasks(learner, tasks, images, labels, images, labels)
        >>> [(row["after"], row["task"], row["accuracy"]) for row in rows]
        [(1, 1, 100.0), (2, 1, 100.0), (2, 2, 100.0)]
    """
    require_at_least("batch_size", batch_size, 1)
    labels, test_labels = as_labels(labels), as_labels(test_labels, "cpu")
    tested = _test_rows(tasks, test_labels)
    rows: list[dict[str, Any]] = []
    for last, task in enumerate(tasks):
        try:
            learner.learn(task, images, labels)
            for past, own in zip(tasks[: last + 1], tested, strict=False):
                row = _accuracies(learner, past.classes, test_images, test_labels, own, batch_size)
                rows.append({"after": task.number, "task": past.number, **row})
        except FloatingPointError as error:
            raise FloatingPointError(f"task {task.number}: {error}") from None
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
    parts = [_scores(learner, images[part]).cpu() for part in rows.split(batch_size)]
    scores = torch.cat(parts)  # (m, k)
    known, wanted = learner.classes.cpu(), labels[rows]  # (k,), (m,)
    best = _best(scores, known)  # (m,)
    return {
        "accuracy": percent(best == wanted),
        "task_il_accuracy": percent(_best_within(scores, known, classes) == wanted),
        "routing_error": percent(~torch.isin(best, classes)),
    }


def _scores(learner: ContinualLearner, images: Tensor) -> Tensor:
    if not len(learner.classes):
        raise ValueError("learner must have learned at least one task. Found none.")
    scores = learner.scores(images)
    if bool(scores.isnan().any()):
        raise FloatingPointError("a score is NaN: images and weights must be finite numbers.")
    return scores


def _best(scores: Tensor, classes: Tensor) -> Tensor:
    return classes.to(scores.device)[scores.argmax(dim=1)]


def _best_within(scores: Tensor, known: Tensor, classes: Tensor) -> Tensor:
    columns = positions_of(classes.to(scores.device), known.to(scores.device))  # (j,)
    if bool((columns < 0).any()):
        raise ValueError(f"classes must be among those learned, {known.tolist()}. "
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
        found.append(torch.isin(labels, task.classes).nonzero()[:, 0])
        if not len(found[-1]):
            raise ValueError(f"task {task.number} must have test images. Found none of its "
                             f"classes {task.classes.tolist()}.")  # fmt: skip
    return found
