"""The experiment behind the chapter: the same model, tasks and images for every method."""

import pytest
import torch

from experiments.cpeft import experiment as module
from experiments.cpeft.experiment import ContinualExperiment, ResizedImages, all_rows
from experiments.cpeft.parameters import METHODS, ContinualPeftParameters
from experiments.models.vit import small_vit
from tests.chapters import CHAPTERS, check_profile

SMOKE = CHAPTERS / "params/continual_peft.smoke.yaml"


@pytest.fixture
def parameters():
    return check_profile(ContinualPeftParameters, "continual_peft", SMOKE)


@pytest.fixture
def experiment(parameters, device, tmp_path, monkeypatch):
    return ContinualExperiment(parameters, device)


def test_tasks_have_no_base_class_and_all_others(experiment, parameters):
    tasks = experiment.tasks(0)
    seen = [c for task in tasks for c in task.classes.tolist()]
    assert len(tasks) == parameters.tasks
    assert sorted(seen + experiment.base_classes) == list(range(10))
    assert experiment.base_task.classes.sort().values.tolist() == sorted(experiment.base_classes)


def test_the_seed_orders_the_classes_and_not_the_base(experiment):
    orders = {tuple(c for t in experiment.tasks(s) for c in t.classes.tolist()) for s in range(4)}
    assert len(orders) > 1
    assert {frozenset(order) for order in orders} == {frozenset(next(iter(orders)))}


def test_a_search_never_loads_the_test_split(parameters, device, monkeypatch):
    asked = []
    real = module.load

    def watched(name, split):
        asked.append(split)
        return real(name, split)

    monkeypatch.setattr(module, "load", watched)
    held = ContinualExperiment(parameters, device, validation=True)
    images, labels = held.evaluation_data(0)
    assert asked == ["train"]
    assert len(images) == len(labels) > 0
    tasks = [held.base_task, *held.tasks(0)]
    for task in tasks:
        assert not set(task.train.tolist()) & set(task.validation.tolist())
        assert len(task.validation)


def test_the_model_is_trained_once_and_flat_ones_are_others(experiment, monkeypatch, tmp_path):
    monkeypatch.setenv("KTLIB_CACHE", str(tmp_path))
    one = experiment.pretrained()

    def train(*_):
        raise LookupError("trained again")

    monkeypatch.setattr(ContinualExperiment, "_pretrain", train)
    again = experiment.pretrained()
    for a, b in zip(one.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)
    with pytest.raises(LookupError):
        experiment.pretrained(sam_radius=0.05)
    with pytest.raises(LookupError):
        experiment.with_parameters(width=32).pretrained()


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_and_repeats_itself(experiment, method):
    one, other = (experiment.run(method, 0) for _ in range(2))
    assert one.rows == other.rows
    assert len(one.rows) == 6
    assert {(row["method"], row["seed"]) for row in all_rows([one])} == {(method, 0)}


def test_methods_start_from_the_same_model(experiment):
    network = experiment.pretrained()
    before = [p.clone() for p in network.parameters()]
    experiment.run("inflora", 0, network)
    for value, parameter in zip(before, network.parameters(), strict=True):
        assert torch.equal(value, parameter)


def test_what_is_noted_for_the_drift(experiment):
    run = experiment.run("inflora", 0, note=experiment.watch(0))
    assert [sorted(noted) for noted in run.noted] == [
        ["inputs", "memories", "weights"], ["weights"], ["weights"]
    ]  # fmt: skip
    layers = list(run.noted[0]["weights"])
    assert list(run.noted[0]["inputs"]) == list(run.noted[0]["memories"]) == layers
    # A copy: the learner's own memories have grown since.
    first = run.noted[0]["memories"][layers[0]].old_rank
    assert first < run.learner.memories[layers[0]].old_rank


def test_rankings_of_experts_are_of_the_adapted_layers(experiment):
    oracle = experiment.run("oracle", 0)
    ranking = experiment.expert_ranking(oracle, 2, seed=0)
    assert sorted(ranking.names) == sorted(oracle.learner.backbone.layers)


def test_the_same_tasks_can_be_learned_from_other_adapters(experiment):
    first = experiment.run("oracle", 0)
    same = experiment.run("oracle", 0, adapter_seed=0)
    other = experiment.run("oracle", 0, adapter_seed=5)
    assert same.rows == first.rows
    assert other.seed == 0
    assert other.learner.classes.tolist() == first.learner.classes.tolist()
    mine, theirs = (run.learner.experts[0] for run in (first, other))
    assert mine.keys() == theirs.keys()
    assert not any(torch.equal(mine[name], theirs[name]) for name in mine)


def test_answers_are_of_all_test_images_of_the_tasks(experiment):
    run = experiment.run("l2c", 0)
    _, labels = experiment.evaluation_data(0)
    known = torch.isin(labels.cpu(), run.learner.classes)
    assert len(experiment.expert_outputs(run).labels) == int(known.sum())


def test_images_grow_to_the_size_of_the_model():
    pixels = torch.randint(0, 256, (3, 3, 8, 8), dtype=torch.uint8)
    images = ResizedImages(pixels, 0.5, 0.5, 16)
    assert images[torch.tensor([0, 2])].shape == (2, 3, 16, 16)
    assert ResizedImages(pixels, 0.5, 0.5, 8)[torch.tensor([1])].shape == (1, 3, 8, 8)
    assert images[torch.tensor([0])].mean().item() == pytest.approx(
        (pixels[0] / 127.5 - 1).mean().item(), abs=0.05
    )


def test_unknown_names_are_refused(experiment):
    with pytest.raises(ValueError, match="method must be one of"):
        experiment.learner("ewc", 0)
    with pytest.raises(ValueError, match=r"Found \['depth'\]"):
        experiment.with_parameters(depth=3)


def test_grey_images_and_vit_b16(parameters, device, monkeypatch):
    """The large model gets three channels and 224 pixels; here a small one stands in for it."""
    values = parameters.model_dump() | {
        "model": "vit_b16", "weights": "a file", "base_classes": 0, "tasks": 5, "sam_radius": 0.0,
        "tops": [1, 5],
    }  # fmt: skip
    large = ContinualExperiment(ContinualPeftParameters.model_validate(values), device)
    asked = []

    def vit_b16(weights):
        asked.append(weights)
        return small_vit(image_size=224, patch_size=56, channels=3, width=16, blocks=1, heads=2)

    monkeypatch.setattr(module.vit, "vit_b16", vit_b16)
    features = large.pretrained()(large.images[torch.arange(2)])
    assert features.shape == (2, 16)
    assert asked == ["a file"]
    assert large.normalisation == (0.5, 0.5)
    named = large.with_parameters(weights="IMAGENET1K_V1")
    assert named.normalisation[0] != (0.5, 0.5)
