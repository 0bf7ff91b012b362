"""The page on speed, from the file that ``make bench`` writes."""

import json

import pytest

from workflow import pages
from workflow.benchmark_page import benchmarks_part, write_benchmarks

SIDES = [
    {"name": "ours", "kind": "project", "ratio": 0.502, "low": 0.4, "high": 1.256},
    {"name": "theirs", "kind": "peer", "ratio": 2, "low": 2, "high": 2},
]
ROW = {"part": "recon", "work": "step", "size": "T = 2 | 3", "unit": "passes (floor)"}
ROW |= {"measure": "time", "difference": 1e-7, "sides": SIDES}
GROWTH = {"part": "fcl", "work": "a draw", "over": "draws", "sizes": [1, 2, 4]}
GROWTH |= {"times": [1, 1.5, 3.07], "exponent": 0.987}


@pytest.fixture
def found():
    """A small measurement."""
    facts = {"machine": "A Processor", "started_at": "2026-11-28T21:00:00+00:00", "threads": 1}
    facts |= {"git_commit": "0123456789abcdef", "git_dirty": False, "packages": {"torch": "2.11"}}
    return facts | {"rows": [dict(ROW)], "growth": [dict(GROWTH)]}


def test_page_names_machine_and_ratios(found):
    text = benchmarks_part(found)
    for line in (
        "| Machine | A Processor |",
        "| Commit | `0123456789` |",
        "| Started (UTC) | 2026-11-28 21:00 |",
        "| torch | 2.11 |",
        r"| step, T = 2 \| 3: time against passes (floor) | 0.50 (0.40 to 1.26) | ours (project) |",
        "|  | 2.00 (2.00 to 2.00) | theirs (peer) |",
        "| a draw | draws | 1, 2, 4 | 1.00, 1.50, 3.07 | 0.99 |",
    ):
        assert f"\n{line}\n" in text
    assert "## Conflicts between tasks\n" in text
    assert "## Layers of language models" not in text
    assert "draws: 0.99." in text.split(":alt:")[1].splitlines()[0]


def test_refused_row_shows_no_ratio(found):
    found["rows"][0] |= {"sides": [], "difference": 0.25}
    text = benchmarks_part(found)
    assert "against passes (floor) | refused | results differ by 2e-01 |\n" in text


def test_changes_behind_the_commit_are_named(found):
    assert "`0123456789`, with changes" in benchmarks_part(found | {"git_dirty": True})
    assert "| Commit | not known |" in benchmarks_part(found | {"git_commit": None})


def test_figure_is_there_and_the_same_each_time(found, tmp_path):
    write_benchmarks(found, tmp_path / "one")
    write_benchmarks(found, tmp_path / "two")
    drawn = (tmp_path / "one" / "growth.svg").read_bytes()
    assert drawn == (tmp_path / "two" / "growth.svg").read_bytes()
    assert drawn.count(b"<defs>") > 1
    assert "_generated/growth.svg" in (tmp_path / "one" / "benchmarks.md").read_text()


def test_book_is_made_before_and_after_a_measurement(found, tmp_path, monkeypatch):
    monkeypatch.setattr(pages, "ROOT", tmp_path)
    monkeypatch.setattr(pages, "chapters", list)
    pages.write_pages("cpu", tmp_path / "made")
    page = tmp_path / "made" / "benchmarks.md"
    assert page.read_text() == "Not measured yet: `make bench` does it.\n"
    assert not (tmp_path / "made" / "growth.svg").exists()
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "benchmarks.json").write_text(json.dumps(found))
    pages.write_pages("cpu", tmp_path / "made")
    assert page.read_text() == benchmarks_part(found)
    assert (tmp_path / "made" / "growth.svg").exists()
