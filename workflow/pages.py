"""Write the book's lists of runs, parameters, claims, speeds: ``python -m workflow.pages cpu``.

They go into ``book/_generated`` and are included by the pages of the same name.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

from experiments.run.atomic import write_text
from experiments.run.parameters import describe_parameters
from experiments.run.results import (
    RunRecord,
    is_stale,
    load_record,
    record_command,
    record_files,
)
from workflow.benchmark_page import write_benchmarks
from workflow.guard import run_step
from workflow.ledger import ledger_entries, write_ledger
from workflow.ledger_coverage import read_coverage
from workflow.markdown import table
from workflow.project import MAIN_RUN, PROFILES, ROOT, RUNS, chapter_source, chapters
from workflow.thesis_page import write_thesis

FOLDER = ROOT / "book" / "_generated"


def execution_part(live: Sequence[RunRecord], committed: Sequence[RunRecord]) -> str:
    """The runs behind this copy of the book: when, where, how long, with which versions."""
    runs = table(
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
        [[*_what(r), _when(r), _duration(r), _memory(r), _device(r), _threads(r)] for r in live],
    )
    parts = ["## The runs shown in this copy", runs, "## Versions", _versions(live)]
    parts.append("## Committed records of longer runs")
    if committed:
        rows = [
            [*_what(r), _when(r), _duration(r), _device(r), _commit(r), _state(r), _command(r)]
            for r in committed
        ]
        columns = ["Chapter", "Profile", "Seeds", "Started (UTC)", "Time", "Device", "Commit"]
        parts.append(table([*columns, "Code since then", "Make it again"], rows))
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
        parts.append(f"## {title(source)}")
        parts.append(f"Source: `chapters/{name}.py`. To the chapter: [](<{link}>).")
        parts.append(table(["Parameter", "Default", "Allowed", "Meaning"], rows))
    return "\n\n".join(parts) + "\n"


def title(source: Path) -> str:
    """The chapter's first heading."""
    for line in source.read_text(encoding="utf-8").splitlines():
        if line.startswith("# # "):
            return line.removeprefix("# # ").strip()
    raise ValueError(f"{source}: a chapter must start with a heading, `# # Title`. Found none.")


def _what(record: RunRecord) -> list[str]:
    seeds = ", ".join(map(str, record.seeds))
    return [f"[](</chapters/{record.chapter}.ipynb>)", record.profile, seeds]


def _when(record: RunRecord) -> str:
    return record.started_at[:16].replace("T", " ")


def _duration(record: RunRecord) -> str:
    seconds, taken = record.wall_seconds, sum(record.from_cache.values())
    time = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.1f} min"
    parts = [f"in {len(record.parts)} parts"] if record.parts else []
    return ", ".join([time, *parts, *([f"{taken} trainings from the cache"] if taken else [])])


def _memory(record: RunRecord) -> str:
    parts = []
    if record.peak_memory_bytes is not None:
        parts.append(f"{record.peak_memory_bytes / 2**30:.1f} GiB")
    if record.peak_device_memory_bytes:
        parts.append(f"{record.peak_device_memory_bytes / 2**30:.1f} GiB on the GPU")
    return ", ".join(parts) or "not known"


def _threads(record: RunRecord) -> str:
    return f"{record.threads}" + (f", {record.workers} workers" if record.workers > 1 else "")


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
        return f"`{record_command(record.chapter, record.profile, record)}`"
    return f"`python -m experiments.searches.{record.chapter}`"


def _versions(records: Sequence[RunRecord]) -> str:
    """Versions in one column where all runs agree, else in one per chapter."""
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
    return table(["What", *columns], rows)


def write_pages(profile: str, folder: Path = FOLDER, names: Sequence[str] | None = None) -> None:
    """Write all parts from the records of the runs ``main`` and from the chapters.

    Args:
        profile: of the runs.
        folder: to write into.
        names: the chapters that have been run; all by default.
    """
    live = [
        load_record(RUNS / n / profile / MAIN_RUN) for n in (chapters() if names is None else names)
    ]
    files = record_files(ROOT / "results")
    committed = [record for record in map(load_record, files) if record.chapter in chapters()]
    write_text(folder / "execution.md", execution_part(live, committed))
    write_text(folder / "parameters.md", parameters_part(chapters()))
    titles = {record.chapter: title(chapter_source(record.chapter)) for record in live}
    write_ledger(ledger_entries(live, committed), titles, read_coverage(), folder)
    write_thesis(folder)
    speeds = ROOT / "results" / "benchmarks.json"
    write_benchmarks(json.loads(speeds.read_text()) if speeds.exists() else None, folder)


if __name__ == "__main__":
    sys.exit(run_step(write_pages, "profile"))
