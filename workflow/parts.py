"""Records in parts: one run for each seed, or for each seed of a group, merged into one record.

A part is an ordinary run, such as ``runs/fcl/full/seeds=3``. So each takes a part of the time, they
run at once where there are cores or a cluster, and one that fails leaves the others as they are.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from experiments.run.committed import SAME, column_of, differences, listed
from experiments.run.provenance import chapter_header
from experiments.run.records import RECORD_NAME, Part, RunRecord, load_record
from workflow.guard import PARTIAL
from workflow.project import (
    MAIN_RUN,
    RUN_NAME,
    RUNS,
    chapter_source,
    list_parameters,
    run_values,
    sweep_runs,
)

# In what all parts agree, beside packages, data and parameters.
ALIKE = (
    "chapter",
    "profile",
    "code_digest",
    "python",
    "system",
    "device",
    "precision",
    "threads",
    "workers",
)
SHOWN = 5  # of several things that are wrong
Row = Mapping[str, Any]


def part_runs(chapter: str, choices: Mapping[str, str]) -> list[str]:
    """Names of the runs that are the parts of a record: one for each combination of the values.

    Args:
        chapter: its name.
        choices: parameter -> values with commas between, as for a sweep.

    Raises:
        ValueError: a parameter is no list, so that a record could not hold several of its values.
    """
    lists = list_parameters(chapter)
    for name in choices:
        if name not in lists:
            raise ValueError(
                f"SET must name lists, whose values a record joins: {', '.join(lists)}. "
                f"Found {name!r}."
            )
    return sweep_runs(choices)


def found_runs(chapter: str, profile: str) -> list[str]:
    """Names of the finished runs of a chapter that can be parts: all their values are of lists."""
    lists = {*list_parameters(chapter)}
    files = (RUNS / chapter / profile).glob(f"*/{RECORD_NAME}")
    names = sorted(file.parent.name for file in files)
    return [
        name
        for name in names
        if name != MAIN_RUN
        and RUN_NAME.fullmatch(name)
        and not (PARTIAL in name or name.endswith(".failed"))
        and lists >= run_values(name).keys()
    ]


def read_parts(chapter: str, profile: str, runs: Sequence[str]) -> dict[str, RunRecord]:
    """Read the records of parts.

    Raises:
        ValueError: one is not there.
    """
    files = {run: RUNS / chapter / profile / run / RECORD_NAME for run in runs}
    missing = [run for run, file in files.items() if not file.exists()]
    if missing or not files:
        raise ValueError(
            f"Parts of chapter {chapter!r}, profile {profile!r}, are missing: "
            f"{_some(missing) or 'all'}. `make record` with SEEDS computes them."
        )
    return {run: load_record(file) for run, file in files.items()}


def merge(parts: Mapping[str, RunRecord], *, allow_dirty: bool = False) -> RunRecord:
    """Merge the records of parts into one.

    Rows of a table stand in the order of the seeds. Where a table has no column for a parameter in
    which the parts differ, such as ``seed``, its rows belong to all: they must be the same, seconds
    and bytes aside. The table ``claims`` is made anew by the module that the chapter names. A
    metric is kept where it is the same in all parts.

    Args:
        parts: name of the run -> record.
        allow_dirty: whether parts may come from code that was not committed.

    Raises:
        ValueError: parts come from other code, data or versions, or from code that was not
            committed; seeds or groups are missing or occur twice; or tables do not agree.
    """
    names = {name for run in parts for name in run_values(run)}
    united = sorted(names, key=lambda name: (name != "seeds", name))
    _require_alike(parts, united)
    dirty = [run for run, part in parts.items() if part.git_dirty]
    if dirty and not allow_dirty:
        raise ValueError(
            "Parts of a record must come from committed code. "
            f"Found uncommitted changes in {_some(dirty)}; `make record` computes them again."
        )
    choices = _choices(parts, united)

    def place(run: str) -> list[int]:
        return [choices[name].index(listed(parts[run], name)[0]) for name in united]

    ordered = {run: parts[run] for run in sorted(parts, key=place)}
    records = list(ordered.values())
    first, last = records[0], max(records, key=lambda record: record.started_at)
    merged = first.model_copy(
        update={
            "parameters": first.parameters | choices,
            "seeds": choices.get("seeds", first.seeds),
            "git_commit": last.git_commit,
            "git_dirty": True if dirty else first.git_dirty,
            "hardware": "; ".join(sorted({record.hardware for record in records})),
            "started_at": min(record.started_at for record in records),
            "wall_seconds": round(sum(record.wall_seconds for record in records), 3),
            "from_cache": dict(sum((Counter(r.from_cache) for r in records), Counter[str]())),
            "peak_memory_bytes": _most(r.peak_memory_bytes for r in records),
            "peak_device_memory_bytes": _most(r.peak_device_memory_bytes for r in records),
            "metrics": {
                name: value
                for name, value in first.metrics.items()
                if all(record.metrics.get(name) == value for record in records)
            },
            "tables": {},
            "figures": [],  # they lie beside the records of the parts
            "parts": [_part(run, record, united) for run, record in ordered.items()],
        },
    )
    for name in dict.fromkeys(name for record in records for name in record.tables):
        if name != "claims":
            merged.table(name, _rows(name, ordered, united))
    if chapter_header(chapter_source(merged.chapter)).get("claims"):
        from experiments.run.claims import claim_rows, claims_of

        merged.table("claims", claim_rows(claims_of(merged)))
    elif any(record.tables.get("claims") for record in records):
        raise ValueError(  # those of a part know only its seeds
            "The header of a chapter must name the module that makes its claims from the tables of "
            "a record, such as `claims: experiments.fcl.claims`, before parts can be merged. "
            f"Found none in that of {merged.chapter!r}."
        )
    return merged


def left_out(parts: Mapping[str, RunRecord], merged: RunRecord) -> list[str]:
    """Names of the metrics that a merged record leaves out, as they differ between the parts."""
    names = {name for part in parts.values() for name in part.metrics}
    return sorted(names - merged.metrics.keys())


def _require_alike(parts: Mapping[str, RunRecord], united: Sequence[str]) -> None:
    """All parts must agree in everything but the parameters that are united."""
    facts = {run: _facts(part, united) for run, part in parts.items()}
    first, expected = next(iter(facts.items()))
    wrong = [
        f"{name}: {expected.get(name)!r} in {first}, {found.get(name)!r} in {run}"
        for run, found in facts.items()
        for name in dict.fromkeys([*expected, *found])
        if expected.get(name) != found.get(name)
    ]
    if wrong:
        raise ValueError(f"Parts of a record must agree. Found {_some(wrong, '; ')}.")
    if expected["code_digest"] is None:
        raise ValueError(f"Parts of a record must know their code. Found none in {first}.")


def _facts(record: RunRecord, united: Sequence[str]) -> dict[str, Any]:
    facts: dict[str, Any] = {name: getattr(record, name) for name in ALIKE}
    for what in ("packages", "data", "parameters"):
        facts |= {f"{what}.{name}": value for name, value in getattr(record, what).items()}
    return {name: v for name, v in facts.items() if name.removeprefix("parameters.") not in united}


def _choices(parts: Mapping[str, RunRecord], united: Sequence[str]) -> dict[str, list[Any]]:
    """The values of the united parameters, in order; each combination must occur exactly once."""
    found: dict[tuple[Any, ...], str] = {}
    for run, part in parts.items():
        for combination in itertools.product(*(listed(part, name) for name in united)):
            if combination in found:
                raise ValueError(
                    f"Parts of a record must not overlap. Found {_named(united, combination)} in "
                    f"{found[combination]} and in {run}."
                )
            found[combination] = run
    choices = {
        name: sorted(set(values), key=lambda value: (isinstance(value, str), value))
        for name, values in zip(united, zip(*found, strict=True), strict=True)
    }
    missing = [c for c in itertools.product(*choices.values()) if c not in found]
    if missing:
        names = [_named(united, combination) for combination in missing]
        raise ValueError(f"Parts of a record are missing: {_some(names)}.")
    return choices


def _rows(table: str, parts: Mapping[str, RunRecord], united: Sequence[str]) -> list[Row]:
    """The rows of all parts; those that no column tells apart only once."""
    found = {run: part.tables.get(table, []) for run, part in parts.items()}
    columns = next((own[0] for own in found.values() if own), {})
    telling = [name for name in united if column_of(name, columns)]
    known: dict[str, str] = {}
    rows: list[Row] = []
    for run, part in parts.items():
        values = json.dumps([listed(part, name) for name in telling])
        earlier = known.setdefault(values, run)
        own, other = found[run], found[earlier]
        if earlier == run:
            rows += own
        elif len(own) != len(other) or any(gap > SAME for *_, gap in differences(own, other)):
            without = ", ".join(name for name in united if name not in telling)
            raise ValueError(
                f"Table `{table}` must be the same in {earlier} and {run}, as it has no column for "
                f"{without}. Found other rows."
            )
    return rows


def _part(run: str, record: RunRecord, united: Sequence[str]) -> Part:
    facts = {name: getattr(record, name) for name in Part.model_fields.keys() - {"run", "values"}}
    return Part(run=run, values={name: listed(record, name) for name in united}, **facts)


def _named(names: Sequence[str], values: Sequence[Any]) -> str:
    return ",".join(f"{name}={value}" for name, value in zip(names, values, strict=True))


def _most(numbers: Iterable[int | None]) -> int | None:
    return max((number for number in numbers if number is not None), default=None)


def _some(names: Sequence[str], between: str = ", ") -> str:
    more = [f"{len(names) - SHOWN} more"] if len(names) > SHOWN else []
    return between.join([*names[:SHOWN], *more])
