"""Reading data files that are checked before they are believed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MANIFEST = "manifest.json"


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
