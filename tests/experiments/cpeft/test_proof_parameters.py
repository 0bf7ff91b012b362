"""The parameters of the proof on continual PEFT, in the first seconds of a run."""

import pytest

from experiments.cpeft.parameters import ContinualPeftProofParameters
from experiments.cpeft.proof import linear_interference, network_drift, threshold_bound
from experiments.run.parameters import ParameterError
from tests.chapters import check_cell, check_profile, profiles

CHAPTER = "proofs/continual_peft"


def check(**changes):
    return check_cell(ContinualPeftProofParameters, CHAPTER, **changes)


def test_the_parameters_cell_is_accepted():
    assert check().tasks == 4


@pytest.mark.parametrize(("chapter", "path"), profiles([CHAPTER]))
def test_every_profile_is_accepted(chapter, path):
    assert check_profile(ContinualPeftProofParameters, chapter, path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": 7}, ["size must be at least tasks x subspace = 42. Found 40"]),
        ({"subspace": 11}, ["size must be at least tasks x subspace = 44"]),
        ({"images": 13}, ["size must be at least (tasks - 1) x images + rank = 43"]),
        ({"old_size": 37}, ["size must be at least old_size + ", "41"]),
        ({"old_size": 39, "rank": 1}, ["size must be at least old_size + ", "41", "Found 40"]),
        ({"rank": 7}, ["rank must be at most subspace = 6", "Found 7"]),
        ({"rank": 6, "images": 5}, ["rank must be at most images = 5", "Found 6"]),
        ({"tasks": 1}, ["tasks", "equal to 2"]),
        ({"size": 201}, ["size", "equal to 200"]),
        ({"thresholds": [0.9, 0.9, 1.0]}, ["thresholds must rise, each once"]),
        ({"thresholds": [0.5, 0.9]}, ["thresholds must end with 1.0"]),
        ({"thresholds": [0.0, 1.0]}, ["thresholds", "greater than 0"]),
        ({"thresholds": [0.5, 1.5]}, ["thresholds", "1.5"]),
        ({"experts": 2}, ["experts", "equal to 3"]),
        ({"own": 1.0}, ["own", "1.0"]),
        ({"own": 0.51}, ["own", "0.51"]),
        ({"other": 0.9}, ["other must be below own=0.9. Found 0.9"]),
        ({"confidences": [0.1, 0.5]}, ["at least 1/experts = 0.2 and below 1", "[0.1, 0.5]"]),
        ({"confidences": [0.5, 1.0]}, ["confidences must be at least", "[0.5, 1.0]"]),
        ({"confidences": [0.6, 0.5]}, ["confidences must rise"]),
        ({"temperatures": [0.0, 1.0]}, ["temperatures", "greater than"]),
        ({"temperatures": [1.0, 1.0]}, ["temperatures must rise"]),
        ({"draws": 10}, ["draws", "equal to 100"]),
        ({"expert": 3}, ["Did you mean `experts`"]),
    ],
)
def test_values_that_cannot_be_are_refused(changes, words):
    with pytest.raises(ParameterError) as caught:
        check(**changes)
    for word in words:
        assert word in str(caught.value)


def test_sizes_at_the_limits_can_be_computed():
    """What is accepted leaves room: no check of the page stops in the middle."""
    given = check(tasks=3, size=12, subspace=4, rank=4, old_size=8, images=4)
    sizes = {"size": given.size, "rank": given.rank}
    linear = linear_interference(0, tasks=given.tasks, subspace=given.subspace, steps=5, **sizes)
    assert len(linear) == 9
    bounds = threshold_bound(0, old_size=given.old_size, steps=5, **sizes)
    drift = network_drift(0, tasks=given.tasks, images=given.images, steps=5, **sizes)
    assert all(row["holds"] for row in bounds)
    assert all(row["holds"] for row in drift if row["statement"].startswith(("(1)", "(2)")))
