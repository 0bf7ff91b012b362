"""Recognising a file by checksum or form: each check says what is wrong with a file, or None."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from data_prep.common.files import DataError, FileFacts, read_manifest, sha256

# Says what is wrong with a file, or None: how a file is recognised.
Check = Callable[[Path], str | None]


def sha256_check(known: FileFacts) -> Check:
    """Recognise a file by size and SHA-256."""

    def check(path: Path) -> str | None:
        try:
            size = path.stat().st_size
            if size != known.size:
                return f"has {size} bytes instead of {known.size}"
            found = sha256(path)
        except OSError as error:
            return _unreadable(error)
        return None if found == known.sha256 else f"has SHA-256 {found}, not {known.sha256}"

    return check


def md5_check(md5: str) -> Check:
    """Recognise a file by MD5, where the publisher gives nothing better."""

    def check(path: Path) -> str | None:
        try:
            with path.open("rb") as file:
                found = hashlib.file_digest(file, _md5).hexdigest()
        except OSError as error:
            return _unreadable(error)
        return None if found == md5 else f"has MD5 {found}, not {md5}"

    return check


def manifest_check(folder: Path, file: str, form: Check) -> Check:
    """Recognise a prepared file by what the manifest of its folder records, or by its form.

    Args:
        folder: of the prepared data set; a file elsewhere is recognised by its form.
        file: its name in the manifest.
        form: for files that no manifest records: what is wrong with one, or None. Its OSError,
            ValueError and DataError count as something wrong.
    """

    def check(path: Path) -> str | None:
        if not path.is_file():
            return "is missing"
        recorded = recorded_facts(folder, file) if path.parent == folder else None
        if recorded is not None:
            return sha256_check(recorded)(path)
        try:
            return form(path)
        except (OSError, ValueError, DataError) as error:
            return f"is not as expected: {error}"

    return check


def recorded_facts(folder: Path, file: str) -> FileFacts | None:
    """Size and SHA-256 that the manifest in ``folder`` records for ``file``, if it does."""
    try:
        entry = (read_manifest(folder) or {})["files"][file]
        return FileFacts(int(entry["bytes"]), str(entry["sha256"]))
    except (KeyError, TypeError, ValueError):
        return None


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def _unreadable(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read ({error.strerror})"
