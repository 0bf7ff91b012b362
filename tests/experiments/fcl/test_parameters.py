import re

import pytest

from experiments.fcl.parameters import FclParameters, FclStudyParameters
from experiments.run.chapter_source import parameters_cell
from experiments.run.parameters import ParameterError, check_parameter_file, check_parameters
from tests.paths import ROOT

CHAPTER = ROOT / "chapters" / "fcl.py"
STUDIES = CHAPTER.with_name("fcl_studies.py")


TOPIC = {"split": "topic", "dataset": "cifar100", "base_images": 0}


def check(**changes):
    values = {line.name: line.value for line in parameters_cell(CHAPTER)}
    return check_parameters(values | changes, FclParameters)


def test_the_parameters_cell_is_accepted():
    assert check().base_classes == 60


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sessions": 9}, ["60 + 9 x 5 = 105", "'pairs' has 100 classes"]),
        ({"dataset": "digits"}, ["'digits' has 10 classes"]),
        ({"dataset": "imagenet"}, ["dataset", "imagenet", "pairs", "cifar100", "digits"]),
        ({"noise_draws": 0}, ["noise_draws", "0", "1"]),
        ({"noise_bound": -0.01}, ["noise_bound", "-0.01", "0"]),
        ({"noise_bound": "1e-3"}, ["noise_bound", "1e-3", "1.0e-3"]),
        ({"noise_levels": 1}, ["noise_levels must be 0 (uniform) or at least 2"]),
        ({"flatness_bounds": [0.1, 0.0]}, ["flatness_bounds must be above 0"]),
        ({"shots": 5.0}, ["shots", "5.0"]),
        ({"nois_bound": 0.1}, ["nois_bound", "noise_bound"]),
        ({"stem_stride": 9}, ["stem_stride", "9"]),
        ({"base_images": 1}, ["base_images must be 0 (all) or at least 2"]),
        ({"split": "topic"}, ["split 'topic' is there for cifar100", "Found 'pairs'"]),
        (TOPIC | {"ways": 4}, ["ways must be 5 with split 'topic' of 'cifar100'. Found 4"]),
        (TOPIC | {"base_images": 9}, ["base_images must be 0 (all) with split 'topic'. Found 9"]),
        (TOPIC | {"dataset": "cub200"}, ["base_classes must be 100", "'cub200'"]),
        ({"method_settings": {"icral": {}}}, ["method_settings must be for", "Found 'icral'"]),
        ({"method_settings": {"icarl": {"rate": 1.0}}}, ["may hold", "rate = 1.0 for 'icarl'"]),
        ({"method_settings": {"icarl": {"lr": 0.0}}}, ["above 0", "lr = 0.0 for 'icarl'"]),
        ({"method_settings": {"topic": {"epochs": 1.5}}}, ["must be whole. Found 1.5"]),
        ({"method_settings": {"topic": 3}}, ["method_settings", "topic", "dictionary"]),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(changes, words):
    with pytest.raises(ParameterError) as caught:
        check(**changes)
    for word in words:
        assert word in str(caught.value)


def test_topic_sizes_are_accepted():
    assert check(**TOPIC).split == "topic"
    cub = {"dataset": "cub200", "base_classes": 100, "sessions": 10, "ways": 10}
    assert check(**TOPIC | cub).dataset == "cub200"


def test_every_file_of_values_is_accepted():
    """Also those of the thesis's data sets that no profile of the build names."""
    files = sorted((CHAPTER.parent / "params").glob("fcl.paper*.yaml"))
    found = {check_parameter_file(CHAPTER, file).dataset for file in files}
    assert found == {"cifar100", "mini_imagenet", "cub200"}


def study(**changes):
    values = {line.name: line.value for line in parameters_cell(STUDIES)}
    return check_parameters(values | changes, FclStudyParameters)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"bounds_studied": [-0.1]}, "bounds_studied must be at least 0.0. Found [-0.1]"),
        ({"draws_studied": [0, 1]}, "draws_studied must be at least 1"),
        ({"rates_studied": [0.0]}, "rates_studied must be above 0"),
        ({"layers_studied": [18]}, "layers_studied must be at most 17"),
        ({"shots_studied": []}, "shots_studied"),
    ],
)
def test_wrong_values_of_the_studies(changes, words):
    assert study().shots == 5
    with pytest.raises(ParameterError, match=re.escape(words)):
        study(**changes)
