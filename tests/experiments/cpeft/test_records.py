"""The chapter on continual PEFT uses the settings that its search chose."""

import pytest

from experiments.cpeft.parameters import ContinualPeftParameters
from experiments.cpeft.report import AGREEMENT_KINDS, method_difference, summary_rows
from experiments.run.paired import PairedDifference
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


def test_the_words_about_the_long_run_hold_in_its_record():
    """The chapter tells in words what the long run says; another record may need other words."""
    record = committed_record("continual_peft", "full")
    rows = record.tables["summary"]
    mean = record.frame("summary").groupby(["method", "metric"])["value"].mean()

    def change(one, other, metric="final_accuracy", rows=rows):
        found = method_difference(rows, one, other, metric)
        return round(found.mean), round(found.low), round(found.high)

    assert change("sequential", "inflora", "forgetting") == (57, 52, 62)
    drift = record.frame("drift").groupby(["method", "seed"])["relative"].mean()
    assert (drift["inflora"] / drift["sequential"] < 0.1).all()
    told = mean[:, "final_accuracy_within"].round()
    assert (told["inflora"], told["sequential"]) == (95, 62)
    final = mean[:, "final_accuracy"].round()
    assert (final["inflora"], final["oracle"], final["ncm"]) == (45, 52, 78)

    occupied = record.frame("occupancy").query("task == 10").groupby("layer")["occupied"].mean()
    assert (100 * occupied.min(), 100 * occupied.max()) == pytest.approx((47.5, 72.7), abs=0.1)
    assert set(record.frame("occupancy")["rank"]) == {8}
    learned = record.frame("task_accuracy").query("method == 'inflora' and after == task")
    assert learned.groupby("task")["accuracy_within"].mean().min() >= 91.5
    thresholds = rows + summary_rows(record.tables["thresholds"])
    costs = {
        t: change(f"first threshold {t}", "inflora", rows=thresholds) for t in (0.5, 0.8, 0.99)
    }
    assert (costs[0.5][0], costs[0.8][0]) == (-8, -2)
    assert costs[0.8][2] < 0
    assert costs[0.99][1] < 0 < costs[0.99][2]

    assert change("ncm", "l2c") == (5, 4, 6)
    assert change("ncm", "inflora")[0] == 33
    assert change("joint", "ncm") == (-1, -3, 1)
    assert final.idxmax() == "ncm"
    parts = summary_rows(record.tables["ablation"])
    assert change("l2c without alignment", "l2c", rows=parts) == (-9, -11, -6)
    assert change("l2c without mixed start", "l2c", rows=parts) == (2, 1, 3)
    assert change("l2c experts know their own classes only", "l2c", rows=parts) == (4, 3, 5)
    without = method_difference(parts, "l2c without consistency", "l2c", "final_accuracy")
    assert without.low < 0 < without.high < 1

    plane = record.frame("cooperation").pivot_table("accuracy", ["seed", "temperature"], "top")
    lost = PairedDifference.of((plane[10] - plane[1]).xs(1.0, level="temperature"))
    assert (round(lost.mean, 1), round(lost.low, 1), round(lost.high, 1)) == (-0.4, -0.7, -0.1)
    equal = (plane[10] - plane[1]).xs(10.0, level="temperature")
    assert round(equal.mean()) == -11
    sent = record.frame("isolation")
    assert (round(sent["misallocated"].min()), round(sent["misallocated"].max())) == (19, 22)
    assert (sent["best"] - sent["isolation"]).max() < 0.2

    flat = record.frame("flatness").set_index("pre-training")
    assert flat.loc["flat", "rise"] < flat.loc["plain", "rise"] / 2
    assert flat.loc["flat", "loss"] > flat.loc["plain", "loss"]
    starts = record.tables["flat_start"]
    assert change("sequential flat", "sequential", "forgetting", starts) == (-2, -5, 1)
    assert change("sequential flat", "sequential", "final_accuracy_within", starts) == (10, 6, 14)

    both = record.frame("conflict_occupancy")
    assert len(both) == 5
    assert set(both["rank correlation"].round(9)) == {-1}
    assert set(both["groups"]) == {4}
    assert both["p"].min() > 0.08
    conflicts = record.frame("conflicts")
    conflicts["block"] = conflicts["layer"].str.split(".").str[2].astype(int)
    by_block = conflicts.groupby("block")[["score", "occupied"]].mean()
    assert by_block["score"].idxmax() == by_block["occupied"].idxmin() == 0
    assert by_block["occupied"].idxmax() == by_block["score"].idxmin() == 3

    agreement = record.frame("jaccard").pivot_table("rank_correlation", "seed", "kind")
    found = agreement.mean().round(2)
    _, two_tasks, twice, again = AGREEMENT_KINDS
    assert (found[again], found[twice], found[two_tasks]) == (0.86, 0.16, 0.05)
    assert PairedDifference.of(agreement[twice] - agreement[again]).high < 0
    gap = PairedDifference.of(agreement[two_tasks] - agreement[twice])
    assert (round(gap.mean, 2), round(gap.low, 2), round(gap.high, 2)) == (-0.11, -0.26, 0.03)
