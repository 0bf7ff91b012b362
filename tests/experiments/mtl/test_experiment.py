"""The multi-task experiment on images made for it: what must be equal, and what must not."""

import pickle

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
from experiments.mtl.statistics import MixedStatistics
from ktlib.mtl.conflict import ConflictMeter
from ktlib.seeding import generator
from tests.ktlib.mtl.trunks import TracedWrongly

CLASSES = ("a", "b", "c")
VALUES = {
    "profile": "test", "run_dir": "", "device": "cpu", "seeds": [0],
    "dataset": "multi_fashion_mnist", "train_images": 32, "test_images": 12, "width": 4,
    "epochs": 2, "batch_size": 8, "lr": 0.05, "lr_drops": [0.5], "severity": -0.1, "top_k": 3,
    "search_quarters": 1,
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


def untrained(e):
    network = e.new_network(0)
    return TrainedRun(network, MixedStatistics(network))


def weights(run: TrainedRun):
    return torch.cat([p.detach().flatten() for p in run.network.parameters()])


def test_equal_seeds_give_equal_networks_and_other_seeds_do_not():
    one, again, other = (experiment().train("pcgrad", seed) for seed in (3, 3, 4))
    assert torch.equal(weights(one), weights(again))
    assert not torch.equal(weights(one), weights(other))
    assert one.losses == again.losses


def test_a_split_trunk_is_compared_with_whole_ones_on_training_images(monkeypatch):
    monkeypatch.setattr(MultiTaskExperiment, "new_trunk", lambda _: TracedWrongly())
    with pytest.warns(UserWarning, match="the example gives other outputs"):
        assert not experiment().new_network(0, ["c"]).trunk.shares_prefix


def test_joint_training_is_descent_on_the_sum_of_losses():
    # The task gradients, added up, are the gradient of the sum: two ways to one network.
    e = experiment(epochs=1, lr=0.001)  # small steps: training amplifies rounding
    counted, plain = e.train("joint", 0), e.optimise(e.new_network(0), 0)
    assert not plain.meters
    moved = (weights(plain) - weights(untrained(e))).abs().max()
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


def test_rates_and_options_are_those_given():
    e, slow = experiment(), experiment(lr=0.01)
    for train in (
        lambda e, **lr: e.train("mgda", 0, **lr),
        lambda e, **lr: e.train_single(0, **lr)["item"],
        lambda e, **lr: train_architecture(e, "cross_stitch", 0, **lr),
    ):
        assert torch.equal(weights(train(slow)), weights(train(e, lr=0.01)))
        assert not torch.equal(weights(train(slow)), weights(train(e)))
    for method, options in (("cagrad", {"c": 0.9}), ("gradnorm", {"alpha": 100.0})):
        changed = e.train(method, 0, **options)
        assert not torch.equal(weights(changed), weights(e.train(method, 0)))


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


def test_pixels_are_normalised_alike_at_every_size():
    """Also where another size was asked for first: nothing is carried over that would differ."""
    e = experiment()
    before = e.with_parameters(train_images=40).normalisation
    assert e.normalisation == before == e.with_parameters(train_images=48).normalisation


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
    again = pickle.loads(pickle.dumps(train_architecture(e, name, 0)))  # noqa: S301
    assert torch.equal(weights(run), weights(again))  # also from the cache
    assert e.scores(again.network) == e.scores(run.network)


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


def test_images_are_tested_in_batches_that_fit(monkeypatch):
    e, seen = experiment(), []
    network = e.new_network(0)
    network.register_forward_hook(lambda _network, given, _made: seen.append(len(given[0])))
    expected = e.scores(network)
    monkeypatch.setattr("experiments.mtl.experiment._PIXELS", 5 * 16 * 16)
    found = e.scores(network)
    assert seen == [12, 5, 5, 2]
    assert found == expected


@pytest.mark.parametrize("spread", [1.0, 300.0])
def test_images_of_floating_point_numbers_are_taken_as_they_are(spread, monkeypatch):
    """CityScapes and NYUv2 come in files of float32 numbers."""
    bytes_ = {"train": images(60, 0), "test": images(20, 1)}
    numbers = {
        split: MultiTaskImages(one.images / 255 * spread, one.targets, one.tasks)
        for split, one in bytes_.items()
    }
    expected = experiment().batch(bytes_["train"], torch.arange(4))[0]
    monkeypatch.setattr(data, "load_tasks", lambda _name, split: numbers[split])
    e = experiment(epochs=1)
    assert torch.allclose(e.batch(e.train_data, torch.arange(4))[0], expected, atol=1e-5)
    assert torch.isfinite(weights(e.train("joint", 0))).all()


def test_only_the_chosen_tasks_are_trained(monkeypatch):
    three = {
        split: MultiTaskImages(
            one.images, {**one.targets, "bar": one.targets["item"]},
            (*one.tasks, Task("bar", "classes", CLASSES)),
        )
        for split, one in (("train", images(60, 0)), ("test", images(20, 1)))
    }  # fmt: skip
    monkeypatch.setattr(data, "load_tasks", lambda _name, split: three[split])
    assert list(experiment(epochs=1).train("joint", 0).losses) == ["item", "digit", "bar"]
    e = experiment(epochs=1, tasks=["digit", "item"])
    run = e.train("joint", 0)
    assert list(run.losses) == list(e.scores(run.network)) == ["item", "digit"]
    assert set(e.train_single(0)) == {"item", "digit"}


def test_a_batch_is_at_most_a_quarter_of_the_images():
    with pytest.raises(ValueError, match="batch_size .* 60 training images.*batch_size=16"):
        experiment(train_images=0, batch_size=16)
