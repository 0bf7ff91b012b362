import pytest

from experiments.fcl.parameters import FclParameters, FclStudyParameters
from experiments.run.chapter_source import parameters_cell
from experiments.run.parameters import ParameterError, check_parameter_file, check_parameters
from tests.paths import ROOT

CHAPTER = ROOT / "chapters" / "fcl.py"
STUDIES = CHAPTER.with_name("fcl_studies.py")


COLOUR = {"dataset": "cifar100"}
TOPIC = COLOUR | {"split": "topic", "base_images": 0}


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
        ({"noise_levels": 1}, ["noise_levels", "1", "0 or at least 2"]),
        ({"flatness_bounds": [0.1, 0.0]}, ["flatness_bounds", "0.0"]),
        ({"flatness_bounds": [0.1, 0.1]}, ["flatness_bounds", "differ"]),
        ({"base_images": 501}, ["base_images must be at most 500", "501"]),
        ({"shots": 501}, ["shots must be at most 500", "501"]),
        ({"test_images": 101}, ["test_images must be at most 100", "101"]),
        ({"flatness_images": 601}, ["flatness_images must be at most 600", "601"]),
        ({"seeds": [2**32]}, ["seeds", "4294967296", "4294967295"]),
        ({"class_seed": 2**32}, ["class_seed", "4294967296"]),
        ({"tuned_convolutions": 18}, ["tuned_convolutions", "18", "17"]),
        ({"weights": "DEFAULT"}, ["weights", "'pairs'", "DEFAULT"]),
        (COLOUR | {"weights": "missing.pth"}, ["weights", "missing.pth", "DEFAULT"]),
        ({"shots": 5.0}, ["shots", "5.0"]),
        ({"nois_bound": 0.1}, ["nois_bound", "noise_bound"]),
        ({"stem_stride": 9}, ["stem_stride", "9"]),
        ({"base_images": 1}, ["base_images", "1", "0 or at least 2"]),
        ({"split": "topic"}, ["split 'topic'", "cifar100", "'pairs'"]),
        (TOPIC | {"ways": 4}, ["ways must be 5 with split 'topic' of 'cifar100'. Found 4"]),
        (TOPIC | {"base_images": 9}, ["base_images must be 0 (all) with split 'topic'. Found 9"]),
        (TOPIC | {"dataset": "cub200"}, ["base_classes must be 100", "'cub200'"]),
        ({"method_settings": {"icral": {}}}, ["method_settings", "icarl", "Found 'icral'"]),
        ({"method_settings": {"f2m": {"lr": 1.0}}}, ["method_settings", "Found 'f2m'"]),
        ({"method_settings": {"icarl": {"rate": 1.0}}}, ["icarl", "rate = 1.0"]),
        ({"method_settings": {"icarl": {"penalty": 1.0}}}, ["icarl", "penalty = 1.0"]),
        ({"method_settings": {"icarl": {"lr": 0.0}}}, ["icarl", "lr = 0.0"]),
        ({"method_settings": {"topic": {"epochs": 1.5}}}, ["epochs of topic", "1.5"]),
        ({"method_settings": {"ewc_wide": {"lr": 0.1}}}, ["ewc_wide", "penalty"]),
        ({"method_settings": {"topic": 3}}, ["method_settings", "topic"]),
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
        ({"bounds_studied": [0.0]}, ["bounds_studied", "0.0"]),
        ({"draws_studied": [0, 1]}, ["draws_studied", "0"]),
        ({"rates_studied": [0.0]}, ["rates_studied", "0.0"]),
        ({"layers_studied": [18]}, ["layers_studied", "18", "17"]),
        ({"shots_studied": []}, ["shots_studied"]),
        ({"noise_bound": 1e-9}, ["noise_bound must be at least 2e-09", "noise_bound=1e-09"]),
        ({"session_lr": 3.0}, ["session_lr at most 2.5", "session_lr=3.0"]),
        ({"shots_studied": [5, 501]}, ["shots_studied must be at most 500", "501"]),
        ({"class_orders": [2**32]}, ["class_orders", "4294967296"]),
        ({"class_orders": [1, 1]}, ["class_orders", "differ"]),
        ({"weights_studied": [0.1, 0.1]}, ["weights_studied", "differ"]),
        ({"noise_bound": 0.0}, ["noise_bound", "0.0"]),
        ({"narrow_bound": 0.0}, ["narrow_bound", "0.0"]),
        ({"sessions": 1, "ways": 1}, ["sessions x ways", "1 x 1"]),
        (TOPIC | {"base_classes": 60, "sessions": 8}, ["shots_studied must be [5]", "[1, 5, 20]"]),
    ],
)
def test_wrong_values_of_the_studies(changes, words):
    assert study().shots == 5
    with pytest.raises(ParameterError) as caught:
        study(**changes)
    for word in words:
        assert word in str(caught.value)
