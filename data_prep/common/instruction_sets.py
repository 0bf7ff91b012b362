"""Sets of instructions, from a file that somebody placed or from the Hugging Face hub.

Whatever form they come in, they are kept as one file with a conversation on each line.
"""

from __future__ import annotations

import importlib
import importlib.util
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from data_prep.common.chain import DataSet, Source
from data_prep.common.checks import Check, manifest_check
from data_prep.common.conversations import SPLITS, Conversation, split_conversations
from data_prep.common.errors import SourceError
from data_prep.common.files import (
    MANIFEST,
    DataError,
    check_split,
    manifest_facts,
    read_verified,
)
from data_prep.common.instructions import decode_rows, parse_row, read_rows
from data_prep.common.root import data_root

# The one file of a prepared set.
INSTRUCTION_FILE = "conversations.jsonl"
SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True, kw_only=True)
class InstructionSet(DataSet):
    """One of the sets: the conversations of its training split.

    Attributes:
        hub: Its id on the hub.
        file: What the publishers call the file of the training split; a person may place it.
        rows: How many rows that file has.
        direct: Whether the file is read from the hub as it is: a set that comes with a program is
            refused otherwise, as ``datasets`` runs none.
        note: What a person has to know before fetching it.
    """

    hub: str
    file: str
    rows: int
    space: int = 500_000_000  # enough for the largest set and the hub's cache
    direct: bool = False
    note: str = ""

    def checks(self, folder: Path) -> dict[str, Check]:
        """By the manifest, and without one by the number of conversations."""
        return {INSTRUCTION_FILE: manifest_check(folder, INSTRUCTION_FILE, self._wrong)}

    def checksums(self, root: Path | None = None) -> dict[str, str]:
        """The SHA-256 that the manifest records."""
        known = manifest_facts(self.name, (INSTRUCTION_FILE,), root)
        return {file: facts.sha256 for file, facts in known.items()}

    def load(self, split: str, root: Path | None = None) -> list[Conversation]:
        """One split; see :func:`data_prep.load_conversations`."""
        check_split(split, SPLITS)
        known = manifest_facts(self.name, (INSTRUCTION_FILE,), root)[INSTRUCTION_FILE]
        path = (root or data_root()) / self.name / INSTRUCTION_FILE
        content = read_verified(path, known, self.name).tobytes()
        return split_conversations(
            read_rows(content, INSTRUCTION_FILE, self.name), split, self.name
        )

    def sources(self, folder: Path) -> Iterator[Source]:
        """A placed file, the hub."""
        yield Source(f"a file in {folder}", partial(self._from_folder, folder))
        yield Source(f"{self.hub} on the Hugging Face hub", self._from_hub)

    def _from_folder(
        self,
        folder: Path,
        temporary: Path,
        missing: Sequence[str],  # noqa: ARG002 - there is one file only
    ) -> None:
        placed = [
            path
            for path in sorted(folder.iterdir())
            if path.suffix in SUFFIXES and path.name not in (INSTRUCTION_FILE, MANIFEST)
        ]
        if len(placed) != 1:
            names = ", ".join(path.name for path in placed) or "none"
            raise SourceError(f"there must be one file {' or '.join(SUFFIXES)}. Found {names}")
        try:
            rows = _read(placed[0])
        except (DataError, ValueError, ImportError) as error:
            raise SourceError(f"{placed[0].name} cannot be read: {error}") from error
        self._write(rows, temporary / INSTRUCTION_FILE)

    def _from_hub(self, temporary: Path, missing: Sequence[str]) -> None:  # noqa: ARG002
        if importlib.util.find_spec("datasets") is None:
            raise SourceError("the package datasets is missing: `make env` installs it")
        datasets: Any = importlib.import_module("datasets")
        options: dict[str, Any] = {"split": "train", "cache_dir": str(temporary / "cache")}
        try:
            if self.direct:
                address = f"hf://datasets/{self.hub}/{self.file}"
                found = datasets.load_dataset("json", data_files={"train": address}, **options)
            else:
                found = datasets.load_dataset(self.hub, **options)
        except Exception as error:  # every version and every network fails in its own way
            reason = " ".join(str(error).split())[:300]
            raise SourceError(f"{type(error).__name__}: {reason}") from error
        self._write(list(found), temporary / INSTRUCTION_FILE)

    def _write(self, rows: Sequence[Any], target: Path) -> None:
        """Write the conversations of all rows that have an answer."""
        if len(rows) != self.rows:
            raise SourceError(f"it has {len(rows)} rows and should have {self.rows}")
        lines = []
        for number, row in enumerate(rows, start=1):
            try:
                one = parse_row(row, self.name)
            except ValueError as error:
                raise SourceError(f"its row {number} is not as expected: {error}") from error
            if one is not None:
                lines.append(json.dumps({"messages": one.messages}, ensure_ascii=False) + "\n")
        target.write_text("".join(lines), encoding="utf-8", newline="\n")

    def _wrong(self, path: Path) -> str | None:
        """What is wrong with the form of the file, or None."""
        found = decode_rows(path.read_bytes(), path.name)
        answered = [parse_row(row, self.name) for row in found]
        # A few rows have no answer, and no more than that.
        if not 0.9 * self.rows <= len(answered) <= self.rows:
            return f"has {len(answered)} conversations instead of {self.rows}"
        return None

    def by_hand(self, folder: Path) -> str:
        """Which file to fetch where."""
        note = f" {self.note}" if self.note else ""
        return (
            f"To place it by hand, fetch the training split where there is a network, for example "
            f"with hf download {self.hub} --repo-type dataset, put its file ({self.file}; .jsonl, "
            f".json and .parquet are read) into {folder}, and run python -m data_prep.{self.name} "
            f"again.{note}"
        )


def _read(path: Path) -> list[Any]:
    if path.suffix != ".parquet":
        return decode_rows(path.read_bytes(), path.name)
    parquet: Any = importlib.import_module("pyarrow.parquet")
    return list(parquet.read_table(path).to_pylist())
