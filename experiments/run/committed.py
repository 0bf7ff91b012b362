"""Records of long runs that are kept with the project, in ``results/<chapter>.<profile>.json``.

Code changes faster than an hour of computing can follow. Where it has changed since a record was
made, one seed can be computed again: if all its rows come out as they are in the record, a note in
``results/rechecked/`` says that the present code gives them.
"""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict

from experiments.run import provenance
from experiments.run.records import RunRecord, load_record

SAME = 1e-6  # relative; another processor or number of threads rounds differently and gives more


class Recheck(BaseModel):
    """That a seed of a record was computed again, with the same result.

    Attributes:
        code_digest: of the code that computed it again.
        seed: which one.
        rows: number of rows compared.
        largest_difference: between two numbers, relative to the larger of 1 and their size.
        date: of the day.
        git_commit: of the code.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    code_digest: str
    seed: int
    rows: int
    largest_difference: float
    date: str
    git_commit: str | None


def recheck_file(root: Path, chapter: str, profile: str) -> Path:
    """Where the note of a record lies."""
    return root / "results" / "rechecked" / f"{chapter}.{profile}.json"


def recheck_of(record: RunRecord) -> Recheck | None:
    """The note that the present code gives a seed of this record; None where there is none."""
    root = provenance.project_root()
    file = recheck_file(root, record.chapter, record.profile) if root else None
    if file is None or not file.exists():
        return None
    note = Recheck.model_validate_json(file.read_text(encoding="utf-8"))
    current = provenance.current_code_digest(record.chapter)
    return note if note.code_digest == current and note.seed in record.seeds else None


def recheck(record: RunRecord, again: RunRecord) -> Recheck:
    """Compare all rows of the seed of a second run with those of a record.

    Tables without a column ``seed`` hold what belongs to all seeds together, and are left out; so
    are columns of seconds.

    Args:
        record: the one that is kept.
        again: a run of the present code with one of its seeds, and else the same parameters.

    Raises:
        ValueError: parameters differ, or a number does; the first is named.
    """
    (seed,) = again.seeds
    both = [{k: v for k, v in r.parameters.items() if k != "seeds"} for r in (record, again)]
    other = sorted(k for k in {*both[0], *both[1]} if both[0].get(k) != both[1].get(k))
    if other or seed not in record.seeds:
        raise ValueError(
            f"The record is of other parameters: {', '.join(other) or 'seeds'} differ. "
            "Make it anew."
        )
    rows, largest = 0, 0.0
    for name, kept in record.tables.items():
        old = [row for row in kept if row.get("seed", None) == seed]
        new = [row for row in again.tables.get(name, []) if row.get("seed", None) == seed]
        if len(old) != len(new):
            raise ValueError(f"Table {name} has {len(old)} rows of seed {seed}, now {len(new)}.")
        for number, (one, two) in enumerate(zip(old, new, strict=True), start=1):
            rows += 1
            for column in sorted({*one, *two} - {"seconds"}):
                gap = _difference(one.get(column), two.get(column))
                largest = max(largest, gap)
                if gap > SAME:
                    raise ValueError(
                        f"Table {name}, row {number} of seed {seed}: {column} is "
                        f"{one.get(column)} in the record and {two.get(column)} now."
                    )
    if again.code_digest is None:
        raise ValueError("The second run does not know its code.")
    return Recheck(
        code_digest=again.code_digest,
        seed=seed,
        rows=rows,
        largest_difference=largest,
        date=again.started_at[:10],
        git_commit=again.git_commit,
    )


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

    It has not if a seed was computed again since, see :func:`recheck_of`.
    """
    current = provenance.current_code_digest(record.chapter)
    if current is None or record.code_digest is None:
        return None
    return current != record.code_digest and recheck_of(record) is None


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
    note = recheck_of(record)
    if note and note.code_digest != record.code_digest:
        age = (
            f"changed since; seed {note.seed} computed again on {note.date}, "
            f"{note.rows} rows, all the same"
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
