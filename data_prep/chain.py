"""Asking one source after the other until every file is there and verified."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from data_prep import is_current
from data_prep.errors import PrepareError, SourceError
from data_prep.storage import (
    exclusive,
    incoming,
    is_storage_error,
    place,
    require_space,
    say,
    storage_errors,
    write_manifest,
)

# Says what is wrong with a file, or None: how a file is recognised.
Check = Callable[[Path], str | None]


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


def prepare_files(
    name: str,
    root: Path,
    expected: Mapping[str, Check],
    sources: Callable[[Path], Iterable[Source]],
    by_hand: Callable[[Path], str],
    space: int,
) -> Path:
    """Make ``<root>/<name>`` hold the expected files, verified, and a manifest.

    Args:
        name: The name of the data set and of its folder.
        root: The data root.
        expected: From file name to its check.
        sources: Called with the folder, and only if something is missing.
        by_hand: Called with the folder; tells what a person can do when every source failed.
        space: Free bytes needed for fetching.

    Returns:
        The folder of the data set.

    Raises:
        PrepareError: nothing could provide a file, or nothing can be written.
    """
    # First without the lock, so that a complete set on a read-only disk is good enough.
    if is_complete(name, root, expected):
        say(f"{name}: complete in {root / name}")
        return root / name
    with storage_errors(root), exclusive(root, name) as folder:
        used: list[str] = []
        if missing_files(folder, expected):
            require_space(root, space)
            used = fetch_files(folder, expected, sources(folder), by_hand(folder))
        write_manifest(folder, list(expected))
    origin = f", from {' and '.join(used)}" if used else ""
    say(f"{name}: ready in {root / name}{origin}")
    return root / name


def is_complete(name: str, root: Path, expected: Mapping[str, Check]) -> bool:
    """Whether there is nothing to do: a manifest that fits, and each file passes its check."""
    return is_current(name, root) and not missing_files(root / name, expected)


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
            say(f"{folder.name}: {file} {problem}; it is fetched again")
    used: list[str] = []
    failed: list[str] = []
    for source in sources:
        if not missing:
            break
        say(f"{folder.name}: trying {source.description}")
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
