"""Tasks of classes, predictions with and without the task, and the run through a sequence."""

import pytest
import torch

from ktlib.cpeft.tasks import ClassTask, class_tasks, learn_tasks, predict, predict_with_task_id

LABELS = torch.arange(10).repeat(8)


def tasks_of(**changes):
    given = {"classes": range(2, 10), "tasks": 4, "images": None, "class_seed": 0, "seed": 0}
    return class_tasks(LABELS, **(given | changes))


def test_tasks_part_classes_and_images():
    tasks = tasks_of(images=5, validation_images=2)
    assert [task.number for task in tasks] == [1, 2, 3, 4]
    assert sorted(torch.cat([task.classes for task in tasks]).tolist()) == list(range(2, 10))
    for task in tasks:
        assert len(task.classes) == 2
        for rows, each in ((task.train, 5), (task.validation, 2)):
            counts = torch.bincount(LABELS[rows], minlength=10)
            assert counts[task.classes].tolist() == [each] * 2
            assert counts.sum() == 2 * each
        assert not torch.isin(task.train, task.validation).any()


def test_seeds_decide_classes_and_images_apart():
    first, again = tasks_of(images=4), tasks_of(images=4)
    assert all(torch.equal(a.train, b.train) for a, b in zip(first, again, strict=True))
    other_images = tasks_of(images=4, seed=1)
    assert all(torch.equal(a.classes, b.classes) for a, b in zip(first, other_images, strict=True))
    assert not torch.equal(first[0].train, other_images[0].train)
    other_classes = tasks_of(images=4, class_seed=1)
    assert any(
        not torch.equal(a.classes, b.classes) for a, b in zip(first, other_classes, strict=True)
    )
    # The streams are frozen: a split stays the same for ever.
    assert [task.classes.tolist() for task in first] == FROZEN


FROZEN = [[8, 4], [3, 9], [5, 2], [7, 6]]


def test_all_images_are_taken_unless_told_and_sizes_may_differ_by_one():
    tasks = tasks_of(tasks=3)
    assert [len(task.classes) for task in tasks] == [3, 3, 2]
    assert [len(task.train) for task in tasks] == [24, 24, 16]
    assert not any(len(task.validation) for task in tasks)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tasks": 9}, "tasks must lie in 1 to 8, the number of classes. Found tasks=9"),
        ({"tasks": 0}, "Found tasks=0"),
        ({"classes": [1, 2, 1], "tasks": 1}, r"different ones. Found classes=\[1, 2, 1\]"),
        ({"classes": [3, 30], "tasks": 2}, "class 30 has 0 training images"),
        ({"images": 9}, r"has 8 training images, fewer than images \+ .* = 9 \+ 0"),
        ({"validation_images": 8}, r"fewer than images \+ validation_images = 1 \+ 8"),
        ({"images": 0}, "images must be at least 1. Found images=0"),
        ({"validation_images": -1}, "validation_images must be at least 0"),
    ],
)
def test_what_cannot_be_split_is_told(changes, message):
    with pytest.raises(ValueError, match=message):
        tasks_of(**changes)


class FakeLearner:
    """Its scores are the pixels of an image, one for each class learned, in their order."""

    def __init__(self):
        self.classes = torch.empty(0, dtype=torch.int64)
        self.batches = []

    def learn(self, task, images, labels):
        assert torch.isin(labels[task.train], task.classes).all()
        self.classes = torch.cat([self.classes, task.classes])

    def scores(self, images):
        self.batches.append(len(images))
        return images.flatten(1)[:, : len(self.classes)]


def task(number, *classes):
    own = torch.tensor(classes)
    rows = torch.isin(LABELS, own).nonzero()[:, 0]
    return ClassTask(number, own, rows, rows[:0])


@pytest.fixture
def learner():
    fake = FakeLearner()
    for known in (task(1, 7, 3), task(2, 5, 1)):
        fake.learn(known, None, LABELS)
    return fake


def pixels(*lines):
    return torch.tensor(lines, dtype=torch.float32)[:, None, None, :]


def test_predictions_are_class_numbers_of_all_or_of_the_given_ones(learner):
    images = pixels([0, 1, 2, 3], [9, 1, 2, 3])
    assert predict(learner, images).tolist() == [1, 7]
    assert predict_with_task_id(learner, images, torch.tensor([3, 7])).tolist() == [3, 7]
    assert predict_with_task_id(learner, images, torch.tensor([5, 3])).tolist() == [5, 5]
    with pytest.raises(ValueError, match=r"among those learned, \[7, 3, 5, 1\]. Found \[3, 8\]"):
        predict_with_task_id(learner, images, torch.tensor([3, 8]))


def test_rows_by_hand():
    test_images = pixels(
        [2, 1, 0, 0],  # 7, right
        [2, 1, 3, 0],  # 7, taken for 5: right among those of its task
        [2, 1, 3, 0],  # 3, taken for 5: wrong even then
        [1, 2, 0, 0],  # 3, right
        [0, 0, 1, 2],  # 5, taken for 1, of its own task
        [4, 0, 1, 2],  # 1, taken for 7, right among those
        [9, 9, 9, 9],  # of no task
    )
    test_labels = torch.tensor([7, 7, 3, 3, 5, 1, 0])
    seen = []

    def observe(number, learner):
        seen.append((number, list(learner.batches)))

    rows = learn_tasks(
        FakeLearner(), [task(1, 7, 3), task(2, 5, 1)], torch.zeros(80, 1, 1, 4), LABELS,
        test_images, test_labels, batch_size=3, observe=observe,
    )  # fmt: skip
    assert rows == [
        {"after": 1, "task": 1, "accuracy": 75.0, "task_il_accuracy": 75.0, "routing_error": 0.0},
        {"after": 2, "task": 1, "accuracy": 50.0, "task_il_accuracy": 75.0, "routing_error": 50.0},
        {"after": 2, "task": 2, "accuracy": 0.0, "task_il_accuracy": 50.0, "routing_error": 50.0},
    ]
    # Images of tasks so far only, batch by batch.
    assert seen == [(1, [3, 1]), (2, [3, 1, 3, 1, 2])]


def run(tasks, test_labels=LABELS, learner=None, **settings):
    images = torch.zeros(80, 1, 1, 10)
    learn_tasks(learner or FakeLearner(), tasks, images, LABELS, images, test_labels, **settings)


def test_sequences_that_make_no_sense_are_refused_before_any_training():
    class Untouched(FakeLearner):
        def learn(self, *_):
            raise AssertionError

    for tasks, labels, message in (
        ([task(1, 2, 3), task(2, 3)], LABELS, "class 3 in tasks 1 and 2"),
        ([task(1, 2), task(2, 3)], LABELS.clamp(max=2), r"task 2 must have test images.*\[3\]"),
    ):
        with pytest.raises(ValueError, match=message):
            run(tasks, labels, Untouched())
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        run([task(1, 2)], learner=Untouched(), batch_size=0)


def test_a_loss_that_is_not_finite_names_the_task():
    class Failing(FakeLearner):
        def learn(self, task, images, labels):
            if task.number == 2:
                raise FloatingPointError("the loss is nan.")
            super().learn(task, images, labels)

    with pytest.raises(FloatingPointError, match="task 2: the loss is nan."):
        run([task(1, 2), task(2, 3)], learner=Failing())
