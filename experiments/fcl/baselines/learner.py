"""The interface of all methods of few-shot continual learning, and the run through the sessions.

A method is a :class:`Learner`. :func:`run_learner` gives it the images of one session after the
other, never those of an earlier one again, and tests it after each. What a method needs later it
must keep in :class:`~experiments.fcl.baselines.memory.Exemplars`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any, ClassVar

import torch
from torch import Tensor

from experiments.fcl.baselines.features import Features, chosen
from ktlib.checks import ImagePool, percent
from ktlib.fcl.protocol import Session


class Learner(ABC):
    """One method, from the end of base training to the last session.

    A learner is made from a network that has been trained on the base session, and owns it: its
    weights are changed in place. Give each learner a copy (``copy.deepcopy``).

    Attributes:
        name: id in the tables, such as ``"icarl"``.
        sees_all_data: an upper bound that keeps every training image of every session. All other
            methods are held to their exemplars.
    """

    name: ClassVar[str]
    sees_all_data: ClassVar[bool] = False

    @abstractmethod
    def start(self, images: Tensor, labels: Tensor) -> None:
        """Session 1. The network has been trained: note what later sessions need.

        Args:
            images: ``(n, channels, height, width)``, normalised, on the device of the network.
            labels: ``(n,)`` class numbers of the data set.
        """

    @abstractmethod
    def learn(self, images: Tensor, labels: Tensor) -> None:
        """One few-shot session; arguments as in :meth:`start`, classes never seen before."""

    def features(self, images: Tensor) -> Features:
        """The part of a prediction that no session changes, computed once.

        Args:
            images: ``(n, channels, height, width)``.

        Returns:
            ``(n, ...)`` a row an image, without gradients; by default the images themselves.
            Those of a prefix that would fill the memory are computed when they are asked for.
        """
        return images

    @abstractmethod
    def classify(self, features: Features) -> Tensor:
        """Class numbers ``(n,)`` of the images that have these features; no gradients.

        Args:
            features: ``(n, ...)`` from :meth:`features`, also if called in an earlier session.

        Returns:
            Each one of the classes seen so far.
        """

    def predict(self, images: Tensor) -> Tensor:
        """Class numbers ``(n,)`` of images, as :meth:`classify` gives them."""
        return self.classify(self.features(images))


@dataclass
class SessionResults:
    """Test accuracies of one learner, in percent.

    Attributes:
        rows: one a session: ``session``, ``accuracy``, ``base_accuracy``, and, ``None`` in session
            1, ``new_accuracy`` and ``harmonic``, the harmonic mean of those of base and new
            classes.
        by_origin: one for each session and each earlier session ``origin``: accuracy after
            ``session`` on the classes that first appeared in ``origin``. The forgetting matrix.
        predicted: for each class of the data set, by its number, the test images that were taken
            for it at the last test.
        right: those among them that belong to it.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    by_origin: list[dict[str, Any]] = field(default_factory=list)
    predicted: list[int] = field(default_factory=list)
    right: list[int] = field(default_factory=list)


def run_learner(
    learner: Learner,
    sessions: Sequence[Session],
    images: ImagePool,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    results: SessionResults | None = None,
    *,
    only_last: bool = False,
    features: Features | None = None,
) -> SessionResults:
    """Run all sessions; after each, test on the test images of all classes seen so far.

    Args:
        learner: the method, its network trained on session 1.
        sessions: from :func:`ktlib.fcl.few_shot_sessions`.
        images: ``(n, ...)`` the training images that the sessions point into.
        labels: ``(n,)`` their classes.
        test_images: ``(m, ...)`` images never trained on.
        test_labels: ``(m,)`` their classes.
        results: rows are added here as sessions end, so that what was computed before an error is
            not lost; by default a new object.
        only_last: test after the last session alone.
        features: of the test images, where another learner on the same network has computed them.

    Returns:
        ``results``.

    Raises:
        ValueError: if a class belongs to two sessions.
        FloatingPointError: if a loss is no longer finite, naming method, session and step.
    """
    _require_disjoint(sessions)
    results = SessionResults() if results is None else results
    classes = 1 + max(int(labels.max()), int(test_labels.max()))
    origin = torch.zeros_like(test_labels)  # session in which a class first appears, 0: not yet
    for session in sessions:
        step = learner.start if session.number == 1 else learner.learn
        try:
            step(images[session.train], labels[session.train])
        except FloatingPointError as error:
            raise FloatingPointError(
                f"method {learner.name!r}, session {session.number}: {error}"
            ) from None
        origin[torch.isin(test_labels, session.classes.to(test_labels))] = session.number
        seen = origin > 0
        if only_last and session is not sessions[-1]:
            continue
        if features is None:
            features = learner.features(test_images)
        predicted, true = learner.classify(chosen(features, seen)), test_labels[seen]
        _add_rows(results, session.number, predicted == true, origin[seen])
        results.predicted = _counts(predicted, classes)
        results.right = _counts(true[predicted == true], classes)
    return results


def average_incremental_accuracy(rows: Sequence[Mapping[str, Any]]) -> float:
    """Mean of ``accuracy`` over the rows of all sessions, in percent."""
    return fmean(row["accuracy"] for row in rows)


def harmonic_mean(first: float, second: float) -> float:
    """Harmonic mean of two numbers that are at least 0; 0 if one of them is."""
    return 2 * first * second / (first + second) if first and second else 0.0


def _add_rows(results: SessionResults, number: int, correct: Tensor, origin: Tensor) -> None:
    base = percent(correct[origin == 1])
    new = percent(correct[origin > 1]) if number > 1 else None
    results.rows.append(
        {
            "session": number,
            "accuracy": percent(correct),
            "base_accuracy": base,
            "new_accuracy": new,
            "harmonic": None if new is None else harmonic_mean(base, new),
        }
    )
    results.by_origin.extend(
        {"session": number, "origin": past, "accuracy": percent(correct[origin == past])}
        for past in range(1, number + 1)
    )


def _counts(found: Tensor, classes: int) -> list[int]:
    """How often each class number below ``classes`` occurs."""
    counts: list[int] = (found.cpu()[:, None] == torch.arange(classes)).sum(dim=0).tolist()
    return counts


def _require_disjoint(sessions: Sequence[Session]) -> None:
    first: dict[int, int] = {}
    for session in sessions:
        for label in session.classes.tolist():
            if label in first:
                raise ValueError(
                    "a class must belong to one session only. "
                    f"Found class {label} in sessions {first[label]} and {session.number}."
                )
            first[label] = session.number
