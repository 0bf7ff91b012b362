"""Some rows of each committed record, computed again by the code as it is now.

Training amplifies rounding, and another processor or number of threads rounds differently: the
accuracies of one training then differ by a point or two. What these tests find is a record that the
code no longer gives: other data, another protocol, another loss.
"""

import importlib.util
from pathlib import Path

import matplotlib as mpl
import pytest

from ktlib.chapter_source import code_cells, parameters_cell
from ktlib.fcl import FclParameters
from ktlib.results import committed_record

ROOT = Path(__file__).resolve().parents[2]
POINTS = 4.0  # between two trainings that differ in rounding alone, 2 were seen


@pytest.fixture
def search(monkeypatch):
    """The script of the search as a module."""
    monkeypatch.chdir(ROOT)
    spec = importlib.util.spec_from_file_location("search", ROOT / "benchmarks" / "search_fcl.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def play_plain_network(parameters):
    """The cells of the chapter up to the first results, with the parameters given."""
    namespace = {}
    for cell in code_cells(ROOT / "chapters" / "fcl.py"):
        if {"figure", "table"} & set(cell.tags):
            continue  # they show numbers and make none
        exec(compile(cell.source, f"cell {cell.number}", "exec"), namespace)  # noqa: S102
        if "parameters" in cell.tags:
            namespace.update(parameters)
        if 'play("ncm"' in cell.source:
            return namespace["results"]
    raise AssertionError("the chapter plays no method named ncm")


@pytest.mark.slow
def test_rows_of_the_full_record(monkeypatch):
    monkeypatch.chdir(ROOT)
    mpl.use("agg")
    record = committed_record("fcl", "full")
    if record is None:
        pytest.skip("no record of profile full is committed")
    seed = record.seeds[0]
    given = record.parameters | {"seeds": [seed], "device": "cpu", "profile": "test", "run_dir": ""}
    found = {(r["method"], r["session"]): r for r in play_plain_network(given)}
    expected = [r for r in record.tables["session_accuracy"] if r["seed"] == seed]
    last = max(r["session"] for r in expected)
    compared = [r for r in expected if r["method"] == "ncm"]
    assert len(compared) == last
    for row in compared:
        again = found[row["method"], row["session"]]
        assert again["accuracy"] == pytest.approx(row["accuracy"], abs=POINTS), row


@pytest.mark.slow
def test_a_row_of_the_search_record(search):
    record = committed_record("fcl", "search")
    row = next(r for r in record.tables["baseline"] if r["lr"] == record.metrics["chosen_lr"])
    values = record.parameters | {"device": "cpu", "profile": "test", "run_dir": ""}
    bench = search.Bench(FclParameters(**values), row["seed"])
    split, _ = bench.train(row["lr"])
    assert bench.accuracies(split)["mean_accuracy"] == pytest.approx(
        row["mean_accuracy"], abs=POINTS
    )


def test_the_chapter_uses_what_the_search_chose(search):
    """The rule of the search, applied to its record, gives the values of the parameters cell."""
    record = committed_record("fcl", "search")
    chosen = search.choose(record.frame("search")) | {"lr": record.metrics["chosen_lr"]}
    values = {line.name: line.value for line in parameters_cell(ROOT / "chapters" / "fcl.py")}
    assert {name: values[name] for name in chosen} == chosen
