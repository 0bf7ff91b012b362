"""Parameters of the lesson and of the evidence: profiles, and what is refused."""

import pytest

from experiments.fcl.parameters import KNOBS, METHODS, EvidenceParameters, FclParameters
from experiments.run.parameters import ParameterError
from experiments.searches.fcl_evidence import GRIDS
from tests.chapters import check_cell, check_profile, profiles

MODELS = {"fcl": FclParameters, "fcl_evidence": EvidenceParameters}
LISTS = {"class_split": "topic", "base_images": 0}
TOPIC = {"dataset": "cifar100", "class_splits": ["topic"], "base_images": 0, "shots_studied": [5]}


@pytest.mark.parametrize("chapter", MODELS)
def test_the_parameters_cell_is_accepted(chapter):
    assert check_cell(MODELS[chapter], chapter).shots == 5


@pytest.mark.parametrize(("chapter", "path"), profiles(MODELS))
def test_every_profile_is_accepted(chapter, path):
    """Also those of the thesis's data sets that no profile of the build names."""
    assert check_profile(MODELS[chapter], chapter, path).seeds


def test_the_thesis_is_named_by_its_profiles():
    found = [check_profile(MODELS[c.values[0]], *c.values) for c in profiles(MODELS)]
    assert {p.dataset for p in found} == {"pairs", "cifar100", "mini_imagenet", "cub200"}
    (topic,) = (p for p in found if getattr(p, "class_splits", []) == ["topic"])
    assert (topic.dataset, topic.class_split) == ("cifar100", "topic")


def check_words(chapter, changes, words):
    with pytest.raises(ParameterError) as caught:
        check_cell(MODELS[chapter], chapter, **changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "digits", "class_split": "random"}, ["'digits' has 10 classes"]),
        ({"dataset": "imagenet"}, ["dataset", "imagenet", "pairs", "cifar100", "digits"]),
        ({"noise_draws": 0}, ["noise_draws", "0", "1"]),
        ({"noise_bound": -0.01}, ["noise_bound", "-0.01", "0"]),
        ({"noise_bound": "1e-3"}, ["noise_bound", "1e-3", "1.0e-3"]),
        ({"box": -0.001}, ["box", "-0.001", "0"]),
        ({"base_images": 501}, ["base_images must be at most 500", "501"]),
        ({"base_images": 1}, ["base_images", "1", "0 or at least 2"]),
        ({"shots": 501}, ["shots must be at most 500", "501"]),
        ({"shots": 5.0}, ["shots", "5.0"]),
        ({"test_images": 101}, ["test_images must be at most 100", "101"]),
        ({"seeds": [2**32]}, ["seeds", "4294967296", "4294967295"]),
        ({"nois_bound": 0.1}, ["nois_bound", "noise_bound"]),
        ({"class_split": "parts"}, ["class_split", "parts", "unseen_parts"]),
        ({"dataset": "cifar100"}, ["class_split 'unseen_parts' exists for pairs", "'cifar100'"]),
        (LISTS, ["class_split 'topic' exists for", "cifar100", "Found dataset='pairs'"]),
    ],
)
def test_wrong_values_of_the_lesson(changes, words):
    check_words("fcl", changes, words)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sessions": 9}, ["60 + 9 x 5 = 105", "'pairs' has 100 classes"]),
        ({"noise_levels": 1}, ["noise_levels", "1", "0 or at least 2"]),
        ({"flatness_images": 601}, ["flatness_images must be at most 600", "601"]),
        ({"tuned_convolutions": 18}, ["tuned_convolutions", "18", "17"]),
        ({"class_seed": 2**32}, ["class_seed", "4294967296"]),
        ({"stem_stride": 9}, ["stem_stride", "9"]),
        ({"weights": "DEFAULT"}, ["weights", "'pairs'", "DEFAULT"]),
        (TOPIC | {"weights": "missing.pth"}, ["weights", "missing.pth", "DEFAULT"]),
        ({"class_splits": []}, ["class_splits"]),
        ({"class_splits": ["random", "random"]}, ["class_splits", "differ"]),
        ({"class_splits": ["random", "topic"]}, ["class_splits must be ['topic'] alone"]),
        ({"base_classes": 65, "sessions": 7},
         ["base_classes must be at most 64 and ways at most 36 with class_splits", "65"]),
        (TOPIC | {"ways": 4}, ["ways must be 5 with class_split 'topic' of 'cifar100'. Found 4"]),
        (TOPIC | {"base_images": 9}, ["base_images must be 0 (all)", "Found 9"]),
        (TOPIC | {"dataset": "cub200"}, ["base_classes must be 100", "'cub200'"]),
        (TOPIC | {"shots_studied": [1, 5]}, ["shots_studied must be [5] with class_splits"]),
        ({"shots_studied": [5, 501]}, ["shots_studied must be at most 500", "501"]),
        ({"plane_boxes": [0.0]}, ["plane_boxes", "0.0"]),
        ({"plane_rates": [0.1, 0.1]}, ["plane_rates", "differ"]),
        ({"plane_noises": [-0.1]}, ["plane_noises", "-0.1"]),
        ({"flatness_bounds": [0.1, 0.0]}, ["flatness_bounds", "0.0"]),
        ({"draws_studied": [0, 1]}, ["draws_studied", "0"]),
        ({"layers_studied": [18]}, ["layers_studied", "18", "17"]),
        ({"weights_studied": [0.1, 0.1]}, ["weights_studied", "differ"]),
        ({"bounds_studied": []}, ["bounds_studied"]),
        ({"shown": "both"}, ["shown", "both", "long"]),
        ({"sam_radius": 0.0}, ["sam_radius", "0.0"]),
        ({"methods": ["ncm", "icral"]}, ["methods must be of", "icarl", "Found ['icral']"]),
        ({"method_settings": {"icral": {}}}, ["method must be one of", "Found 'icral'"]),
        ({"method_settings": {"ncm": {}}}, ["Found 'ncm'"]),
        ({"method_settings": {"icarl": {"rate": 1.0}}}, ["icarl", "rate = 1.0"]),
        ({"method_settings": {"icarl": {"penalty": 1.0}}}, ["icarl", "penalty = 1.0"]),
        ({"method_settings": {"icarl": {"lr": 0.0}}}, ["lr of icarl", "Found 0.0"]),
        ({"method_settings": {"lda": {"shrinkage": -0.1}}}, ["lda", "not negative"]),
        ({"method_settings": {"topic": {"epochs": 1.5}}}, ["epochs of topic", "1.5"]),
        ({"method_settings": {"f2m": {"bound": 11.0}}}, ["bound of f2m must be at most 10"]),
        ({"method_settings": {"topic": 3}}, ["method_settings", "topic"]),
    ],
)  # fmt: skip
def test_wrong_values_of_the_evidence(changes, words):
    check_words("fcl_evidence", changes, words)


def test_sizes_of_topic_are_accepted():
    cub = {"dataset": "cub200", "base_classes": 100, "sessions": 10, "ways": 10}
    for changes in (TOPIC, TOPIC | cub):
        assert check_cell(EvidenceParameters, "fcl_evidence", **changes).class_split == "topic"
    lesson = check_cell(FclParameters, "fcl", dataset="cifar100", sessions=8, **LISTS)
    assert (lesson.class_split, lesson.sessions) == ("topic", 8)


def test_knobs_are_those_of_the_search():
    """What a search chooses may be given, and nothing else."""
    for method in METHODS:
        assert set(GRIDS[method]) <= set(KNOBS.get(method, ())), method
