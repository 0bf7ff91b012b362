"""Asking one source after the other until every file is there and verified."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data_prep.common.checks import Check, sha256_check
from data_prep.common.errors import PrepareError, SourceError
from data_prep.common.files import FileFacts, is_unchanged, read_manifest, read_verified
from data_prep.common.root import data_root
from data_prep.common.storage import (
    exclusive,
    incoming,
    is_storage_error,
    log,
    place,
    require_places,
    require_space,
    storage_errors,
    write_manifest,
)


@dataclass(frozen=True)
class Source:
    """A place that files may come from.

    Attributes:
        description: For the person who reads the message when every source failed.
        fetch: Called with a temporary folder and the names of the missing files; puts those that
            it has into the folder, under their names. Raises SourceError, saying why not.
    """

    description: str
    fetch: Callable[[Path, Sequence[str]], None]


@dataclass(frozen=True, kw_only=True)
class DataSet(ABC):
    """A set that :meth:`prepare` leaves complete in the folder of its name, with a manifest.

    Attributes:
        name: Of the set, of its module in ``data_prep`` and of its folder.
        space: Free bytes needed for fetching.
    """

    name: str
    space: int = 0

    @abstractmethod
    def checks(self, folder: Path) -> Mapping[str, Check]:
        """How each of its files is recognised, by the file's name."""

    @abstractmethod
    def sources(self, folder: Path) -> Iterable[Source]:
        """Where the files may come from, in order. Called only if something is missing."""

    @abstractmethod
    def by_hand(self, folder: Path) -> str:
        """What a person can do when every source failed."""

    @property
    def space_needed(self) -> int:
        """Free bytes needed for fetching, where they follow from the files."""
        return self.space

    @abstractmethod
    def checksums(self, root: Path | None = None) -> dict[str, str]:
        """SHA-256 by file, for run records; see :func:`data_prep.checksums`."""

    def prepare(self, root: Path | None = None) -> Path:
        """Make ``<root>/<name>`` hold the set's files, verified, and a manifest.

        Args:
            root: The data root; None stands for :func:`data_prep.data_root`.

        Returns:
            The folder of the data set.

        Raises:
            PrepareError: with what was tried, or why nothing can be written.
        """
        root = root or data_root()
        folder = root / self.name
        expected = self.checks(folder)
        require_places(folder, expected)
        # First without the lock, so that a complete set on a read-only disk is good enough.
        listed = (read_manifest(folder) or {"files": {}})["files"]
        if (
            is_unchanged(folder)
            and {*listed} >= {*expected}
            and not missing_files(folder, expected)
        ):
            log(f"{self.name}: complete in {folder}")
            return folder
        with storage_errors(root), exclusive(root, self.name):
            used: list[str] = []
            if missing_files(folder, expected):
                require_space(root, self.space_needed)
                used = fetch_files(folder, expected, self.sources(folder), self.by_hand(folder))
            write_manifest(folder, list(expected))
        origin = f", from {' and '.join(used)}" if used else ""
        log(f"{self.name}: ready in {folder}{origin}")
        return folder


@dataclass(frozen=True, kw_only=True)
class KnownFilesSet(DataSet):
    """A set whose files have the same content on every machine.

    Attributes:
        files: Size and SHA-256 of each file.
    """

    files: Mapping[str, FileFacts]

    def checks(self, folder: Path) -> dict[str, Check]:  # noqa: ARG002 - those of other sets do
        """By size and SHA-256."""
        return {file: sha256_check(known) for file, known in self.files.items()}

    def checksums(self, root: Path | None = None) -> dict[str, str]:  # noqa: ARG002
        """The SHA-256 of each file; reads nothing."""
        return {file: known.sha256 for file, known in self.files.items()}

    @property
    def total_size(self) -> int:
        """Bytes of all files."""
        return sum(known.size for known in self.files.values())

    @property
    def largest(self) -> int:
        """Bytes of the largest file."""
        return max(known.size for known in self.files.values())

    def read(self, file: str, root: Path | None = None) -> NDArray[np.uint8]:
        """The bytes of a file, verified; see :func:`data_prep.common.files.read_verified`."""
        path = (root or data_root()) / self.name / file
        return read_verified(path, self.files[file], self.name)


def missing_files(folder: Path, expected: Mapping[str, Check]) -> dict[str, str]:
    """The files that have to be fetched, each with what is wrong with the one that is there."""
    wrong = {file: check(folder / file) for file, check in expected.items()}
    return {file: problem for file, problem in wrong.items() if problem is not None}


def fetch_files(
    folder: Path, expected: Mapping[str, Check], sources: Iterable[Source], by_hand: str
) -> list[str]:
    """Make ``folder`` hold every expected file; the right ones that it has are kept.

    Args:
        folder: Exists and is held by this process alone.
        expected: From file name to its check.
        sources: Tried in this order; what one of them gives is kept if it passes the check.
        by_hand: What a person can do, for the message when every source failed.

    Returns:
        Descriptions of the sources that gave something.

    Raises:
        PrepareError: listing each source with its reason.
        OSError: the disk is full or cannot be written.
    """
    missing = missing_files(folder, expected)
    for file, problem in missing.items():
        if (folder / file).exists():
            log(f"{folder.name}: {file} {problem}; it is fetched again")
    used: list[str] = []
    failed: list[str] = []
    for source in sources:
        if not missing:
            break
        log(f"{folder.name}: trying {source.description}")
        reason, arrived = _ask(source, folder, list(missing), expected)
        if arrived:
            used.append(source.description)
        if reason:
            failed.append(f"  - {source.description}: {reason}")
        missing = {file: problem for file, problem in missing.items() if file not in arrived}
    if missing:
        wrong = ", ".join(f"{file} {problem}" for file, problem in missing.items())
        tried = "\n".join(failed)
        raise PrepareError(
            f"The data set cannot be completed: {wrong}.\nTried, in this order:\n{tried}\n{by_hand}"
        )
    return used


def _ask(
    source: Source, folder: Path, missing: Sequence[str], expected: Mapping[str, Check]
) -> tuple[str, set[str]]:
    """What one source failed with, if it did, and the files that it gave and that are right."""
    reasons = []
    arrived = set()
    with incoming(folder) as temporary:
        try:
            source.fetch(temporary, missing)
        except SourceError as error:
            reasons.append(str(error))
        except OSError as error:
            if is_storage_error(error):
                raise
            reasons.append(str(error))
        for file in missing:
            if not (temporary / file).is_file():
                continue
            problem = expected[file](temporary / file)
            if problem is None:
                place(temporary / file, folder / file)
                arrived.add(file)
            elif not reasons:  # after an error an incomplete file is no news
                reasons.append(f"its {file} {problem}")
    if not reasons and len(arrived) < len(missing):
        found = ", ".join(sorted(arrived))
        reasons.append(f"it has only {found}" if found else "nothing of what is missing is there")
    return "; ".join(reasons), arrived
