import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import HalfspaceIntersection
from torch import nn
from torch.nn import functional as F

from experiments.fcl.landscape import (
    box_polygon,
    box_reach,
    loss_along,
    loss_plane,
    random_direction,
)
from ktlib.fcl import draw_noise, flatness, split_network


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def entries(*values):
    return {"w": torch.tensor(values)}


def area(polygon):
    """Positive for corners in counter-clockwise order."""
    x, y = polygon.T
    return 0.5 * float(x @ np.roll(y, -1) - y @ np.roll(x, -1))


# Directions


def test_a_box_direction_is_the_noise_of_a_box_of_half_width_one(split):
    found = random_direction(split, generator())
    drawn = draw_noise(split.tuned, 0.01, generator())
    assert found.keys() == split.tuned.keys()
    for name, value in found.items():
        assert float(value.abs().max()) <= 1.0
        torch.testing.assert_close(0.01 * value, drawn[name], rtol=1e-5, atol=1e-9)


def test_filters_of_a_direction_have_the_norms_of_the_weights(split):
    for name, value in random_direction(split, generator(), "filter").items():
        weight = split.tuned[name]
        assert value.shape == weight.shape
        torch.testing.assert_close(value.flatten(1).norm(dim=1), weight.flatten(1).norm(dim=1))


def test_filter_direction_by_hand():
    """One entry a filter: the norm is all that is left, so the direction is +-weight."""
    network = nn.Sequential(nn.Linear(1, 3, bias=False))
    network[0].weight.data = torch.tensor([[3.0], [0.0], [-0.5]])
    found = random_direction(split_network(network, ["0"]), generator(), "filter")["0.weight"]
    torch.testing.assert_close(found.abs(), torch.tensor([[3.0], [0.0], [0.5]]))


def test_filter_direction_follows_the_size_of_the_weights(split):
    """The same seed draws the same; a layer 7 times as large gets a direction 7 times as large."""
    small = random_direction(split, generator(), "filter")
    for weight in split.tuned.values():
        weight.data *= 7
    for name, value in random_direction(split, generator(), "filter").items():
        torch.testing.assert_close(value, 7 * small[name])


@pytest.mark.parametrize("scale", ["box", "filter"])
def test_same_seed_same_direction_for_two_networks(split, scale):
    other = copy.deepcopy(split)
    for weight in other.tuned.values():
        weight.data = weight.data.flip(0)
    first, second, third = (
        random_direction(network, generator(seed), scale)
        for network, seed in ((split, 0), (other, 0), (split, 1))
    )
    for name, value in first.items():
        if scale == "filter":  # one draw; each network has filter norms of its own
            ratio = value / second[name]
            torch.testing.assert_close(ratio, ratio.flatten(1)[:, :1, None, None].expand_as(ratio))
            assert bool((ratio > 0).all())
        else:
            assert torch.equal(value, second[name])
        assert not torch.equal(value, third[name])


# Losses


def test_by_hand_for_a_loss_that_is_known():
    """One weight w: cross-entropy of the scores (0, w + t) for class 0 is log(1 + exp(w + t))."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    network[0].weight.data.fill_(0.5)
    distances = [-2.0, 0.0, 0.25, 3.0]
    found = loss_along(
        split_network(network, ["0"]), lambda e: torch.cat([torch.zeros_like(e), e], dim=1),
        torch.ones(4, 1), torch.zeros(4, dtype=torch.long), {"0.weight": torch.tensor([[2.0]])},
        distances,
    )  # fmt: skip
    assert found.dtype == torch.float64
    assert found.tolist() == pytest.approx(
        [math.log1p(math.exp(0.5 + 2 * t)) for t in distances], rel=1e-6
    )


def test_equal_to_writing_the_weights(split, classifier, batch):
    images, labels = batch
    first, second = (random_direction(split, generator(seed), "filter") for seed in (0, 1))
    line = loss_along(split, classifier, images, labels, first, [-0.5, 1.0], batch_size=5)
    plane = loss_plane(split, classifier, images, labels, first, second, [-0.5, 1.0])
    naive = copy.deepcopy(split)
    naive.network.eval()

    def written(s, t):
        for name, weight in naive.tuned.items():
            weight.data = split.tuned[name].data + s * first[name] + t * second[name]
        with torch.no_grad():
            return float(F.cross_entropy(classifier(naive.network(images)), labels))

    assert line.tolist() == pytest.approx([written(-0.5, 0), written(1, 0)], rel=1e-5)
    points = [written(s, t) for s in (-0.5, 1) for t in (-0.5, 1)]
    assert plane.flatten().tolist() == pytest.approx(points, 1e-5)
    assert len({round(value, 4) for value in [*line.tolist(), *plane.flatten().tolist()]}) == 6


def test_distance_zero_gives_the_loss_of_the_flatness_indicator(split, classifier, batch):
    direction = random_direction(split, generator(), "filter")
    found = loss_along(split, classifier, *batch, direction, [0.0])
    at_minimum = flatness(split, classifier, *batch, bound=0.1, draws=1, generator=generator())
    assert found.item() == at_minimum.loss_at_minimum


def test_box_direction_at_the_bound_gives_a_draw_of_the_flatness_indicator(
    split, classifier, batch
):
    direction = random_direction(split, generator(4))
    found = loss_along(split, classifier, *batch, direction, [0.1])
    drawn = flatness(split, classifier, *batch, bound=0.1, draws=1, generator=generator(4))
    assert found.item() == pytest.approx(drawn.losses.item(), rel=1e-5)


def test_axes_of_the_plane_are_the_losses_along_its_directions(split, classifier, batch):
    first, second = (random_direction(split, generator(seed)) for seed in (0, 1))
    steps = torch.tensor([-0.2, 0.0, 0.1])
    plane = loss_plane(split, classifier, *batch, first, second, steps)
    assert plane.shape == (3, 3)
    assert plane.dtype == torch.float64
    assert torch.equal(plane[:, 1], loss_along(split, classifier, *batch, first, steps))
    assert torch.equal(plane[1], loss_along(split, classifier, *batch, second, steps))
    other = loss_plane(split, classifier, *batch, second, first, steps)
    torch.testing.assert_close(plane, other.T)  # the axes change places


def test_weights_and_modes_are_as_before(split, classifier, batch):
    network = split.network
    network.train()
    frozen = next(m for m in network.modules() if isinstance(m, nn.BatchNorm2d))
    frozen.eval()  # modes that differ from layer to layer
    before = {name: value.clone() for name, value in network.state_dict().items()}
    modes = [module.training for module in network.modules()]
    direction = random_direction(split, generator())
    first, again = (loss_along(split, classifier, *batch, direction, [0.0, 9.0]) for _ in range(2))
    assert torch.equal(first, again)
    with pytest.raises(RuntimeError):  # an error half-way changes nothing either
        loss_along(split, nn.Linear(5, 3), *batch, direction, [1.0])
    assert [module.training for module in network.modules()] == modes
    after = network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(weight.grad is None for weight in split.tuned.values())
    assert not first.requires_grad


# The box


def test_reach_by_hand():
    assert box_reach({"a": torch.tensor([[1.0, -4.0]]), "b": torch.tensor([2.0])}, 1.0) == 0.25
    assert box_reach(entries(0.0, 0.0), 1.0) == math.inf
    assert box_reach(entries(1.0), 0.0) == 0.0


@given(st.integers(0, 1000), st.floats(1e-4, 10))
def test_reach_is_in_the_box_and_just_beyond_is_not(seed, bound):
    values = torch.randn(50, generator=generator(seed), dtype=torch.float64)
    reach = box_reach({"w": values}, bound)
    assert float((reach * values).abs().max()) <= bound
    assert float((reach * (1 + 1e-12) * values).abs().max()) > bound


def test_polygon_is_a_square_for_directions_without_common_entries():
    found = box_polygon(entries(1.0, 0.0), entries(0.0, 1.0), 0.5)
    expected = [(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_polygon_is_the_hexagon_drawn_by_hand():
    """Strips |s| <= 1, |t| <= 1, |s + t| <= 1 cut two corners off a square; the last is idle."""
    found = box_polygon(entries(1.0, 0.0, 1.0, 0.5), entries(0.0, 1.0, 1.0, 0.4), 1.0)
    expected = [(-1, 0), (0, -1), (1, -1), (1, 0), (0, 1), (-1, 1)]
    np.testing.assert_allclose(sorted(map(tuple, found.round(9))), sorted(expected), atol=1e-9)
    assert area(found) == pytest.approx(3.0)


def test_polygon_of_axes_of_very_different_length():
    """Short and long directions only stretch the polygon, each along its own axis."""
    first, second = torch.randn(2, 300, generator=generator(), dtype=torch.float64)
    plain = box_polygon({"w": first}, {"w": second}, 1.0)
    stretched = box_polygon({"w": first * 1e-9}, {"w": second * 1e9}, 1.0)
    np.testing.assert_allclose(stretched, plain * [1e9, 1e-9], rtol=1e-9)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 400), st.booleans())
def test_polygon_is_the_part_of_the_plane_in_the_box(seed, count, uniform):
    draw = torch.rand if uniform else torch.randn
    values = draw(2, count, generator=generator(seed), dtype=torch.float64) - 0.5 * uniform
    first, second, bound = {"w": values[0]}, {"w": values[1]}, 0.01
    found = box_polygon(first, second, bound)
    reached = np.abs(values.numpy().T @ found.T)  # (entries, corners)
    assert reached.max() <= bound * (1 + 1e-9)
    # In every corner two strips end, so that beyond it there is nothing of the box.
    assert (np.sort(reached, axis=0)[-2] >= bound * (1 - 1e-9)).all()
    assert (np.abs(values.numpy().T @ (1.0001 * found.T)).max(axis=0) > bound).all()
    np.testing.assert_allclose(  # symmetric
        np.sort(found, axis=0), np.sort(-found, axis=0), rtol=1e-6, atol=1e-9
    )
    # The reference uses every strip.
    strips = np.concatenate([values.numpy().T, -values.numpy().T])
    lines = np.column_stack([strips, np.full(len(strips), -bound)])
    reference = HalfspaceIntersection(lines, np.zeros(2)).intersections
    reference = reference[np.argsort(np.arctan2(*reference.T[::-1]))]
    assert area(found) == pytest.approx(area(reference), rel=1e-6)
    assert area(found) > 0


def test_polygon_meets_the_axes_where_the_directions_leave_the_box(split):
    first, second = (random_direction(split, generator(seed), "filter") for seed in (0, 1))
    corners = box_polygon(first, second, 0.01)
    for axis, direction in enumerate((first, second)):
        reach = box_reach(direction, 0.01)
        point = np.zeros(2)
        point[axis] = reach
        side = np.cross(
            np.pad(np.roll(corners, -1, axis=0) - corners, ((0, 0), (0, 1))),
            np.pad(point - corners, ((0, 0), (0, 1))),
        )[:, 2]
        assert side.min() == pytest.approx(0, abs=1e-9)  # on a side, and inside of all others


def test_polygon_does_not_depend_on_the_order_of_names():
    first = {"a": torch.tensor([1.0, 0.0]), "b": torch.tensor([0.3])}
    second = {"a": torch.tensor([0.5, 1.0]), "b": torch.tensor([-2.0])}
    swapped = {"b": second["b"], "a": second["a"]}
    np.testing.assert_array_equal(box_polygon(first, second, 1), box_polygon(first, swapped, 1))


# Wrong arguments


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: {}, "direction must name"),
        (lambda d: {**d, "fc.weight": torch.ones(1)}, "direction must name .* Found .*fc.weight"),
        (lambda d: {name: value[:1] for name, value in d.items()}, "direction must have the shape"),
    ],
)
def test_wrong_directions(split, classifier, batch, change, message):
    direction = random_direction(split, generator())
    wrong = change(direction)
    with pytest.raises(ValueError, match=message):
        loss_along(split, classifier, *batch, wrong, [0.0])
    with pytest.raises(ValueError, match=message.replace("direction", "first")):
        loss_plane(split, classifier, *batch, wrong, direction, [0.0])
    with pytest.raises(ValueError, match=message.replace("direction", "second")):
        loss_plane(split, classifier, *batch, direction, wrong, [0.0])
    with pytest.raises(ValueError, match=message.replace("direction", "second")):
        box_polygon(direction, wrong, 0.1)


@pytest.mark.parametrize("wrong", [[], [0.0, math.nan], [math.inf]])
def test_wrong_distances(split, classifier, batch, wrong):
    first, second = (random_direction(split, generator(seed)) for seed in (0, 1))
    with pytest.raises(ValueError, match="distances must be finite numbers"):
        loss_along(split, classifier, *batch, first, wrong)
    with pytest.raises(ValueError, match="^distances must be finite numbers"):
        loss_plane(split, classifier, *batch, first, second, wrong)


def test_no_images(split, classifier):
    with pytest.raises(ValueError, match="number of images must be at least 1"):
        loss_along(
            split, classifier, torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long),
            random_direction(split, generator()), [0.0],
        )  # fmt: skip


def test_wrong_scale(split):
    with pytest.raises(ValueError, match="scale must be 'box' or 'filter'. Found scale='layer'"):
        random_direction(split, generator(), "layer")


@pytest.mark.parametrize("bound", [-1.0, math.nan, math.inf])
def test_wrong_bound(bound):
    with pytest.raises(ValueError, match="bound must be a finite number"):
        box_reach(entries(1.0), bound)
    with pytest.raises(ValueError, match="bound must be a finite number"):
        box_polygon(entries(1.0, 0.0), entries(0.0, 1.0), bound)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((1.0, 2.0, 0.1), (3.0, 6.0, 0.3)),
        ((1.0, 2.0, 0.1), (-3.0, -6.0, -0.3)),
        ((0.0, 0.0), (1.0, 2.0)),
        ((1.0,), (2.0,)),
        ((), ()),
    ],
)
def test_a_plane_without_end_has_no_polygon(first, second):
    with pytest.raises(ValueError, match="not parallel"):
        box_polygon(entries(*first), entries(*second), 0.1)


def test_reach_of_nothing():
    with pytest.raises(ValueError, match="number of tensors in direction must be at least 1"):
        box_reach({}, 0.1)
