"""Tables and figures, from tables of a few rows and from none; a warning is an error here."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from experiments.fcl import figures
from experiments.fcl.evidence import NO_BOX
from experiments.fcl.experiment import FewShotExperiment
from experiments.run.paired import PairedDifference
from experiments.run.results import thesis_table
from ktlib.fcl.protocol import Session
from ktlib.seeding import deterministic
from tests.experiments.fcl.test_claims import Made
from tests.experiments.fcl.tiny import tiny

TITLES = {"bound": "b", "draws": "M", "lambda": "lambda", "layers": "layers"}
PARTS, NORMS = thesis_table("3_6"), thesis_table("3_7")
DRAWN = {
    "methods": [figures.method_figure, lambda t: figures.session_figure(t, ["ncm", "f2m", "teen"])],
    "plane": [lambda t: figures.plane_figure(t, "random")],
    "shots": [lambda t: figures.shots_figure(t, 0.02, "new_accuracy")],
    "flatness": [lambda t: figures.flatness_figure(t, "random")],
    "ablation": [lambda t: figures.ablation_figure(t, PARTS)],
    "studies": [lambda t: figures.study_figure(t, TITLES, "random"),
                lambda t: figures.released_figure(t, "random")],
}  # fmt: skip
WRITTEN = {
    "methods": [lambda t: figures.method_table(t, "random")],
    "gradients": [figures.gradient_table],
    "distances": [figures.distance_table],
    "flatness": [figures.flatness_table],
    "norms": [lambda t: figures.norm_table(t, NORMS)],
    "ablation": [lambda t: figures.ablation_table(t, PARTS)],
    "studies": [lambda t: figures.study_table(t, "bound")],
    "plane": [figures.box_gains],
}


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def tables():
    return figures.frames(Made().record)


def cases(both):
    return [pytest.param(name, make, id=f"{name} {i}") for name, all_ in both.items()
            for i, make in enumerate(all_)]  # fmt: skip


def texts(fig):
    return [text.get_text() for ax in fig.axes for text in ax.texts]


@pytest.mark.parametrize(("name", "draw"), cases(DRAWN))
def test_figure_without_rows_says_so(name, draw, tables):
    fig = draw(tables[name].iloc[:0])
    fig.canvas.draw()
    assert texts(fig) == [figures.MISSING]


@pytest.mark.parametrize(("name", "draw"), cases(DRAWN))
def test_figure_of_one_seed_and_of_runs_that_diverged(name, draw, tables):
    one_seed = tables[name][tables[name]["seed"] == 0]
    columns = {"accuracy", "new_accuracy"} & {*one_seed}
    for found in (tables[name], one_seed):
        unfinished = {c: [None, *found[c].iloc[1:]] for c in columns}
        draw(found.assign(**unfinished)).canvas.draw()
        plt.close("all")


@pytest.mark.parametrize(("name", "write"), cases(WRITTEN))
def test_table_with_rows_and_without(name, write, tables):
    whole = write(tables[name]) if len(tables[name]) else pd.DataFrame()
    assert "nan" not in whole.to_string()
    empty = write(tables[name].iloc[:0])
    assert isinstance(empty, pd.DataFrame)
    if name not in ("norms", "ablation"):  # these show what is printed
        assert empty.empty


def test_frames_have_their_columns():
    record = Made().record
    del record.tables["plane"]
    found = figures.frames(record)
    assert list(found) == list(figures.COLUMNS)
    assert found["plane"].empty
    assert list(found["plane"])[:5] == ["classes", "seed", "noise", "rate", "box"]


def rows(*values, **known):
    """A row a seed."""
    known = {"classes": "random"} | known
    return [{"seed": seed, "accuracy": value, **known} for seed, value in enumerate(values)]


def test_method_table_by_hand():
    table = pd.DataFrame([
        *rows(70.0, 74.0, method="ncm", session=1), *rows(60.0, 62.0, method="ncm", session=2),
        *rows(70.0, 70.0, method="f2m", session=1),
    ])  # fmt: skip
    table = table.assign(base_accuracy=50.0, new_accuracy=None, harmonic=None)
    found = figures.method_table(table, "random")
    assert found.loc["frozen network", "all classes"] == "61.0 ± 1.4"
    assert found.loc["frozen network", "mean of all sessions"] == "66.5 ± 2.1"
    assert found.loc["frozen network", "drop"] == "11.0 ± 1.4"
    assert found.loc["F2M", "all classes"] == "diverged"


def test_difference_is_taken_within_seeds():
    table = pd.DataFrame([*rows(1.0, 5.0, method="a"), *rows(0.0, 2.0, None, method="b")])
    gap = PairedDifference.between(table, "method", "a", "b")
    assert (gap.mean, gap.seeds) == (2.0, 2)
    assert PairedDifference.between(table, "method", "a", "c").seeds == 0


def test_box_gains_by_hand():
    known = {"noise": 0.0, "rate": 0.1}
    table = pd.DataFrame([
        *rows(50.0, 60.0, box=0.001, moved=0.5, **known),
        *rows(40.0, 52.0, box=NO_BOX, moved=None, **known),
    ])  # fmt: skip
    (found,) = figures.box_gains(table).to_dict("records")
    assert (found["box"], found["mean"], found["moved"]) == (0.001, 9.0, 0.5)
    assert found["low"] < 9 < found["high"]


def test_plane_is_written_above_the_frozen_plain_network():
    known = {"noise": 0.0, "moved": 0.25}
    table = pd.DataFrame([
        *rows(50.0, 60.0, box=0.0, rate=0.0, **known),
        *rows(53.0, 64.0, box=0.001, rate=0.1, **known),
        *rows(40.0, 50.0, box=0.0, rate=0.0, noise=0.01, moved=None),
    ])  # fmt: skip
    fig = figures.plane_figure(table, "random")
    assert texts(fig) == ["+3.5\n25 %", "-", "-", "-"]
    assert [ax.get_title() for ax in fig.axes] == [
        "plain; left frozen +0.0", "noise 0.01; left frozen -10.0"
    ]  # fmt: skip


def test_flatness_is_a_ratio_within_seeds():
    known = {"lr": 0.1, "bound": 0.01, "part": "test", "variance": 1.0}
    values = {"ncm": (4.0, 6.0), "f2m 0.01": (2.0, 2.0), "f2m": (1.0, 1.0)}
    table = pd.DataFrame([
        {"classes": "random", "seed": seed, "training": name, "indicator": v, "noise": 0.0, **known}
        for name, both in values.items() for seed, v in enumerate(both)
    ])  # fmt: skip
    found = figures.flatness_table(table).iloc[0]
    assert found["times flatter than plain", "noise 0.01"] == "2.5 ± 0.7"
    assert found["times flatter than plain", "F2M"] == "5.0 ± 1.4"
    assert found["indicator", "plain"] == "5.0e+00"
    assert figures.flatness_table(table[table["training"] != "ncm"]).empty
    fig = figures.flatness_figure(table, "random")
    assert [t.get_text() for t in fig.axes[0].get_xticklabels()] == ["plain", "F2M", "noise 0.01"]


def test_ablation_stands_beside_the_thesis():
    found = figures.ablation_table(figures.frames(Made(noise=0.0).record)["ablation"], PARTS)
    whole = found.loc["FM + PF + PC + PN"]
    assert whole["thesis", "last session"] == "44.67"
    assert whole["random classes, box 0.001", "last session"] == "45.0 ± 0.0"
    assert whole["random classes, box 0.001", "drop"] == "5.0 ± 0.0"
    assert whole["random classes, box 0.001", "weights clamped (%)"] == "20.0 ± 0.0"


def test_settings_and_trials():
    known = {("random", "finetune"): {"lr": 0.1}, ("unseen_parts", "ncm"): {}}
    table = figures.setting_table(known)
    assert table.loc["fine-tuning", "random classes"] == "lr 0.1"
    assert table.loc["frozen network", "unseen parts"] == "none"
    assert figures.setting_table({}).empty
    trials = pd.DataFrame([
        {"classes": "random", "method": "finetune", "setting": f'{{"lr": {lr}}}', "seed": seed,
         "mean_accuracy": accuracy, "last_accuracy": 1.0, "flatness_gain": None}
        for lr, accuracy in ((0.1, 50.0), (0.2, 60.0)) for seed in (0, 1)
    ])  # fmt: skip
    found = figures.trial_table(trials)
    assert found["setting"].tolist() == ["lr: 0.2", "lr: 0.1"]
    assert found["times flatter than plain"].tolist() == ["", ""]


def test_grid_of_classes():
    sessions = [Session(n, torch.tensor(c), torch.tensor([0]), torch.tensor([])) for n, c in
                ((1, [0, 11]), (2, [99]))]  # fmt: skip
    fig = figures.class_grids({"random": sessions})
    grid = fig.axes[0].images[0].get_array()
    assert (grid[0, 0], grid[1, 1], grid[9, 9]) == (0, 0, 1)
    assert np.ma.count(grid) == 3


@pytest.mark.slow
def test_figures_of_this_run(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    with deterministic():
        experiment = FewShotExperiment(tiny(class_split="random"), "cpu")
        plain, noisy = experiment.train_plain(3), experiment.train_f2m(3)
        figures.landscape_figure(experiment, {"plain": plain, "F2M": noisy}, 3, points=3)
        arms = {"fine-tuning": (plain, "finetune", {"lr": 0.1}), "F2M": (noisy, "f2m", {})}
        fig = figures.map_figure(experiment, arms, 3)
    assert all(ax.lines for ax in fig.axes)
