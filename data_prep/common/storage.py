"""Writing into the data root: one process at a time, whole files only, clear errors."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from filelock import FileLock, Timeout

from data_prep.common.errors import PrepareError
from data_prep.common.files import MANIFEST, read_manifest, sha256
from data_prep.common.root import VARIABLE

INCOMING = ".incoming-"
FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
READ_ONLY = frozenset({errno.EROFS})


def is_storage_error(error: OSError) -> bool:
    """Whether the disk and not a source is to blame."""
    return error.errno in FULL | READ_ONLY


@contextlib.contextmanager
def storage_errors(root: Path) -> Iterator[None]:
    """Turn the operating system's refusal to write below ``root`` into one clear line.

    Raises:
        PrepareError: no space, no permission, or ``root`` cannot be a folder.
    """
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        if error.errno in FULL:
            raise PrepareError(
                f"No space left for the data in {root} ({reason}). Free some space, or set "
                f"{VARIABLE} to a folder on another disk."
            ) from error
        raise PrepareError(
            f"Cannot write the data to {root} ({reason}: {error.filename or root}). Set {VARIABLE} "
            f"to a folder that you may write to."
        ) from error


def require_places(folder: Path, files: Iterable[str]) -> None:
    """Refuse a file where the set's folder belongs, and a folder where one of its files does.

    Raises:
        PrepareError: naming what is in the way.
    """
    if os.path.lexists(folder) and not folder.is_dir():
        raise PrepareError(
            f"{folder} is a file, and the folder of the data set belongs there. Move it away, and "
            f"run python -m data_prep.{folder.name} again."
        )
    for path in (folder / file for file in (MANIFEST, *files)):
        if path.is_dir():
            raise PrepareError(
                f"{path} is a folder, and a file of the data set belongs there. Move it away, and "
                f"run python -m data_prep.{folder.name} again."
            )


def require_space(root: Path, size: int) -> None:
    """Refuse to begin where ``size`` bytes do not fit.

    Raises:
        PrepareError: naming what is needed and what is free.
    """
    free = shutil.disk_usage(root).free
    if free < size:
        raise PrepareError(
            f"No space left for the data in {root}: {size / 1e6:.0f} MB are needed, "
            f"{free / 1e6:.0f} MB are free. Free some space, or set {VARIABLE} to a folder on "
            f"another disk."
        )


@contextlib.contextmanager
def exclusive(root: Path, name: str) -> Iterator[Path]:
    """Hold the data set ``name`` for this process; yields its folder, which exists then.

    The operating system drops the lock when a process ends, however it ends. What a killed
    process left half-done is removed here.
    """
    folder = root / name
    require_places(folder, ())
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(root / f".{name}.lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        log(f"{name}: another process is preparing it, waiting ...")
        lock.acquire()
    try:
        for left in folder.glob(f"{INCOMING}*"):
            shutil.rmtree(left)
        yield folder
    finally:
        lock.release()


@contextlib.contextmanager
def incoming(folder: Path) -> Iterator[Path]:
    """A temporary folder inside ``folder``: files move out of it by renaming, which is atomic."""
    temporary = Path(tempfile.mkdtemp(prefix=INCOMING, dir=folder))
    try:
        yield temporary
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_manifest(folder: Path, files: Sequence[str]) -> None:
    """Record sizes, SHA-256 and times of ``files``; the last step of every preparation.

    A manifest that says the same already is left alone.
    """
    entries = {}
    for file in files:
        path = folder / file
        found = path.stat()
        digest = sha256(path)
        entries[file] = {
            "bytes": found.st_size,
            "sha256": digest,
            "mtime_ns": found.st_mtime_ns,
        }
    manifest = {"data_set": folder.name, "files": entries}
    if read_manifest(folder) != manifest:
        write_text(folder / MANIFEST, json.dumps(manifest, indent=2) + "\n")


def place(source: Path, target: Path) -> None:
    """Move a verified file to its name in one step, after its content has reached the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.open("rb") as file:
        os.fsync(file.fileno())
    os.replace(source, target)


def log(text: str) -> None:
    """One line for the person at the terminal; stderr, where progress bars are as well."""
    print(text, file=sys.stderr, flush=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file under a temporary name and rename it: none is seen half-written."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_text(text, encoding="utf-8", newline="\n")
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
