"""Checking sets of many files that a person has placed: nothing is fetched and nothing converted.

These sets are handed out through links that come and go, without checksums. So every file is
decoded once and must hold what its set says; then its SHA-256 is recorded, and from there on a file
that changes is found.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from tqdm import tqdm

from data_prep import is_current
from data_prep.checks import sha256_check
from data_prep.errors import PrepareError
from data_prep.reading.file_sets import FileSet
from data_prep.reading.files import MANIFEST, FileFacts, read_manifest
from data_prep.storage import exclusive, say, storage_errors, write_manifest

SHOWN = 5


def prepare_in_place(data: FileSet, root: Path, by_hand: str) -> Path:
    """Check ``<root>/<name>`` and record it in a manifest.

    Args:
        data: What must be there.
        root: The data root.
        by_hand: Where a person gets the files, for the message when something is wrong;
            ``{folder}`` in it stands for the folder.

    Returns:
        The folder of the data set.

    Raises:
        PrepareError: naming the first files that are missing, damaged, of another shape, or other
            than those recorded earlier; or the manifest cannot be written.
    """
    folder = root / data.name
    changed = list(_changed(folder))
    if not changed and is_current(data.name, root):
        say(f"{data.name}: complete in {folder}")
        return folder
    with storage_errors(root), exclusive(root, data.name):
        if changed:
            hint = f"To accept other files, remove {folder / MANIFEST} first."
            raise _error(data, folder, changed, f"{hint}\n{by_hand}")
        if read_manifest(folder) is None:
            files, problems = _check_all(data, folder)
            if problems:
                raise _error(data, folder, problems, by_hand)
        else:  # the same content with other times: only the times are recorded anew
            files = list((read_manifest(folder) or {})["files"])
        write_manifest(folder, files)
    say(f"{data.name}: ready in {folder}")
    return folder


def _changed(folder: Path) -> Iterator[str]:
    """The files of an earlier manifest that are not as recorded, each with what is wrong."""
    entries = (read_manifest(folder) or {"files": {}})["files"]
    for file, entry in tqdm(entries.items(), desc="comparing", total=len(entries), leave=False):
        try:
            known = FileFacts(int(entry["bytes"]), str(entry["sha256"]))
        except (KeyError, TypeError, ValueError):
            yield f"{file} is not recorded properly in {MANIFEST}"
            continue
        problem = sha256_check(known)(folder / file)
        if problem is not None:
            yield f"{file} {problem}"


class _There:
    """The files of a folder, as a container of their paths in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __contains__(self, path: object) -> bool:
        return isinstance(path, str) and (self.folder / path).is_file()


def _check_all(data: FileSet, folder: Path) -> tuple[list[str], list[str]]:
    """The files of the set, and what is wrong with them."""
    files, problems = [], []
    for split, number in data.numbers.items():
        listed = data.lists.get(split)
        text = ""
        if listed:
            try:
                text = (folder / listed).read_text(encoding="utf-8")
            except (OSError, UnicodeDecodeError) as error:
                problems.append(f"{listed} {_reason(error)}")
                continue
            files.append(listed)
        try:
            rows = data.rows(split, text, _There(folder))
        except ValueError as error:
            problems.append(f"{listed} is not as expected: {error}")
            continue
        if len(rows) != number or len({row["image"] for row in rows}) != number:
            names = len({row["image"] for row in rows})
            problems.append(f"{listed} must list {number} images. Found {names} in {len(rows)}")
            continue
        for row in tqdm(rows, desc=f"checking {split}", total=number, leave=False):
            problem = _check_row(data, folder, row)
            if problem:
                problems.append(problem)
            files.extend(row.values())
    return files, problems


def _check_row(data: FileSet, folder: Path, row: dict[str, str]) -> str | None:
    """What is wrong with the files of one image, or None."""
    contents = {}
    for role, path in row.items():
        try:
            contents[role] = (folder / path).read_bytes()
        except OSError as error:
            return f"{path} {_reason(error)}"
    try:
        data.decode(contents)
    except ValueError as error:
        return f"{row[getattr(error, 'role', 'image')]} is not as expected: {error}"
    return None


def _reason(error: OSError | UnicodeDecodeError) -> str:
    if isinstance(error, FileNotFoundError):
        return "is missing"
    return f"cannot be read ({getattr(error, 'strerror', None) or error})"


def _error(data: FileSet, folder: Path, problems: list[str], by_hand: str) -> PrepareError:
    shown = "\n".join(f"  - {problem}" for problem in problems[:SHOWN])
    more = f"\n  and {len(problems) - SHOWN} more" if len(problems) > SHOWN else ""
    return PrepareError(
        f"The data set in {folder} is not complete:\n{shown}{more}\n"
        f"{by_hand.format(folder=folder)}\nThen run python -m data_prep.{data.name} again."
    )
