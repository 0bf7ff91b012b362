"""Time sides that take turns, once it is clear that they compute the same.

A loaded machine changes its speed while it is measured. Sides that take turns in one process are
treated alike, so their ratio within a turn means something where seconds do not: only ratios leave
this module.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from torch import Tensor

from experiments.ila.memory import peak_growth

Key = TypeVar("Key")
Call = Callable[[], object]
Measure = Callable[[Mapping[str, Call], int], dict[str, list[float]]]
Kind = Literal["floor", "naive", "peer", "project"]


@dataclass(frozen=True)
class Side:
    """One way to do some work.

    Attributes:
        name: in the table.
        kind: the project, a peer, the obvious way, or the least that the work can take.
        call: does the work and returns what it found.
        checked: whether the result is to be that of the other sides. A floor may do less.
    """

    name: str
    kind: Kind
    call: Callable[[], Sequence[Tensor]]
    checked: bool = True


@dataclass(frozen=True)
class Ratio:
    """A side against the first one of its row: median, lowest and highest of all turns."""

    name: str
    kind: Kind
    ratio: float
    low: float
    high: float


@dataclass(frozen=True)
class Row:
    """Sides of one work at one size.

    Attributes:
        unit: the first side.
        measure: ``"time"`` or ``"memory"``.
        difference: largest relative difference of the results; None where only one is checked.
        sides: the others; none where the results differ.
    """

    work: str
    size: str
    unit: str
    measure: str
    difference: float | None
    sides: tuple[Ratio, ...]


@dataclass(frozen=True)
class Growth:
    """Time against what grows (``over``): rising sizes, times as multiples of the first."""

    work: str
    over: str
    sizes: tuple[int, ...]
    times: tuple[float, ...]
    exponent: float


def take_turns(
    calls: Mapping[Key, Call], repeats: int, clock: Callable[[], float] = time.process_time
) -> dict[Key, list[float]]:
    """What every call takes in every turn, after one turn to warm up; back and forth.

    By default in seconds of the processor: what other processes take does not count.
    """
    taken: dict[Key, list[float]] = {name: [] for name in calls}
    for turn in range(repeats + 1):
        for name in list(calls)[:: -1 if turn % 2 else 1]:
            begun = clock()
            calls[name]()
            spent = clock() - begun
            if turn:
                taken[name].append(spent)
    return taken


def peaks(calls: Mapping[str, Call], _repeats: int) -> dict[str, list[float]]:
    """The most memory that tensors of every call hold at a time; it is the same in every turn."""
    return {name: [float(peak_growth(call, "cpu"))] for name, call in calls.items()}


def largest_difference(found: Sequence[Tensor], expected: Sequence[Tensor]) -> float:
    """The largest difference of two lists of tensors, relative to the largest number of each."""
    pairs = [(a.double(), b.double()) for a, b in zip(found, expected, strict=True)]
    errors = [float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs]
    return math.nan if any(map(math.isnan, errors)) else max(errors)


def compare(
    work: str,
    size: str,
    sides: Sequence[Side],
    repeats: int,
    *,
    tolerance: float = 1e-3,
    measure: Measure = take_turns,
) -> Row:
    """Check that the sides compute the same, then measure each against the first.

    Args:
        work: what is done.
        size: at which size.
        sides: the first is the unit.
        repeats: turns that count.
        tolerance: a larger relative difference of results refuses the row: it has no ratios.
        measure: :func:`take_turns` or :func:`peaks`.
    """
    first, *others = sides
    unit, kind = f"{first.name} ({first.kind})", "memory" if measure is peaks else "time"
    results = [[part.detach().clone() for part in side.call()] for side in sides if side.checked]
    errors = [largest_difference(result, results[0]) for result in results[1:]]
    difference = next(filter(math.isnan, errors), max(errors)) if errors else None
    if difference is not None and not difference <= tolerance:
        return Row(work, size, unit, kind, difference, ())
    taken = measure({side.name: side.call for side in sides}, repeats)
    found = []
    for side in others:
        ratios = [a / b for a, b in zip(taken[side.name], taken[first.name], strict=True)]
        spread = statistics.median(ratios), min(ratios), max(ratios)
        found.append(Ratio(side.name, side.kind, *spread))
    return Row(work, size, unit, kind, difference, tuple(found))


def growth(
    work: str,
    over: str,
    calls: Mapping[int, Call],
    repeats: int,
    clock: Callable[[], float] = time.process_time,
) -> Growth:
    """Time the same work at rising sizes, in turns, and fit the exponent."""
    taken = take_turns(calls, repeats, clock)
    seconds = [statistics.median(taken[size]) for size in calls]
    times = tuple(value / seconds[0] for value in seconds)
    return Growth(work, over, tuple(calls), times, fitted_exponent(tuple(calls), times))


def fitted_exponent(sizes: Sequence[float], times: Sequence[float]) -> float:
    """Slope of log time on log size by least squares, over the upper half of the sizes.

    Of few sizes that is the upper half and the middle one. A fixed cost weighs most where the size
    is small, and would hide how the rest grows.
    """
    half = (len(sizes) - 1) // 2
    x, y = ([math.log(value) for value in values[half:]] for values in (sizes, times))
    return statistics.linear_regression(x, y).slope
