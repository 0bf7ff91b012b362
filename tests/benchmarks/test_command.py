"""``python -m benchmarks``: what it prints, writes and returns."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

import benchmarks.__main__ as command
from benchmarks.compare import Growth, Ratio, Row
from tests.paths import ROOT
from workflow.benchmark_page import PARTS, benchmarks_part

GOOD = Row("work", "T = 2", "passes (floor)", "time", 2e-7, (Ratio("ours", "project", 1, 0.9, 2),))
BAD = Row("other work", "T = 2", "passes (floor)", "time", 0.5, ())
GROWN = Growth("work", "tasks", (1, 2), (1.0, 2.0), 1.0)


@pytest.fixture
def run(monkeypatch, tmp_path):
    """Run the command on measurements that are made up; exit status and written file."""
    threads = torch.get_num_threads()
    out = tmp_path / "results" / "benchmarks.json"
    monkeypatch.setattr(command, "OUT", out)

    def run(found, *arguments):
        monkeypatch.setattr(sys, "argv", ["benchmarks", *arguments])
        for part in command.PARTS:
            module = SimpleNamespace(measure=lambda quick: iter(found))
            monkeypatch.setitem(sys.modules, f"benchmarks.{part}", module)
        status = command.main()
        return status, json.loads(out.read_text()) if out.exists() else None

    yield run
    torch.set_num_threads(threads)


def test_whole_is_written_with_what_a_reader_needs(run, capsys):
    status, written = run([GOOD, GROWN])
    assert status == 0
    assert [row["part"] for row in written["rows"]] == list(command.PARTS)
    assert written["rows"][0]["sides"][0] == {
        "name": "ours", "kind": "project", "ratio": 1, "low": 0.9, "high": 2
    }  # fmt: skip
    assert written["growth"][0]["exponent"] == 1
    assert written["machine"]
    assert written["threads"] == 1
    assert written["packages"]["torch"]
    printed = capsys.readouterr().out
    assert "work (T = 2), time against passes (floor); results differ by 2e-07" in printed
    assert "1.00x  (0.90 to 2.00)" in printed
    assert "work against tasks 1, 2: 1.00x, 2.00x; exponent 1.00" in printed


@pytest.mark.parametrize("arguments", [("--quick",), ("--only", "fcl")])
def test_neither_a_part_nor_a_try_takes_the_place_of_the_whole(run, arguments):
    assert run([GOOD], *arguments) == (0, None)


def test_sides_that_differ_end_in_an_error(run, capsys):
    status, written = run([GOOD, BAD])
    assert status == 1
    assert len(written["rows"]) == 2 * len(command.PARTS)
    assert "REFUSED, results differ by 5e-01" in capsys.readouterr().out


def test_every_part_has_a_place_on_the_page():
    assert list(PARTS) == list(command.PARTS)


@pytest.mark.slow
def test_everything_runs_and_sides_agree(tmp_path):
    out = tmp_path / "found.json"
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", "--quick", "--out", out],
        cwd=ROOT, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert [row["work"] for row in found["rows"] if row["difference"] is None] == []
    assert {line["over"] for line in found["growth"]} >= {"tasks", "layers", "draws", "shots"}
    text = benchmarks_part(found)
    assert [heading for heading in PARTS.values() if f"## {heading}\n" not in text] == []
