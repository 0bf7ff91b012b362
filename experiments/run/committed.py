"""Records of long runs that are kept with the project, in ``results/<chapter>.<profile>.json``.

One above a megabyte is compressed, ``.json.gz``.

Code changes faster than an hour of computing can follow. Where it has changed since a record was
made, less can be computed again: one seed, compared with the record, or a short profile, compared
with what the code of the record gives on the same machine. If all rows agree, the record notes that
the present code gives them.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.run import provenance
from experiments.run.atomic import write_bytes
from experiments.run.records import Recheck, RunRecord, load_record

SAME = 1e-6  # relative; another processor or number of threads rounds differently and gives more
MEASURED = re.compile(r"seconds|bytes|\bms$|_ms$")  # columns that depend on the machine
LARGEST_PLAIN = 1_000_000  # bytes; a larger record is compressed


def recheck(record: RunRecord, again: RunRecord, reference: RunRecord | None = None) -> RunRecord:
    """Compare all rows of a second run with those of a record, and note it in the record.

    Tables without a column ``seed`` hold what belongs to all seeds together: they count where the
    two runs have the same seeds, and in a record merged from parts, where they are the same in all.
    Seconds and bytes depend on the machine, and claims follow from the other tables: they do not
    count.

    Args:
        record: the one that is kept.
        again: a run of the present code with some seeds, or that of one part of the record, and
            else the parameters of the reference.
        reference: what to compare it with: a run of the code that made the record, on the machine
            of ``again``; by default the record itself.

    Returns:
        The record with :attr:`RunRecord.rechecked` set.

    Raises:
        ValueError: parameters differ, or a number does; the first is named.
    """
    kept = reference or record
    united = dict.fromkeys(["seeds", *(name for part in kept.parts for name in part.values)])
    chosen = {name: listed(again, name) for name in united}
    there = {name: listed(kept, name) for name in united}
    both = [{k: v for k, v in r.parameters.items() if k not in united} for r in (kept, again)]
    # A parameter that is new since, and empty, stands for what the code did without it.
    added = {k for k, value in both[1].items() if k not in both[0] and value in ("", [])}
    both[0] |= {k: both[1][k] for k in added}
    other = sorted(k for k in {*both[0], *both[1]} if both[0].get(k) != both[1].get(k))
    other += [name for name in united if not all(value in there[name] for value in chosen[name])]
    if other or again.chapter != record.chapter:
        raise ValueError(
            f"The record is of other parameters: {', '.join(other) or 'chapter'} differ. "
            "Make it anew."
        )
    fewer = [name for name in united if len(chosen[name]) < len(there[name])]
    rows, largest = 0, 0.0
    for name in sorted({*kept.tables, *again.tables} - {"claims"}):
        old, new = (_rows(r.tables.get(name, []), chosen) for r in (kept, again))
        columns = (old or [{}])[0]
        if not kept.parts and any(column_of(parameter, columns) is None for parameter in fewer):
            continue
        if len(old) != len(new):
            raise ValueError(f"Table {name} had {len(old)} rows, and has {len(new)} now.")
        rows += len(old)
        for number, column, one, two, gap in differences(old, new):
            largest = max(largest, gap)
            if gap > SAME:
                raise ValueError(
                    f"Table {name}, row {number}: {column} was {one} and is {two} now."
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


def column_of(parameter: str, columns: Collection[str]) -> str | None:
    """The column for the values of a list: named like it, or without the plural's s; or None."""
    names = (parameter, parameter.removesuffix("s"))
    return next((name for name in names if name in columns), None)


def differences(
    old: Sequence[Mapping[str, Any]], new: Sequence[Mapping[str, Any]]
) -> Iterator[tuple[int, str, object, object, float]]:
    """Where two tables of the same length differ, except in what depends on the machine.

    Yields:
        The number of the row, from 1, the column, both values, and their relative difference;
        infinite if they are no numbers.
    """
    for number, (one, two) in enumerate(zip(old, new, strict=True), start=1):
        for column in sorted({*one, *two}):
            gap = _difference(one.get(column), two.get(column))
            if gap and not MEASURED.search(column):
                yield number, column, one.get(column), two.get(column), gap


def listed(record: RunRecord, parameter: str) -> list[Any]:
    """The values of a parameter that is a list."""
    if parameter == "seeds":
        return record.seeds
    value = record.parameters.get(parameter)
    return value if isinstance(value, list) else []


def _rows(
    table: Sequence[Mapping[str, Any]], chosen: Mapping[str, Collection[Any]]
) -> list[Mapping[str, Any]]:
    """The rows of some values of the parameters; one without a column for them belongs to all."""
    columns = {name: column_of(name, table[0] if table else {}) for name in chosen}
    told = [(column, chosen[name]) for name, column in columns.items() if column]
    return [row for row in table if all(row[column] in values for column, values in told)]


def _difference(one: object, two: object) -> float:
    """Relative difference of two numbers; of anything else 0 if equal, infinite if not."""
    numbers = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (one, two))
    if isinstance(one, int | float) and isinstance(two, int | float) and numbers:
        return abs(one - two) / max(1.0, abs(one), abs(two))
    return 0.0 if one == two else float("inf")


def committed_record(chapter: str, profile: str) -> RunRecord | None:
    """The record of a long run that is kept with the project, or None where there is none."""
    root = provenance.project_root()
    files = provenance.record_files(root / "results", chapter, profile) if root else []
    return load_record(files[0]) if files else None


def keep(record: RunRecord, folder: Path) -> Path:
    """Write a record under the name of its chapter and profile, compressed if it is large.

    The same record gives the same bytes.

    Args:
        record: of a long run.
        folder: such as ``results``.

    Returns:
        The file; there is none in the other form any more.
    """
    content = record.to_json().encode()
    plain = folder / f"{record.chapter}.{record.profile}.json"
    packed = plain.with_name(f"{plain.name}.gz")
    if len(content) <= LARGEST_PLAIN:
        write_bytes(plain, content)
        packed.unlink(missing_ok=True)
        return plain
    buffer = io.BytesIO()
    with gzip.GzipFile(filename="", mode="wb", fileobj=buffer, mtime=0) as stream:
        stream.write(content)
    write_bytes(packed, buffer.getvalue())
    plain.unlink(missing_ok=True)
    return packed


def is_stale(record: RunRecord) -> bool | None:
    """Whether the code has changed since the record was made; None where that cannot be told.

    It has not if the present code was shown to give the same rows, see :func:`recheck`.
    """
    current = provenance.current_code_digest(record.chapter)
    if current is None or record.code_digest is None:
        return None
    known = {record.code_digest, record.rechecked.code_digest if record.rechecked else None}
    return current not in known


def record_command(chapter: str, profile: str, record: RunRecord | None = None) -> str:
    """The command that makes a record, of parts if this one has any."""
    command = f"make record CHAPTER={chapter} PROFILE={profile}"
    if record is None or not record.parts:
        return command
    values = {n: ",".join(map(str, listed(record, n))) for n in record.parts[0].values}
    seeds = values.pop("seeds", "")
    groups = " ".join(f"{name}={texts}" for name, texts in values.items())
    return command + (f" SEEDS={seeds}" if seeds else "") + (f" SET='{groups}'" if groups else "")


def record_label(record: RunRecord | None, chapter: str, profile: str) -> str:
    """Where the numbers of a committed record come from, in words to stand above its tables.

    Args:
        record: from :func:`committed_record`; None where there is none yet.
        chapter: name of the chapter.
        profile: profile of the record.
    """
    command = record_command(chapter, profile, record)
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
