"""Write the book's lists of runs, parameters, claims, speeds: ``python -m workflow.pages cpu``.

They go into ``book/_generated`` and are included by the pages of the same name.
"""

from __future__ import annotations

import json
import re
import sys
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from experiments.run.atomic import write_text
from experiments.run.claims import VERDICTS, Claim, claim_rows
from experiments.run.parameters import describe_parameters
from experiments.run.results import RunRecord, is_stale, load_record
from workflow.benchmark_page import write_benchmarks
from workflow.guard import run_step
from workflow.markdown import table
from workflow.project import MAIN_RUN, PROFILES, ROOT, RUNS, chapter_source, chapters
from workflow.thesis_page import write_thesis

FOLDER = ROOT / "book" / "_generated"
LONG = ("full", "gpu", "paper")  # profiles whose committed verdicts count, most trusted first


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


def claims_part(live: Sequence[RunRecord], committed: Sequence[RunRecord]) -> str:
    """One table per chapter: the claims of the thesis, what the runs found, the verdicts.

    Args:
        live: the records of the runs that this copy of the book shows, one per chapter.
        committed: the records kept with the project; those of profiles in ``LONG`` count.

    Raises:
        ValueError: a row of a record is not a claim, or a live claim names a place that its
            chapter does not have.
    """
    parts = []
    for shown in live:
        long = [r for r in committed if r.chapter == shown.chapter and r.profile in LONG]
        long.sort(key=lambda record: LONG.index(record.profile))
        records = [(r.profile, r) for r in long] + [(f"{shown.profile}, this copy", shown)]
        found = {label: _claims(record) for label, record in records}
        if any(found.values()):
            parts.append(_claims_of_chapter(dict(records), found))
    return "\n\n".join(parts or ["No run has noted a claim yet."]) + "\n"


def _claims(record: RunRecord) -> dict[str, Claim]:
    """The claims that a run noted, by their words."""
    try:
        rows = claim_rows(record.tables.get("claims", []))
    except ValueError as error:
        raise ValueError(f"Record {record.chapter}, profile {record.profile}: {error}") from None
    return {row["claim"]: Claim.from_row(row) for row in rows}


def _claims_of_chapter(
    records: Mapping[str, RunRecord], found: Mapping[str, Mapping[str, Claim]]
) -> str:
    """A heading, the runs, and a table with one row per claim.

    Args:
        records: label of a run -> its record; the most trusted run first, the live one last.
        found: label of a run -> claim in words -> claim.
    """
    live = list(records)[-1]
    chapter = records[live].chapter
    # The live run comes from the present chapter, so its order and wording come first.
    claims: dict[str, Claim] = {}
    for label in (live, *records):
        claims = {**claims, **{w: c for w, c in found[label].items() if w not in claims}}
    rows, counts = ["* - Claim of the thesis\n  - What was found\n  - Verdict"], Counter[str]()
    for words, claim in claims.items():
        own = [(label, found[label][words]) for label in records if words in found[label]]
        first, decisive = own[0]
        counts[decisive.verdict] += 1
        place = _place(claim, chapter, must=words in found[live])
        rows.append(
            f"* - {_plain(words)} ({_plain(claim.printed_in)})\n\n"
            f"    *Printed:* {_plain(claim.thesis)}\n\n    [Where it is examined]({place})\n"
            "  - " + "\n\n    ".join(_finding(*pair) for pair in own) + "\n"
            f"  - **{decisive.verdict}**\n\n    ({first})"
        )
    table = "\n".join(["```{list-table}", ":header-rows: 1", ":widths: 40 40 20", "", *rows, "```"])
    runs = "\n".join(
        f"- **{label}**: {_origin(records[label])}" for label in records if found[label]
    )
    total = ", ".join(f"{counts[verdict]} {verdict}" for verdict in VERDICTS if counts[verdict])
    return "\n\n".join([f"## {title(chapter_source(chapter))}", runs, f"Verdicts: {total}.", table])


def _finding(label: str, claim: Claim) -> str:
    return (
        f"**{label}:** {_plain(claim.found)}. *Set-up:* {_plain(claim.difference)}. "
        f"*Verdict:* {claim.verdict}."
    )


def _origin(record: RunRecord) -> str:
    seeds = "1 seed" if len(record.seeds) == 1 else f"{len(record.seeds)} seeds"
    facts = [seeds, _when(record)[:10], f"commit {_commit(record)}"]
    return ", ".join([*facts, f"code since then: {_state(record)}"])


def _place(claim: Claim, chapter: str, must: bool) -> str:
    """The target of a link to a claim: its place in the chapter.

    A committed record may name a place that the chapter no longer has: then the link leads to the
    chapter, unless the place ``must`` exist.
    """
    name = re.escape(claim.anchor)
    places = rf"^# \({name}\)=|^# :(label|name): {name}$|\"name\": \"{name}\""
    source = chapter_source(chapter)
    if re.search(places, source.read_text(encoding="utf-8"), re.MULTILINE):
        return f"#{claim.anchor}"
    if must:
        raise ValueError(
            f"chapters/{chapter}.py: the claim {claim.claim!r} must name a place of the chapter, "
            "such as `(sec-pilot)=` in front of a heading. "
            f"Found {claim.anchor!r}, which is not there."
        )
    return f"</chapters/{chapter}.ipynb>"


def _plain(text: str) -> str:
    """Text with Markdown's special characters escaped, without the full stop at its end."""
    return re.sub(r"([\\`*_{}\[\]<>&$|~#])", r"\\\1", " ".join(text.split())).removesuffix(".")


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
    return f"{time}, {taken} trainings from the cache" if taken else time


def _memory(record: RunRecord) -> str:
    parts = []
    if record.peak_memory_bytes is not None:
        parts.append(f"{record.peak_memory_bytes / 2**30:.1f} GiB")
    if record.peak_device_memory_bytes:
        parts.append(f"{record.peak_device_memory_bytes / 2**30:.1f} GiB on the GPU")
    return ", ".join(parts) or "not known"


def record_files(folder: Path) -> list[Path]:
    """The records that are kept in a folder."""
    return sorted(folder.rglob("*.*.json"))


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
        return f"`make record CHAPTER={record.chapter} PROFILE={record.profile}`"
    # A search at the size of a profile carries its name: `methods_cpu`.
    search, _, size = record.profile.partition("_")
    module = record.chapter + ("" if search == "search" else f"_{search}")
    at_size = f" --profile {size}" if size else ""
    return f"`python -m experiments.searches.{module}{at_size}`"


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
    write_text(folder / "claims.md", claims_part(live, committed))
    write_thesis(folder)
    speeds = ROOT / "results" / "benchmarks.json"
    write_benchmarks(json.loads(speeds.read_text()) if speeds.exists() else None, folder)


if __name__ == "__main__":
    sys.exit(run_step(write_pages, "profile"))
