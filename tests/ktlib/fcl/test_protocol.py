import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlib.fcl import few_shot_sessions, positions_of

FROZEN_CLASSES = [[3, 8, 5, 4, 11, 1], [2, 6], [7, 10], [0, 9]]
FROZEN_IMAGES = [38, 26, 14, 6, 114, 30]
LABELS = torch.arange(12).repeat(10)  # 12 classes, 10 images each
ARGUMENTS = {
    "base_classes": 6, "sessions": 3, "ways": 2, "shots": 3, "class_seed": 1997, "seed": 0,
}  # fmt: skip


def draw(labels=LABELS, **changes):
    return few_shot_sessions(labels, **(ARGUMENTS | changes))


@settings(max_examples=40, deadline=None)
@given(
    base=st.integers(1, 6),
    sessions=st.integers(0, 3),
    ways=st.integers(1, 2),
    shots=st.integers(1, 5),
    held=st.integers(0, 5),
    seed=st.integers(0, 100),
)
def test_sessions_are_disjoint_and_complete(base, sessions, ways, shots, held, seed):
    drawn = draw(
        base_classes=base, sessions=sessions, ways=ways, shots=shots, seed=seed,
        validation_images=held, base_images=5,
    )  # fmt: skip
    assert [s.number for s in drawn] == list(range(1, sessions + 2))
    classes = torch.cat([s.classes for s in drawn])
    assert len(classes) == len(classes.unique()) == base + sessions * ways
    used = torch.cat([torch.cat([s.train, s.validation]) for s in drawn])
    assert len(used) == len(used.unique())
    for session in drawn:
        per_class = 5 if session.number == 1 else shots
        own = LABELS[session.train]
        assert set(own.tolist()) == set(session.classes.tolist())
        assert (own.bincount(minlength=12)[session.classes] == per_class).all()
        assert (LABELS[session.validation].bincount(minlength=12)[session.classes] == held).all()


def test_all_images_of_a_base_class_by_default():
    assert len(draw()[0].train) == 60


def test_the_class_order_follows_the_class_seed_alone():
    first, second, other = draw(seed=0), draw(seed=1), draw(class_seed=1998)
    assert all(torch.equal(a.classes, b.classes) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[1].train, second[1].train)
    assert any(not torch.equal(a.classes, b.classes) for a, b in zip(first, other, strict=True))


def test_the_split_stays_the_same_for_ever():
    assert [s.classes.tolist() for s in draw()] == FROZEN_CLASSES
    assert draw()[1].train.tolist() == FROZEN_IMAGES


def test_too_many_classes_asked_for():
    message = r"must not exceed the 12 classes of the data. Found 6 \+ 4 x 2 = 14"
    with pytest.raises(ValueError, match=message):
        draw(sessions=4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shots": 11}, r"has 10 training images, fewer than shots \+ validation_images = 11 \+ 0"),
        ({"base_images": 11}, r"fewer than base_images \+ validation_images = 11 \+ 0"),
        (
            {"validation_images": 8, "base_images": 1},
            r"fewer than shots \+ validation_images = 3 \+ 8",
        ),
        ({"ways": 0}, "ways must be at least 1. Found ways=0"),
        ({"shots": 0}, "shots must be at least 1"),
        ({"base_classes": 0}, "base_classes must be at least 1"),
        ({"sessions": -1}, "sessions must be at least 0"),
        ({"base_images": 0}, "base_images must be at least 1"),
    ],
)
def test_wrong_arguments(changes, message):
    with pytest.raises(ValueError, match=message):
        draw(**changes)


def test_positions():
    found = positions_of(torch.tensor([4, 9, 4, 1]), torch.tensor([9, 4]))
    assert found.tolist() == [1, 0, 1, -1]
