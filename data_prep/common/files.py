"""Reading data files that are checked before they are believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from data_prep.common.root import data_root

MANIFEST = "manifest.json"
SPLITS = ("train", "test")
WITHOUT_FILES = ("digits",)  # they come with scikit-learn


class DataError(RuntimeError):
    """A data file is missing or is not what it should be; the message says what to run."""


class FileFacts(NamedTuple):
    """What a file must be: its size in bytes and the SHA-256 of its content."""

    size: int
    sha256: str


def data_error(data_set: str, problem: str) -> DataError:
    """A :class:`DataError` that ends with the command preparing ``data_set``."""
    return DataError(f"{problem}\nTo repair it, run: python -m data_prep.{data_set}")


def read_verified(path: Path, facts: FileFacts, data_set: str) -> NDArray[np.uint8]:
    """The bytes of ``path``, shape (size,), after size and SHA-256 have been found right.

    Raises:
        DataError: the file is missing, unreadable, cut short or altered.
    """
    try:
        content = np.fromfile(path, dtype=np.uint8)
    except FileNotFoundError:
        raise data_error(data_set, f"Data file {path} is missing.") from None
    except OSError as error:
        raise data_error(data_set, f"Data file {path} cannot be read: {error}.") from None
    if content.size != facts.size:
        found = f"it has {content.size} bytes and should have {facts.size}"
        raise data_error(data_set, f"Data file {path} is damaged: {found}.")
    digest = hashlib.sha256(content.data).hexdigest()
    if digest != facts.sha256:
        found = f"its SHA-256 is {digest} and should be {facts.sha256}"
        raise data_error(data_set, f"Data file {path} is altered: {found}.")
    return content


def check_split(split: str, splits: Sequence[str] = SPLITS) -> None:
    """Refuse a split that a set does not have."""
    if split not in splits:
        raise ValueError(f"split must be one of {', '.join(splits)}. Found split={split!r}.")


def sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits; read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_manifest(folder: Path) -> dict[str, Any] | None:
    """The manifest that ``data_prep`` wrote into ``folder``, or None where there is none.

    A manifest is ``{"data_set": name, "files": {file: {"bytes", "sha256", "mtime_ns"}}}``.
    One that cannot be read as such counts as none.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    if not isinstance(manifest, dict) or not isinstance(manifest.get("files"), dict):
        return None
    return manifest


def manifest_facts(
    name: str, files: Sequence[str] | None = None, root: Path | None = None
) -> dict[str, FileFacts]:
    """Size and SHA-256 that the manifest of a set records for ``files``; None stands for all.

    Raises:
        DataError: there is no manifest, or it does not list them.
    """
    folder = (root or data_root()) / name
    manifest = read_manifest(folder)
    if manifest is None:
        raise data_error(name, f"Data set {name} is not prepared: {folder} holds no manifest.")
    recorded = manifest["files"]
    try:
        return {
            file: FileFacts(int(recorded[file]["bytes"]), str(recorded[file]["sha256"]))
            for file in (recorded if files is None else files)
        }
    except (KeyError, TypeError, ValueError):
        listed = "its files" if files is None else f"all of {', '.join(files)}"
        raise data_error(name, f"The manifest in {folder} does not list {listed}.") from None


def digest_of_all(name: str, root: Path | None = None) -> dict[str, str]:
    """One checksum for a set of thousands of files: that of the lines ``SHA-256  file``.

    Raises:
        DataError: the set has not been prepared.
    """
    known = manifest_facts(name, None, root)
    lines = "".join(f"{known[file].sha256}  {file}\n" for file in sorted(known))
    return {"all files": hashlib.sha256(lines.encode()).hexdigest()}


def is_unchanged(folder: Path) -> bool:
    """Whether a manifest lists files, and all of them have the sizes and times that it records."""
    manifest = read_manifest(folder)
    if manifest is None or not (manifest["files"] or folder.name in WITHOUT_FILES):
        return False
    return all(_same_stat(folder / file, entry) for file, entry in manifest["files"].items())


def _same_stat(path: Path, entry: object) -> bool:
    """Whether size and modification time of ``path`` are those in its manifest entry."""
    if not isinstance(entry, dict):
        return False
    try:
        found = path.stat()
    except OSError:
        return False
    return (found.st_size, found.st_mtime_ns) == (entry.get("bytes"), entry.get("mtime_ns"))
