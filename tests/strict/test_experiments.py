"""The experiments of the chapters at their smallest, on a device that is no CPU."""

import math

import pytest
import torch

import data_prep as data
from experiments.cpeft.experiment import ContinualExperiment
from experiments.cpeft.parameters import METHODS as CONTINUAL_METHODS
from experiments.cpeft.parameters import ContinualPeftParameters
from experiments.fcl.experiment import STARTS_FROM, FewShotExperiment
from experiments.fcl.parameters import METHODS as FEW_SHOT_METHODS
from experiments.ila.experiment import LayerExperiment
from experiments.mtl.experiment import MultiTaskExperiment
from experiments.mtl.parameters import GRADIENT_METHODS, ReconParameters
from tests.chapters import CHAPTERS, check_profile
from tests.experiments.fcl.test_experiment import parameters as few_shot_parameters
from tests.experiments.ila.conftest import WORDS, sets
from tests.experiments.ila.conftest import parameters as layer_parameters
from tests.experiments.mtl.test_experiment import VALUES, images
from tests.strict_device import recorded

__all__ = ["sets"]


def all_but(quick, methods):
    """All methods; those that are not quick are run with the slow tests."""
    return [m if m in quick else pytest.param(m, marks=pytest.mark.slow) for m in methods]


@pytest.fixture(autouse=True)
def _here(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)


@pytest.fixture
def few_shot(strict):
    return FewShotExperiment(few_shot_parameters(sessions=1), strict)


@pytest.mark.parametrize("method", all_but({"f2m", "topic"}, FEW_SHOT_METHODS))
def test_few_shot_sessions(method, few_shot):
    start = STARTS_FROM.get(method, "plain")
    if start == "f2m":
        trained = few_shot.train_f2m(3)
    else:
        radius = 0.05 if start == "sam" else 0.0
        trained = few_shot.train_plain(3, cosine=start == "cosine", sam_radius=radius)
    setting = {"penalty": 1.0, "bound": 0.01} if method == "ewc_wide" else {}
    results = few_shot.run_sessions(few_shot.learner(method, trained, 3, **setting), 3)
    assert results is not None
    if method == "f2m":
        found = few_shot.flatness(trained, 3, "test", bound=0.01, draws=2, images=10)
        assert math.isfinite(found.indicator)


@pytest.fixture
def multi_task(strict, monkeypatch):
    sets_ = {"train": images(60, 0), "test": images(20, 1)}
    monkeypatch.setattr(data, "load_tasks", lambda _name, split: sets_[split])
    return MultiTaskExperiment(ReconParameters.model_validate(VALUES | {"epochs": 1}), strict)


@pytest.mark.parametrize("method", all_but({"joint"}, GRADIENT_METHODS))
def test_multi_task_training(method, multi_task):
    run = multi_task.train(method, 0)
    assert all(math.isfinite(loss) for losses in run.losses.values() for loss in losses)
    if method == "joint":
        layers = multi_task.recon_layers(run)
        again = multi_task.train("pcgrad", 0, layers)
        assert multi_task.scores(again.network).keys() == multi_task.tasks.keys()
        assert multi_task.single_scores(multi_task.train_single(0)).keys() == set(multi_task.tasks)


@pytest.mark.slow
@pytest.mark.parametrize(("method", "least"), [("joint", 1), ("pcgrad", 2), (None, 0)])
def test_a_step_of_multi_task_training_waits_no_oftener(method, least, multi_task):
    counts = []
    for epochs in (1, 2):  # of 4 steps; at the end of an epoch the two losses are read, and checked
        e = multi_task.with_parameters(epochs=epochs)
        with recorded() as record:
            e.train(method, 0) if method else e.optimise(e.new_network(0), 0)
        counts.append(len(record.reads) + len(record.waits))
    assert counts[1] - counts[0] <= 4 * least + 4


def test_layers_of_a_language_model(strict, sets, monkeypatch):
    monkeypatch.setattr(
        "experiments.ila.experiment.load_text",
        lambda name: [f"{name} {word} " * 4 for word in WORDS],
    )
    experiment = LayerExperiment(layer_parameters(sets), strict)
    run = experiment.tune(sets[0], 1, milestones=(0.5,))
    ranking = experiment.rank(run, share=0.5)
    assert tuple(ranking.scores) == experiment.layers
    assert tuple(experiment.rank_full(sets[0], 0).scores)[: len(experiment.layers)]
    top = experiment.selected("top", ranking, 0)
    losses = experiment.tuned_losses("lora", top, sets[1], 0)
    assert all(math.isfinite(loss) for loss in losses.values())


@pytest.fixture
def tasks_of_classes(strict, tmp_path, monkeypatch):
    monkeypatch.setenv("KTLIB_CACHE", str(tmp_path))
    smoke = check_profile(
        ContinualPeftParameters, "continual_peft", CHAPTERS / "params/continual_peft.smoke.yaml"
    )
    small = {"pretraining_epochs": 1, "epochs": 1}
    parameters = ContinualPeftParameters.model_validate(smoke.model_dump() | small)
    return ContinualExperiment(parameters, strict)


@pytest.mark.parametrize("method", all_but({"inflora"}, CONTINUAL_METHODS))
def test_continual_learning_of_adapters(method, tasks_of_classes):
    run = tasks_of_classes.run(method, 0)
    assert run.rows
    again = tasks_of_classes.pretrained()  # from its file
    assert {str(value.device) for value in again.parameters()} == {str(torch.device("strict", 0))}
