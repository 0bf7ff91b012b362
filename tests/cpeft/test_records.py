"""The chapter on continual PEFT uses what its search chose."""

from pathlib import Path

import pytest

from benchmarks import search_cpeft
from ktlib.cpeft.parameters import ContinualPeftParameters
from ktlib.parameters import check_parameter_file
from ktlib.results import committed_record

ROOT = Path(__file__).resolve().parents[2]


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
    chosen = search_cpeft.choose(search.frame("search"))
    used = values_of(profile)
    assert chosen.keys() == set(search_cpeft.GRIDS)
    assert {name: used[name] for name in chosen} == chosen


def test_the_search_has_the_size_of_the_live_run(search):
    live, searched = values_of("cpu"), search.parameters
    apart = {"seeds", "profile", "run_dir", "device", *search_cpeft.GRIDS}
    assert not {k for k, v in searched.items() if k not in apart and live[k] != v}
    assert not set(searched["seeds"]) & set(values_of("full")["seeds"])


def test_the_best_rate_lies_inside_its_grid(search):
    """At an edge a better one may lie outside."""
    table = search.frame("search")
    chosen = search_cpeft.choose(table)
    for name, part in table.groupby("name"):
        if name not in search_cpeft.ENDS_COUNT:
            assert part["value"].min() < chosen[name] < part["value"].max(), name
        seeds = 1 if name == "pretraining_lr" else len(search_cpeft.SEEDS)
        assert set(part.groupby("value")["seed"].nunique()) == {seeds}, name
