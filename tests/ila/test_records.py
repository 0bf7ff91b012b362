"""The chapters on ILA use what their search chose, and their words hold in their records."""

from pathlib import Path

import pytest

from benchmarks import search_ila
from ktlib.ila.parameters import IlaParameters, IlaStudyParameters
from ktlib.parameters import check_parameter_file
from ktlib.results import committed_record

ROOT = Path(__file__).resolve().parents[2]
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
