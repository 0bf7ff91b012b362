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

from data_prep.chain import Source, prepare_files
from data_prep.checks import manifest_check
from data_prep.errors import SourceError
from data_prep.reading.conversations import Conversation
from data_prep.reading.files import DataError
from data_prep.reading.instructions import decode_rows, parse_row
from data_prep.reading.text_facts import INSTRUCTION_FILE

SUFFIXES = (".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class InstructionSet:
    """One of the sets.

    Attributes:
        name: Of the data set and of its folder.
        hub: Its id on the hub.
        file: What the publishers call the file of the training split; a person may place it.
        rows: How many rows that file has.
        direct: Whether the file is read from the hub as it is: a set that comes with a program is
            refused otherwise, as ``datasets`` runs none.
        note: What a person has to know before fetching it.
    """

    name: str
    hub: str
    file: str
    rows: int
    direct: bool = False
    note: str = ""


def prepare_instruction_set(data: InstructionSet, root: Path, space: int = 500_000_000) -> Path:
    """Make ``<root>/<name>`` hold the conversations of the training split.

    Raises:
        PrepareError: nothing could provide them, or nothing can be written.
    """
    check = manifest_check(root / data.name, INSTRUCTION_FILE, partial(_wrong, data))
    return prepare_files(
        data.name,
        root,
        {INSTRUCTION_FILE: check},
        partial(_sources, data),
        partial(_by_hand, data),
        space,
    )


def _sources(data: InstructionSet, folder: Path) -> Iterator[Source]:
    yield Source(f"a file in {folder}", partial(_from_folder, data, folder))
    yield Source(f"{data.hub} on the Hugging Face hub", partial(_from_hub, data))


def _from_folder(
    data: InstructionSet, folder: Path, temporary: Path, missing: Sequence[str]
) -> None:
    del missing  # there is one file only
    placed = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix in SUFFIXES and path.name not in (INSTRUCTION_FILE, "manifest.json")
    ]
    if len(placed) != 1:
        names = ", ".join(path.name for path in placed) or "none"
        raise SourceError(f"there must be one file {' or '.join(SUFFIXES)}. Found {names}")
    try:
        rows = _read(placed[0])
    except (DataError, ValueError, ImportError) as error:
        raise SourceError(f"{placed[0].name} cannot be read: {error}") from error
    _write(data, rows, temporary / INSTRUCTION_FILE)


def _read(path: Path) -> list[Any]:
    if path.suffix != ".parquet":
        return decode_rows(path.read_bytes(), path.name)
    parquet: Any = importlib.import_module("pyarrow.parquet")
    return list(parquet.read_table(path).to_pylist())


def _from_hub(data: InstructionSet, temporary: Path, missing: Sequence[str]) -> None:
    del missing
    if importlib.util.find_spec("datasets") is None:
        raise SourceError("the package datasets is missing: make env")
    datasets: Any = importlib.import_module("datasets")
    options: dict[str, Any] = {"split": "train", "cache_dir": str(temporary / "cache")}
    try:
        if data.direct:
            address = f"hf://datasets/{data.hub}/{data.file}"
            found = datasets.load_dataset("json", data_files={"train": address}, **options)
        else:
            found = datasets.load_dataset(data.hub, **options)
    except Exception as error:  # every version and every network fails in its own way
        reason = " ".join(str(error).split())[:300]
        raise SourceError(f"{type(error).__name__}: {reason}") from error
    _write(data, list(found), temporary / INSTRUCTION_FILE)


def _write(data: InstructionSet, rows: Sequence[Any], target: Path) -> None:
    """Write the conversations of all rows that have an answer."""
    if len(rows) != data.rows:
        raise SourceError(f"it has {len(rows)} rows and should have {data.rows}")
    lines = []
    for number, row in enumerate(rows, start=1):
        try:
            one = parse_row(row, data.name)
        except ValueError as error:
            raise SourceError(f"its row {number} is not as expected: {error}") from error
        if one is not None:
            lines.append(_line(one))
    target.write_text("".join(lines), encoding="utf-8", newline="\n")


def _line(one: Conversation) -> str:
    return json.dumps({"messages": one.messages}, ensure_ascii=False) + "\n"


def _wrong(data: InstructionSet, path: Path) -> str | None:
    """What is wrong with the form of the file, or None."""
    found = decode_rows(path.read_bytes(), path.name)
    answered = [parse_row(row, data.name) for row in found]
    # A few rows have no answer, and no more than that.
    if not 0.9 * data.rows <= len(answered) <= data.rows:
        return f"has {len(answered)} conversations instead of {data.rows}"
    return None


def _by_hand(data: InstructionSet, folder: Path) -> str:
    """How a person can provide the file."""
    note = f" {data.note}" if data.note else ""
    return (
        f"To place it by hand, fetch the training split where there is a network, for example with "
        f"hf download {data.hub} --repo-type dataset, put its file ({data.file}; .jsonl, .json and "
        f".parquet are read) into {folder}, and run python -m data_prep.{data.name} again.{note}"
    )
