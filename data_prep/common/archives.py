"""Taking single files out of archives without trusting the archives."""

from __future__ import annotations

import gzip
import lzma
import tarfile
import zlib
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import IO, Protocol

from data_prep.common.errors import SourceError

CHUNK = 1 << 20


class Readable(Protocol):
    """Anything that gives bytes: a file, a pipe, a member of an archive."""

    def read(self, size: int, /) -> bytes:
        """The next bytes, at most ``size``; none at the end."""
        ...


DAMAGED = (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, gzip.BadGzipFile)


def extract(archive: IO[bytes], wanted: Mapping[str, Path], limit: int) -> None:
    """Copy members of a tar archive (compressed or not) to paths that the caller chose.

    Nothing is written under a name taken from the archive, and an archive with a name that
    leads out of its folder is refused as a whole.

    Args:
        archive: Opened for reading in binary mode; need not be seekable.
        wanted: From the member's name in the archive to the file to write.
        limit: The most bytes that one member may have.

    Raises:
        SourceError: a damaged archive, a name leading out, or a wanted member that is no file.
    """
    try:
        with tarfile.open(fileobj=archive, mode="r|*") as tar:
            for member in tar:
                name = _inside(member.name)
                if name in wanted:
                    _copy_member(tar, member, wanted[name], limit)
    except DAMAGED as error:
        raise SourceError(f"the archive is damaged: {error}") from error


def _inside(name: str) -> str:
    """The normalised name of a member; refused if it leads out of the archive's folder."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name:
        raise SourceError(f"the archive is refused: its member {name!r} leads out of the folder")
    return str(path)


def _copy_member(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path, limit: int) -> None:
    content = tar.extractfile(member) if member.isreg() else None
    if content is None:
        raise SourceError(f"the archive is refused: its member {member.name!r} is not a file")
    with content:
        copy_limited(content, target, limit)


def gunzip(source: Path, target: Path, limit: int) -> None:
    """Unpack the gzip file ``source`` to ``target``.

    Raises:
        SourceError: it is damaged, cut short, or unpacks to more than ``limit`` bytes.
    """
    try:
        with gzip.open(source) as content:
            copy_limited(content, target, limit)
    except DAMAGED as error:
        raise SourceError(f"{source.name} is damaged: {error}") from error


def copy_limited(source: Readable, target: Path, limit: int) -> None:
    """Copy a stream to a file; one that unpacks to more than ``limit`` bytes is given up.

    Raises:
        SourceError: there are more than ``limit`` bytes.
    """
    written = 0
    with target.open("wb") as file:
        while chunk := source.read(CHUNK):
            written += len(chunk)
            if written > limit:
                raise SourceError(f"{target.name} is larger than the {limit} bytes expected")
            file.write(chunk)
