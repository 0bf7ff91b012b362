"""The parameters of the chapter on continual PEFT, in the first seconds of a run."""

import pytest
import torch

from data_prep import load
from experiments.cpeft.experiment import ContinualExperiment, all_rows
from experiments.cpeft.parameters import (
    CLASS_IMAGES,
    CLASSES,
    IMAGE_SIZES,
    METHODS,
    ContinualPeftParameters,
)
from experiments.cpeft.report import expert_agreement, summary_rows
from experiments.run.parameters import ParameterError
from tests.chapters import CHAPTERS, check_cell, check_profile, profiles

CHAPTER = "continual_peft"


def test_the_parameters_cell_is_accepted():
    assert check_cell(ContinualPeftParameters, CHAPTER).dataset == "pairs"


@pytest.mark.parametrize(("chapter", "path"), profiles([CHAPTER]))
def test_every_profile_is_accepted(chapter, path):
    assert check_profile(ContinualPeftParameters, chapter, path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tasks": 21}, ["tasks must be at most 20", "Found 21"]),
        ({"tasks": 40, "tops": [1, 40]}, ["tasks must be at most 20", "Found 40"]),
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
        ({"methods": ["sequential", "ncm"]}, ["methods must contain ['inflora', 'l2c']"]),
        ({"methods": ["sequential", "inflora", "l2c", "l2c"]}, ["each method once"]),
        ({"methods": ["sequential", "inflora", "l2c", "ewc"]}, ["methods", "ewc"]),
        ({"last_threshold": 0.5}, ["at least first_threshold", "Found 0.5"]),
        ({"tops": [1, 6]}, ["tops must lie in 1 to tasks=5", "[1, 6]"]),
        ({"tops": [1, 2]}, ["contain 5, all experts"]),
        ({"noise_draws": 1}, ["noise_draws", "equal to 2"]),  # of one there is no standard error
        ({"tops": [2, 5]}, ["tops must contain 1", "[2, 5]"]),
        ({"temperatures": [0.5]}, ["temperatures must contain 1.0", "[0.5]"]),
        ({"temperatures": [0.0, 1.0]}, ["temperatures", "greater than"]),
        ({"thresholds": [1.5]}, ["thresholds", "1.5"]),
        ({"thresholds": [0.5, 0.5]}, ["thresholds must contain each value once", "[0.5, 0.5]"]),
        ({"temperatures": [1.0, 1.0]}, ["temperatures must contain 1.0", "[1.0, 1.0]"]),
        ({"patch_size": 10}, ["patch_size must divide the 36 pixels", "Found 10"]),
        ({"base_classes": 98}, ["base_classes must leave at least 4", "Found 98"]),
        ({"task_images": 1}, ["task_images must be 0 or at least 2", "Found 1"]),
        ({"task_images": 501}, ["task_images must be at most 500", "Found 501"]),
        ({"base_images": 501}, ["base_images must be at most 500", "Found 501"]),
        ({"dataset": "omniglot"}, ["dataset", "omniglot"]),
    ],
)
def test_what_cannot_be_run_is_refused(changes, words):
    with pytest.raises(ParameterError) as caught:
        check_cell(ContinualPeftParameters, CHAPTER, **changes)
    for word in words:
        assert word in str(caught.value)


def test_sizes_are_those_of_the_digits():
    digits = load("digits", "train")
    counts = torch.bincount(digits.labels)
    found = digits.images.shape[-1], len(counts), int(counts.min())
    assert found == tuple(table["digits"] for table in (IMAGE_SIZES, CLASSES, CLASS_IMAGES))


def test_smallest_values_run_to_the_end():
    """One block, two classes a task, two images a class: all measures are computed."""
    given = check_profile(
        ContinualPeftParameters, CHAPTER, CHAPTERS / f"params/{CHAPTER}.smoke.yaml"
    )
    smallest = {
        "base_classes": 2, "base_images": 1, "tasks": 4, "task_images": 2, "tops": [1, 4],
        "blocks": 1, "width": 8, "rank": 8, "pretraining_epochs": 1, "temperatures": [1.0],
        "ranking_steps": 1,
    }  # fmt: skip
    p = ContinualPeftParameters.model_validate(given.model_dump() | smallest)
    made = ContinualExperiment(p, "cpu")
    runs = {method: made.run(method, 0) for method in METHODS}
    assert len(summary_rows(all_rows(list(runs.values())))) > 0
    assert made.expert_outputs(runs["l2c"]).grid(p.tops, p.temperatures)
    rankings = {
        (0, task, *which): made.expert_ranking(runs["oracle"], task, seed=0)
        for task in range(1, 5)
        for which in ((0, 0), (1, 0), (0, 1))
    }
    assert expert_agreement(rankings, top_fraction=0.5)
