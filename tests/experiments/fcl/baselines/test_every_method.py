"""What holds for all methods alike, on one tiny problem."""

import copy

import pytest
import torch
from torch import nn

from experiments.fcl.baselines import (
    F2M,
    FSLL,
    IDLVQC,
    LABELS,
    LUCIR,
    TOPIC,
    ClassifierRetraining,
    CosineClassifier,
    EWCInBox,
    Finetune,
    ICaRL,
    Joint,
    Lda,
    NearestMean,
    Ridge,
    Teen,
    TopicSettings,
    features,
    run_learner,
)
from experiments.fcl.parameters import METHODS as IDS
from experiments.models.resnet import resnet18_features
from ktlib.fcl import embed, last_convolutions, split_network

STEPS = {"epochs": 2, "lr": 0.02}
METHODS = {
    "ncm": lambda split, head, classes, g: NearestMean(split),
    "teen": lambda split, head, classes, g: Teen(split),
    "lda": lambda split, head, classes, g: Lda(split),
    "ridge": lambda split, head, classes, g: Ridge(split),
    "finetune": lambda split, head, classes, g: Finetune(split, **STEPS),
    "f2m": lambda split, head, classes, g: F2M(split, bound=0.01, **STEPS),
    "fsll": lambda split, head, classes, g: FSLL(split, **STEPS),
    "idlvq": lambda split, head, classes, g: IDLVQC(split, **STEPS),
    "ewc_wide": lambda split, head, classes, g: EWCInBox(
        split, bound=0.04, penalty=1.0, generator=g, **STEPS
    ),
    "icarl": lambda split, head, classes, g, **options: ICaRL(
        split, head, classes, batch_size=4, generator=g, **STEPS, **options
    ),
    "lucir": lambda split, head, classes, g, **options: LUCIR(
        split, cosine(head, g), classes, batch_size=4, generator=g, **STEPS, **options
    ),
    "topic": lambda split, head, classes, g: TOPIC(
        split, head, classes, generator=g, settings=TopicSettings(0, nodes=6), **STEPS
    ),
    "joint": lambda split, head, classes, g, **options: Joint(
        split, head, classes, batch_size=4, generator=g, **STEPS, **options
    ),
    "crt": lambda split, head, classes, g, **options: ClassifierRetraining(
        split, head, classes, batch_size=4, generator=g, **STEPS, **options
    ),
}


def cosine(head, generator):
    return CosineClassifier(head.in_features, head.out_features, generator=generator)


def made(name, split, problem, **options):
    torch.manual_seed(0)
    head = nn.Linear(32, 3).to(problem[1].device)
    noise = torch.Generator(device=problem[1].device).manual_seed(4)
    return METHODS[name](copy.deepcopy(split), head, problem[0][0].classes, noise, **options)


def network_of(learner):
    """The split network that a learner owns."""
    return getattr(learner, "split", None) or learner.trainer.split


@pytest.fixture(params=METHODS)
def name(request):
    return request.param


def test_the_id_in_the_tables(name, split, problem):
    assert made(name, split, problem).name == name


def test_all_have_names_for_readers():
    assert {*METHODS, *IDS} <= LABELS.keys()
    assert len(set(LABELS.values())) == len(LABELS)
    assert all("our reading" in LABELS[method] for method in ("topic", "idlvq"))


def test_two_runs_with_one_seed_are_identical(name, split, problem):
    first, second = (run_learner(made(name, split, problem), *problem) for _ in range(2))
    assert first == second


def test_predictions_are_classes_seen_so_far_and_change_nothing(name, split, problem):
    sessions, images, labels, tested, _ = problem
    learner = made(name, split, problem)
    seen = sessions[0].classes
    learner.start(images[sessions[0].train], labels[sessions[0].train])
    for session in sessions[1:]:
        learner.learn(images[session.train], labels[session.train])
        seen = torch.cat([seen, session.classes])
        predicted = learner.predict(tested)
        assert torch.isin(predicted.cpu(), seen).all()
        assert not predicted.requires_grad
        assert torch.equal(learner.predict(tested), predicted)


def test_batch_norm_keeps_the_statistics_of_the_base_session(name, split, problem):
    learner = made(name, split, problem)
    kept = {n: b.clone() for n, b in split.network.named_buffers()}
    run_learner(learner, *problem)
    for buffer, value in network_of(learner).network.named_buffers():
        assert torch.equal(value, kept[buffer]), buffer


def test_only_upper_bounds_see_all_data(name, split, problem):
    """Nothing but an upper bound keeps a base image beyond its exemplars: 2 a class at most."""
    sessions = problem[0]
    learner = made(name, split, problem)
    run_learner(learner, *problem)
    memory = getattr(learner, "kept", None) or getattr(learner, "memory", None)
    assert learner.sees_all_data == (name in ("joint", "crt"))
    if memory is not None and len(memory) and not learner.sees_all_data:
        kept_labels = memory.all()[1]
        for label in sessions[0].classes:
            assert int((kept_labels == label).sum()) <= 2


PARTS = [(name, {}) for name in METHODS]
PARTS += [(name, {"train": "all"}) for name in ("icarl", "lucir", "joint", "crt")]


@pytest.mark.parametrize(("method", "options"), PARTS)
def test_features_computed_once_are_those_of_every_session(method, options, split, problem):
    sessions, images, labels, tests, _ = problem
    learner = made(method, split, problem, **options)
    learner.start(images[sessions[0].train], labels[sessions[0].train])
    features = learner.features(tests)
    assert not features.requires_grad
    for session in sessions[1:]:
        learner.learn(images[session.train], labels[session.train])
    assert torch.equal(learner.features(tests), features)
    assert torch.equal(learner.classify(features), learner.predict(tests))
    used = network_of(learner)
    rest = used.network if options else used.tail
    assert torch.equal(embed(rest, features), embed(used.network, tests))
    assert (features is tests) == bool(options)


@pytest.mark.parametrize(("method", "options"), PARTS)
def test_test_images_pass_the_first_layer_once(method, options, split, problem):
    """Where everything is trained, once a session from the one in which their class appears."""
    learner = made(method, split, problem, **options)
    seen, tests = [], problem[3]
    first = next(network_of(learner).network.children())
    first.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0].detach()))
    run_learner(learner, *problem)
    times = (torch.cat(seen)[:, None] == tests[None]).flatten(2).all(dim=2).sum(dim=0).cpu()
    expected = torch.ones_like(times)
    if options:
        for session in problem[0]:
            expected[torch.isin(problem[4].cpu(), session.classes)] = 4 - session.number
    assert torch.equal(times, expected)


@pytest.mark.parametrize(("method", "options"), PARTS)
def test_features_that_would_fill_the_memory_are_computed_each_time(
    method, options, split, problem, monkeypatch
):
    """The same results, while nothing of the size of all features is kept."""
    results, held = [], []
    for largest in (features.LARGEST, 0):
        monkeypatch.setattr(features, "LARGEST", largest)
        learner = made(method, copy.deepcopy(split), problem, **options)
        results.append(run_learner(learner, *problem))
        test = learner.features(problem[3])
        held.append([test, getattr(learner, "inputs", test)])
    assert results[0] == results[1]
    assert all(isinstance(one, torch.Tensor) for one in held[0])
    lazy = [isinstance(one, features.PrefixFeatures) for one in held[1]]
    assert lazy == [not options, not options]


@pytest.mark.slow
def test_the_features_of_mini_imagenet_fit_a_card_of_24_gb():
    """Those of its 30,000 base images and 10,000 test images would take 36 GB."""
    network = resnet18_features(3, 64, 1).to("meta")  # shapes alone: nothing is computed
    split = split_network(network, last_convolutions(network, 8))
    sizes = []
    for count in (30_000, 10_000):
        images = torch.empty(count, 3, 84, 84, device="meta")
        sizes.append(embed(split.prefix, images).nbytes / 1e9)
        found = features.prefix_features(split.prefix, images)
        assert isinstance(found, features.PrefixFeatures)
        joined = features.joined(found, images[:25], split.prefix)
        assert joined.images.nbytes < 3e9
    assert sum(sizes) == pytest.approx(36, abs=0.5)
    # Features of the images of CIFAR-100 are kept, in the profile of the thesis's first table.
    split = split_network(network, last_convolutions(network, 4))
    images = torch.empty(30_000, 3, 32, 32, device="meta")
    assert features.prefix_features(split.prefix, images).nbytes < features.LARGEST
