"""The search for the settings of the few-shot methods, and the rule that chooses among them."""

import json
import sys

import pandas as pd
import pytest

import experiments.searches.fcl_evidence as search
from experiments.fcl.parameters import KNOBS, METHODS
from experiments.fcl.search_results import FLATTER, chosen_settings, setting_text
from experiments.run.results import load_record
from experiments.searches.fcl_evidence import EXTENSIONS, GRIDS, TRIALS
from experiments.searches.grids import settings
from ktlib.seeding import deterministic
from tests.experiments.fcl.tiny import tiny


def trial(method, setting, accuracy, *, classes="random", seed=0, gain=None):
    return {
        "classes": classes, "method": method, "setting": setting_text(setting), "seed": seed,
        "mean_accuracy": accuracy, "flatness_gain": gain,
    }  # fmt: skip


def test_best_is_the_highest_mean_over_seeds_of_each_split():
    rows = [
        trial("finetune", {"lr": 0.1}, 60.0, seed=0), trial("finetune", {"lr": 0.1}, 40.0, seed=1),
        trial("finetune", {"lr": 0.2}, 51.0, seed=0), trial("finetune", {"lr": 0.2}, 50.0, seed=1),
        trial("finetune", {"lr": 0.1}, 70.0, classes="unseen_parts"), trial("ncm", {}, 30.0),
    ]  # fmt: skip
    assert chosen_settings(pd.DataFrame(rows)) == {
        ("random", "finetune"): {"lr": 0.2},
        ("unseen_parts", "finetune"): {"lr": 0.1},
        ("random", "ncm"): {},
    }


def test_flat_settings_are_flat():
    """The others need not be; without one that is flat enough there is none."""
    rows = [
        trial("f2m_flat", {"noise_bound": 0.04}, 60.0, gain=FLATTER - 0.1),
        trial("f2m_flat", {"noise_bound": 0.08}, 50.0, gain=FLATTER),
        trial("f2m_flat", {"noise_bound": 0.16}, 40.0, gain=9.0),
        trial("f2m", {"noise_bound": 0.01}, 61.0),
    ]
    assert chosen_settings(pd.DataFrame(rows)) == {
        ("random", "f2m_flat"): {"noise_bound": 0.08},
        ("random", "f2m"): {"noise_bound": 0.01},
    }
    assert ("random", "f2m_flat") not in chosen_settings(pd.DataFrame([rows[0], rows[3]]))


def test_every_method_with_knobs_has_as_many_trials():
    assert set(GRIDS) == set(METHODS)
    for method, grid in GRIDS.items():
        tried = list(settings(grid))
        assert len(tried) == (TRIALS if method in KNOBS else 1), method
        assert len({setting_text(setting) for setting in tried}) == len(tried)


@pytest.mark.slow
def test_a_search_twice(tmp_path, monkeypatch, request):
    """The second takes all trials from the record of the first; neither loads a test image."""
    monkeypatch.chdir(request.config.rootpath)
    grids = {"ncm": {}, "finetune": {"lr": (0.001, 0.01)}, "f2m_flat": {
        "noise_bound": (0.04,), "bound": (0.001, 0.01), "lr": (0.02,)
    }}  # fmt: skip
    monkeypatch.setattr(search, "GRIDS", grids)
    monkeypatch.setattr(search, "TRIALS", 2)
    monkeypatch.setattr(search, "FLATNESS_DRAWS", 2)
    monkeypatch.setattr(search, "VALIDATION_IMAGES", 4)
    monkeypatch.setattr(search, "check_parameter_file", lambda *_: tiny())
    monkeypatch.setattr(search, "ProcessPoolExecutor", Here)
    load = search.data.load
    monkeypatch.setattr(
        "experiments.fcl.experiment.data.load",
        lambda name, split: load(name, split) if split == "train" else pytest.fail("test images"),
    )
    out = tmp_path / "search.json"
    monkeypatch.setattr(sys, "argv", ["search", "--seeds", "100", "101", "--out", str(out)])
    with deterministic():
        search.main()
        first = load_record(out)
        monkeypatch.setattr(search.Search, "trial", lambda *_: pytest.fail("computed again"))
        search.main()
    again = load_record(out)
    assert again.tables == first.tables
    assert first.parameters["study_seeds"] == []
    trials = first.frame("trials")
    assert set(trials["seed"]) == {100, 101}
    counted = trials.groupby("method")["setting"].nunique()
    assert counted["ncm"] == 1
    assert (counted[["finetune", "f2m_flat"]] <= 2 + EXTENSIONS).all()
    assert counted["finetune"] > 2  # the best of two is the last of its grid
    gains = trials["flatness_gain"].notna()
    assert (gains == (trials["method"] == "f2m_flat")).all()
    assert trials["mean_accuracy"].between(0, 100).all()
    for text in trials["setting"]:
        assert isinstance(json.loads(text), dict)


class Here:
    """A pool of processes that is this process."""

    def __init__(self, _workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *arguments):
        found = function(*arguments)

        class Done:
            def result(self):
                return found

        return Done()


def test_a_session_that_was_not_finished_counts_as_0(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setattr(search, "VALIDATION_IMAGES", 4)
    made = search.Search(tiny(), ("random", 100), [])

    class Found:
        rows = [{"accuracy": 60.0, "base_accuracy": 60.0, "new_accuracy": None}]  # noqa: RUF012

    stops = (None, Found(), "weights are not finite")
    monkeypatch.setattr(made.experiment, "run_method", lambda *_: stops)
    monkeypatch.setattr(made, "trained", lambda *_: None)
    row = made.trial("finetune", {"lr": 1.0})
    assert row["mean_accuracy"] == pytest.approx(20.0)
    assert (row["last_accuracy"], row["last_new_accuracy"], row["diverged"]) == (0.0, 0.0, True)
