"""The parameters of the chapter on continual PEFT, in the first seconds of a run."""

import pytest

from experiments.cpeft.parameters import ContinualPeftParameters
from experiments.run.parameters import ParameterError
from tests.chapter_parameters import check_cell, check_profile, profiles

CHAPTER = "continual_peft"


def test_the_parameters_cell_is_accepted():
    assert check_cell(ContinualPeftParameters, CHAPTER).dataset == "pairs"


@pytest.mark.parametrize(("chapter", "path"), profiles([CHAPTER]))
def test_every_profile_is_accepted(chapter, path):
    assert check_profile(ContinualPeftParameters, chapter, path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": 41}, ["tasks must be at most the 40 classes of pairs", "Found 41"]),
        ({"tasks": 7}, ["divide the 40 classes evenly", "Found 7"]),
        ({"model": "vit_b16"}, ["weights must be empty with model='small', and name weights"]),
        ({"weights": "IMAGENET1K_V1"}, ["weights must be empty with model='small'"]),
        (
            {"model": "vit_b16", "weights": "IMAGENET1K_V1"},
            ["base_classes must be 0 with model='vit_b16'. Found 60"],
        ),
        ({"base_classes": 0}, ["base_classes must be at least 2 with model='small'"]),
        ({"heads": 5}, ["heads must divide width=96. Found 5"]),
        ({"rank": 97}, ["rank must be at most the 96 inputs", "Found 97"]),
        (
            {
                "model": "vit_b16",
                "weights": "IMAGENET1K_V1",
                "base_classes": 0,
                "tasks": 5,
                "rank": 769,
            },
            ["rank must be at most the 768 inputs"],
        ),
        ({"methods": ["sequential", "ncm"]}, ["methods must hold ['inflora', 'l2c'] too"]),
        ({"methods": ["sequential", "inflora", "l2c", "l2c"]}, ["each method once"]),
        ({"methods": ["sequential", "inflora", "l2c", "ewc"]}, ["methods", "ewc"]),
        ({"last_threshold": 0.5}, ["at least first_threshold", "Found 0.5"]),
        ({"tops": [1, 6]}, ["tops must lie in 1 to tasks=5", "[1, 6]"]),
        ({"tops": [1, 2]}, ["hold 5, all experts"]),
        ({"tops": [2, 5]}, ["tops must hold 1"]),
        ({"temperatures": [0.5]}, ["hold 1.0. Found [0.5]"]),
        ({"temperatures": [0.0, 1.0]}, ["temperatures must be above 0"]),
        ({"thresholds": [1.5]}, ["thresholds must lie in (0, 1]. Found [1.5]"]),
        ({"dataset": "omniglot"}, ["dataset", "omniglot"]),
    ],
)
def test_what_cannot_be_run_is_refused(changes, words):
    with pytest.raises(ParameterError) as caught:
        check_cell(ContinualPeftParameters, CHAPTER, **changes)
    for word in words:
        assert word in str(caught.value)
