"""The chapter on continual PEFT uses the settings that its search chose."""

import pytest

from experiments.cpeft.parameters import ContinualPeftParameters
from experiments.cpeft.report import summary_rows
from experiments.run.parameters import check_parameter_file
from experiments.run.results import committed_record
from experiments.searches import continual_peft as search_continual_peft
from tests.paths import ROOT


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


def values_of(profile):
    """Parameters of the chapter in a profile."""
    folder = ROOT / "chapters"
    file = folder / f"params/continual_peft.{profile}.yaml"
    given = check_parameter_file(folder / "continual_peft.py", file, ContinualPeftParameters)
    return given.model_dump()


@pytest.fixture
def search():
    return committed_record("continual_peft", "search")


@pytest.mark.parametrize("profile", ["cpu", "full"])
def test_the_settings_are_those_that_the_search_chose(search, profile):
    chosen = search_continual_peft.choose(search.frame("search"))
    used = values_of(profile)
    assert chosen.keys() == set(search_continual_peft.GRIDS)
    assert {name: used[name] for name in chosen} == chosen


def test_the_search_has_the_size_of_the_live_run(search):
    live, searched = values_of("cpu"), search.parameters
    apart = {"seeds", "profile", "run_dir", "device", *search_continual_peft.GRIDS}
    assert not {k for k, v in searched.items() if k not in apart and live[k] != v}
    assert not set(searched["seeds"]) & set(values_of("full")["seeds"])


def test_the_best_rate_lies_inside_its_grid(search):
    """At an edge a better one may lie outside."""
    table = search.frame("search")
    chosen = search_continual_peft.choose(table)
    for name, part in table.groupby("name"):
        assert set(part["value"]) == set(search_continual_peft.GRIDS[name])
        if name not in search_continual_peft.ENDS_COUNT:
            assert part["value"].min() < chosen[name] < part["value"].max(), name
        seeds = 1 if name == "pretraining_lr" else len(search_continual_peft.SEEDS)
        assert set(part.groupby("value")["seed"].nunique()) == {seeds}, name


def test_the_summary_follows_from_the_accuracies():
    """Rows are named as the record names them, which the library does not."""
    record = committed_record("continual_peft", "full")
    assert summary_rows(record.tables["task_accuracy"]) == [
        row | {"value": pytest.approx(row["value"])} for row in record.tables["summary"]
    ]
