"""Records of long runs that are kept with the project, in ``results/<chapter>.<profile>.json``."""

from __future__ import annotations

from ktlib import provenance
from ktlib.records import RunRecord, load_record


def committed_record(chapter: str, profile: str) -> RunRecord | None:
    """The record of a long run that is kept with the project, or None where there is none."""
    root = provenance.project_root()
    file = root / "results" / f"{chapter}.{profile}.json" if root else None
    return load_record(file) if file is not None and file.exists() else None


def is_stale(record: RunRecord) -> bool | None:
    """Whether the code has changed since the record was made; None where that cannot be told."""
    current = provenance.current_code_digest(record.chapter)
    if current is None or record.code_digest is None:
        return None
    return current != record.code_digest


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
