"""What the thesis says, sentence by sentence and table by table, and where it is examined.

``results/thesis/coverage.csv`` has a line for every testable statement, in our words. Its column
``covered_by`` holds patterns with `` | `` between them: the words of claims, in which ``*`` stands
for anything, or a place in the book, such as ``#proof-fcl``. A line without them has a reason.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from fnmatch import fnmatchcase
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from experiments.run.claims import OWN_QUESTION
from workflow.project import ROOT
from workflow.thesis_page import PLACES

if TYPE_CHECKING:
    from workflow.ledger import Entry

FILE = ROOT / "results" / "thesis" / "coverage.csv"
BETWEEN = " | "
CHAPTERS = {
    "3": "Chapter 3: few-shot continual learning (F2M)",
    "4": "Chapter 4: multi-task learning (Recon)",
    "5": "Chapter 5: layers of language models (ILA)",
    "InfLoRA": "The abstract on InfLoRA",
    "L2C": "The abstract on L2C",
}


@dataclass(frozen=True)
class Statement:
    """A statement.

    Attributes:
        id: its name in the list.
        chapter: of the thesis, or the abstract: a key of ``CHAPTERS``.
        place: where it is printed, such as ``"Table 3.1"``.
        statement: what it says, in our words.
        covered_by: patterns, as the module describes.
        reason: why there are none.
    """

    id: str
    chapter: str
    place: str
    statement: str
    covered_by: str
    reason: str

    @property
    def patterns(self) -> list[str]:
        """The claims that examine it, by their words."""
        return [part for part in self._parts if not part.startswith("#")]

    @property
    def anchors(self) -> list[str]:
        """The places of the book that examine it."""
        return [part.removeprefix("#") for part in self._parts if part.startswith("#")]

    @property
    def _parts(self) -> list[str]:
        return [part.strip() for part in self.covered_by.split(BETWEEN) if part.strip()]

    def covers(self, claim: str) -> bool:
        """Whether a claim examines it."""
        return any(fnmatchcase(claim, pattern) for pattern in self.patterns)


def read_coverage(file: Path = FILE) -> list[Statement]:
    """All statements, in the order of the file.

    Raises:
        ValueError: the columns are others, an id occurs twice, a chapter is unknown, a text is
            missing, or a statement has neither a claim nor a reason, or both.
    """
    names = [field.name for field in fields(Statement)]
    with file.open(encoding="utf-8", newline="") as stream:
        reader = csv.DictReader(stream)
        if reader.fieldnames != names:
            raise ValueError(f"{file.name} must have the columns {names}.")
        rows = [Statement(**row) for row in reader]
    seen: set[str] = set()
    for row in rows:
        where = f"{file.name}, {row.id!r}"
        if row.id in seen:
            raise ValueError(f"{where}: each id may occur once.")
        seen.add(row.id)
        if row.chapter not in CHAPTERS:
            raise ValueError(f"{where}: chapter must be one of {', '.join(CHAPTERS)}.")
        if not row.place.strip() or not row.statement.strip():
            raise ValueError(f"{where}: place and statement must be text.")
        if bool(row.covered_by.strip()) == bool(row.reason.strip()):
            raise ValueError(f"{where}: either covered_by or reason must be text.")
    return rows


def gaps(
    rows: Iterable[Statement], claims: Mapping[str, str], anchors: Iterable[str]
) -> tuple[list[str], list[str]]:
    """What the list and the ledger do not have in common.

    Args:
        rows: the statements.
        claims: words of each claim of the ledger -> where it is printed.
        anchors: the places that the book has.

    Returns:
        Patterns and places of the list that nothing fits, and claims that no statement is about.
    """
    rows, known = list(rows), {*anchors, *PLACES}
    loose = [
        f"{row.id}: {pattern}"
        for row in rows
        for pattern in row.patterns
        if not any(fnmatchcase(claim, pattern) for claim in claims)
    ]
    loose += [f"{row.id}: #{name}" for row in rows for name in row.anchors if name not in known]
    own = [claim for claim, printed_in in claims.items() if printed_in == OWN_QUESTION]
    return loose, [
        claim for claim in claims if claim not in own and not any(row.covers(claim) for row in rows)
    ]


def coverage_part(
    rows: Sequence[Statement], entries: Sequence[Entry], links: Mapping[str, tuple[str, str]]
) -> str:
    """The statements by chapter, each with links to the claims that examine it, as HTML.

    Args:
        rows: the statements.
        entries: the ledger.
        links: name of a place in the book -> its address, and the title of its page.
    """
    own_page = {name: (f"thesis.html#{name}", "The thesis against itself") for name in PLACES}
    known = own_page | {**links}
    folds = []
    for chapter, title in CHAPTERS.items():
        own = [row for row in rows if row.chapter == chapter]
        if not own:
            continue
        done = [row for row in own if row.covered_by]
        items = "".join(_item(row, entries, known) for row in own)
        folds.append(
            f"<details><summary>{title}: {len(done)} of {len(own)} examined</summary>"
            f"<ul>{items}</ul></details>"
        )
    return "\n".join(['<div class="ledger-coverage">', *folds, "</div>"])


def _item(row: Statement, entries: Sequence[Entry], known: Mapping[str, tuple[str, str]]) -> str:
    links = [
        f'<a href="#claim-{entry.number}">{entry.number} ({entry.claim.verdict})</a>'
        for entry in entries
        if row.covers(entry.claim.claim)
    ]
    links += [
        f'<a href="{known[name][0]}">{escape(known[name][1])}</a>'
        for name in row.anchors
        if name in known
    ]
    said = ", ".join(links) or escape(row.reason) or "not in this copy"
    return f"<li><b>{escape(row.place)}</b> {escape(row.statement)}: {said}</li>"
