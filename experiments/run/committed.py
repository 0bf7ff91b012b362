"""Records of long runs that are kept with the project, in ``results/<chapter>.<profile>.json``.

Code changes faster than an hour of computing can follow. Where it has changed since a record was
made, less can be computed again: one seed, compared with the record, or a short profile, compared
with what the code of the record gives on the same machine. If all rows agree, the record notes that
the present code gives them.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from experiments.run import provenance
from experiments.run.records import Recheck, RunRecord, load_record

SAME = 1e-6  # relative; another processor or number of threads rounds differently and gives more
MEASURED = re.compile(r"seconds|bytes|\bms$|_ms$")  # columns that depend on the machine
SHARED = -1  # stands for the seed of a row that belongs to all seeds


def recheck(record: RunRecord, again: RunRecord, reference: RunRecord | None = None) -> RunRecord:
    """Compare all rows of a second run with those of a record, and note it in the record.

    Tables without a column ``seed`` hold what belongs to all seeds together: they count where the
    two runs have the same seeds. Seconds and bytes depend on the machine, and claims follow from
    the other tables: they do not count.

    Args:
        record: the one that is kept.
        again: a run of the present code with some seeds, and else the parameters of the reference.
        reference: what to compare it with: a run of the code that made the record, on the machine
            of ``again``; by default the record itself.

    Returns:
        The record with :attr:`RunRecord.rechecked` set.

    Raises:
        ValueError: parameters differ, or a number does; the first is named.
    """
    kept = reference or record
    both = [{k: v for k, v in r.parameters.items() if k != "seeds"} for r in (kept, again)]
    # A parameter that is new since, and empty, stands for what the code did without it.
    added = {k for k, value in both[1].items() if k not in both[0] and value in ("", [])}
    both[0] |= {k: both[1][k] for k in added}
    other = sorted(k for k in {*both[0], *both[1]} if both[0].get(k) != both[1].get(k))
    if other or not {*again.seeds} <= {*kept.seeds} or again.chapter != record.chapter:
        raise ValueError(
            f"The record is of other parameters: {', '.join(other) or 'seeds'} differ. "
            "Make it anew."
        )
    rows, largest = 0, 0.0
    for name in sorted({*kept.tables, *again.tables} - {"claims"}):
        old, new = (_rows(r.tables.get(name, []), again.seeds) for r in (kept, again))
        if len(again.seeds) < len(kept.seeds) and "seed" not in (old or [{}])[0]:
            continue
        if len(old) != len(new):
            raise ValueError(f"Table {name} had {len(old)} rows, and has {len(new)} now.")
        for number, (one, two) in enumerate(zip(old, new, strict=True), start=1):
            rows += 1
            for column in sorted({*one, *two}):
                gap = _difference(one.get(column), two.get(column))
                largest = max(largest, gap)
                if gap > SAME:
                    raise ValueError(
                        f"Table {name}, row {number}: {column} was {one.get(column)} and is "
                        f"{two.get(column)} now."
                    )
    if not rows:
        raise ValueError("The two runs share no rows that could be compared.")
    if again.code_digest is None:
        raise ValueError("The second run does not know its code.")
    note = Recheck(
        code_digest=again.code_digest,
        git_commit=again.git_commit,
        reference=kept.git_commit,
        profile=again.profile if reference else record.profile,
        seeds=again.seeds,
        rows=rows,
        largest_difference=largest,
        date=again.started_at[:10],
    )
    return record.model_copy(update={"rechecked": note})


def _rows(table: Sequence[Mapping[str, Any]], seeds: Collection[int]) -> list[Mapping[str, Any]]:
    """The rows of these seeds, without what depends on the machine."""
    return [
        {column: value for column, value in row.items() if not MEASURED.search(column)}
        for row in table
        if row.get("seed", SHARED) in {*seeds, SHARED}
    ]


def _difference(one: object, two: object) -> float:
    """Relative difference of two numbers; of anything else 0 if equal, infinite if not."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (one, two))
    if isinstance(one, int | float) and isinstance(two, int | float) and numbers:
        return abs(one - two) / max(1.0, abs(one), abs(two))
    return 0.0 if one == two else float("inf")


def committed_record(chapter: str, profile: str) -> RunRecord | None:
    """The record of a long run that is kept with the project, or None where there is none."""
    root = provenance.project_root()
    file = root / "results" / f"{chapter}.{profile}.json" if root else None
    return load_record(file) if file is not None and file.exists() else None


def is_stale(record: RunRecord) -> bool | None:
    """Whether the code has changed since the record was made; None where that cannot be told.

    It has not if the present code was shown to give the same rows, see :func:`recheck`.
    """
    current = provenance.current_code_digest(record.chapter)
    if current is None or record.code_digest is None:
        return None
    known = {record.code_digest, record.rechecked.code_digest if record.rechecked else None}
    return current not in known


def record_label(record: RunRecord | None, chapter: str, profile: str) -> str:
    """Where the numbers of a committed record come from, in words to stand above its tables.

    Args:
        record: from :func:`committed_record`; None where there is none yet.
        chapter: name of the chapter.
        profile: profile of the record.
    """
    command = f"make record CHAPTER={chapter} PROFILE={profile}"
    if record is None:
        return f"No committed record of profile {profile} yet. To make it: {command}"
    ages = {True: "STALE: the code has changed since", False: "made by the present code"}
    stale = is_stale(record)
    age = "not compared" if stale is None else ages[stale]
    note = record.rechecked
    if note and stale is False and note.code_digest == provenance.current_code_digest(chapter):
        age = (
            f"changed since; profile {note.profile} computed again on {note.date} "
            f"({len(note.seeds)} seeds), {note.rows} rows, all as before"
        )
    changes = " with local changes" if record.git_dirty else ""
    commit = (record.git_commit or "unknown")[:10] + changes
    return "\n".join(
        [
            f"Profile {record.profile}, {len(record.seeds)} seeds, "
            f"{record.wall_seconds / 60:.0f} min on {record.hardware} ({record.device}), "
            f"{record.started_at[:10]}, commit {commit}.",
            f"Code: {age}. To make it again: {command}",
        ]
    )
