"""Encoders, images and labels as people have them: equal to the plain case, or one sentence."""

import copy
from dataclasses import dataclass, replace

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ktlib.cpeft import (
    L2C,
    ClassTask,
    InfLora,
    JointLora,
    L2CSettings,
    LoraOracle,
    LoraTraining,
    NearestMean,
    SequentialLora,
    class_tasks,
    learn_tasks,
    predict,
)

TRAINING = LoraTraining(layers=["key", "value"], rank=2, epochs=1, batch_size=8, lr=5e-3, seed=0)
L2C_SETTINGS = L2CSettings(selector_lr=1e-3, align_steps=3)
LEARNERS = {
    "SequentialLora": lambda encoder: SequentialLora(encoder, TRAINING),
    "LoraOracle": lambda encoder: LoraOracle(encoder, TRAINING),
    "JointLora": lambda encoder: JointLora(encoder, TRAINING),
    "InfLora": lambda encoder: InfLora(encoder, TRAINING, tasks=2),
    "L2C": lambda encoder: L2C(encoder, TRAINING, L2C_SETTINGS),
    "NearestMean": NearestMean,
}
ALL = pytest.mark.parametrize("make", LEARNERS.values(), ids=LEARNERS)
HALF = torch.bfloat16, torch.float16


class Encoder(nn.Module):
    dim = 8

    def __init__(self):
        super().__init__()
        self.proj, self.key, self.value = nn.Linear(12, 8), nn.Linear(8, 8), nn.Linear(8, 8)
        self.norm, self.dropout = nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x):
        h = F.gelu(self.proj(x.reshape(len(x), 4, 12)))  # tokens
        return (h + self.dropout(self.norm(self.value(F.gelu(self.key(h)))))).mean(1)


@dataclass
class Given:
    encoder: nn.Module
    images: object
    labels: object


@pytest.fixture
def given():
    torch.manual_seed(0)
    labels = torch.arange(4).repeat_interleave(6)
    # Few digits: these numbers are the same in every precision.
    images = ((torch.randn(24, 3, 4, 4) + labels.view(-1, 1, 1, 1)) * 8).round() / 8
    encoder = Encoder()
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.copy_(parameter.bfloat16().half())
    return Given(encoder.eval(), images, labels)


def run(make, given, first=0):
    """Rows of all accuracies, and the scores at the end."""
    tasks = class_tasks(given.labels, classes=range(first, first + 4), tasks=2)
    learner = make(given.encoder)
    rows = learn_tasks(learner, tasks, given.images, given.labels, given.images, given.labels)
    return rows, learner.scores(given.images)


def nested(encoder):
    encoder.value = torch.compile(encoder.value, backend="eager")
    return encoder


EQUAL = {
    **{
        f"{dtype} encoder": lambda g, d=dtype: replace(g, encoder=g.encoder.to(d)) for dtype in HALF
    },
    **{f"{d} both": lambda g, d=d: Given(g.encoder.to(d), g.images.to(d), g.labels) for d in HALF},
    "float64 images": lambda g: replace(g, images=g.images.double()),
    "NumPy images": lambda g: replace(g, images=g.images.numpy()),
    "NumPy labels": lambda g: replace(g, labels=g.labels.numpy()),
    "int32 NumPy labels": lambda g: replace(g, labels=g.labels.numpy().astype("int32")),
    "list of labels": lambda g: replace(g, labels=g.labels.tolist()),
    "uint8 labels": lambda g: replace(g, labels=g.labels.to(torch.uint8)),
    "encoder in training mode": lambda g: replace(g, encoder=g.encoder.train()),
    "compiled": lambda g: replace(g, encoder=torch.compile(g.encoder, backend="eager")),
    "a compiled block": lambda g: replace(g, encoder=nested(g.encoder)),
}


@ALL
@pytest.mark.parametrize("change", EQUAL.values(), ids=EQUAL)
def test_equal_to_the_plain_case(make, change, given):
    rows, scores = run(make, copy.deepcopy(given))
    changed, found = run(make, change(given))
    assert changed == rows
    assert torch.equal(found, scores)
    assert found.dtype == torch.float32


@ALL
def test_labels_may_start_anywhere(make, given):
    rows, scores = run(make, given)
    for first in (-2, 1000):
        changed, found = run(make, replace(given, labels=given.labels + first), first)
        assert changed == rows
        assert torch.equal(found, scores)


@ALL
def test_one_image_of_each_class(make, given):
    one = replace(given, images=given.images[::6], labels=given.labels[::6])
    if make is LEARNERS["L2C"]:
        with pytest.raises(ValueError, match="at least two training images of each class"):
            run(make, one)
        settings = replace(L2C_SETTINGS, aligned=False, expert_classes="own")
        assert run(lambda e: L2C(e, TRAINING, settings), one)[1].isfinite().all()
        return
    assert run(make, one)[1].isfinite().all()


def broken(images, value=float("nan")):
    images = images.clone()
    images[:, 0, 0, 0] = value
    return images


class Wrapped(nn.Module):
    """Returns what ``turn`` makes of the features."""

    dim = 8

    def __init__(self, encoder, turn):
        super().__init__()
        self.encoder, self.turn = encoder, turn

    def forward(self, images):
        return self.turn(self.encoder(images))


REFUSED = {
    "NaN images": (
        lambda g: replace(g, images=broken(g.images)), FloatingPointError, "^task 1: .* finite"
    ),
    "uint8 images": (
        lambda g: replace(g, images=g.images.clamp(0, 9).to(torch.uint8)),
        ValueError, "images must be floating-point .* Found torch.uint8",
    ),
    "real labels": (lambda g: replace(g, labels=g.labels.float()), ValueError, "integers.*float32"),
    "one-hot labels": (
        lambda g: replace(g, labels=F.one_hot(g.labels)), ValueError, r"integers.*\(24, 4\)"
    ),
    "a tuple of features": (
        lambda g: replace(g, encoder=Wrapped(g.encoder, lambda f: (f,))),
        ValueError, r"backbone must return features \(\d+, dim\) .* Found tuple",
    ),
    "tokens": (
        lambda g: replace(g, encoder=Wrapped(g.encoder, lambda f: f[:, None])),
        ValueError, r"backbone must return features \(\d+, dim\) .* Found \(\d+, 1, 8\)",
    ),
}  # fmt: skip


@ALL
@pytest.mark.parametrize(("change", "error", "message"), REFUSED.values(), ids=REFUSED)
def test_refused_in_one_sentence(make, change, error, message, given):
    with pytest.raises(error, match=message) as caught:
        run(make, change(given))
    assert "\n" not in str(caught.value)


@ALL
def test_nan_among_the_test_images_is_no_accuracy(make, given):
    learner = make(given.encoder)
    tasks = class_tasks(given.labels, classes=range(4), tasks=2)
    data = given.images, given.labels
    with pytest.raises(FloatingPointError, match="task 1: a score is NaN"):
        learn_tasks(learner, tasks, *data, broken(given.images), given.labels)
    with pytest.raises(FloatingPointError, match="a score is NaN"):
        predict(learner, broken(given.images))


ROWS = [0, 1, 6, 7]
WRONG_TASKS = {
    "a class again": (ClassTask(2, [1, 0], ROWS, []), r"of which \[0, 1\] are known"),
    "a class twice": (ClassTask(2, [2, 2], [12, 13], []), "new, each once"),
    "no classes": (ClassTask(2, [], ROWS, []), "new, each once"),
    "no images": (ClassTask(2, [2, 3], [], []), r"images of each of its classes.*\[2, 3\]"),
    "none of a class": (ClassTask(2, [2, 3], [12, 13], []), r"images of each .*\[3\]"),
    "of another class": (ClassTask(2, [2], [0, 1, 12, 13], []), r"of no others.*\[0\]"),
}


@ALL
@pytest.mark.parametrize(("wrong", "message"), WRONG_TASKS.values(), ids=WRONG_TASKS)
def test_a_task_that_cannot_be_learned_leaves_the_learner_as_it_was(make, wrong, message, given):
    learner, plain = make(given.encoder), make(given.encoder)
    data = given.images, given.labels
    for each in (learner, plain):
        each.learn(ClassTask(1, [0, 1], ROWS, []), *data)
    with pytest.raises(ValueError, match=f"^task 2: .*{message}"):
        learner.learn(wrong, *data)
    assert learner.classes.tolist() == [0, 1]
    for each in (learner, plain):
        each.learn(ClassTask(2, [3, 2], [18, 19, 12, 13], []), *data)
    assert torch.equal(learner.scores(given.images), plain.scores(given.images))


@ALL
def test_nothing_learned_yet(make, given):
    with pytest.raises(ValueError, match="at least one task. Found none"):
        predict(make(given.encoder), given.images)
    if make is not LEARNERS["NearestMean"]:  # which needs no number of features
        with pytest.raises(ValueError, match="attribute `dim`"):
            make(nn.Sequential(nn.Linear(2, 2), given.encoder))


def test_nearest_means_need_no_parameters(given):
    assert run(lambda _: NearestMean(nn.Flatten()), given)[1].shape == (24, 4)


def test_classes_may_be_an_array_and_are_whole_numbers(given):
    plain = class_tasks(given.labels, classes=range(4), tasks=2)
    for classes in (given.labels.unique(), given.labels.unique().numpy()):
        tasks = class_tasks(given.labels.tolist(), classes=classes, tasks=2)
        assert all(torch.equal(a.train, b.train) for a, b in zip(plain, tasks, strict=True))
    with pytest.raises(ValueError, match="different ones"):
        class_tasks(given.labels, classes=torch.tensor([1, 1]), tasks=1)
    with pytest.raises(TypeError, match="integer"):
        class_tasks(given.labels, classes=[0.5, 1.5], tasks=1)
