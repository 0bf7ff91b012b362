"""The experiment that chapters and searches share, on scikit-learn's digits."""

import pytest
import torch

import data_prep as data
import experiments.fcl.experiment as fcl
from data_prep.common.labelled import LabelledImages
from experiments.fcl.experiment import STARTS_FROM, FewShotExperiment
from experiments.fcl.parameters import KNOBS, METHODS
from ktlib.seeding import deterministic
from tests.experiments.fcl.tiny import tiny
from tests.ktlib.mtl.trunks import TracedWrongly

VARIANTS = {"sam": "f2m", "f2m_flat": "f2m", "ncm_raw": "ncm", "fsll_released": "fsll"}


def parameters(**changes):
    return tiny(seeds=[3, 4], class_split="random", **changes)


@pytest.fixture(autouse=True)
def _here(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    with deterministic():
        yield


@pytest.fixture
def experiment():
    return FewShotExperiment(parameters(), "cpu")


@pytest.mark.parametrize("width", [4, 8, 16, 64])
def test_narrow_networks_keep_the_usual_order_in_memory(width, experiment):
    """Convolutions of 8 channels of 84x84 images in the other one end the process."""
    convolution = experiment.with_parameters(width=width).new_network(3)[0].network.layer1[0].conv1
    last = convolution.weight.is_contiguous(memory_format=torch.channels_last)
    assert last == (width >= 16)


def same_weights(one, other):
    state = zip(
        one[0].network.state_dict().values(), other[0].network.state_dict().values(), strict=True
    )
    return all(torch.equal(a, b) for a, b in state)


def test_a_seed_gives_one_network(experiment):
    """Also with 4 channels, where PyTorch's channels_last convolutions spoil memory."""
    assert same_weights(experiment.train_plain(3), experiment.train_plain(3))
    assert not same_weights(experiment.train_plain(3), experiment.train_plain(4))


def test_the_network_is_compared_with_a_whole_one_on_base_images(experiment, monkeypatch):
    monkeypatch.setattr(fcl, "resnet18_features", lambda *_: TracedWrongly())
    few = experiment.with_parameters(tuned_convolutions=1)
    with pytest.warns(UserWarning, match="the example gives other outputs"):
        assert not few.new_network(3)[0].shares_prefix


def test_f2m_without_noise_and_prototype_fixing_is_plain_training(experiment):
    """The limit b = 0, lambda = 0, M = 1, bit for bit."""
    limit = experiment.with_parameters(noise_bound=0.0, prototype_weight=0.0, noise_draws=1)
    assert same_weights(limit.train_f2m(3), experiment.train_plain(3))


def test_base_images_are_normalised_to_mean_0_and_spread_1(experiment):
    images, labels = experiment.base_data(3)
    assert images.mean().abs() < 1e-5
    assert abs(float(images.std()) - 1) < 1e-5
    assert labels.unique().tolist() == [0, 1, 2, 3]


def test_changed_values_leave_the_first_experiment_alone(experiment):
    some = torch.arange(len(experiment.images))[::7]
    before = experiment.images[some]
    other = experiment.with_parameters(class_seed=5, lr=0.2)
    assert other.parameters.lr == 0.2
    assert experiment.parameters.lr != 0.2
    assert other.sessions(3)[0].classes.tolist() != experiment.sessions(3)[0].classes.tolist()
    images, _ = other.base_data(3)
    assert images.mean().abs() < 1e-5  # by the statistics of its own base classes
    assert torch.equal(experiment.images[some], before)
    assert other.train is experiment.train


def test_changed_refuses_what_it_does_not_know(experiment):
    with pytest.raises(ValueError, match="nois_bound"):
        experiment.with_parameters(nois_bound=0.1)
    with pytest.raises(ValueError, match="dataset"):
        experiment.with_parameters(dataset="pairs")
    with pytest.raises(ValueError, match="noise_draws"):
        experiment.with_parameters(noise_draws=0)


def test_a_search_never_loads_test_images(monkeypatch):
    searching = FewShotExperiment(parameters(), "cpu", validation_images=4)
    load = data.load
    monkeypatch.setattr(
        "experiments.fcl.experiment.data.load",
        lambda name, split: load(name, split) if split == "train" else pytest.fail("test images"),
    )
    trained = searching.train_plain(3)
    rows = searching.run_sessions(searching.learner("ncm", trained, 3), 3).rows
    assert len(rows) == 3
    images, labels = searching.evaluation_data(3)
    assert len(images) == len(labels) == 8 * 4
    trained_on = torch.cat([s.train for s in searching.sessions(3)]).tolist()
    held_out = torch.cat([s.validation for s in searching.sessions(3)]).tolist()
    assert not set(trained_on) & set(held_out)


def test_test_images_are_the_same_for_every_seed_and_as_many_as_asked_for(experiment):
    _, labels = experiment.evaluation_data(3)
    assert torch.equal(experiment.evaluation_data(4)[0], experiment.evaluation_data(3)[0])
    assert labels.bincount().tolist() == [5] * 10
    assert len(experiment.with_parameters(test_images=0).evaluation_data(3)[0]) == len(
        data.load("digits", "test")
    )


def test_every_method_starts_from_its_base_training_and_leaves_it_alone(experiment):
    plain, cosine = experiment.train_plain(3), experiment.train_plain(3, cosine=True)
    before = {k: v.clone() for k, v in plain[0].network.state_dict().items()}
    for name in METHODS:
        start = cosine if STARTS_FROM.get(name) == "cosine" else plain
        setting = {"lr": 0.001} if "lr" in KNOBS.get(name, ()) else {}
        setting |= {"bound": 0.1, "penalty": 1.0} if name == "ewc_wide" else {}
        learner = experiment.learner(name, start, 3, **setting)
        rows = experiment.run_sessions(learner, 3).rows
        assert [row["session"] for row in rows] == [1, 2, 3], name
        assert learner.name == VARIANTS.get(name, name)
    assert all(torch.equal(v, before[k]) for k, v in plain[0].network.state_dict().items())


def test_unknown_method(experiment):
    with pytest.raises(ValueError, match="method must be one of .*'idlvq'.* Found 'ewc'"):
        experiment.learner("ewc", experiment.new_network(3), 3)


def test_equal_seeds_draw_equal_noise_for_two_networks(experiment):
    """A network and its copy have the same flatness; another seed draws other points."""
    trained, again = experiment.train_plain(3), experiment.train_plain(3)
    options = {"bound": 0.05, "draws": 4, "images": 10}
    one = experiment.flatness(trained, 3, "train", **options)
    assert torch.equal(one.losses, experiment.flatness(again, 3, "train", **options).losses)
    assert not torch.equal(one.losses, experiment.flatness(trained, 4, "train", **options).losses)
    other = experiment.new_network(4)
    nets = {"trained": trained, "other": other}
    together = experiment.flatness_together(nets, 3, ("train", "test"), **options)
    assert torch.equal(together["trained", "train"].losses, one.losses)
    last = experiment.flatness(other, 3, "test", **options)
    assert torch.equal(together["other", "test"].losses, last.losses)


def test_each_way_to_divide_the_classes_has_its_sessions(monkeypatch):
    """With unseen parts there are 36 new classes: as many sessions as that allows."""
    labels = torch.arange(100).repeat(6)
    images = torch.zeros(600, 1, 2, 2, dtype=torch.uint8)
    pairs = LabelledImages(images, labels, tuple(map(str, range(100))))
    monkeypatch.setattr(fcl.data, "load", lambda *_: pairs)
    made = FewShotExperiment(
        tiny(dataset="pairs", base_classes=60, sessions=8, ways=5, base_images=3), "cpu"
    )
    random, unseen = (made.with_classes(name) for name in ("random", "unseen_parts"))
    assert [len(one.sessions(3)) for one in (random, unseen)] == [9, 8]
    assert made.parameters.sessions == 8
    assert unseen.sessions(3)[0].classes.tolist() != random.sessions(3)[0].classes.tolist()


def test_a_method_that_diverges_keeps_what_it_finished(experiment, monkeypatch):
    def run(learner, sessions, *pools, results, **options):
        results.rows.append({"session": 1, "accuracy": 50.0})
        raise FloatingPointError("weights are not finite")

    monkeypatch.setattr(fcl, "run_learner", run)
    learner, found, stopped = experiment.run_method("ncm", experiment.new_network(3), 3, {})
    assert (learner.name, stopped) == ("ncm", "weights are not finite")
    assert [row["accuracy"] for row in found.rows] == [50.0]


def test_a_setting_reaches_its_method_and_its_training(experiment):
    seen = {}
    sharp = experiment.train_for("sam", 3, {"radius": 0.5, "bound": 0.1})
    seen["sam"] = same_weights(sharp, experiment.train_plain(3, sam_radius=0.5))
    noisy = experiment.train_for("f2m_flat", 3, {"noise_bound": 0.04})
    seen["f2m"] = same_weights(noisy, experiment.with_parameters(noise_bound=0.04).train_f2m(3))
    seen["plain"] = same_weights(experiment.train_for("lda", 3, {}), experiment.train_plain(3))
    assert seen == dict.fromkeys(seen, True)
    setting = {"lr": 0.01, "epochs": 2.0, "bound": 0.003, "noise_bound": 0.04}
    learner, _, stopped = experiment.run_method("f2m", noisy, 3, setting, only_last=True)
    assert not stopped
    assert learner.region.largest_shift() <= 0.003 + 1e-6
