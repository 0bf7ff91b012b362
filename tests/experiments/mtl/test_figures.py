"""Tables and figures, from tables that were made up and from none; a warning is an error here."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.text import Text

from experiments.mtl import figures
from experiments.mtl.derived import RUN, frames, severe_share_printed
from experiments.run.charts import MISSING
from experiments.run.plotting import use_style
from experiments.run.tables import thesis_table
from tests.experiments.mtl.made import RELEASED, Made

SMALL = {"seeds": [0, 1, 2], "study_seeds": [0, 1], "counts_studied": [5, 25],
         "severities_studied": [0.0, -0.1], "quarters_studied": ["4"], "control_methods":
         ["joint", "pcgrad"]}  # fmt: skip
FIGURES = {
    "long": figures.long_figure,
    "method": figures.method_figure,
    "heat": lambda t: figures.heat_figure(t, -0.1, 25),
    "conflict": figures.conflict_figure,
    "control": figures.control_figure,
    "curves": figures.curves_figure,
    "cost": figures.cost_figure,
    "pair": figures.pair_figure,
}
TABLES = {
    "method": figures.method_table,
    "long": figures.long_table,
    "reduction": figures.reduction_table,
    "ranking": lambda t: figures.ranking_table(t, -0.1, 25),
    "control": figures.control_table,
    **{study: lambda t, study=study: figures.study_table(t, study)
       for study in ("count", "severity", "quarter", "skip")},
    "transfer": figures.transfer_table,
    "kind": figures.layer_kind_table,
    "branch": figures.branch_table,
    "cost": figures.cost_table,
}  # fmt: skip
CASES = ("whole", "one seed", "one method diverged", "all diverged", "several metrics")


@pytest.fixture(autouse=True)
def _own_style():
    with mpl.rc_context():
        mpl.use("agg")
        use_style()
        yield
        plt.close("all")


@pytest.fixture(scope="module")
def tables():
    return frames(Made(noise=1.0, **SMALL).record)


@pytest.fixture(scope="module")
def cases(tables):
    lost = frames(Made(diverged=("pcgrad",), **SMALL).record)
    scores = tables["results"].assign(score=None, metric="")
    several = Made(metrics=("accuracy", "absolute_error"), **SMALL)
    return {
        "whole": tables,
        "one seed": {name: rows[rows["seed"] == 0] for name, rows in tables.items()},
        "one method diverged": lost,
        "all diverged": {
            **tables, "results": scores, "costs": tables["costs"].iloc[:0],
            "histograms": tables["histograms"].iloc[:0], "scores": tables["scores"].iloc[:0],
        },
        "several metrics": frames(several.record),
    }  # fmt: skip


def emptied(tables):
    return {name: rows.iloc[:0] for name, rows in tables.items()}


def legible(fig):
    """Letters have at least 8 points where the figure is as wide as a column of the book."""
    width = fig.get_figwidth()
    shown = [text for text in fig.findobj(Text) if text.get_visible() and text.get_text()]
    return width <= 7.2 and min(t.get_fontsize() for t in shown) >= 8 * max(1, width / 5.4)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", FIGURES)
def test_figures_are_drawn_and_legible(name, case, cases):
    fig = FIGURES[name](cases[case])
    fig.canvas.draw()
    assert legible(fig)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_without_rows_says_so(name, tables):
    fig = FIGURES[name](emptied(tables))
    assert [text.get_text() for text in fig.axes[0].texts] == [MISSING]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TABLES)
def test_tables_hold_text_and_never_nan(name, case, cases):
    found = TABLES[name](cases[case])
    assert isinstance(found, pd.DataFrame)
    assert "nan" not in found.to_string().lower()
    assert case != "whole" or len(found)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_without_rows_is_empty(name, tables):
    assert TABLES[name](emptied(tables)).empty


def run(size="matrix", study="methods", value="", method="joint", layers="shared"):
    return dict(zip(RUN, (size, study, value, method, layers), strict=True))


def results(*rows):
    """The results of runs: known columns, statistics, and a score of each task and seed."""
    return frames_of(results=[
        {**known, "statistics": statistics, "seed": seed, "task": task, "metric": "accuracy",
         "score": score}
        for known, statistics, *seeds in rows
        for seed, scores in enumerate(seeds)
        for task, score in zip(("digit", "item"), scores, strict=True)
    ])  # fmt: skip


def frames_of(**rows):
    record = Made(**SMALL).record
    return frames(record.model_copy(update={"tables": rows}))


SINGLE = (run(method="single"), "one", (100.0, 50.0), (100.0, 50.0))


def test_method_table_by_hand():
    found = figures.method_table(results(
        (run(method="pcgrad", layers="recon"), "own", (90.0, 50.0), (80.0, 50.0)),
        (run(method="pcgrad", layers="recon"), "shared", (50.0, 50.0), (50.0, 50.0)),
        (run(), "one", (80.0, 40.0), (80.0, 40.0)),
        SINGLE,
        (run(method="mgda"), "one", (None, None), (None, None)),
    ))  # fmt: skip
    assert [*found.index] == [("single tasks", "all shared"), ("joint training", "all shared"),
                              ("MGDA", "all shared"), ("PCGrad", "Recon")]  # fmt: skip
    recon = found.loc["PCGrad", "Recon"]
    assert recon["digit"] == "85.00 ± 7.07"
    assert recon["Δm (%), own"] == "-7.50 ± 3.54"  # of -5 and -10
    assert recon["Δm (%), as published"] == "-25.00 ± 0.00"
    assert recon["Δm, thesis"] == "0.04"
    joint = found.loc["joint training", "all shared"]
    assert (joint["Δm (%), own"], joint["Δm (%), as published"]) == ("-20.00 ± 0.00", "")
    assert set(found.loc["MGDA", "all shared"][["digit", "item"]]) == {"diverged"}
    assert found.loc["single tasks", "all shared"]["Δm (%), own"] == ""


def test_costs_are_means_over_seeds(tables):
    costs = tables["costs"].assign(megabytes=[*range(len(tables["costs"]))])
    own = figures.only(costs, size="long", layers="recon")["megabytes"]
    found = figures.long_table({**tables, "costs": costs}).loc["joint training", "Recon"]
    assert found["#P (MB)"] == f"{own.mean():.3g}"
    assert found["GFLOPs"] == "0.2"


def test_several_metrics_have_a_column_each(cases):
    found = figures.long_table(cases["several metrics"])
    assert [*found][:4] == ["item accuracy", "item absolute error", "digit accuracy",
                            "digit absolute error"]  # fmt: skip
    assert found.loc["joint training", "all shared"]["Δm (%), own"].startswith("-9.40")


@pytest.mark.parametrize("number", ["4_1", "4_2", "4_3", "4_4", "4_5"])
def test_every_printed_method_has_an_id(number, tables):
    found = figures.method_table(tables, number)["Δm, thesis"]
    table = thesis_table(number).set_index(["base_method", "variant"])["delta_m"]
    recon = f"{table['Joint-train', 'recon']:.2f}"
    assert found["joint training", "Recon"] == recon


def counts(below, above):
    """A histogram whose share ``below`` lies at -0.5, the rest at 0.5."""
    bins = [0] * 200
    bins[50], bins[150] = below, above
    return " ".join(map(str, bins))


def test_reductions_by_hand(tables):
    rows = [
        {**known, "seed": seed, "quarter": quarter, "counts": counts(below, 100 - below)}
        for known, quarters in (
            (run(), ((20, 20), (40, 40))),
            (run(layers="recon"), ((20, 5), (40, 30))),
        )
        for seed, shares in enumerate(quarters)
        for quarter, below in enumerate(shares, start=1)
    ]
    found = figures.reduction_table(frames_of(histograms=rows))
    assert [*found.index] == [("joint training", "Recon", "matrix")]
    # all steps: (20 + 5) of (20 + 20), and 70 of 80; last quarter: 5 of 20, 30 of 40
    cells = found.iloc[0]
    assert cells["below -0.01", "all steps"] == "+25.0 (-133.8 to +183.8)"
    assert cells["below -0.01", "last quarter"] == "+50.0 (-267.7 to +367.7)"
    assert cells["thesis", "all steps"] == "69.82"
    assert found.columns[0][0] == "below joint training's 12.6 %"  # what claims are judged by


def test_quarters_share_one_quantile(tables):
    shares = figures.quarter_shares(tables["histograms"])
    joint = figures.only(shares, layers="shared", cut="quantile")
    whole = joint.groupby("seed")["share"].mean()  # each quarter has as many steps
    assert whole.to_numpy() == pytest.approx(severe_share_printed(), abs=0.01)
    by_quarter = joint.groupby("quarter")["share"].mean()
    assert by_quarter.is_monotonic_decreasing
    assert by_quarter.iloc[0] > 1.5 * by_quarter.iloc[-1]
    without = figures.only(tables["histograms"], layers="recon")
    assert figures.quarter_shares(without).empty


def test_conflict_figure_tells_choices_apart(tables):
    axes = figures.conflict_figure(tables).axes
    assert [ax.get_title() for ax in axes] == ["below joint training's 12.6 %", "below -0.01"]
    lines = [drawn[0] for drawn in axes[0].containers]
    assert len({line.get_color() for line in lines}) == 4
    assert len({line.get_marker() for line in lines}) == 4


def test_differences_to_recon_are_taken_within_seeds():
    found = results(
        SINGLE,
        (run(), "one", (80.0, 50.0), (80.0, 50.0)),
        (run(layers="recon"), "own", (90.0, 50.0), (100.0, 50.0)),
        (run(layers="recon"), "shared", (70.0, 50.0), (70.0, 50.0)),
        (run(study="control", layers="first"), "own", (86.0, 50.0), (96.0, 50.0)),
        (run(study="control", layers="first"), "shared", (64.0, 50.0), (66.0, 50.0)),
    )
    table = figures.control_table(found)["minus Recon"]["joint training"]
    assert table.to_dict() == {"all shared": "-7.5 (-39.3 to +24.3)", "Recon": "",
                               "first layers": "-2.0 (-2.0 to -2.0)"}  # fmt: skip
    gains = figures.improvements(found["results"])
    own, published = (
        figures.above_recon(gains, "control", which).groupby("layers")["difference"].mean()
        for which in ("own", "shared")
    )
    assert own.to_dict() == pytest.approx({"first": -2.0, "shared": -7.5})
    assert published.to_dict() == pytest.approx({"first": -2.5, "shared": 5.0})
    fig = figures.control_figure(found)
    assert [text.get_text() for text in fig.axes[0].get_yticklabels()] == [
        "all shared", "first layers"
    ]  # fmt: skip


def test_layers_in_common():
    rows = [
        {"seed": 0, "study": "long", "value": "", "layers": "recon", "names": "a b c"},
        {"seed": 0, "study": "count", "value": "2", "layers": "recon", "names": "a d"},
        {"seed": 1, "study": "count", "value": "2", "layers": "recon", "names": "a d"},
    ]
    found = figures.layers_in_common(pd.DataFrame(rows), "count")
    assert found[["value", "number", "common"]].to_numpy().tolist() == [["", 3, 3], ["2", 2, 1]]


def test_study_table_has_the_choice_beside_the_gain(tables):
    found = figures.study_table(tables, "count").xs("joint training")
    assert found.loc[("Recon", "5"), ["layers split", "of Recon's"]].tolist() == ["5", "5"]
    assert found.loc[("Recon", "25"), "minus Recon"] == "+0.0 (+0.0 to +0.0)"
    assert found.loc[("Recon", "5"), "severe conflicts (%)"].startswith("11.")
    assert [*found.index] == [("all shared", ""), ("Recon", ""), ("Recon", "5"), ("Recon", "25")]
    named = figures.transfer_table(tables).index.get_level_values("value")
    assert {"multi mnist", "own"} <= set(named)


def test_rankings_by_hand(tables):
    known = frames(Made(alike=1.0, angles_alike=1.0, **SMALL).record)
    found = figures.ranking_table(known, -0.1, 25)
    assert set(found["overlap (%)"]) == {"100 (100 to 100)"}
    assert set(found["distance"]) == {"0.00 (0.00 to 0.00)"}
    assert found.loc[("two seeds", "quarter 1"), "pairs"] == "3"
    assert found.loc[("the released one", "all quarters"), "pairs"] == "3"
    assert found.loc[("two quarters", "1 and 2"), "distance, thesis"] == "2.39"
    assert found.loc[("two quarters", "4 and all"), "distance, thesis"] == "0.97"
    methods = found.loc[("two methods, quarter 1", "joint training and CAGrad")]
    assert (methods["pairs"], methods["distance, thesis"]) == ("2", "1.07")
    chance = frames(Made(alike=0.0, **SMALL).record)
    found = figures.ranking_table(chance, -0.1, 25)
    assert float(found.loc[("two seeds", "quarter 1"), "rank correlation"].split()[0]) < 0.5


def test_rankings_count_the_quarters_that_they_name(tables):
    scores = frames(Made(**SMALL).record)["scores"]
    turned = [" ".join(text.split()[::-1]) for text in scores["scores"]]
    texts = np.where(scores["quarter"] == 1, turned, scores["scores"])
    found = figures.ranking_table({**tables, "scores": scores.assign(scores=texts)}, -0.1, 25)
    distance = found["distance"].str.split().str[0].astype(float)
    assert distance["two quarters", "2 and 3"] == 0
    far = distance["two quarters", "1 and 2"]
    assert distance["the released one", "quarter 1"] == far > 10
    assert 0 < distance["the released one", "all quarters"] < far
    assert 0 < distance["two quarters", "4 and all"] < distance["two quarters", "1 and all"]


def test_a_ranking_of_other_layers_is_not_compared_with_the_released_one(tables):
    layers = tables["layers"].assign(layer="other." + tables["layers"]["layer"])
    found = figures.ranking_table({**tables, "layers": layers}, -0.1, 25)
    assert "the released one" not in found.index
    assert "two seeds" in found.index
    without = figures.ranking_table(tables, -0.1, 25, batch_norm=False)
    assert "the released one" in without.index


def test_heat_figure_by_hand(tables):
    known = {"size": "long", "study": "long", "method": "joint", "layers": "shared", "angles": "",
             "severity": -0.1, "steps": 10}  # fmt: skip
    rows = pd.DataFrame([
        {"seed": seed, "quarter": quarter, **known,
         "scores": " ".join("5" if place == seed + quarter else "0" for place in range(41))}
        for seed in (0, 1) for quarter in (1, 2)
    ])  # fmt: skip
    strip, ax = figures.heat_figure({**tables, "scores": rows}, -0.1, 3).axes[:2]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["released", "0", "1"]
    assert [text.get_text() for text in strip.get_yticklabels()] == RELEASED
    places = [RELEASED.index(name) for name in tables["layers"]["layer"].head(4)]
    grid = ax.images[0].get_array()
    assert grid[places, 1].tolist() == [0, 50, 0, 0]  # 5 of 10 steps
    assert grid[places, 2].tolist() == [0, 0, 50, 0]
    marks = [len(drawn.get_offsets()) for drawn in ax.collections]
    assert marks == [3, 25, 25]  # top_k of the released ranking; what was split
    both = figures.heat_figure({**tables, "scores": rows}, -0.1, 3, quarters=2).axes[1]
    assert both.images[0].get_array()[places, 1].tolist() == [0, 25, 25, 0]


def test_heat_figure_of_another_network_has_no_released_column(tables):
    layers = tables["layers"].assign(layer="other." + tables["layers"]["layer"])
    ax = figures.heat_figure({**tables, "layers": layers}, -0.1, 25).axes[1]
    assert [text.get_text() for text in ax.get_xticklabels()] == ["0", "1", "2"]


def test_method_figure_joins_the_means(tables):
    ax = figures.method_figure(tables).axes[0]
    gains = figures.improvements(tables["results"])
    names = [text.get_text() for text in ax.get_yticklabels()]
    assert names[:3] == ["joint training", "MGDA", "PCGrad"]
    joined = [
        line for line in ax.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 2
    ]
    own = figures.only(gains, study="methods", method="mgda", statistics=("own", "one"))
    means = own.groupby("layers")["improvement"].mean()
    assert [*joined[1].get_xdata()] == pytest.approx([means["shared"], means["recon"]])


def test_long_figure_has_both_statistics(tables):
    ax = figures.long_figure(tables).axes[0]
    own, published = (
        {round(bar.lines[0].get_ydata()[0]): bar.lines[0].get_xdata()[0] for bar in part}
        for part in (ax.containers[:4], ax.containers[4:])
    )
    assert own[2] == pytest.approx(-8.0)  # random layers
    assert published[2] == pytest.approx(-13.0)
    assert np.isnan(published[0])  # a shared network has one kind


def test_curves_begin_with_no_layer_split(tables):
    axes = figures.curves_figure(tables).axes
    assert [text.get_text() for text in axes[2].get_xticklabels()] == ["none", "5", "25"]
    assert [text.get_text() for text in axes[3].get_xticklabels()] == ["none", "0", "-0.1"]
    own = axes[0].containers[0].lines[0].get_ydata()
    assert [*own] == pytest.approx([-9.4, -8.3, -3.3])
    severe = axes[2].containers[0].lines[0].get_ydata()
    assert severe[0] == pytest.approx(severe_share_printed(), abs=0.01)


def test_kinds_of_layers_by_hand(tables):
    found = figures.layer_kind_table(tables)
    assert found["all layers"].to_dict() == {
        "batch norm, first half": "10", "batch norm, second half": "10", "other, first half": "11",
        "other, second half": "10", "of all parameters (%)": "100",
    }  # fmt: skip
    norms = [name for name in RELEASED[:25] if "bn" in name or "downsample.1" in name]
    recon = found["Recon"].str.split().str[0].astype(float)
    assert recon.iloc[:2].sum() == len(norms)
    held = 100 * (len(norms) * 64 + (25 - len(norms)) * 5000) / (20 * 64 + 21 * 5000)
    assert recon.iloc[-1] == pytest.approx(held, abs=0.01)


def test_branches_by_hand():
    rows = [{"seed": seed, "block": "layer1", "groups": groups, "margin": margin, "steps": 9}
            for seed, (groups, margin) in enumerate((("a+b", 0.3), ("a b", 0.04), ("a+b", 0.2)))
            ]  # fmt: skip
    found = figures.branch_table(frames_of(branches=rows)).loc["layer1"]
    assert found["tasks together (seeds)"] == "a+b (2); a b (1)"
    assert found["near ties, below 0.05"] == "1 of 3"
    assert found["margin"] == "0.18 (0.04 to 0.30)"


def test_costs_are_times_of_uncounted_joint_training(tables):
    found = figures.cost_table(tables)
    assert found.loc["joint, counted", ("times", 40)] == "30"
    assert found.loc["MGDA", ("ms a step", 2)] == "34"
    texts = [text.get_text() for text in figures.cost_figure(tables).axes[0].texts]
    assert texts == ["joint, not counted", "joint, counted", "MGDA", "PCGrad", "GradDrop", "CAGrad"]


def test_what_other_tasks_add_by_hand():
    known = {"layer": "conv1", "pairs": 10}
    rows = [
        {**known, "seed": seed, "quarter": quarter, "first": first, "second": second,
         "conflicts": 4, "cosines": cosine * 10, "norm_ratio": 2.0}
        for seed, quarter in ((0, 1), (0, 2)) for first, second, cosine in
        (("a", "b", -0.2), ("a", "c", 0.1 * quarter), ("b", "c", 0.0))
    ]  # fmt: skip
    found = figures.added_by_others(pd.DataFrame(rows)).loc["conv1"]
    assert found.to_dict() == pytest.approx({"a": -0.1 + 0.075, "b": -0.4, "c": 0.3})


def test_pairs_of_tasks_are_shown_both_ways(tables):
    whole = pd.DataFrame([
        {"seed": seed, "quarter": 1, "first": first, "second": second, "layer": None,
         "pairs": 10, "conflicts": conflicts, "cosines": 0.0, "norm_ratio": 1.0}
        for seed in (0, 1)
        for first, second, conflicts in (("a", "b", 1 + seed), ("b", "c", 5))
    ])  # fmt: skip
    fig = figures.pair_figure({**tables, "pairs": whole})  # no layers: one panel and its bar
    assert len(fig.axes) == 2
    grid = fig.axes[0].images[0].get_array()
    assert grid[0, 1] == grid[1, 0] == 15
    assert grid[1, 2] == grid[2, 1] == 50
    assert [text.get_text() for text in fig.axes[0].texts] == ["15 %", "15 %", "50 %", "50 %"]
    many = pd.concat([whole.assign(first=f"t{i}", second=f"t{i + 1}") for i in range(9)])
    fig = figures.pair_figure({**tables, "pairs": many})
    assert [text.get_text() for text in fig.axes[0].get_xticklabels()][:2] == ["1", "2"]
    assert len(figures.pair_figure(tables).axes) == 4


def test_settings_and_trials():
    known = {("long", "joint", "shared"): {"lr": 0.1}, ("matrix", "cagrad", "shared"):
             {"lr": 0.05, "c": 0.2}, ("long", "joint", "recon"): {"lr": 0.2}}  # fmt: skip
    table = figures.setting_table(known)
    assert table.loc["joint training", "long"] == "lr 0.1"
    assert table.loc["joint training + Recon", "long"] == "lr 0.2"
    assert table.loc["CAGrad", "matrix"] == "lr 0.05, c 0.2"
    assert table.loc["CAGrad", "long"] == ""
    assert figures.setting_table({}).empty
    trials = pd.DataFrame([
        {"size": "long", "method": "joint", "layers": "shared", "setting": f'{{"lr": {lr}}}',
         "seed": seed, "mean_accuracy": accuracy, "diverged": accuracy is None, "seconds": 1.5}
        for lr, accuracy in ((0.1, 50.0), (0.2, 60.0), (0.4, None)) for seed in (0, 1)
    ])  # fmt: skip
    found = figures.trial_table(trials)
    assert found["setting"].tolist() == ["lr 0.2", "lr 0.1", "lr 0.4"]
    assert (*found[["method", "layers"]].iloc[0],) == ("joint training", "all shared")
    assert found["mean accuracy"].tolist() == [60.0, 50.0, ""]
    assert found["runs diverged"].tolist() == [0, 0, 2]
    assert figures.trial_table(trials.iloc[:0]).empty
