"""The multi-task experiment on images made for it: what must be equal, and what must not."""

import pytest
import torch
from torch import nn

import data_prep as data
from data_prep import MultiTaskImages, Task
from experiments.mtl.comparison import train_architecture
from experiments.mtl.experiment import (
    QUARTERS,
    MultiTaskExperiment,
    TrainedRun,
    conflict_ranking,
)
from experiments.mtl.parameters import ARCHITECTURES, GRADIENT_METHODS, ReconParameters
from experiments.mtl.studies import run_result
from ktlib.mtl.conflict import ConflictMeter
from ktlib.seeding import generator

CLASSES = ("a", "b", "c")
VALUES = {
    "profile": "test", "run_dir": "", "device": "cpu", "precision": "float32", "seeds": [0],
    "dataset": "multi_fashion_mnist", "backbone": "resnet18", "train_images": 32,
    "test_images": 12, "width": 4, "epochs": 2, "batch_size": 8, "optimizer": "sgd", "lr": 0.05,
    "lr_drops": [0.5], "lr_factor": 0.1, "cagrad_c": 0.2, "batch_norm": True, "augment": False,
    "severity": -0.1, "top_k": 3, "search_quarters": 1, "methods": ["single", "joint"],
    "recon_methods": ["joint"], "compared_seeds": 1, "method_lr": {}, "experts": 2,
    "timed_images": 2,
}  # fmt: skip


def images(count, seed):
    """A bright row says the first class, a bright column the second."""
    source = generator(seed, "images")
    one, two = (torch.randint(3, (count,), generator=source) for _ in range(2))
    pixels = torch.randint(60, (count, 1, 16, 16), generator=source).to(torch.uint8)
    for i in range(count):
        pixels[i, 0, 4 * int(one[i]) : 4 * int(one[i]) + 4] += 90
        pixels[i, 0, :, 4 * int(two[i]) : 4 * int(two[i]) + 4] += 90
    tasks = (Task("item", "classes", CLASSES), Task("digit", "classes", CLASSES))
    return MultiTaskImages(pixels, {"item": one, "digit": two}, tasks)


@pytest.fixture(autouse=True)
def _small_data(monkeypatch):
    sets = {"train": images(60, 0), "test": images(20, 1)}
    monkeypatch.setattr(data, "load_tasks", lambda _name, split: sets[split])


def experiment(validation_images=0, **values):
    parameters = ReconParameters.model_validate(VALUES | values)
    return MultiTaskExperiment(parameters, "cpu", validation_images=validation_images)


def weights(run: TrainedRun):
    return torch.cat([p.detach().flatten() for p in run.network.parameters()])


def test_equal_seeds_give_equal_networks_and_other_seeds_do_not():
    one, again, other = (experiment().train("pcgrad", seed) for seed in (3, 3, 4))
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(other))
    assert one.losses == again.losses


def test_joint_training_is_descent_on_the_sum_of_losses():
    # The task gradients, added up, are the gradient of the sum: two ways to one network.
    e = experiment(epochs=1, lr=0.001)  # small steps: training amplifies rounding
    counted, plain = e.train("joint", 0), e.optimise(e.new_network(0), 0)
    assert not plain.meters
    moved = (weights(plain) - weights(TrainedRun(e.new_network(0)))).abs().max()
    assert moved > 1e-3
    assert torch.allclose(weights(counted), weights(plain), atol=0.01 * float(moved))


def test_every_step_is_counted_in_its_quarter():
    run = experiment().train("joint", 0)
    assert len(run.meters) == QUARTERS
    assert [meter.observations for meter in run.meters] == [2, 2, 2, 2]  # 2 epochs of 4 batches
    assert run.conflicts().observations == 8
    assert run.conflicts(1).observations == 2
    assert run.meters[0].observations == 2  # the sum is a copy
    with pytest.raises(ValueError, match="quarters must lie between"):
        run.conflicts(5)


def test_a_single_task_network_has_one_head_and_no_conflicts():
    e = experiment()
    runs = e.train_single(0)
    assert set(runs) == {"item", "digit"}
    for name, run in runs.items():
        assert run.network.tasks == (name,)
        with pytest.raises(ValueError, match="without counting"):
            run.conflicts()
    assert {name: set(v) for name, v in e.single_scores(runs).items()} == {
        "item": {"accuracy"}, "digit": {"accuracy"}
    }  # fmt: skip


def test_training_learns_and_scores_are_percent():
    e = experiment(epochs=12, width=8)
    before = e.scores(e.new_network(0))
    after = e.scores(e.train("joint", 0).network)
    assert all(0 <= v["accuracy"] <= 100 for v in after.values())
    mean = [sum(v["accuracy"] for v in s.values()) / 2 for s in (before, after)]
    assert mean[1] > mean[0] + 20


def test_a_method_trains_with_the_rate_given_for_it():
    rates = {"mgda": 0.01, "single": 0.02, "cross_stitch": 0.015}
    with_rates, plain = experiment(method_lr=rates), experiment()
    for name in ("mgda", "joint"):
        one, same = with_rates.train(name, 0), plain.train(name, 0, lr=rates.get(name, 0.05))
        assert torch.equal(weights(one), weights(same))
    assert not torch.equal(weights(with_rates.train("mgda", 0)), weights(plain.train("mgda", 0)))
    one, same = (
        e.train_single(0, **lr)["item"] for e, lr in ((with_rates, {}), (plain, {"lr": 0.02}))
    )
    assert torch.equal(weights(one), weights(same))
    one = train_architecture(with_rates, "cross_stitch", 0)
    assert torch.equal(
        weights(one), weights(train_architecture(plain, "cross_stitch", 0, lr=0.015))
    )


def test_what_studies_report_of_a_run():
    e = experiment()
    run = e.train("joint", 0)
    found = run_result(run, {"item": {"accuracy": 50.0}, "digit": {"accuracy": 60.0}})
    below = sum(meter.shared_score(-0.01) for meter in run.meters)
    assert found.pop("severe") == pytest.approx(100 * below / 8)
    assert found == {"accuracy": 55.0, "item": 50.0, "digit": 60.0}
    alone = run_result(TrainedRun(e.new_network(0)), {"item": {"accuracy": 50.0}})
    assert alone == {"accuracy": 50.0, "item": 50.0, "severe": None}


def test_split_layers_leave_the_count_and_start_equal():
    e = experiment()
    layers = ["conv1", "layer1.0.bn1"]
    network = e.new_network(0, layers)
    one, two = (network.trunk.trunk_of(task).conv1.weight for task in e.tasks)
    assert one is not two
    assert torch.equal(one, two)
    run = e.train("joint", 0, layers)
    assert not set(layers) & set(run.meters[0].layers)
    one, two = (run.network.trunk.trunk_of(task).conv1.weight for task in e.tasks)
    assert not torch.equal(one, two)


def test_with_all_layers_split_nothing_is_counted_and_every_task_learns_alone():
    e = experiment(epochs=1, lr=0.001)  # small steps: training amplifies rounding
    layers = list(e.new_network(0).shared_layers())
    run, alone = e.train("joint", 0, layers), e.train_single(0)
    assert not run.meters
    batch = e.batch(e.test_data, torch.arange(4))[0]
    for name, single in alone.items():
        assert torch.allclose(run.network(batch)[name], single.network(batch)[name], atol=1e-4)


def test_the_ranking_is_that_of_the_searched_quarters():
    e = experiment()
    run = e.train("joint", 0)
    assert e.ranking(run) == run.conflicts(1).ranking(-0.1)
    assert e.recon_layers(run) == e.ranking(run)[:3]
    whole = e.with_parameters(search_quarters=4)
    assert whole.ranking(run) == run.conflicts(4).ranking(-0.1)
    with pytest.warns(UserWarning, match="no conflict of severity -0.9 .* order of the network"):
        assert conflict_ranking(ConflictMeter(nn.Linear(1, 1), [-0.9]), -0.9) == [""]
    without = e.with_parameters(batch_norm=False)
    assert not any("bn" in name for name in without.ranking(run))
    assert set(without.ranking(run)) < set(e.ranking(run))


def test_validation_images_are_no_training_images_of_any_seed_and_no_test_images():
    e = experiment(validation_images=10)
    assert len(e.test_data) == 10
    for seed in range(5):
        assert not set(e.training_rows(seed).tolist()) & set(e.held_out.tolist())
    assert torch.equal(e.test_data.images, e.train_data.images[e.held_out])
    assert len(experiment().test_data) == 12


def test_the_learning_rate_falls_where_it_is_told():
    seen = []

    class Recorded(torch.optim.SGD):
        def step(self, *arguments, **keywords):
            seen.append(self.param_groups[0]["lr"])
            return super().step(*arguments, **keywords)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim, "SGD", Recorded)
        e = experiment(lr_drops=[0.5, 0.75])
        e.optimise(e.new_network(0), 0)
    assert seen == pytest.approx([0.05] * 4 + [0.005] * 2 + [0.0005] * 2)


def test_a_loss_that_is_not_finite_stops_the_training_and_is_named():
    with pytest.raises(FloatingPointError, match="'(item|digit)'"):
        experiment(epochs=3).train("joint", 0, lr=1e12)
    e = experiment(epochs=3)
    with pytest.raises(FloatingPointError, match="loss of task"):
        e.optimise(e.new_network(0), 0, lr=1e12)


@pytest.mark.parametrize("method", GRADIENT_METHODS)
def test_every_gradient_method_trains_with_and_without_recon(method):
    e = experiment(epochs=1)
    for layers in ((), ("conv1",)):
        run = e.train(method, 0, layers)
        assert run.conflicts().observations == 4
        assert torch.isfinite(weights(run)).all()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains(name):
    e = experiment(epochs=1)
    torch.manual_seed(9)  # nothing may come from the state that somebody left behind
    run = train_architecture(e, name, 0)
    assert set(e.scores(run.network)) == {"item", "digit"}
    again = train_architecture(e, name, 0)
    assert torch.equal(weights(run), weights(again))


@pytest.mark.parametrize("name", ["rotograd", "mmoe"])
def test_recon_splits_layers_of_an_architecture(name):
    run = train_architecture(experiment(epochs=1), name, 0, ["conv1"])
    assert not any(layer.endswith("conv1") and "layer" not in layer
                   for layer in run.network.shared_layers())  # fmt: skip


def test_unknown_methods_and_values_are_refused():
    e = experiment()
    with pytest.raises(ValueError, match="method must be one of"):
        e.train("best", 0)
    with pytest.raises(ValueError, match="name must be one of"):
        train_architecture(e, "joint", 0)
    with pytest.raises(ValueError, match=r"Found \['dataset'\]"):
        e.with_parameters(dataset="celeba")
    with pytest.raises(ValueError, match="severity"):
        e.with_parameters(severity=0.5)


def test_other_targets_are_trained_on_with_the_same_images():
    from experiments.mtl.attributes import attribute_tasks

    e = experiment(epochs=1)
    asked = e.with_data(attribute_tasks(e.train_data, 4))
    assert len(asked.tasks) == 4
    run = asked.train("joint", 0)
    assert len(run.losses) == 4
    assert set(e.tasks) == {"item", "digit"}


def test_any_severity_that_is_asked_for_is_counted():
    e = experiment(severity=-0.05)
    run = e.train("joint", 0)
    assert sorted(e.ranking(run)) == sorted(experiment().ranking(run))
    assert len(e.recon_layers(run)) == 3


def test_a_batch_is_at_most_a_quarter_of_the_images():
    with pytest.raises(ValueError, match="batch_size .* 60 training images.*batch_size=16"):
        experiment(train_images=0, batch_size=16)
