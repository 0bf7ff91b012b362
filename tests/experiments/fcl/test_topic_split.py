"""Sessions from the lists of the TOPIC protocol."""

from dataclasses import replace

import pytest
import torch

from data_prep.common.topic import PROTOCOLS, TopicLists, TopicProtocol, topic_lists
from experiments.fcl.topic_split import topic_sessions

# Two base classes of three images, two sessions of two classes with two of their four images.
SMALL = TopicProtocol(base_classes=2, base_images=6, sessions=2, ways=2, shots=2)
LABELS = torch.tensor([0, 0, 0, 1, 1, 1] + [c for c in (2, 3, 4, 5) for _ in range(4)])
LISTS = TopicLists(SMALL, None, (("9", "6", "10", "12"), ("14", "15", "21", "18")))


def test_sessions_by_hand():
    base, second, third = topic_sessions(LISTS, LABELS)
    assert [s.number for s in (base, second, third)] == [1, 2, 3]
    assert base.train.tolist() == [0, 1, 2, 3, 4, 5]
    assert base.classes.tolist() == [0, 1]
    assert (second.train.tolist(), second.classes.tolist()) == ([9, 6, 10, 12], [2, 3])
    assert (third.train.tolist(), third.classes.tolist()) == ([14, 15, 21, 18], [4, 5])
    for session in (base, second, third):
        assert session.train.dtype == session.classes.dtype == torch.int64
        assert session.validation.dtype == torch.int64
        assert len(session.validation) == 0


def test_the_base_list_may_be_given_and_then_orders_the_images():
    base = ("5", "4", "3", "2", "1", "0")
    first, *rest = topic_sessions(replace(LISTS, base=base), LABELS)
    assert first.train.tolist() == [5, 4, 3, 2, 1, 0]
    for ours, theirs in zip(rest, topic_sessions(LISTS, LABELS)[1:], strict=True):
        assert torch.equal(ours.train, theirs.train)


def test_names_and_positions_give_the_same_sessions():
    names = [f"image {i}" for i in range(len(LABELS))]
    named = replace(LISTS, few_shot=tuple(
        tuple(f"image {key}" for key in keys) for keys in LISTS.few_shot
    ))  # fmt: skip
    for ours, theirs in zip(
        topic_sessions(named, LABELS, names), topic_sessions(LISTS, LABELS), strict=True
    ):
        assert torch.equal(ours.train, theirs.train)


def test_held_out_images_are_never_trained_on():
    sessions = topic_sessions(LISTS, LABELS, validation_images=1, seed=3)
    again = topic_sessions(LISTS, LABELS, validation_images=1, seed=3)
    train = torch.cat([s.train for s in sessions])
    held = torch.cat([s.validation for s in sessions])
    assert len(torch.cat([train, held]).unique()) == len(train) + len(held)
    assert LABELS[held].tolist() == [0, 1, 2, 3, 4, 5]
    assert len(sessions[0].train) == 4
    for ours, theirs, plain in zip(sessions, again, topic_sessions(LISTS, LABELS), strict=True):
        assert torch.equal(ours.validation, theirs.validation)
        assert set(ours.train.tolist()) <= set(plain.train.tolist())
        assert ours.number == 1 or torch.equal(ours.train, plain.train)
    with pytest.raises(ValueError, match="validation_images must be below 3, the free training"):
        topic_sessions(LISTS, LABELS, validation_images=3)
    with pytest.raises(ValueError, match="validation_images must be at least 0"):
        topic_sessions(LISTS, LABELS, validation_images=-1)


def few_shot(*lists):
    return replace(LISTS, few_shot=tuple(tuple(one.split()) for one in lists))


GOOD = "14 15 21 18"


@pytest.mark.parametrize(
    ("lists", "message"),
    [
        (few_shot("9 6 10 22", GOOD), "session 2 must name training images. Found '22'"),
        (few_shot("9 9 10 12", GOOD), "position 9 in session 2 and again in session 2"),
        (few_shot("9 6 10 12", "9 15 21 18"), "position 9 in session 2 and again in session 3"),
        (few_shot("9 6 10 1", GOOD), "position 1 in session 1 and again in session 2"),
        (few_shot("9 6 10 14", "15 16 21 18"), "session 2 must have images of the classes 2 to 3"),
        (few_shot("9 6 10", GOOD), "session 2 must have 4 images. Found 3"),
        (few_shot("9 6 7 10", GOOD), r"session 2 must have 2 images of each class. .*\[3, 1\]"),
        (few_shot("9 6 10 12"), "lists must have 2 few-shot sessions. Found 1"),
        (replace(LISTS, base=tuple("01234")), "session 1 must have 6 images. Found 5"),
        (replace(LISTS, base=(*"01234", "7")), "session 1 must have images of the classes 0 to 1"),
        (replace(LISTS, base=(*"01234", "4")), "position 4 in session 1 and again in session 1"),
    ],
)  # fmt: skip
def test_lists_that_break_the_protocol_are_refused(lists, message):
    with pytest.raises(ValueError, match=message):
        topic_sessions(lists, LABELS)


def test_labels_and_keys_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match="labels must have the 6 classes 0 to 5 .* Found 5 classes"
    ):
        topic_sessions(LISTS, LABELS[:-4])
    with pytest.raises(ValueError, match="keys must have one name per label, 22. Found 1 names"):
        topic_sessions(LISTS, LABELS, ["a"])
    with pytest.raises(ValueError, match="keys must be unique. Found 21 repeated names"):
        topic_sessions(LISTS, LABELS, ["a"] * 22)
    missing = torch.cat([LABELS[1:], LABELS[-1:]])  # one base image fewer
    with pytest.raises(ValueError, match="session 1 must have 6 images. Found 5"):
        topic_sessions(LISTS, missing)
    one_class = replace(SMALL, base_images=3)
    with pytest.raises(ValueError, match="session 1 must have images of all 2 base classes"):
        topic_sessions(TopicLists(one_class, ("0", "1", "2"), LISTS.few_shot), LABELS)


def labels_fitting(name, few):
    """Labels of the real size under which the lists of the package are right, and keys."""
    protocol = PROTOCOLS[name]
    wanted = {key: protocol.base_classes + i // protocol.shots for i, key in enumerate(few)}
    base = [i % protocol.base_classes for i in range(protocol.base_images)]
    if name != "cifar100":
        names = [f"base {i}" for i in range(len(base))]
        return torch.tensor([*base, *wanted.values()]), [*names, *wanted]
    rest, last = iter(base), protocol.base_classes + protocol.sessions * protocol.ways - 1
    keys = map(str, range(50_000))
    return torch.tensor([wanted[k] if k in wanted else next(rest, last) for k in keys]), None


@pytest.mark.parametrize(
    ("name", "sizes"),
    [
        ("cifar100", [30_000] + [25] * 8),
        ("mini_imagenet", [30_000] + [25] * 8),
        ("cub200", [3_000] + [50] * 10),
    ],
)
def test_the_lists_of_the_package_have_the_real_sizes(name, sizes, tmp_path):
    lists = topic_lists(name, tmp_path)
    labels, keys = labels_fitting(name, [key for part in lists.few_shot for key in part])
    sessions = topic_sessions(lists, labels, keys)
    assert [len(session.train) for session in sessions] == sizes
    classes = torch.cat([session.classes for session in sessions])
    assert torch.equal(classes, torch.arange(int(labels.max()) + 1))
    assert len(torch.cat([s.train for s in sessions]).unique()) == sum(sizes)
