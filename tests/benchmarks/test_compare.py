"""How sides are compared: turns, ratios, checks and exponents, on a clock that does not run."""

import functools
import itertools
import math

import pytest
import torch

from benchmarks.compare import (
    Side,
    compare,
    fitted_exponent,
    growth,
    largest_difference,
    peaks,
    take_turns,
)


class Clock:
    """A clock that goes on only when a call says what it takes, in turn after turn."""

    def __init__(self):
        self.now, self.called = 0.0, []

    def __call__(self):
        return self.now

    def taking(self, name, costs, result=1.0):
        costs = iter(costs)

        def call():
            self.now += next(costs)
            self.called.append(name)
            return [torch.tensor([result])]

        return call


def test_turns_go_back_and_forth_and_the_first_does_not_count():
    clock = Clock()
    calls = {"a": clock.taking("a", [100, 1, 2]), "b": clock.taking("b", [200, 3, 4])}
    assert take_turns(calls, 2, clock) == {"a": [1, 2], "b": [3, 4]}
    assert clock.called == ["a", "b", "b", "a", "a", "b"]


@pytest.fixture
def compared():
    """Compare sides of one unit, after what the check and the warm-up take."""
    clock = Clock()

    def compared(unit, other, result=1.0, checked=True):
        before = [7.0, 7.0] if checked else [7.0]
        sides = [
            Side("unit", "floor", clock.taking("unit", [7.0, 7.0, *unit])),
            Side("other", "peer", clock.taking("other", [*before, *other], result), checked),
        ]
        timed = functools.partial(take_turns, clock=clock)
        return compare("work", "size", sides, len(unit), measure=timed), clock.called

    return compared


def test_ratio_is_that_within_a_turn(compared):
    """The machine becomes slower from turn to turn: the ratio stays, and one turn is a freak."""
    row, _ = compared([1, 2, 4, 8, 16], [3, 6, 12, 24, 160])
    [side] = row.sides
    assert (row.unit, row.measure, row.difference) == ("unit (floor)", "time", 0)
    assert (side.name, side.kind, side.ratio, side.low, side.high) == ("other", "peer", 3, 3, 10)


@pytest.mark.parametrize("result", [1.1, math.nan, math.inf])
def test_sides_that_differ_are_refused_and_not_measured(compared, result):
    row, called = compared([1], [1], result)
    assert row.sides == ()
    assert not row.difference <= 1e-3
    assert called == ["unit", "other"]


def test_floor_may_do_less(compared):
    row, _ = compared([1], [2], 5.0, checked=False)
    assert row.difference is None
    assert row.sides[0].ratio == 2


def test_difference_is_relative_to_the_largest_number_of_each_tensor():
    first = [torch.tensor([100.0, 0.0]), torch.tensor([1e-6])]
    assert largest_difference([torch.tensor([100.0, 1.0]), first[1]], first) == pytest.approx(0.01)
    assert largest_difference([first[0], torch.tensor([2e-6])], first) == pytest.approx(1)
    assert math.isnan(largest_difference([torch.tensor([1.0, math.nan]), first[1]], first))


@pytest.mark.slow
def test_memory_is_the_most_that_is_held_at_a_time():
    def two():
        del (first := [torch.empty(1000)])[0]
        return first, torch.empty(3000)

    found = peaks({"one": lambda: torch.empty(1000), "two": two}, 3)
    assert found == {"one": [4000.0], "two": [12000.0]}


@pytest.mark.parametrize("power", [0.5, 1, 2])
@pytest.mark.parametrize("sizes", [(2, 5, 10, 20, 40), (1, 2, 4)])
def test_exponent_of_a_power(power, sizes):
    assert fitted_exponent(sizes, [3 * n**power for n in sizes]) == pytest.approx(power)


def test_exponent_looks_at_the_upper_half():
    """A fixed cost hides the growth below, where the last three sizes show it."""
    sizes = (1, 2, 4, 8, 16)
    assert fitted_exponent(sizes, [5, 5, 4, 16, 64]) == pytest.approx(2)


def test_growth_is_in_multiples_of_the_smallest():
    clock = Clock()
    calls = {n: clock.taking(n, itertools.repeat(4.0 * n**2)) for n in (1, 2, 4)}
    found = growth("work", "tasks", calls, 3, clock)
    assert (found.sizes, found.times) == ((1, 2, 4), (1, 4, 16))
    assert found.exponent == pytest.approx(2)
