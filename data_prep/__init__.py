"""Fetching, verifying and building the data sets: ``python -m data_prep.<name>``.

Every module has ``prepare(root=None) -> Path``, which leaves the data set complete in
``<root>/<name>`` or raises :class:`data_prep.errors.PrepareError`. Running it again costs a check.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.reading import facts
from data_prep.reading.files import MANIFEST, read_manifest
from data_prep.reading.image_sets import LARGE_SETS
from data_prep.reading.root import data_root
from data_prep.reading.text_facts import TEXT_SETS

DATA_SETS = (*facts.DATA_SETS, *LARGE_SETS, *TEXT_SETS)

__all__ = ["DATA_SETS", "MANIFEST", "is_current"]


def is_current(name: str, root: Path | None = None) -> bool:
    """Whether a data set is prepared and untouched since, judged by sizes and times alone.

    Reads no data: for the question "is there anything to do" of a pipeline. The loaders compare
    SHA-256 on every read.

    Raises:
        ValueError: an unknown name.
    """
    if name not in DATA_SETS:
        raise ValueError(f"name must be one of {', '.join(DATA_SETS)}. Found name={name!r}.")
    folder = (root or data_root()) / name
    manifest = read_manifest(folder)
    if manifest is None:
        return False
    return all(_unchanged(folder / file, entry) for file, entry in manifest["files"].items())


def _unchanged(path: Path, entry: object) -> bool:
    """Whether size and modification time of ``path`` are those in its manifest entry."""
    if not isinstance(entry, dict):
        return False
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (entry.get("bytes"), entry.get("mtime_ns"))
