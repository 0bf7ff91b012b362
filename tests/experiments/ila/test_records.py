"""The chapters on ILA use what their search chose, and a row of a record comes out again."""

import itertools

import pandas as pd
import pytest

from data_prep import DataError
from experiments.ila.evaluation import held_out_loss
from experiments.ila.experiment import LayerExperiment
from experiments.ila.parameters import IlaParameters, IlaStudyParameters
from experiments.ila.report import agreement_matrix, finetune_table
from experiments.run.chapter_source import code_cells
from experiments.run.parameters import check_parameter_file
from experiments.run.results import committed_record, thesis_table
from experiments.searches import ila as search_ila
from ktlib.ila.agreement import jaccard
from tests.paths import ROOT

MODELS = {"ila": IlaParameters, "ila_studies": IlaStudyParameters}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


def values_of(chapter, profile):
    """Parameters of a chapter in a profile."""
    folder = ROOT / "chapters"
    file = folder / f"params/{chapter}.{profile}.yaml"
    return check_parameter_file(folder / f"{chapter}.py", file, MODELS[chapter]).model_dump()


@pytest.mark.parametrize("profile", ["cpu", "full"])
@pytest.mark.parametrize("chapter", MODELS)
def test_the_rates_are_those_that_the_search_chose(chapter, profile):
    chosen = search_ila.choose(committed_record("ila", "search").frame("search"))
    used = values_of(chapter, profile)
    assert {name: used[name] for name in search_ila.RATES} == chosen


def test_the_search_has_the_size_of_the_live_run():
    searched, live = committed_record("ila", "search").parameters, values_of("ila", "cpu")
    apart = {"seeds", "profile", "run_dir", "device", *search_ila.RATES}
    different = {k for k, v in searched.items() if k not in apart and live[k] != v}
    assert not different
    assert not set(searched["seeds"]) & set(values_of("ila", "full")["seeds"])


def test_the_best_rate_of_each_kind_lies_inside_its_grid():
    """At an edge a better one may lie outside."""
    table = committed_record("ila", "search").frame("search")
    chosen = search_ila.choose(table)
    for name, part in table.groupby("name"):
        assert part["rate"].min() < chosen[name] < part["rate"].max(), name
        counted = part.groupby("rate")[["dataset", "seed"]].nunique()
        assert set(map(tuple, counted.to_numpy().tolist())) == {(2, 2)}, name


def test_agreement_in_the_full_record_is_that_of_its_scores():
    record = committed_record("ila", "full")
    scores = {
        case: dict(zip(part["layer"], part["score"], strict=True))
        for case, part in record.frame("layer_scores").groupby(["dataset", "seed"])
    }
    rows = [row for row in record.tables["jaccard"] if row["kind"] == "data sets"]
    pairs = itertools.combinations(record.parameters["datasets"], 2)
    shares = [record.parameters["keep"], record.parameters["top"]]
    cases = [(a, b, seed, top) for a, b in pairs for seed in (0, 1, 2) for top in shares]
    assert len(rows) == len(cases)
    for row, (a, b, seed, top) in zip(rows, cases, strict=True):
        found = jaccard(scores[a, seed], scores[b, seed], top).long_row(a, b)
        assert (row.pop("a"), row.pop("b")) == (found.pop("a"), found.pop("b"))
        assert {name: row[name] for name in found} == pytest.approx(found, rel=1e-9)


@pytest.mark.slow
def test_a_row_of_the_full_record():
    """The untuned model's loss on held-out text, computed again."""
    record = committed_record("ila", "full")
    known = record.parameters | {"device": "cpu", "profile": "test", "run_dir": ""}
    try:
        experiment = LayerExperiment(IlaParameters.model_validate(known), "cpu")
        batches = experiment.held_out("reasoning")
    except DataError as error:
        pytest.skip(f"the pre-trained model is not prepared: {error}")
    found = held_out_loss(experiment.new_model(), batches, precision="float32")
    (row,) = [
        row
        for row in record.tables["finetune"]
        if (row["method"], row["dataset"], row["seed"]) == ("not tuned", "reasoning", 0)
    ]
    assert found == pytest.approx(row["value"], rel=1e-4)


@pytest.mark.parametrize("chapter", MODELS)
def test_tables_of_the_record_are_read_at_its_own_shares(chapter):
    """A live run may keep other shares of the layers than the record: its page is still whole."""
    source = ROOT / f"chapters/{chapter}.py"
    values = {"keep": 0.5, "top": 0.2}
    file = ROOT / f"chapters/params/{chapter}.smoke.yaml"
    names = {name: [] for name in ("results", "agreement", "versus", "costs", "noise")}
    names |= {"P": check_parameter_file(source, file, MODELS[chapter], values), "pd": pd}
    names |= {"display": lambda table: None, "thesis_table": thesis_table}
    names |= {"agreement_matrix": agreement_matrix, "finetune_table": finetune_table}
    cells = [cell.source for cell in code_cells(source)]
    first = next(i for i, cell in enumerate(cells) if "committed_record(" in cell)
    read = [cell for cell in cells[first:] if "committed_record(" in cell or "long[" in cell]
    assert len(read) >= 3
    for cell in read:
        exec(cell, names)  # noqa: S102 - a cell of a chapter
