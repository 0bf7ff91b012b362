"""The search for the settings of the multi-task methods."""

import sys

import pandas as pd
import pytest

import experiments.searches.recon_evidence as search
from experiments.mtl.evidence import LONG, MATRIX, RECON, SHARED, chosen_settings
from experiments.mtl.parameters import KNOBS, METHODS
from experiments.run.results import load_record
from experiments.searches.grids import setting_text, settings
from experiments.searches.recon_evidence import EXTENSIONS, GRIDS, LONG_ARMS, TRIALS
from ktlib.seeding import deterministic
from tests.experiments.mtl.tiny import tiny


def row(arm, setting, accuracy, seed=0):
    size, method, layers = arm
    return {"size": size, "method": method, "layers": layers, "seed": seed,
            "setting": setting_text(setting), "mean_accuracy": accuracy}  # fmt: skip


def test_every_arm_of_a_size_has_as_many_trials():
    matrix = {arm: grid for arm, grid in GRIDS.items() if arm[0] == MATRIX}
    assert [arm[1] for arm in matrix] == [*METHODS]
    for (_, method, layers), grid in matrix.items():
        assert len([*settings(grid)]) == TRIALS, method
        assert (tuple(grid), layers) == (KNOBS[method], SHARED)
    assert GRIDS.keys() - matrix.keys() == {*LONG_ARMS}
    assert len({len([*settings(GRIDS[arm])]) for arm in LONG_ARMS}) == 1


def test_best_is_the_highest_mean_over_seeds():
    arm = (MATRIX, "pcgrad", SHARED)
    rows = [row(arm, {"lr": 0.1}, 60.0), row(arm, {"lr": 0.1}, 40.0, 1),
            row(arm, {"lr": 0.2}, 51.0), row(arm, {"lr": 0.2}, 50.0, 1)]  # fmt: skip
    rows.append(row((LONG, "joint", RECON), {"lr": 0.05}, 10.0))
    found = chosen_settings(pd.DataFrame(rows))
    assert found == {arm: {"lr": 0.2}, (LONG, "joint", RECON): {"lr": 0.05}}


def test_split_networks_wait_for_the_best_rate_of_joint_training():
    joint = (LONG, "joint", SHARED)
    rates = [setting["lr"] for setting in settings(GRIDS[joint])]
    at_end = [row(joint, {"lr": rate}, rate) for rate in rates]
    assert search.further(at_end) == {joint: [{"lr": 0.4}]}
    inside = [row(joint, {"lr": rate}, -abs(rate - rates[1])) for rate in rates]
    waiting = search.further(inside)
    assert set(waiting) == {arm for arm in LONG_ARMS if arm != joint}
    assert waiting[LONG, "joint", RECON] == [*settings(GRIDS[LONG, "joint", RECON])]
    extended = at_end + [row(joint, {"lr": 0.4 * 2**n}, 1.0 + n) for n in range(EXTENSIONS)]
    assert joint not in search.further(extended)


class Here:
    """A pool of processes that is this process."""

    def __init__(self, _workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, call, *arguments):
        made = call(*arguments)
        return type("Future", (), {"result": lambda _: made})()


@pytest.mark.slow
def test_a_search_twice(tmp_path, monkeypatch, request):
    """The second takes all trials from the record of the first; neither loads a test image."""
    monkeypatch.chdir(request.config.rootpath)
    arms = [(MATRIX, "single", SHARED), (MATRIX, "cagrad", SHARED), *LONG_ARMS]
    grids = {arm: {"lr": (0.01, 0.02)} for arm in arms} | {
        arms[1]: {"lr": (0.02,), "c": (0.2, 0.4)}
    }
    monkeypatch.setattr(search, "GRIDS", grids)
    monkeypatch.setattr(search, "VALIDATION_IMAGES", 20)
    monkeypatch.setattr(search, "check_parameter_file", lambda *_: tiny())
    monkeypatch.setattr(search, "ProcessPoolExecutor", Here)
    load = search.data.load_tasks
    monkeypatch.setattr(
        "experiments.mtl.experiment.data.load_tasks",
        lambda name, split: load(name, split) if split == "train" else pytest.fail("test images"),
    )
    out = tmp_path / "search.json"
    monkeypatch.setattr(sys, "argv", ["search", "--seeds", "100", "101", "--out", str(out)])
    with deterministic():
        search.main()
        first = load_record(out)
        monkeypatch.setattr(search, "trial", lambda *_: pytest.fail("computed again"))
        search.main()
    assert load_record(out).tables == first.tables
    trials = first.frame("trials")
    assert set(trials["seed"]) == {100, 101}
    counted = trials.groupby(["size", "method", "layers"])["setting"].nunique()
    assert {*counted.index} == {*grids}
    assert counted.between(2, 2 + EXTENSIONS).all()
    assert trials["mean_accuracy"].between(0, 100).all()
    assert not trials["diverged"].any()
