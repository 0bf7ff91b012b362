"""Recognising a file by its checksum: each check says what is wrong with a file, or None."""

from __future__ import annotations

import hashlib
from pathlib import Path

from data_prep.chain import Check
from data_prep.storage import sha256
from ktlib.data.files import FileFacts


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


def _md5() -> hashlib._Hash:
    return hashlib.md5(usedforsecurity=False)


def _unreadable(error: OSError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read ({error.strerror})"
