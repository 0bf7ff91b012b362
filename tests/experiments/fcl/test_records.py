"""Some rows of each committed record, computed again by the code as it is now.

Training amplifies rounding, and another processor or number of threads rounds differently: the
accuracies of one training then differ by a point or two. What these tests find is a record that the
code no longer gives: other data, another protocol, another loss.
"""

import pytest

from experiments.fcl.claims import claims, summary
from experiments.fcl.experiment import FewShotExperiment
from experiments.fcl.parameters import KNOBS, EvidenceParameters
from experiments.fcl.search_results import chosen_settings
from experiments.run.results import committed_record
from experiments.searches import fcl_evidence as search
from ktlib.seeding import deterministic
from tests.paths import ROOT

POINTS = 4.0  # between two trainings that differ in rounding alone, 2 were seen


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)
    with deterministic():  # as the chapter asks for; taken back afterwards
        yield


def kept(profile):
    """The record of the evidence, or of its search."""
    record = committed_record("fcl_evidence", profile)
    if record is None:
        pytest.skip(f"results/fcl_evidence.{profile}.json has not been made yet")
    return record


def parameters_of(record, **changes):
    """The parameters of a record, for this machine."""
    here = {"profile": "test", "run_dir": "", "device": "cpu"}
    return EvidenceParameters(**record.parameters | here | changes)


@pytest.mark.slow
def test_rows_of_the_long_record():
    """The frozen network of the first seed, which has a part of its own, with each split."""
    record = kept("full")
    seed = record.seeds[0]
    parameters = parameters_of(record, seeds=[seed], study_seeds=[])
    for classes in parameters.class_splits:
        experiment = FewShotExperiment(parameters, "cpu").with_classes(classes)
        learner = experiment.learner("ncm", experiment.train_plain(seed), seed)
        known = {"classes": classes, "method": "ncm", "seed": seed}
        rows = [row for row in record.tables["methods"] if row.items() >= known.items()]
        found = [row["accuracy"] for row in experiment.run_sessions(learner, seed).rows]
        assert found == pytest.approx([row["accuracy"] for row in rows], abs=POINTS)


def test_claims_of_the_long_record():
    record = kept("full")
    assert len(record.seeds) > 1
    found = {claim.verdict for claim in claims(record)}
    assert found > {"reproduced", "not testable here"}  # a record that tests nothing is none
    assert summary(record).count("\n") == 4


@pytest.mark.slow
def test_a_row_of_the_search():
    record = kept("search")
    row = next(row for row in record.tables["trials"] if row["method"] == "ncm")
    case = (row["classes"], row["seed"])
    again = search.Search(parameters_of(record), case, []).trial("ncm", {})
    for name in ("mean_accuracy", "last_accuracy"):
        assert again[name] == pytest.approx(row[name], abs=POINTS)


def test_the_search_tried_as_often_for_every_method():
    """And chose for each of them, with each split, a setting that may be given by hand, too."""
    record = kept("search")
    trials = record.frame("trials")
    chosen = chosen_settings(trials)
    splits = record.parameters["class_splits"]
    assert set(chosen) == {(classes, method) for classes in splits for method in search.GRIDS}
    counts = trials.groupby(["classes", "method"])["setting"].nunique()
    for (classes, method), number in counts.items():
        least = search.TRIALS if method in KNOBS else 1
        most = least + (search.EXTENSIONS if method in KNOBS else 0)
        assert least <= number <= most, (classes, method)
    for classes in splits:
        own = {m: s for (split, m), s in chosen.items() if split == classes and s}
        assert parameters_of(record, method_settings=own).method_settings == own
