"""The parameters of the Recon chapters, in the first seconds of a run."""

import pytest

from experiments.models.backbones import SETTINGS, backbone_for
from experiments.mtl.parameters import BACKBONES, KNOBS, EvidenceParameters, ReconParameters
from experiments.run.parameters import ParameterError
from ktlib.mtl import layers_of
from tests.chapters import check_cell, check_profile, profiles

MODELS = {"recon": ReconParameters, "recon_evidence": EvidenceParameters}
FEW = {"transfer_from": [], "task_counts": [], "counts_studied": [], "skips_studied": []}

PASCAL = {"dataset": "pascal_context", "backbone": "mobilenet_v2", "width": 32}


def check(chapter, **changes):
    return check_cell(MODELS[chapter], chapter, **changes)


@pytest.mark.parametrize("chapter", MODELS)
def test_the_parameters_cell_is_accepted(chapter):
    assert check(chapter).dataset == "multi_fashion_mnist"


@pytest.mark.parametrize(("chapter", "path"), profiles(MODELS))
def test_every_profile_is_accepted(chapter, path):
    assert check_profile(MODELS[chapter], chapter, path)


@pytest.mark.parametrize("batch_norm", [True, False])
@pytest.mark.parametrize(
    ("dataset", "name"), [(dataset, name) for dataset in BACKBONES for name in BACKBONES[dataset]]
)
def test_the_number_of_layers_is_that_of_the_network(dataset, name, batch_norm):
    trunk = backbone_for(dataset if dataset in SETTINGS else "multi_fashion_mnist", name, 4)
    changes = {
        "dataset": dataset,
        "backbone": name,
        "width": 4,
        "batch_norm": batch_norm,
        "top_k": 5,
        "methods": ["single", "joint"],
        "recon_methods": ["joint"],
        "control_methods": ["joint"],
    }
    shared = layers_of(trunk, batch_norm).keys() - set(getattr(trunk, "attention_layers", ()))
    assert check("recon_evidence", **FEW | changes).ranked_layers == len(shared)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dataset": "mnist"}, ["dataset", "mnist", "multi_fashion_mnist"]),
        ({"backbone": "segnet"}, ["backbone must be 'resnet18'", "Found 'segnet'"]),
        ({"severity": 0.1}, ["severity", "0.1"]),
        ({"severity": -1.0}, ["severity", "-1.0"]),
        ({"top_k": 0}, ["top_k", "0"]),
        ({"search_quarters": 5}, ["search_quarters", "5"]),
        ({"train_images": 100}, ["four batches", "4 x 48", "Found 100"]),
        ({"lr_drops": [0.5, 1.5]}, ["lr_drops must lie between 0 and 1"]),
        ({"lr_drops": [0.75, 0.5]}, ["lr_drops must rise"]),
        ({"lr_factor": 1.0}, ["lr_factor", "1.0"]),
        ({"optimizer": "sgdm"}, ["optimizer", "sgdm", "sgd", "adam"]),
        ({"augment": True}, ["augment must be False", "no maps"]),
        ({"lr_rate": 1.0}, ["lr_rate"]),
        ({"top_k": 42}, ["top_k", "41", "42"]),
        ({"top_k": 22, "batch_norm": False}, ["top_k", "21", "22"]),
    ],
)
@pytest.mark.parametrize("chapter", MODELS)
def test_wrong_values_are_named_with_what_is_allowed(chapter, changes, words):
    with pytest.raises(ParameterError) as caught:
        check(chapter, **changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"methods": ["single", "mgda"], "recon_methods": ["mgda"]}, ["methods must hold 'joint'"]),
        ({"methods": ["joint", "mgda"]}, ["methods must hold 'single'"]),
        ({"methods": ["joint", "joint"]}, ["methods", "differ from each other"]),
        ({"dataset": "nyuv2"}, ["backbone", "'mtan' or 'segnet'", "'resnet18'"]),
        ({"top_k": 41}, ["top_k", "below 41"]),
        ({"dataset": "celeba", "methods": ["single", "joint", "bmtas"]}, ["bmtas", "celeba"]),
        ({"tasks": ["digit", "digit"]}, ["tasks", "differ from each other"]),
        (
            {"dataset": "pascal_context", "backbone": "mobilenet_v2", "width": 6},
            ["width", "multiple of 4", "6"],
        ),
        ({"methods": ["single", "joint", "best"]}, ["methods", "best", "pcgrad"]),
        ({"recon_methods": ["joint", "single"]}, ["recon_methods cannot hold", "['single']"]),
        ({"recon_methods": ["joint", "mmoe"]}, ["must be among methods", "['mmoe']"]),
        ({"recon_methods": ["mmoe"]}, ["must hold 'joint', the reference"]),
        ({"control_methods": ["mgda"]}, ["control_methods must be among methods", "['mgda']"]),
        ({"method_settings": {"sgd": {"lr": 0.1}}}, ["method must be one of", "'sgd'"]),
        ({"method_settings": {"mgda": {"lr": 0.0}}}, ["mgda may have ('lr',)", "lr = 0.0"]),
        ({"method_settings": {"mgda": {"c": 0.2}}}, ["mgda may have ('lr',)", "c = 0.2"]),
        ({"experts": 1}, ["experts", "1"]),
        ({"long_images": 100}, ["long_images", "four batches", "Found 100"]),
        ({"tasks": ["digit"]}, ["tasks", "empty (all) or at least two of item, digit"]),
        ({"tasks": ["digit", "edges"]}, ["tasks", "item, digit", "['digit', 'edges']"]),
        ({"weights": "DEFAULT"}, ["weights must be empty", "'DEFAULT' for 'resnet18'"]),
        (PASCAL | {"weights": "IMAGENET"}, ["weights", "IMAGENET1K_V1", "or a file", "'IMAGENET'"]),
        (PASCAL | {"weights": "DEFAULT", "width": 16}, ["weights", "width 32", "of width 16"]),
        ({"dataset": "cityscapes", "backbone": "segnet", "methods": ["single", "joint", "mmoe"]},
         ["'mmoe' with the backbone resnet18 only", "'segnet'"]),
    ],
)  # fmt: skip
def test_wrong_methods_are_refused(changes, words):
    changes = {"recon_methods": ["joint"], "methods": ["single", "joint"],
               "control_methods": ["joint"]} | FEW | changes  # fmt: skip
    with pytest.raises(ParameterError) as caught:
        check("recon_evidence", **changes)
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"severities_studied": [0.0, 0.2]}, ["severities_studied", "0.2"]),
        ({"counts_studied": [5, 5]}, ["counts_studied", "differ from each other"]),
        ({"counts_studied": [50, 5]}, ["counts_studied", "41", "[50, 5]"]),
        ({"quarters_studied": ["5"]}, ["quarters_studied", "5"]),
        ({"timed_methods": ["pcgrad"]}, ["timed_methods", "joint"]),
        ({"timed_methods": ["joint", "famo"]}, ["timed_methods", "famo"]),
        ({"timed_steps": 3}, ["timed_steps", "3"]),
        ({"dataset": "celeba", "methods": ["single", "joint"], "recon_methods": ["joint"]},
         ["task_counts must be empty for 'celeba'", "[2, 10, 40]"]),
        ({"task_counts": [1]}, ["task_counts", "1"]),
        ({"task_counts": [2, 80]}, ["task_counts", "80"]),
        (
            {"timed_steps": 100_000, "batch_size": 500, "train_images": 0, "long_images": 0},
            ["timed_steps x batch_size must be at most 10000000", "100000 x 500"],
        ),
        ({"controls": ["middle"]}, ["controls", "middle", "random_layers"]),
        ({"transfer_from": ["celeba"]}, ["transfer_from", "celeba", "multi_mnist"]),
        ({"controls": [], "skips_studied": ["last"]}, ["skips_studied", "if controls hold it"]),
        ({"shown": "short"}, ["shown", "short", "long"]),
    ],
)  # fmt: skip
def test_wrong_studies_are_refused(changes, words):
    with pytest.raises(ParameterError) as caught:
        check("recon_evidence", **changes)
    for word in words:
        assert word in str(caught.value)


def test_every_knob_of_the_search_may_be_given_by_hand():
    settings = {name: dict.fromkeys(knobs, 0.5) for name, knobs in KNOBS.items()}
    assert check("recon_evidence", method_settings=settings).method_settings == settings
