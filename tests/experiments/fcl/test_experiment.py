"""The experiment that chapters and searches share, on scikit-learn's digits."""

import pytest
import torch

import data_prep as data
import experiments.fcl.experiment as fcl
from experiments.fcl.experiment import STARTS_FROM, FewShotExperiment
from experiments.fcl.parameters import METHODS, FclParameters, FclStudyParameters
from experiments.run.chapter_source import parameters_cell
from ktlib.seeding import deterministic
from tests.ktlib.mtl.trunks import TracedWrongly

SIZES = {
    "dataset": "digits", "base_classes": 4, "sessions": 2, "ways": 2, "shots": 3, "base_images": 8,
    "test_images": 5, "width": 4, "stem_stride": 1, "tuned_convolutions": 2, "epochs": 1,
    "batch_size": 16, "crop_padding": 1, "seeds": [3, 4], "device": "cpu",
    "method_settings": {"ewc_wide": {"penalty": 1.0}}, "flatness_images": 20,
}  # fmt: skip


def parameters(**changes):
    values = {line.name: line.value for line in parameters_cell("chapters/fcl.py")}
    return FclParameters(**values | SIZES | changes)


@pytest.fixture(autouse=True)
def _here(monkeypatch, request):
    monkeypatch.chdir(request.config.rootpath)
    with deterministic():
        yield


@pytest.fixture
def experiment():
    return FewShotExperiment(parameters(), "cpu")


def test_studies_go_to_the_limits_of_all_experiments():
    """A study halves the box and takes four times the rate, so its own values end before these."""
    values = {line.name: line.value for line in parameters_cell("chapters/fcl_studies.py")}
    shared = {name: value for name, value in SIZES.items() if name in values}
    at_limit = {"noise_bound": 2e-9, "session_lr": 2.5, "shots_studied": [1]}
    studies = FewShotExperiment(FclStudyParameters(**values | shared | at_limit), "cpu")
    varied = studies.with_parameters(noise_bound=1e-9, session_lr=10.0)
    assert varied.parameters.noise_bound == 1e-9
    with pytest.raises(ValueError, match="noise_bound"):
        studies.with_parameters(noise_bound=1e-10)


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
        setting = {"bound": 0.1, "penalty": 1.0} if name == "ewc_wide" else {}
        learner = experiment.learner(name, start, 3, lr=0.001, **setting) if name != "ncm" else (
            experiment.learner(name, start, 3)
        )  # fmt: skip
        rows = experiment.run_sessions(learner, 3).rows
        assert [row["session"] for row in rows] == [1, 2, 3], name
        assert learner.name == {"sam": "f2m"}.get(name, name)
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


def test_settings_of_a_method_are_whole_where_they_count():
    given = {"topic": {"epochs": 7, "lr": 0.1}, "ewc_wide": {"penalty": 2.0}}
    given = parameters(method_settings=given, ewc_bound=0.3)
    assert given.setting("topic") == {"epochs": 7, "lr": 0.1}
    assert isinstance(given.setting("topic")["epochs"], int)
    assert given.setting("ewc_wide") == {"penalty": 2.0, "bound": 0.3}
    assert given.setting("ncm") == {}
