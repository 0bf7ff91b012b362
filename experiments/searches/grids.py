"""Grids of settings, what was tried of them, and their continuation: shared by the searches."""

from __future__ import annotations

import itertools
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path

from experiments.run.results import RunRecord

Setting = dict[str, float]
"""Knob -> value."""

Grid = Mapping[str, tuple[float, ...]]
"""Knob -> the values to try."""


def settings(grid: Grid) -> Iterator[Setting]:
    """Every combination of the values of a grid."""
    for values in itertools.product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def setting_text(setting: Mapping[str, float]) -> str:
    """A setting for a cell of a table."""
    return json.dumps(dict(setting))


def tried(texts: Iterable[str]) -> list[Setting]:
    """The settings in the cells of a method's trials, each once."""
    return [json.loads(text) for text in dict.fromkeys(texts)]


def grid_of(known: Collection[Setting]) -> Grid:
    """The values of each knob that were tried so far, in order."""
    names = next(iter(known))
    return {name: tuple(sorted({setting[name] for setting in known})) for name in names}


def continued(
    best: Setting, known: Collection[Setting], at_most: Mapping[str, float] | None = None
) -> Setting | None:
    """The best setting, one knob a step beyond the end of its grid; None if there is no such step.

    Args:
        best: the best setting so far.
        known: every setting that was tried.
        at_most: knob -> its largest value.
    """
    for name, values in grid_of(known).items():
        if len(values) < 2 or best[name] not in (values[0], values[-1]):
            continue
        first = best[name] == values[0]
        beyond = values[0] ** 2 / values[1] if first else values[-1] ** 2 / values[-2]
        further = best | {
            name: max(1, round(beyond)) if name == "epochs" else float(f"{beyond:.2g}")
        }
        if further not in known and beyond <= (at_most or {}).get(name, beyond):
            return further
    return None


def save(record: RunRecord, out: Path) -> None:
    """Write the record so that it is complete or not there."""
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        record.save(folder)
        Path(folder, "result.json").replace(out)
