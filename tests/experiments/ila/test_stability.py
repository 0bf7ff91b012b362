"""From which step on a loss is epsilon-stable."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from experiments.ila.stability import StabilityTest, stable_from

# Whole numbers, so that shifts and scales by whole numbers are exact.
losses = st.lists(st.integers(-50, 50), min_size=0, max_size=30)
windows = st.integers(1, 4)


def test_by_hand_window_one():
    """Changes are 4, 2, 1, 0.5: below 2 from the third loss on, below 1 from the fourth."""
    seen = [10, 6, 4, 3, 2.5]
    assert stable_from(seen, 2.0, window=1) == 3
    assert stable_from(seen, 1.0, window=1) == 4
    assert stable_from(seen, 4.5, window=1) == 1
    assert stable_from(seen, 0.5, window=1) is None, "below means below"


def test_by_hand_windows_of_two():
    """Means of pairs: (10, 8) = 9 then (6, 6) = 6: 3 in 2 steps. (8, 6) = 7, (6, 6) = 6: 1 in 2."""
    test = StabilityTest(1.0, window=2)
    for step, loss in enumerate([10, 8, 6, 6, 6], start=1):
        test(step, loss)
    assert test.changes == [(4, 1.5), (5, 0.5)]
    assert test.stable_from == 3


def test_a_late_jump_ends_what_was_stable():
    quiet = [1.0] * 8
    assert stable_from(quiet, 0.1, window=1) == 1
    assert stable_from([*quiet, 2.0], 0.1, window=1) is None
    assert stable_from([*quiet, 2.0, 2.0], 0.1, window=1) == 9


def test_a_line_is_stable_exactly_if_its_slope_is_below_epsilon():
    line = [10 - 0.25 * step for step in range(20)]
    for window in (1, 3, 5):
        assert stable_from(line, 0.25, window=window) is None
        assert stable_from(line, 0.2500001, window=window) == window


def test_windows_average_noise_out():
    """The loss falls by 0.01 a step; each batch is 1 too high or too low."""
    noisy = [5 - 0.01 * step + (-1) ** step for step in range(100)]
    assert stable_from(noisy, 0.02, window=1) is None
    assert stable_from(noisy, 0.02, window=10) == 10
    assert stable_from(noisy, 0.005, window=10) is None


@given(losses, windows, st.integers(1, 40), st.integers(1, 40))
def test_a_larger_epsilon_is_reached_no_later(seen, window, epsilon, more):
    first = stable_from(seen, epsilon, window=window)
    second = stable_from(seen, epsilon + more, window=window)
    assert (math.inf if second is None else second) <= (math.inf if first is None else first)


@given(losses, windows, st.integers(1, 40), st.integers(-9, 9), st.sampled_from([-4, -1, 2, 8]))
def test_shift_and_scale_change_nothing(seen, window, epsilon, shift, scale):
    moved = [scale * loss + shift for loss in seen]
    expected = stable_from(seen, epsilon, window=window)
    assert stable_from(moved, abs(scale) * epsilon, window=window) == expected


@given(losses, windows, st.integers(1, 40))
def test_is_the_definition(seen, window, epsilon):
    """The earliest step from which all changes are small, found by trying every one."""

    def change(t):  # between the windows that end at step t and at step t + window
        before, after = seen[t - window : t], seen[t : t + window]
        return abs(sum(after) - sum(before)) / window / window

    steps = range(window, len(seen) - window + 1)
    found = [t for t in steps if all(change(later) < epsilon for later in steps if later >= t)]
    assert stable_from(seen, epsilon, window=window) == (min(found) if found else None)


def test_a_measured_loss_every_so_many_steps():
    measured = iter([3.0, 2.0, 1.99])
    test = StabilityTest(0.05, window=1, every=10, measure=lambda: next(measured))
    for step in range(1, 35):
        assert not test(step, math.nan), "the training loss is not looked at"
    assert test.losses == [(10, 3.0), (20, 2.0), (30, 1.99)]
    assert test.changes == [(20, pytest.approx(0.1)), (30, pytest.approx(0.001))]
    assert test.stable_from == 20


def test_stops_when_asked_after_enough_quiet_steps():
    test = StabilityTest(1.0, window=1, patience=2, stop=True)
    assert [test(t, loss) for t, loss in enumerate([9, 5, 5, 8, 8, 8], 1)] == [False] * 5 + [True]
    test = StabilityTest(1.0, window=1)
    assert not any(test(t, 1.0) for t in range(1, 9)), "by default it only watches"


def test_too_short_is_not_stable():
    assert stable_from([], 1.0, window=1) is None
    assert stable_from([1.0] * 5, 1.0, window=3) is None
    assert stable_from([1.0] * 6, 1.0, window=3) == 3


def test_bad_arguments():
    for epsilon in (0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match="epsilon must be a number above 0. Found epsilon="):
            StabilityTest(epsilon, window=1)
    for name in ("window", "every", "patience"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1. Found {name}=0"):
            StabilityTest(1.0, **{"window": 1, name: 0})
    test = StabilityTest(1.0, window=1)
    test(2, 1.0)
    with pytest.raises(ValueError, match="steps must rise. Found 2 after 2"):
        test(2, 1.0)
    with pytest.raises(FloatingPointError, match="loss after step 3 is not finite: nan"):
        test(3, math.nan)
