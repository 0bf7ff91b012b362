"""The parameters of the ILA chapters, in the first seconds of a run."""

import pytest

from experiments.ila.parameters import IlaParameters, IlaStudyParameters
from experiments.run.parameters import ParameterError
from tests.chapter_parameters import check_cell, check_profile, profiles

MODELS = {"ila": IlaParameters, "ila_studies": IlaStudyParameters}


def check(chapter, **changes):
    return check_cell(MODELS[chapter], chapter, **changes)


@pytest.mark.parametrize("chapter", MODELS)
def test_the_parameters_cell_is_accepted(chapter):
    assert check(chapter).model == "smollm2"


@pytest.mark.parametrize(("chapter", "path"), profiles(MODELS))
def test_every_profile_is_accepted(chapter, path):
    assert check_profile(MODELS[chapter], chapter, path)


def test_both_chapters_have_the_same_experiment():
    """Else the studies would be of other rankings than those of the chapter."""
    one, other = check("ila").model_dump(), check("ila_studies").model_dump()
    apart = {"seeds"}
    assert not {k for k in one.keys() & other.keys() - apart if one[k] != other[k]}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [3]}, ["seeds must be two at least", "Found [3]"]),
        ({"studied_on": "lima"}, ["studied_on must be among", "Found ['lima']"]),
        ({"transferred_from": ["lima"]}, ["transferred_from must be among", "['lima']"]),
        ({"transferred_from": ["reasoning"]}, ["must not hold studied_on='reasoning'"]),
        ({"milestones": [0.0, 1.0]}, ["milestones must lie in (0, 1] and hold 1.0"]),
        ({"milestones": [0.5]}, ["hold 1.0. Found [0.5]"]),
        ({"initial_scores": [2.0]}, ["initial_scores must hold initial_score=4.0"]),
        ({"penalties": [0.1]}, ["penalties must hold 0.0"]),
        ({"penalties": [0.0, -0.1]}, ["and none below"]),
        ({"batch_sizes": [0]}, ["batch_sizes must be at least 1"]),
        ({"noise_steps": 1}, ["noise_steps", "equal to 2"]),
        ({"batch_sizes": [4, 4]}, ["batch_sizes may hold each value once"]),
        ({"solved_with": ["middle"]}, ["solved_with", "middle", "random_top"]),
        ({"top": 0.8}, ["top must be at most keep=0.75"]),
        ({"datasets": ["reasoning"]}, ["datasets"]),
    ],
)
def test_wrong_studies_are_refused(changes, words):
    with pytest.raises(ParameterError) as caught:
        check("ila_studies", **changes)
    for word in words:
        assert word in str(caught.value)
