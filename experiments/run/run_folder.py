"""The folder of a run: of one run at a time, and without what another one left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RECORD = "result.json"
LOCK = ".run.lock"
LEFT = (RECORD, "figures/*.svg", "answers/*.jsonl")
"""What a run writes. Of an earlier run it would stand beside the figures of this one."""

_held: dict[Path, Any] = {}


def claim(folder: Path) -> str | None:
    """Make the folder ready for the run of this process; what an earlier run wrote is removed.

    The folder is this process's until it ends or claims another one. The operating system drops the
    lock with the process, however it ends.

    Returns:
        What is wrong with the folder, or None.
    """
    from filelock import FileLock, Timeout  # belongs to the book

    try:
        folder.mkdir(parents=True, exist_ok=True)
        folder = folder.resolve()
        probe = folder / ".write-test"
        probe.write_bytes(b"\0" * 4096)  # a full disk accepts an empty file, but not a block
        probe.unlink()
        if not (folder / LOCK).exists() and (problem := _foreign(folder)):
            return problem
        if folder not in _held:
            lock = FileLock(folder / LOCK)
            lock.acquire(blocking=False)
            release()
            _held[folder] = lock
        for pattern in LEFT:
            for file in folder.glob(pattern):
                file.unlink()
    except Timeout:
        return "is in use by another run. Wait until it has ended, or choose another folder"
    except (OSError, ValueError) as error:
        return f"cannot be written to: {getattr(error, 'strerror', None) or error}"
    return None


def release() -> None:
    """Give back the folder that this process holds."""
    while _held:
        _held.popitem()[1].release()


def _foreign(folder: Path) -> str | None:
    """What of a folder without a lock no run wrote, in words; it must not be removed."""
    record = folder / RECORD
    if not record.exists():
        found = [str(f.relative_to(folder)) for p in LEFT for f in sorted(folder.glob(p))]
        return f"must be a folder of its own. Found {found[0]}, but no {RECORD}" if found else None
    try:
        content = json.loads(record.read_text(encoding="utf-8"))
        known = isinstance(content, dict) and "schema_version" in content
    except (OSError, ValueError):
        known = False
    return None if known else f"must be a folder of its own. Its {RECORD} is no record of a run"
