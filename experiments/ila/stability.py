"""When the loss of a training has become stable (thesis, definition 5.1).

A model is epsilon-stable at iteration ``T`` if from then on the expected loss changes by less than
epsilon per iteration. The expected loss is not known; what is measured here in its place is

- the loss on a fixed held-out set, at every so many steps: ``measure=`` and ``window=1``; or
- the training loss, averaged over windows of steps: the loss of a single batch moves by far more
  than any useful epsilon, whatever the model does.

Two warnings. A learning rate that falls to zero makes every training stable in the end: that is a
property of the schedule, not of the model. And a stable loss does not mean that the weights have
come to rest: along a flat valley they move far while the loss stays the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence


class StabilityTest:
    """Callback that finds the step from which the loss of a training is epsilon-stable.

    The change per iteration is that between the means of two adjacent windows, divided by the
    number of steps between their centres::

        test = StabilityTest(1e-3, window=1, every=10, measure=lambda: held_out_loss(model, held))
        finetune(model, batches, ..., after_step=test)
        test.stable_from                    # a step, or None

    Args:
        epsilon: bound on the change per iteration, in nats per token; above 0.
        window: number of losses in each of the two windows; 1 for a loss without noise.
        every: look at every so many steps only.
        measure: gives the loss to look at, such as that of a held-out set; without it the training
            loss of the step is taken.
        patience: with ``stop``, how many changes in a row must be below epsilon.
        stop: end the training, by returning ``True``, once the loss is stable.

    Attributes:
        losses: ``(step, loss)`` of everything looked at.
        changes: ``(step, change per iteration)``, not below 0; the first when both windows are
            full.

    Raises:
        ValueError: an argument lies outside its range.
    """

    def __init__(
        self,
        epsilon: float,
        *,
        window: int,
        every: int = 1,
        measure: Callable[[], float] | None = None,
        patience: int = 1,
        stop: bool = False,
    ) -> None:
        if not (epsilon > 0 and math.isfinite(epsilon)):
            raise ValueError(f"epsilon must be a number above 0. Found epsilon={epsilon!r}.")
        for name, value in (("window", window), ("every", every), ("patience", patience)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Found {name}={value!r}.")
        self.epsilon, self.window, self.every = epsilon, window, every
        self.measure, self.patience, self.stop = measure, patience, stop
        self.losses: list[tuple[int, float]] = []
        self.changes: list[tuple[int, float]] = []

    def __call__(self, step: int, loss: float) -> bool:
        """Look at the loss after a step, and return whether the training may end.

        Raises:
            ValueError: steps do not rise.
            FloatingPointError: the loss is not finite.
        """
        if step % self.every:
            return False
        if self.losses and step <= self.losses[-1][0]:
            raise ValueError(f"steps must rise. Found {step} after {self.losses[-1][0]}.")
        seen = float(self.measure() if self.measure is not None else loss)
        if not math.isfinite(seen):
            raise FloatingPointError(f"The loss after step {step} is not finite: {seen}.")
        self.losses.append((step, seen))
        if len(self.losses) >= 2 * self.window:
            earlier, later = self._windows(len(self.losses))
            steps = _mean([s for s, _ in later]) - _mean([s for s, _ in earlier])
            change = abs(_mean([v for _, v in later]) - _mean([v for _, v in earlier])) / steps
            self.changes.append((step, change))
        return self.stop and self._quiet() >= self.patience

    @property
    def stable_from(self) -> int | None:
        """The step ``T`` of (5.1), as far as was seen: every change after it is below epsilon.

        It is the last step of the earlier window of the first of these changes. ``None`` where the
        last change is not below epsilon, and where nothing could be compared yet.
        """
        quiet = self._quiet()
        if quiet == 0:
            return None
        earlier, _ = self._windows(len(self.losses) - quiet + 1)
        return earlier[-1][0]

    def _quiet(self) -> int:
        """How many of the last changes are below epsilon without a break."""
        count = 0
        for _, change in reversed(self.changes):
            if change >= self.epsilon:
                break
            count += 1
        return count

    def _windows(self, end: int) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
        """The two windows before position ``end`` of the losses."""
        middle = end - self.window
        return self.losses[middle - self.window : middle], self.losses[middle:end]


def stable_from(losses: Sequence[float], epsilon: float, *, window: int) -> int | None:
    """From which step on a finished training was epsilon-stable; see :class:`StabilityTest`.

    Args:
        losses: that of every step; the first is step 1.
        epsilon: bound on the change per iteration.
        window: number of losses in each of the two windows that are compared.

    Raises:
        ValueError: as :class:`StabilityTest`.
    """
    test = StabilityTest(epsilon, window=window)
    for step, loss in enumerate(losses, start=1):
        test(step, loss)
    return test.stable_from


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
