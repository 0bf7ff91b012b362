"""Random crops and mirror images of maps."""

import pytest
import torch

from data_prep import Task
from experiments.mtl.augment import scale_crop_flip
from ktlib.seeding import generator

CLASSES = ("a", "b", "c", "d", "e", "f")
TASKS = (
    Task("segmentation", "segmentation", CLASSES),
    Task("depth", "depth"),
    Task("normals", "normals"),
)


def batch(count=64, height=6, width=8):
    """The column of a pixel, as image, class, depth and x component."""
    column = torch.arange(width).float().expand(count, height, width)
    normals = torch.stack([column, torch.ones_like(column), torch.zeros_like(column)], dim=1)
    targets = {
        "segmentation": (column.long() % 6),
        "depth": column[:, None] + 1,
        "normals": normals,
    }
    return column[:, None].clone(), targets


def test_without_scaling_images_are_as_they_were_or_mirrored():
    images, targets = batch()
    found, maps = scale_crop_flip(images, targets, TASKS, generator(0), scales=(1.0,))
    mirrored = found[:, 0, 0, 0] > 0
    assert 10 < mirrored.sum() < 54
    for row in range(len(images)):
        turn = (lambda t: t.flip(-1)) if mirrored[row] else (lambda t: t)
        assert torch.allclose(found[row], turn(images[row]))
        assert torch.equal(maps["segmentation"][row], turn(targets["segmentation"][row]))
        assert torch.equal(maps["depth"][row], turn(targets["depth"][row]))
        sign = -1 if mirrored[row] else 1
        assert torch.equal(maps["normals"][row][0], sign * turn(targets["normals"][row])[0])
        assert torch.equal(maps["normals"][row][1], targets["normals"][row][1])


def test_a_part_is_enlarged_and_depth_gets_nearer():
    images, targets = batch()
    found, maps = scale_crop_flip(images, targets, TASKS, generator(1), scales=(2.0,))
    assert found.shape == images.shape
    # Half of the columns remain, and the maps show the same part as the image.
    for row in range(len(images)):
        seen = maps["depth"][row].unique() * 2 - 1
        assert len(seen) == 4
        assert torch.allclose(seen, torch.arange(4) + seen[0])
        ends = found[row, 0, 0, [0, -1]].sort().values
        assert torch.allclose(ends, seen[[0, -1]])
    assert maps["depth"].max() <= 4


def test_equal_generators_give_equal_batches_and_targets_stay_integers():
    images, targets = batch(4)
    one = scale_crop_flip(images, targets, TASKS, generator(3))
    two = scale_crop_flip(images, targets, TASKS, generator(3))
    assert torch.equal(one[0], two[0])
    assert one[1]["segmentation"].dtype == torch.int64
    assert torch.equal(images, batch(4)[0])  # what came in is as it was


def test_classes_and_small_scales_are_refused():
    images, targets = batch(2)
    with pytest.raises(ValueError, match=r"Found classes in \['digit'\]"):
        scale_crop_flip(images, targets, (Task("digit", "classes", CLASSES),), generator(0))
    with pytest.raises(ValueError, match="scales must be at least 1"):
        scale_crop_flip(images, targets, TASKS, generator(0), scales=(0.5,))
