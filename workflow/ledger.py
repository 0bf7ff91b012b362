"""The ledger: all claims of the thesis in one list, with what every run found, as HTML.

A line holds a claim and its verdict; the rest is folded away. ``book/_static/ledger.js`` filters
and sorts the list; without it the list is complete and in the order of the chapters.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path

from experiments.run.atomic import write_text
from experiments.run.claims import VERDICTS, Claim, claims_of
from experiments.run.results import RunRecord, is_stale
from workflow.ledger_coverage import Statement, coverage_part
from workflow.ledger_figure import figure_part
from workflow.project import chapter_source

LONG = ("full", "gpu", "paper")  # profiles whose committed verdicts count, most trusted first
PLACE = re.compile(
    r"^# \(([a-z][a-z0-9-]*)\)=$|^# :(?:label|name): ([a-z0-9-]+)$|\"name\": \"([a-z0-9-]+)\"",
    re.MULTILINE,
)
# A column: its heading, and how it is sorted
COLUMNS = {
    "No.": "number",
    "Claim": "text",
    "Printed in": "text",
    "Ours / printed": "number",
    "Verdict": "number",
}


@dataclass(frozen=True)
class Entry:
    """A line of the ledger.

    Attributes:
        number: its place in the list, from 1.
        chapter: where the claim is examined.
        findings: label of a run -> the claim as this run found it; the most trusted run first.
        address: of the place in the chapter, from the page of the ledger.
    """

    number: int
    chapter: str
    findings: Mapping[str, Claim]
    address: str

    @property
    def claim(self) -> Claim:
        """As the most trusted run found it."""
        return next(iter(self.findings.values()))

    @property
    def share(self) -> float | None:
        """Our effect divided by the printed one."""
        ours, printed = self.claim.effect, self.claim.printed_effect
        return None if ours is None or not printed else ours / printed


def places(names: Iterable[str]) -> dict[str, str]:
    """Name of a place that a chapter marks -> the chapter, for some chapters."""
    return {
        next(filter(None, match.groups())): name
        for name in names
        for match in PLACE.finditer(chapter_source(name).read_text(encoding="utf-8"))
    }


def _address(chapter: str, place: str = "") -> str:
    """Of a place in a chapter, from a page beside the chapters."""
    return f"chapters/{chapter}.html" + (f"#{place}" if place else "")


def ledger_entries(live: Sequence[RunRecord], committed: Sequence[RunRecord]) -> list[Entry]:
    """One entry for each claim, in the order of the chapters.

    Args:
        live: the records of the runs that this copy of the book shows, one per chapter.
        committed: the records kept with the project; those of profiles in ``LONG`` count.

    Raises:
        ValueError: a row of a record is not a claim, or a live claim names a place that its
            chapter does not have.
    """
    entries: list[Entry] = []
    for shown in live:
        long = [r for r in committed if r.chapter == shown.chapter and r.profile in LONG]
        long.sort(key=lambda record: LONG.index(record.profile))
        here, mine = _claims(shown), places([shown.chapter])
        runs = [(_label(r, r.profile), _claims(r)) for r in long]
        runs.append((_label(shown, f"{shown.profile}, this copy"), here))
        # The live run comes from the present chapter, so its order comes first.
        for words in dict.fromkeys([*here, *(words for _, found in runs for words in found)]):
            findings = {label: found[words] for label, found in runs if words in found}
            claim = here.get(words) or next(iter(findings.values()))
            if words in here and claim.anchor not in mine:
                raise ValueError(
                    f"chapters/{shown.chapter}.py: the claim {words!r} must name a place of the "
                    "chapter, such as `(sec-pilot)=` in front of a heading. "
                    f"Found {claim.anchor!r}, which is not there."
                )
            # A committed record may name a place that the chapter no longer has.
            address = _address(shown.chapter, claim.anchor if claim.anchor in mine else "")
            entries.append(Entry(len(entries) + 1, shown.chapter, findings, address))
    return entries


def _claims(record: RunRecord) -> dict[str, Claim]:
    """The claims of a run, by their words."""
    try:
        return {claim.claim: claim for claim in claims_of(record)}
    except ValueError as error:
        raise ValueError(f"Record {record.chapter}, profile {record.profile}: {error}") from None


def _label(record: RunRecord, name: str) -> str:
    seeds = "1 seed" if len(record.seeds) == 1 else f"{len(record.seeds)} seeds"
    changed = ", the code has changed since" if is_stale(record) else ""
    return f"{name} ({seeds}, {record.started_at[:10]}{changed})"


def write_ledger(
    entries: Sequence[Entry], titles: Mapping[str, str], covered: Sequence[Statement], folder: Path
) -> None:
    """Write ``claims.md``, and beside it the picture that it shows.

    Args:
        entries: from :func:`ledger_entries`.
        titles: chapter -> its title.
        covered: what the thesis says.
        folder: to write into.
    """
    if not entries:
        write_text(folder / "claims.md", "No run has noted a claim yet.\n")
        return
    links = {
        place: (_address(chapter, place), titles[chapter])
        for place, chapter in places(titles).items()
    }
    parts = [
        list_part(entries, titles),
        figure_part(entries, titles, folder),
        "(ledger-coverage)=\n## What the thesis says, and where it is examined",
        raw(coverage_part(covered, entries, links)),
    ]
    write_text(folder / "claims.md", "\n\n".join(filter(None, parts)) + "\n")


def list_part(entries: Sequence[Entry], titles: Mapping[str, str]) -> str:
    """The numbers of verdicts, and the list with its filters."""
    counts = Counter(entry.claim.verdict for entry in entries)
    totals = "".join(
        f'<li class="verdict {_mark(verdict)}"><b>{counts[verdict]}</b> {verdict}</li>'
        for verdict in VERDICTS
        if counts[verdict]
    )
    heads = "".join(
        f'<th scope="col" data-sort="{kind}">{name}</th>' for name, kind in COLUMNS.items()
    )
    used = dict.fromkeys(entry.chapter for entry in entries)
    chosen = [
        _choice("Verdict", "verdict", {v: v for v in VERDICTS if counts[v]}),
        _choice("Chapter", "chapter", {name: titles[name] for name in used}),
        '<label>Words <input type="search" name="words" autocomplete="off"></label>',
    ]
    lines = [
        f'<ul class="ledger-totals">{totals}</ul>',
        f'<form class="ledger-filter" hidden>{"".join(chosen)}<output></output></form>',
        '<table class="ledger"><caption>Every claim opens to show what was printed and what '
        f"each run found.</caption><thead><tr>{heads}</tr></thead><tbody>",
        *(_line(entry, titles[entry.chapter]) for entry in entries),
        "</tbody></table>",
    ]
    heading = f"(ledger-list)=\n## {len(entries)} claims"
    return heading + "\n\n" + raw("\n".join(lines))


def raw(html: str) -> str:
    """HTML for a page in Markdown."""
    return f"```{{raw}} html\n{html.replace('`', '&#96;')}\n```"


def _choice(label: str, name: str, options: Mapping[str, str]) -> str:
    listed = "".join(
        f'<option value="{escape(value)}">{escape(text)}</option>'
        for value, text in {"": "all", **options}.items()
    )
    return f'<label>{label} <select name="{name}">{listed}</select></label>'


def _mark(verdict: str) -> str:
    """The class of a verdict, which gives it the mark that it has in the picture."""
    return verdict.replace(" ", "-")


def _line(entry: Entry, title: str) -> str:
    claim, share = entry.claim, entry.share
    found = "".join(_finding(label, claim) for label, claim in entry.findings.items())
    ratio = "" if share is None else f"{share:.2f}"
    seen = ""
    if claim.verdict == "undecided" and claim.least_seen is not None:
        seen = f"<small>could see {_amount(claim.least_seen, claim.unit)}</small>"
    return (
        f'<tr id="claim-{entry.number}" data-verdict="{claim.verdict}"'
        f' data-chapter="{entry.chapter}"><td>{entry.number}</td>'
        f"<td><details><summary>{_text(claim.claim)}</summary>"
        f"<dl><dt>Printed</dt><dd>{_text(claim.thesis)} ({_text(claim.printed_in)})</dd>{found}"
        f'</dl><p><a href="{entry.address}">Where it is examined: {escape(title)}</a></p>'
        f'</details></td><td>{_text(claim.printed_in)}</td><td data-value="{ratio}">{ratio}</td>'
        f'<td data-value="{VERDICTS.index(claim.verdict)}"><span class="verdict '
        f'{_mark(claim.verdict)}">{claim.verdict}</span>{seen}</td></tr>'
    )


def _finding(label: str, claim: Claim) -> str:
    said = [f"{_text(claim.found)}.", f"<i>Set-up:</i> {_text(claim.difference)}."]
    if claim.mechanism:
        said.append(f"<i>Mechanism:</i> {_text(claim.mechanism)}.")
    said.append(f"<i>Verdict:</i> {claim.verdict}.")
    return f"<dt>{escape(label)}</dt><dd>{' '.join(said)}</dd>"


def _amount(number: float, unit: str) -> str:
    return f"{number:.2g} {unit}".rstrip() if number < 10 else f"{number:.0f} {unit}".rstrip()


def _text(text: str) -> str:
    """Text of a claim, without the full stop at its end."""
    return escape(" ".join(text.split()).removesuffix("."))
