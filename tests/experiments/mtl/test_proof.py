"""The numbers behind the theorem on one step of Recon: known angles, limits of small steps."""

import copy
import math

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.func import functional_call

from experiments.models.resnet import resnet18_features
from experiments.mtl.proof import (
    ReconProofParameters,
    SharedPoint,
    condition_holds,
    cosines,
    network_point,
    point_with_gradients,
    slope,
    task_slopes,
)
from ktlib.seeding import generator


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


HALF, ONES = numbers(0.5, 0.5), numbers(1.0, 1.0)


@pytest.fixture
def products():
    """Inner products of 500 random sets of three gradients of different lengths."""
    stream = generator(0, "gradients")
    g = torch.randn((500, 3, 4), generator=stream, dtype=torch.float64)
    g = (g + 1.5) * 10 ** (torch.rand((500, 3, 1), generator=stream, dtype=torch.float64) - 0.5)
    return g @ g.mT


@pytest.fixture(scope="module")
def network():
    """An untrained ResNet18 of width 8 with two heads, its images and labels."""
    torch.manual_seed(0)
    trunk = resnet18_features(1, 8, 2)
    heads = [nn.Linear(trunk.feature_dim, 5), nn.Linear(trunk.feature_dim, 3)]
    stream = generator(0, "images")
    images = torch.randn((6, 1, 12, 12), generator=stream)
    labels = torch.stack([torch.randint(c, (6,), generator=stream) for c in (5, 3)])
    return trunk, heads, images, labels


def test_two_gradients_by_hand():
    # ||g_1||^2 = 4, ||g_2||^2 = 1, product -1: cosine -1/2
    gramian = numbers([4, -1], [-1, 1])
    assert cosines(gramian)[0, 1] == pytest.approx(-0.5)
    # mean version: (4 + 1 - 1 - 1)/2 - 5; other weights: 0.9 (4 - 1) + 0.1 (-1 + 1) - 5
    assert float(slope(gramian, HALF)) == pytest.approx(-3.5)
    assert float(slope(gramian, numbers(0.9, 0.1))) == pytest.approx(-2.3)
    assert float(slope(gramian, ONES)) == pytest.approx(-2.0)  # the sum over i != j
    assert bool(condition_holds(gramian))


@pytest.mark.parametrize(
    ("second", "expected"),
    [
        ((-0.6, 0.8), True),
        ((0.0, 0.1), True),  # orthogonal, at any length
        ((0.7, 0.7), True),  # aligned, of similar length
        ((0.4, 0.1), False),  # aligned and short
        ((1.0, 0.0), False),  # equal: no strict inequality
        ((0.0, 0.0), False),  # no angle
    ],
)
def test_condition_by_hand(second, expected):
    rows = numbers((1.0, 0.0), second)
    assert bool(condition_holds(rows @ rows.T)) is expected
    assert bool(condition_holds(rows.flip(0) @ rows.flip(0).T)) is expected


def test_condition_is_the_printed_one(products):
    """cos_ij ||g_i|| < ||g_j|| for all ordered pairs."""
    norms, cosine = products.diagonal(dim1=-2, dim2=-1).sqrt(), cosines(products)
    printed = torch.stack([
        cosine[:, i, j] * norms[:, i] < norms[:, j]
        for i in range(3) for j in range(3) if i != j
    ]).all(dim=0)  # fmt: skip
    assert torch.equal(condition_holds(products), printed)
    assert 20 < int(printed.sum()) < 480


def test_condition_gives_a_falling_slope_for_any_weights(products):
    weights = torch.rand((500, 3), generator=generator(0, "w"), dtype=torch.float64)
    weights = weights / weights.sum(dim=1, keepdim=True)
    found = slope(products, weights)
    assert bool((found[condition_holds(products)] < 0).all())
    assert bool((found[~condition_holds(products)] > 0).any())  # it is needed


def test_slopes_of_tasks_by_hand():
    # ||g_1||^2 = 4, ||g_2||^2 = 1, product 1.5: aligned, and the short one loses
    gramian = numbers([4, 1.5], [1.5, 1])
    # task 1: (4 + 1.5)/2 - 4, task 2: (1.5 + 1)/2 - 1
    assert task_slopes(gramian, HALF).tolist() == pytest.approx([-1.25, 0.25])
    assert float(slope(gramian, HALF)) == pytest.approx(-1.0)


def test_condition_makes_every_task_gain(products):
    weights = torch.rand((500, 3), generator=generator(0, "w"), dtype=torch.float64) + 0.01
    weights = weights / weights.sum(dim=1, keepdim=True)
    holds, loses = condition_holds(products), (task_slopes(products, weights) >= 0).any(dim=1)
    assert not bool(loses[holds].any())
    thirds = torch.full((3,), 1 / 3, dtype=torch.float64)
    loses = (task_slopes(products, thirds) >= 0).any(dim=1)
    assert not bool(loses[holds].any())
    assert bool(loses[~holds].any())  # although the sum never loses with equal weights


def test_negative_weight_breaks_the_theorem():
    gramian = numbers([1, 0], [0, 0.25])  # (4.6) holds; 1 * 1.5 - 1 + 0.25 * (-0.5) - 0.25
    assert bool(condition_holds(gramian))
    assert float(slope(gramian, numbers(1.5, -0.5))) == pytest.approx(0.125)


def test_equal_weights_need_no_condition(products):
    thirds = torch.full((3,), 1 / 3, dtype=torch.float64)
    rows = torch.linalg.cholesky(products)  # vectors with these products
    spread = (rows - rows.mean(dim=1, keepdim=True)).square().sum(dim=(1, 2))
    assert torch.allclose(slope(products, thirds), -spread)
    assert bool((slope(products, thirds) < 0).all())


def test_sum_of_losses_is_the_sum_of_the_products(products):
    expected = products.sum(dim=(1, 2)) - products.diagonal(dim1=1, dim2=2).sum(dim=1)
    found = slope(products, torch.ones(3, dtype=torch.float64))
    assert torch.allclose(found, expected)
    assert bool((found > 0).any())
    assert bool((slope(products, torch.full((3,), 1 / 3).double()) < 0).all())


@pytest.mark.parametrize("weights", [HALF, ONES, numbers(0.9, 0.1)])
def test_bench_has_the_gradients_it_is_given(weights):
    gradients = {"a": numbers((1, 0), (0.4, 0.1)), "b": numbers([2.0], [-3.0])}
    point = point_with_gradients(gradients, curvature=0.7)
    for task in range(2):
        assert {n: g.tolist() for n, g in point.gradients[task].items()} == {
            n: g[task].tolist() for n, g in gradients.items()
        }
    for split in (["a"], ["b"], ["a", "b"]):
        found = point.measured_slopes(1e-7, weights, {"P": split})["P"]
        assert found == pytest.approx(point.predicted_slope(weights, split), abs=1e-5)


def test_losses_of_single_tasks_follow_their_slopes():
    point = point_with_gradients({"a": numbers((2, 0), (0.75, 0.6614378))})
    weights = numbers(0.7, 0.3)
    split, shared = (point.losses_after(1e-7, weights, p) for p in (["a"], []))
    (gramian,) = point.gramians().values()
    assert ((split - shared) / 1e-7).tolist() == pytest.approx(
        task_slopes(gramian, weights).tolist(), abs=1e-5
    )


def test_difference_on_the_bench_is_exact():
    """-alpha D (1 - c alpha / 2), which changes sign at 2 / c."""
    point = point_with_gradients({"a": numbers((1, 0), (-0.6, 0.8))}, curvature=4.0)
    deviation = 1.6  # ||(0.8, -0.4)||^2 twice
    for alpha in (0.1, 0.5, 2.0):
        found = alpha * point.measured_slopes(alpha, HALF, {"P": ["a"]})["P"]
        assert found == pytest.approx(-alpha * deviation * (1 - 4 * alpha / 2), abs=1e-12)


def test_slopes_of_layers_add_up():
    gradients = {"a": numbers((1, 0), (0, 2)), "b": numbers((1, 1), (2, -1))}
    point = point_with_gradients(gradients)
    single = [point.predicted_slope(HALF, [layer]) for layer in gradients]
    assert point.predicted_slope(HALF, list(gradients)) == pytest.approx(sum(single))


def test_gradients_are_there_also_where_autograd_is_off():
    with torch.no_grad():
        point = point_with_gradients({"a": numbers((1, 0), (0, 1))})
        assert point.gradients[1]["a"].tolist() == [0.0, 1.0]


def test_task_specific_parameters_move_alike_in_both_networks():
    point = SharedPoint(
        losses=[lambda v, i=i: (v["w"] * v[f"h{i}"]).sum() for i in range(2)],
        parameters={"w": numbers(2.0), "h0": numbers(3.0), "h1": numbers(-1.0)},
        layers={"layer": ["w"]},
        task_specific=["h0", "h1"],
    )
    # gradients: w 3 and -1, heads 2 and 2; step 0.1 with weights 1/2
    shared = [(2 - 0.1) * (3 - 0.2), (2 - 0.1) * (-1 - 0.2)]
    split = [(2 - 0.3) * (3 - 0.2), (2 + 0.1) * (-1 - 0.2)]
    assert point.losses_after(0.1, HALF).tolist() == pytest.approx(shared)
    assert point.losses_after(0.1, HALF, ["layer"]).tolist() == pytest.approx(split)
    others = [lambda v: v["w"].sum(), lambda v: 10 * v["w"].sum()]
    found = point.losses_after(0.1, HALF, ["layer"], losses=others)
    assert found.tolist() == pytest.approx([1.7, 21.0])


def test_network_step_is_the_one_of_real_copies(network):
    """Two whole networks, each stepped by hand, against all layers split and against none."""
    trunk, heads, images, labels = network
    point = network_point(trunk, heads, images, labels)
    assert len(point.layers) == 40
    alone, summed = [], None
    for i in range(2):
        body, head = copy.deepcopy(trunk).double().eval(), copy.deepcopy(heads[i]).double()
        loss = nn.functional.cross_entropy(head(body(images.double())), labels[i])
        loss.backward()
        gradients = {n: p.grad for n, p in body.named_parameters()}
        summed = gradients if i == 0 else {n: summed[n] + g for n, g in gradients.items()}
        alone.append((body, head, gradients))
    for split, moves in ((point.layers, [a[2] for a in alone]), ((), [summed, summed])):
        expected = []
        for i, (body, head, _) in enumerate(alone):
            moved = {n: p - 0.3 * moves[i][n] for n, p in body.named_parameters()}
            features = functional_call(body, moved, images.double())
            top = {n: p - 0.3 * p.grad for n, p in head.named_parameters()}
            scores = functional_call(head, top, features)
            expected.append(nn.functional.cross_entropy(scores, labels[i]).item())
        assert point.losses_after(0.3, ONES, split).tolist() == pytest.approx(expected)


@pytest.mark.parametrize("weights", [HALF, ONES])
def test_slope_test_of_a_network(network, weights):
    point = network_point(*network)
    splits = {"first": list(point.layers)[:3], "all": list(point.layers)}
    error = {}
    for alpha in (1e-3, 1e-6):
        found = point.measured_slopes(alpha, weights, splits)
        error[alpha] = [
            abs(found[n] / point.predicted_slope(weights, splits[n]) - 1) for n in splits
        ]
    assert max(error[1e-6]) < 1e-4
    assert max(error[1e-6]) < max(error[1e-3]) / 10


def test_network_is_left_alone(network):
    trunk, heads, images, labels = network
    before = copy.deepcopy(trunk.state_dict())
    trunk.train()
    point = network_point(trunk, heads, images, labels)
    start = point.losses_after(0.0, HALF)
    point.measured_slopes(0.5, HALF, {"P": ["conv1"]})
    assert torch.equal(point.losses_after(0.0, HALF), start)
    assert all(torch.equal(before[n], v) for n, v in trunk.state_dict().items())
    assert next(trunk.parameters()).dtype == torch.float32
    assert trunk.training


def test_wrong_arguments_are_refused(network):
    point = point_with_gradients({"a": numbers((1, 0), (0, 1))})
    with pytest.raises(ValueError, match=r"split must name layers of \['a'\]. Found \['b'\]."):
        point.losses_after(0.1, HALF, ["b"])
    with pytest.raises(ValueError, match=r"for each of the 2 tasks. Found \(3,\) and 2."):
        point.losses_after(0.1, torch.ones(3))
    with pytest.raises(ValueError, match="losses must be at least two. Found 1."):
        SharedPoint(point.losses[:1], point.parameters, point.layers)
    with pytest.raises(ValueError, match="every parameter must belong to one layer"):
        SharedPoint(point.losses, point.parameters, {})
    both = [lambda v, c=c: c * v["h"].sum() for c in (1, 2)]
    common = SharedPoint(both, {"h": numbers(1.0)}, {}, task_specific=["h"])
    with pytest.raises(ValueError, match=r"used by one loss. Found 'h' in the losses \[0, 1\]."):
        common.losses_after(0.1, HALF)
    trunk, heads, images, labels = network
    with pytest.raises(ValueError, match="for each of the 2 rows of labels. Found 1."):
        network_point(trunk, heads[:1], images, labels)


def test_cosine_of_a_zero_gradient_is_nan():
    assert math.isnan(float(cosines(numbers([1, 0], [0, 0]))[0, 1]))


VALUES = {
    "seeds": [0], "device": "cpu", "precision": "float32", "profile": "cpu", "run_dir": "",
    "images": 100, "width": 8, "stem_stride": 3, "epochs": 1, "batch_size": 10, "lr": 0.1,
    "measured_images": 4, "layers_per_set": 5, "step_sizes": [0.1, 0.01], "trials": 100,
    "repetitions": 2, "steps": 10,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"batch_size": 101}, "batch_size must be at most images = 100. Found 101"),
        ({"step_sizes": [0.1, 0.0]}, "step_sizes must be above 0"),
        ({"step_sizes": [0.1, 0.1]}, "step_sizes must fall, each once"),
        ({"step_sizes": [0.01, 0.1]}, "step_sizes must fall, each once"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(change, message):
    assert ReconProofParameters(**VALUES).layers_per_set == 5
    with pytest.raises(ValidationError, match=message):
        ReconProofParameters(**VALUES | change)
