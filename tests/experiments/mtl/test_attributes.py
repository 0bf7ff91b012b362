"""Yes-no questions about the classes of images."""

import pytest
import torch

from data_prep import MultiTaskImages, Task
from experiments.mtl.attributes import attribute_tasks

NAMES = ("a", "b", "c", "d")
IMAGES = MultiTaskImages(
    torch.zeros(40, 1, 2, 2, dtype=torch.uint8),
    {"one": torch.arange(40) % 4, "two": torch.arange(40) // 10},
    (Task("one", "classes", NAMES), Task("two", "classes", NAMES)),
)


def test_each_question_is_about_half_of_the_classes_of_one_task() -> None:
    found = attribute_tasks(IMAGES, 6)
    assert [task.name for task in found.tasks] == [
        "one_1",
        "two_2",
        "one_3",
        "two_4",
        "one_5",
        "two_6",
    ]
    for task in found.tasks:
        source = IMAGES.targets[task.name.split("_")[0]]
        answers = found.targets[task.name]
        assert answers.sum() == 20
        for label in range(4):
            assert answers[source == label].unique().numel() == 1


def test_the_first_questions_do_not_depend_on_their_number() -> None:
    few, many = attribute_tasks(IMAGES, 2), attribute_tasks(IMAGES, 40)
    assert len(many.tasks) == 40
    for task in few.tasks:
        assert torch.equal(few.targets[task.name], many.targets[task.name])


def test_questions_differ_and_follow_from_the_seed() -> None:
    def asked(seed: int) -> list[tuple[int, ...]]:
        return [tuple(v.tolist()) for v in attribute_tasks(IMAGES, 12, seed).targets.values()]

    assert asked(0) == asked(0)
    assert asked(0) != asked(1)
    assert len(set(asked(0))) > 4


def test_what_has_no_classes_is_refused() -> None:
    maps = MultiTaskImages(
        torch.zeros(2, 1, 2, 2, dtype=torch.uint8),
        {"depth": torch.zeros(2, 1, 2, 2)},
        (Task("depth", "depth"),),
    )
    with pytest.raises(ValueError, match=r"Found \['depth'\]"):
        attribute_tasks(maps, 2)
    with pytest.raises(ValueError, match="count must be at least 1"):
        attribute_tasks(IMAGES, 0)
