"""The tables of the evidence on multi-task learning, for one seed, at a tiny size."""

import pytest
import torch

from experiments.mtl.derived import COLUMNS, frames, improvements, numbers
from experiments.mtl.evidence import LONG, MATRIX, RECON, RUN, SHARED, Case, evidence_of, joined
from experiments.mtl.experiment import MultiTaskExperiment
from experiments.run.records import RunRecord
from ktlib.seeding import deterministic
from tests.experiments.mtl.tiny import tiny
from tests.paths import ROOT


@pytest.fixture(autouse=True, scope="module")
def _here():
    with pytest.MonkeyPatch.context() as patch, deterministic():
        patch.chdir(ROOT)
        patch.setenv("KTLIB_CACHE", "")
        yield


@pytest.fixture(scope="module")
def experiment():
    return MultiTaskExperiment(tiny(), "cpu")


@pytest.fixture(scope="module")
def tables(experiment):
    return evidence_of(experiment, 3, {})


def having(rows, **wanted):
    return [row for row in rows if row.items() >= wanted.items()]


@pytest.mark.slow
def test_every_table_has_the_columns_that_are_drawn(tables):
    assert set(tables) == set(COLUMNS)
    record = RunRecord.start("recon_evidence", tiny(), data={})
    for name, rows in tables.items():
        assert rows, name
        record.table(name, rows)  # refuses rows that differ
        for row in rows:
            assert set(row) == {"seed", *COLUMNS[name].split()}, name
    assert {name: len(frame) for name, frame in frames(record).items()} == {
        name: len(rows) for name, rows in tables.items()
    }


@pytest.mark.slow
def test_every_run_has_a_gain_over_single_tasks(tables):
    record = RunRecord.start("recon_evidence", tiny(), data={})
    record.table("results", tables["results"])
    gains = improvements(frames(record)["results"])
    runs = {tuple(row[name] for name in (*RUN, "statistics")) for row in tables["results"]}
    alone = {run for run in runs if "single" in run}
    assert {run[0] for run in alone} == {LONG, MATRIX}
    assert {tuple(row) for row in gains[[*RUN, "statistics"]].to_numpy().tolist()} == runs - alone


@pytest.mark.slow
def test_split_networks_are_tested_with_both_sets_of_statistics(tables):
    for row in tables["results"]:
        split = row["layers"] != SHARED
        assert row["statistics"] in (("own", "shared") if split else ("one",))
    both = [
        [row["score"] for row in tables["results"] if row["statistics"] == statistics]
        for statistics in ("own", "shared")
    ]
    assert both[0] != both[1]
    published = having(tables["results"], study="skip", value="one task")
    assert {row["statistics"] for row in published} == {"own"}


@pytest.mark.slow
def test_studies_split_what_they_say(tables, experiment):
    chosen = {
        (row["study"], row["value"], row["layers"]): row["names"].split()
        for row in tables["choices"]
    }
    recon, order = chosen["long", "", RECON], [row["layer"] for row in tables["layers"]]
    assert len(recon) == 5
    assert chosen["methods", "", RECON] == recon == chosen["count", "5", RECON]
    assert chosen["count", "2", RECON] == recon[:2]
    assert chosen["severity", "-0.1", RECON] == recon == chosen["transfer", "own", RECON]
    assert chosen["quarter", "all", RECON] == recon  # the search counts all quarters here
    assert chosen["control", "", "last"] == order[-5:] == chosen["skip", "every task", "last"]
    blind = chosen["control", "", "random_layers"]
    assert (len(blind), blind) == (5, chosen["long", "", "random_layers"])
    case = Case(experiment, 3, {})
    assert case.chosen == recon
    assert case.ranked(case.found.meters[1], -0.1)[:5] == chosen["quarter", "2", RECON]


@pytest.mark.slow
def test_the_same_run_has_the_same_rows_in_every_study(tables):
    def scores(**wanted):
        rows = having(tables["results"], size=MATRIX, method="joint", layers=RECON, **wanted)
        return [(row["statistics"], row["task"], row["score"]) for row in rows]

    expected = scores(study="methods")
    assert len(expected) == 4
    assert scores(study="count", value="5") == expected == scores(study="severity", value="-0.1")


@pytest.mark.slow
def test_counts_are_of_every_step_and_pair(tables):
    steps = {LONG: 6, MATRIX: 4}  # batches of one epoch, and one pair of tasks
    for row in having(tables["histograms"], method="joint"):
        counted = numbers(row["counts"]).sum()
        assert counted == steps[row["size"]] / 4 or row["size"] == LONG
    for size in steps:
        known = {"size": size, "method": "joint", "layers": SHARED}
        rows = having(tables["histograms"], **known, study=LONG if size == LONG else "methods")
        assert sum(numbers(row["counts"]).sum() for row in rows) == steps[size]
        rows = having(tables["scores"], **known, severity=0.0)
        assert sum(row["steps"] for row in rows) == steps[size]
        for row in rows:
            assert len(row["scores"].split()) == len(row["angles"].split()) == 41
            assert numbers(row["scores"]).max() <= row["steps"]
            assert (numbers(row["angles"]) > 0).all()
    split = having(tables["scores"], method="joint", layers=RECON, size=LONG)
    assert {row["severity"] for row in split} == {-0.01, -0.1}
    assert all(row["scores"].split().count("-") == 5 and row["angles"] == "" for row in split)


@pytest.mark.slow
def test_seeds_that_are_not_studied_run_the_long_comparison():
    found = evidence_of(MultiTaskExperiment(tiny(study_seeds=[]), "cpu"), 3, {})
    assert {row["study"] for row in found["results"]} == {LONG}
    assert {row["layers"] for row in found["results"]} == {
        SHARED, RECON, "random_layers", "random_parameters"
    }  # fmt: skip
    assert not found["seconds"]


def test_settings_are_those_of_the_search_of_the_method_or_given_by_hand():
    changes = {"searched": True, "method_settings": {"cagrad": {"c": 0.7}}}
    settings = {
        (LONG, "joint", SHARED): {"lr": 0.1}, (LONG, "joint", RECON): {"lr": 0.2},
        (LONG, "joint", "random_layers"): {"lr": 0.3}, (MATRIX, "joint", SHARED): {"lr": 0.4},
        (MATRIX, "cagrad", SHARED): {"lr": 0.5, "c": 0.2},
    }  # fmt: skip
    case = Case(MultiTaskExperiment(tiny(**changes), "cpu"), 3, settings)
    found = [case.setting(LONG, "joint", name)["lr"]
             for name in (SHARED, RECON, "random_layers", "random_parameters")]  # fmt: skip
    assert found == [0.1, 0.2, 0.3, 0.3]
    assert [case.setting(MATRIX, "joint", name)["lr"] for name in (SHARED, RECON, "last")] == [
        0.4
    ] * 3
    assert case.setting(MATRIX, "cagrad", RECON) == {"lr": 0.5, "c": 0.7}
    assert case.setting(MATRIX, "famo", SHARED) == {}
    unsearched = Case(MultiTaskExperiment(tiny(), "cpu"), 3, settings)
    assert unsearched.setting(LONG, "joint", SHARED) == {}


def test_a_run_that_diverges_leaves_empty_rows_and_the_others(experiment):
    case = Case(experiment, 3, {})
    case.settings = {(MATRIX, "famo", SHARED): {"lr": 1e12}}
    case.run(MATRIX, "methods", "famo", SHARED)
    case.run(MATRIX, "methods", "joint", SHARED)
    lost, kept = (having(case.tables["results"], method=name) for name in ("famo", "joint"))
    assert [(row["task"], row["score"]) for row in lost] == [("item", None), ("digit", None)]
    assert all(row["score"] is not None for row in kept)
    record = RunRecord.start("recon_evidence", tiny(), data={})
    record.table("results", joined([case.tables])["results"])
    assert improvements(frames(record)["results"]).empty  # there are no single tasks


def test_blind_choices_behind_the_stem_leave_the_stem_alone(experiment):
    case = Case(experiment, 3, {})
    case.__dict__["ranking"] = ["conv1", "bn1", "layer1.0.bn1", "fc", "layer4.0.bn1"]
    found = case.choice("behind_stem")
    assert len(found) == 3
    assert not {"conv1", "bn1"} & {*found}
    assert case.choice("behind_stem") == found
    assert case.choice(SHARED) == []


def test_layers_have_kinds_and_sizes(experiment):
    rows = Case(experiment, 3, {}).tables["layers"]
    assert [rows[0]["kind"], rows[1]["kind"], rows[-1]["kind"]] == [
        "convolution",
        "batch norm",
        "linear",
    ]
    trunk = experiment.new_trunk()
    assert sum(row["parameters"] for row in rows) == sum(map(torch.numel, trunk.parameters()))
