"""Some rows of each committed record, computed again by the code as it is now.

Training amplifies rounding, and another processor or number of threads rounds differently: the
accuracies of one training then differ by a point or two.
"""

import pytest

from experiments.mtl.claims import claims, summary
from experiments.mtl.evidence import MATRIX, SHARED, Case, chosen_settings
from experiments.mtl.experiment import MultiTaskExperiment
from experiments.mtl.parameters import EvidenceParameters
from experiments.run.parameters import check_parameter_file
from experiments.run.results import committed_record
from experiments.searches import recon_evidence as search
from experiments.searches.grids import settings
from ktlib.seeding import deterministic
from tests.paths import ROOT

POINTS = 4.0


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)
    with deterministic():
        yield


def kept(profile):
    """The record of the evidence, or of its search."""
    record = committed_record("recon_evidence", profile)
    if record is None:
        pytest.skip(f"results/recon_evidence.{profile}.json has not been made yet")
    return record


def parameters_of(record, **changes):
    """The parameters of a record, for this machine."""
    here = {"profile": "test", "run_dir": "", "device": "cpu"}
    return EvidenceParameters(**record.parameters | here | changes)


@pytest.mark.slow
def test_rows_of_the_long_record():
    """The shared network of the matrix, by joint training, of the first seed with studies."""
    record = kept("full")
    seed = record.parameters["study_seeds"][0]
    trials = kept("search").frame("trials")
    experiment = MultiTaskExperiment(parameters_of(record), "cpu")
    case = Case(experiment, seed, chosen_settings(trials))
    case.run(MATRIX, "methods", "joint", SHARED)
    known = {"seed": seed, "study": "methods", "method": "joint", "layers": SHARED}
    rows = [row for row in record.tables["results"] if row.items() >= known.items()]
    found = [row["score"] for row in case.tables["results"]]
    assert found == pytest.approx([row["score"] for row in rows], abs=POINTS)


def test_claims_of_the_long_record():
    record = kept("full")
    assert len(record.seeds) > 1
    found = {claim.verdict for claim in claims(record)}
    assert found > {"reproduced", "not testable here"}  # a record that tests nothing is none
    assert summary(record).count("\n") == 4


@pytest.mark.slow
def test_a_row_of_the_search():
    record = kept("search")
    wanted = {"size": MATRIX, "method": "joint", "layers": SHARED}
    row = next(row for row in record.tables["trials"] if row.items() >= wanted.items())
    arm = tuple(wanted.values())
    (setting,) = search.tried([row["setting"]])
    (again,) = search.trials(parameters_of(record), row["seed"], [], {arm: [setting]})
    assert again["mean_accuracy"] == pytest.approx(row["mean_accuracy"], abs=POINTS)


def test_the_search_tried_as_often_for_every_arm():
    """And chose for each of them, inside of its grid or after the last trial beyond it."""
    trials = kept("search").frame("trials")
    keys = ["size", "method", "layers"]
    counted = trials.groupby(keys)["setting"].nunique()
    assert {*counted.index} == {*search.GRIDS} == chosen_settings(trials).keys()
    for arm, count in counted.items():
        start = len([*settings(search.GRIDS[arm])])
        assert start <= count <= start + search.EXTENSIONS, arm
    assert (trials.groupby([*keys, "setting"])["seed"].nunique() == 2).all()
    assert search.further(trials.to_dict("records")) == {}


def test_the_search_has_the_size_of_the_long_run_and_seeds_of_its_own():
    searched = kept("search").parameters
    full = check_parameter_file(
        ROOT / "chapters/recon_evidence.py", ROOT / "chapters/params/recon_evidence.full.yaml",
        EvidenceParameters,
    ).model_dump()  # fmt: skip
    sizes = ("long_images", "long_epochs", "train_images", "epochs", "batch_size", "width")
    assert {name: searched[name] for name in sizes} == {name: full[name] for name in sizes}
    assert not set(searched["seeds"]) & set(full["seeds"])
