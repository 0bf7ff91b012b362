"""Write the parts of the book that list runs and parameters: ``python -m workflow.pages cpu``.

They go into ``book/_generated`` and are included by the pages of the same name.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from ktlib.atomic import write_text
from ktlib.parameters import describe_parameters
from ktlib.results import RunRecord, is_stale, load_record
from workflow.guard import end_with_build
from workflow.project import MAIN_RUN, PROFILES, ROOT, RUNS, chapter_source, chapters

FOLDER = ROOT / "book" / "_generated"


def execution_part(live: Sequence[RunRecord], committed: Sequence[RunRecord]) -> str:
    """The runs behind this copy of the book: when, where, how long, with which versions."""
    runs = _table(
        [
            "Chapter",
            "Profile",
            "Seeds",
            "Started (UTC)",
            "Time",
            "Peak memory",
            "Device",
            "Threads",
        ],
        [[*_what(r), _when(r), _duration(r), _memory(r), _device(r), str(r.threads)] for r in live],
    )
    parts = ["## The runs shown in this copy", runs, "## Versions", _versions(live)]
    parts.append("## Committed records of longer runs")
    if committed:
        rows = [
            [*_what(r), _when(r), _duration(r), _device(r), _commit(r), _state(r), _command(r)]
            for r in committed
        ]
        columns = ["Chapter", "Profile", "Seeds", "Started (UTC)", "Time", "Device", "Commit"]
        parts.append(_table([*columns, "Code since then", "Make it again"], rows))
    else:
        parts.append("No long run has been recorded yet.")
    return "\n\n".join(parts) + "\n"


def parameters_part(names: Iterable[str]) -> str:
    """One table per chapter: what can be set, to which values, and what it means."""
    parts = []
    for name in names:
        source = chapter_source(name)
        rows = [
            [f"`{row['name']}`", f"`{row['default']!r}`", str(row["allowed"]), row["comment"]]
            for row in describe_parameters(source)
        ]
        link = f"/chapters/{name}.ipynb"
        parts.append(f"## {_title(source)}")
        parts.append(f"Source: `chapters/{name}.py`. To the chapter: [](<{link}>).")
        parts.append(_table(["Parameter", "Default", "Allowed", "Meaning"], rows))
    return "\n\n".join(parts) + "\n"


def _title(source: Path) -> str:
    """The chapter's first heading."""
    for line in source.read_text(encoding="utf-8").splitlines():
        if line.startswith("# # "):
            return line.removeprefix("# # ").strip()
    raise ValueError(f"{source}: a chapter must start with a heading, `# # Title`. Found none.")


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_in_cell, line)) + " |" for line in lines)


def _in_cell(text: str) -> str:
    return " ".join(text.replace("|", r"\|").split())


def _what(record: RunRecord) -> list[str]:
    seeds = ", ".join(map(str, record.seeds))
    return [f"[](</chapters/{record.chapter}.ipynb>)", record.profile, seeds]


def _when(record: RunRecord) -> str:
    return record.started_at[:16].replace("T", " ")


def _duration(record: RunRecord) -> str:
    seconds = record.wall_seconds
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"


def _memory(record: RunRecord) -> str:
    parts = []
    if record.peak_memory_bytes is not None:
        parts.append(f"{record.peak_memory_bytes / 2**30:.1f} GiB")
    if record.peak_device_memory_bytes:
        parts.append(f"{record.peak_device_memory_bytes / 2**30:.1f} GiB on the GPU")
    return ", ".join(parts) or "not known"


def _device(record: RunRecord) -> str:
    return f"{record.device} ({record.hardware}), {record.precision}"


def _commit(record: RunRecord) -> str:
    if record.git_commit is None:
        return "not known"
    changed = ", with changes" if record.git_dirty else ""
    return f"`{record.git_commit[:10]}`{changed}"


def _state(record: RunRecord) -> str:
    return {True: "changed (stale)", False: "the same", None: "not known"}[is_stale(record)]


def _command(record: RunRecord) -> str:
    if record.profile in PROFILES:
        return f"`make record CHAPTER={record.chapter} PROFILE={record.profile}`"
    return f"`python -m benchmarks.{record.profile}_{record.chapter}`"


def _versions(records: Sequence[RunRecord]) -> str:
    """One column where all runs agree, else one per chapter."""
    columns: dict[str, dict[str, str]] = {}
    for record in records:
        columns[record.chapter] = {
            "Python": record.python,
            **record.packages,
            "System": record.system,
            "Commit of the project": _commit(record),
        }
    if len({tuple(column.items()) for column in columns.values()}) == 1:
        columns = {"All runs": next(iter(columns.values()))}
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = [[name, *(column.get(name, "") for column in columns.values())] for name in names]
    return _table(["What", *columns], rows)


def write_pages(profile: str) -> None:
    """Write both parts from the records of the runs ``main`` and from the chapters."""
    names = chapters()
    live = [load_record(RUNS / name / profile / MAIN_RUN) for name in names]
    files = sorted((ROOT / "results").rglob("*.*.json"))
    committed = [record for record in map(load_record, files) if record.chapter in names]
    write_text(FOLDER / "execution.md", execution_part(live, committed))
    write_text(FOLDER / "parameters.md", parameters_part(names))


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("profile")
    given = parser.parse_args(arguments)
    end_with_build(RUNS)
    try:
        write_pages(given.profile)
    except (ValueError, OSError) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
