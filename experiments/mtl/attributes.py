"""Many tasks from few: yes-no questions about the classes of images that have classes.

The thesis measures the cost of its search with up to 40 tasks, the attributes of CelebA. Those
faces cannot be fetched everywhere; questions such as "is the digit one of 0, 3, 4, 7, 8?" can be
asked of any images with classes.
"""

from __future__ import annotations

import torch

from data_prep.common.multi_task import MultiTaskImages, Task
from ktlib.seeding import generator


def attribute_tasks(images: MultiTaskImages, count: int, seed: int = 0) -> MultiTaskImages:
    """The same images with ``count`` tasks of two classes each.

    Question ``t`` asks whether the class of one of the given tasks, taken in turn, is in a random
    half of its classes. The first questions are the same for every ``count``.

    Args:
        images: whose tasks are all of the kind ``classes``.
        count: number of tasks.
        seed: of the random halves.

    Raises:
        ValueError: ``count`` is below 1, or a task is of another kind.
    """
    if count < 1:
        raise ValueError(f"count must be at least 1. Found count={count!r}.")
    other = [task.name for task in images.tasks if task.kind != "classes"]
    if other:
        raise ValueError(f"images must have tasks of the kind 'classes' only. Found {other}.")
    tasks, targets = [], {}
    for number in range(count):
        source = images.tasks[number % len(images.tasks)]
        classes = len(source.class_names)
        order = torch.randperm(classes, generator=generator(seed, "attribute", number))
        half = torch.zeros(classes, dtype=torch.int64)
        half[order[: classes // 2]] = 1
        task = Task(f"{source.name}_{number + 1}", "classes", ("no", "yes"))
        tasks.append(task)
        targets[task.name] = half[images.targets[source.name].long()]
    return MultiTaskImages(images.images, targets, tuple(tasks))
