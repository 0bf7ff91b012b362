"""Sessions whose new classes show a garment or a digit that no base class has."""

from itertools import pairwise

import pytest
import torch

from experiments.fcl.unseen_parts import unseen_parts_sessions

LABELS = torch.arange(100).repeat(6)  # six images of each pair
SIZES = {"base_classes": 60, "sessions": 7, "ways": 5, "shots": 2, "class_seed": 1997}


def sessions(seed=0, **changes):
    return unseen_parts_sessions(LABELS, **SIZES | changes, seed=seed)


def parts(classes):
    return {int(c) // 10 for c in classes}, {int(c) % 10 for c in classes}


@pytest.mark.parametrize("class_seed", [0, 1997, 5])
def test_every_new_class_has_a_part_that_no_base_class_has(class_seed):
    base, *new = sessions(class_seed=class_seed)
    garments, digits = parts(base.classes)
    assert (len(garments), len(digits)) == (8, 8)
    for session in new:
        for c in session.classes.tolist():
            assert c // 10 not in garments or c % 10 not in digits


def test_classes_and_images_occur_once_and_in_number():
    found = sessions(base_images=3, validation_images=1)
    assert [s.number for s in found] == list(range(1, 9))
    assert [len(s.classes) for s in found] == [60] + [5] * 7
    classes = torch.cat([s.classes for s in found]).tolist()
    assert len(set(classes)) == len(classes) == 95
    for session in found:
        of_each = LABELS[session.train].bincount(minlength=100)[session.classes]
        assert of_each.tolist() == [3 if session.number == 1 else 2] * len(session.classes)
        held_out = LABELS[session.validation].bincount(minlength=100)[session.classes]
        assert held_out.tolist() == [1] * len(session.classes)
    images = torch.cat([torch.cat([s.train, s.validation]) for s in found]).tolist()
    assert len(set(images)) == len(images)


def test_seeds_share_the_classes_and_draw_other_images():
    one, other, again = sessions(0), sessions(1), sessions(0)
    assert all(torch.equal(a.classes, b.classes) for a, b in zip(one, other, strict=True))
    assert all(torch.equal(a.train, b.train) for a, b in zip(one, again, strict=True))
    assert not torch.equal(one[1].train, other[1].train)
    assert not torch.equal(one[1].classes, sessions(class_seed=1)[1].classes)


def test_fewer_shots_are_the_first_of_more():
    for fewer, more in pairwise([sessions(shots=count) for count in (1, 2, 4)]):
        for one, other in zip(fewer[1:], more[1:], strict=True):
            assert set(one.train.tolist()) < set(other.train.tolist())


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"base_classes": 65}, "base_classes must be at most 64 .* Found 65"),
        ({"sessions": 8}, "sessions x ways at most 36. Found 60 and 8 x 5 = 40"),
        ({"shots": 7}, "7"),
    ],
)
def test_more_than_there_is(changes, words):
    with pytest.raises(ValueError, match=words):
        sessions(**changes)
