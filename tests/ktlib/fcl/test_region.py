import copy
import pickle

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from ktlib.fcl import FlatRegion, learn_session, split_network

FLOATS = st.floats(-1e3, 1e3, width=32)


@given(
    center=st.lists(FLOATS, min_size=1, max_size=8),
    step=FLOATS,
    bound=st.floats(0, 10),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16, torch.float64]),
)
def test_clamped_weights_are_in_the_box_exactly(center, step, bound, dtype):
    weight = torch.tensor(center, dtype=dtype)
    region = FlatRegion({"w": weight}, bound)
    weight += step
    region.clamp_()
    shift = (weight.double() - region.center["w"].double()).abs().max()
    assert float(shift) <= bound
    assert region.contains()


def test_the_rounding_of_the_bound_itself_cannot_leave_the_box():
    weight = torch.tensor([-0.0009, 0.3, 1e-6])  # float32(0.001) is a little above 0.001
    region = FlatRegion({"w": weight}, 0.001)
    weight += 1.0
    region.clamp_()
    assert region.contains()


def test_clamping_by_hand():
    weight = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    region = FlatRegion({"w": weight}, 0.5)
    weight += torch.tensor([0.25, 5.0, -5.0])
    assert not region.contains()
    assert region.largest_shift() == 5.0
    region.clamp_()
    assert weight.tolist() == [1.25, 2.5, 2.5]


def test_clamping_twice_changes_nothing_more():
    weight = torch.randn(50)
    region = FlatRegion({"w": weight}, 0.1)
    weight += torch.randn(50)
    region.clamp_()
    once = weight.clone()
    region.clamp_()
    assert torch.equal(weight, once)


def test_bound_zero_freezes():
    weight = torch.randn(50)
    before = weight.clone()
    region = FlatRegion({"w": weight}, 0.0)
    weight += 1
    region.clamp_()
    assert torch.equal(weight, before)


def test_the_center_does_not_follow_the_weights():
    weight = torch.zeros(1)
    region = FlatRegion({"w": weight}, 0.1)
    for _ in range(5):
        weight += 0.08
        region.clamp_()
    assert weight.item() == pytest.approx(0.1)


# What the box did


def test_shares_by_hand():
    weight = torch.zeros(4, dtype=torch.float64)
    region = FlatRegion({"w": weight}, 0.5)
    assert region.share_at_wall() == region.share_clamped() == 0.0
    weight += torch.tensor([0.25, 5.0, -5.0, 0.5])
    assert region.share_at_wall() == 0.75  # two of them outside
    region.clamp_()
    assert region.share_at_wall() == 0.75
    assert region.share_clamped() == 0.5  # what lay on the wall was not moved
    weight.zero_()
    region.clamp_()
    assert region.share_at_wall() == 0.0
    assert region.share_clamped() == 0.5
    weight[0] = -1
    region.clamp_()
    assert region.share_clamped() == 0.75


def test_shares_are_of_all_tensors():
    weights = {"a": torch.zeros(1), "b": torch.zeros(3)}
    region = FlatRegion(weights, 0.5)
    weights["a"] += 1
    region.clamp_()
    assert region.share_at_wall() == region.share_clamped() == 0.25


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_what_was_clamped_is_at_the_wall_in_every_precision(dtype):
    """Around 10 float32 has a number only every 1e-6, and the wall is a little inside."""
    weight = torch.tensor([10.0, -0.3, 0.0], dtype=dtype)
    region = FlatRegion({"w": weight}, 0.0005)
    weight += torch.tensor([1.0, -1.0, 1.0], dtype=dtype)
    region.clamp_()
    assert region.share_at_wall() == region.share_clamped() == 1.0


def test_a_frozen_box_is_all_wall():
    weight = torch.randn(8)
    region = FlatRegion({"w": weight}, 0.0)
    region.clamp_()
    assert (region.share_at_wall(), region.share_clamped()) == (1.0, 0.0)
    weight[:2] += 1
    region.clamp_()
    assert (region.share_at_wall(), region.share_clamped()) == (1.0, 0.25)


def test_nan_is_neither_clamped_nor_at_the_wall():
    weight = torch.zeros(2)
    region = FlatRegion({"w": weight}, 0.5)
    weight[0] = float("nan")
    region.clamp_()
    assert region.share_clamped() == region.share_at_wall() == 0.0


@pytest.mark.parametrize("bound", [-0.01, float("nan"), float("inf")])
def test_wrong_bound(bound):
    with pytest.raises(ValueError, match="bound must be a finite number >= 0"):
        FlatRegion({"w": torch.zeros(1)}, bound)


def test_no_parameters():
    with pytest.raises(ValueError, match="at least one tensor"):
        FlatRegion({}, 0.1)


def test_no_region_of_what_has_no_box():
    nan = torch.tensor([0.0, float("nan")])
    for parameters, center, message in (
        ({"w": torch.zeros(2, dtype=torch.int64)}, None, "floating-point numbers. 'w' is not"),
        ({"w": torch.zeros(2)}, {"w": torch.zeros(2).long()}, "floating-point numbers"),
        ({"w": nan}, None, "centre of the box must be finite. 'w' is not"),
        ({"w": torch.zeros(2)}, {"w": nan}, "must be finite"),
    ):
        with pytest.raises(ValueError, match=message):
            FlatRegion(parameters, 0.1, center)


@pytest.mark.parametrize("place", [0, 1])
def test_nan_is_not_in_the_box(place):
    weights = {"a": torch.zeros(1), "b": torch.zeros(1)}
    region = FlatRegion(weights, 0.1)
    [*weights.values()][place].fill_(float("nan"))
    assert not region.contains()


# After weights are exchanged


def pickled(what):
    return pickle.loads(pickle.dumps(what))  # noqa: S301 - our own


def assigned(network):
    state = {name: value.clone() for name, value in network.state_dict().items()}
    network.load_state_dict(state, assign=True)


def swapped(network):
    layer = network[2]
    new = nn.Parameter(layer.weight.detach().clone())
    torch.utils.swap_tensors(layer.weight, new)


def overwritten(network):
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        network.double()
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(False)


def replaced(network):
    network[2].weight = nn.Parameter(network[2].weight.detach().clone())


EXCHANGES = [
    assigned, swapped, overwritten, replaced, nn.Module.double, nn.Module.bfloat16, nn.Module.half
]  # fmt: skip


@pytest.fixture
def small():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    return split_network(network, ["2"])


@pytest.mark.parametrize("exchange", EXCHANGES)
@pytest.mark.parametrize("of", ["tuned", "network"])
def test_a_region_follows_the_weights_of_the_model(small, exchange, of):
    region = FlatRegion(getattr(small, of), 0.01)
    center = small.network[2].weight.detach().double()
    exchange(small.network)
    with torch.no_grad():
        small.network[2].weight.add_(1)
    assert region.largest_shift() == pytest.approx(1, abs=0.01)
    assert not region.contains()
    region.clamp_()
    assert region.contains()
    assert float((small.network[2].weight.detach().double() - center).abs().max()) <= 0.01
    noise = {"2.weight": torch.ones_like(small.tuned["2.weight"])}
    x = torch.ones(1, 4).to(small.network[0].weight)
    hidden = small.prefix(x)
    moved = hidden @ (small.network[2].weight + 1).T + small.network[2].bias
    torch.testing.assert_close(small.tail_forward(hidden, noise), moved)


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
@pytest.mark.parametrize("order", [1, -1])
def test_a_copied_pair_belongs_together(small, copied, order):
    region = FlatRegion(small.tuned, 0.01)
    split, other = copied((small, region)[::order])[::order]
    with torch.no_grad():
        split.network[2].weight.add_(1)
    assert region.contains()
    assert not other.contains()
    other.clamp_()
    expected = small.network[2].weight + 0.01
    torch.testing.assert_close(split.network[2].weight, expected, rtol=0, atol=1e-6)
    assert torch.equal(small.tail_forward(torch.ones(1, 5)), small.network[2](torch.ones(1, 5)))


def another_layer(network):
    network[2] = nn.Linear(5, 3)


def removed(network):
    del network[2]


def parametrised(network):
    parametrize.register_parametrization(network[2], "weight", nn.Tanh())


@pytest.mark.parametrize("change", [another_layer, parametrised, removed])
def test_weights_that_are_no_longer_the_models_are_named(small, change):
    region = FlatRegion(small.tuned, 0.01)
    change(small.network)
    for use in (region.contains, region.clamp_, lambda: small.tuned["2.weight"]):
        with pytest.raises(ValueError, match=r"'2.weight' is no longer a parameter of the model"):
            use()


def test_another_shape_is_refused(small):
    region = FlatRegion(small.network, 0.01)
    small.network[2].weight = nn.Parameter(torch.zeros(1, 5))
    with pytest.raises(ValueError, match=r"must keep its shape \(3, 5\). Found \(1, 5\)"):
        region.contains()


def test_a_box_without_a_number_of_the_new_precision_is_refused(small):
    region = FlatRegion(small.tuned, 1e-7)
    small.network.bfloat16()
    with pytest.raises(ValueError, match=r"number of torch.bfloat16 in the box around '2.weight'"):
        region.clamp_()


def test_a_session_refuses_the_region_of_another_network(small):
    region, other = FlatRegion(small.tuned, 0.01), copy.deepcopy(small)
    given = torch.ones(2, 4), [5, 6], torch.zeros(1, 3), [0]
    with pytest.raises(ValueError, match="'2.weight' is of another one, such as a copy"):
        learn_session(other, region, *given, epochs=1, lr=0.1)
    held = FlatRegion(other.tuned, 0.01, center=region.center)
    learn_session(other, held, *given, epochs=3, lr=10.0)
    assert held.contains()
    assert held.largest_shift() > 0.005
    assert region.largest_shift() == 0


def test_the_state_of_a_region_is_its_box(small):
    region = FlatRegion(small.tuned, 0.01)
    state = pickled(region.state_dict())
    other = split_network(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), ["2"])
    loaded = FlatRegion(other.tuned, 1.0)
    loaded.load_state_dict(state)
    assert (loaded.bound, loaded.contains()) == (0.01, False)
    loaded.clamp_()
    assert loaded.contains()
    assert torch.equal(loaded.center["2.weight"], region.center["2.weight"])
    with pytest.raises(ValueError, match="from another architecture"):
        loaded.load_state_dict(state | {"center": {"2.weight": torch.zeros(2)}})


@pytest.mark.parametrize("copied", [copy.deepcopy, pickled])
def test_what_was_clamped_outlives_copies_and_checkpoints(small, copied):
    region = FlatRegion(small.tuned, 0.01)
    with torch.no_grad():
        small.network[2].weight[0].add_(1)
    region.clamp_()
    state = copied(region.state_dict())
    with torch.no_grad():
        small.network[2].weight.add_(1)
    region.clamp_()
    assert region.share_clamped() == 1.0
    region.load_state_dict(state)
    assert region.share_clamped() == copied(region).share_clamped() == pytest.approx(1 / 3)
    region.clamp_()
    assert region.share_clamped() == pytest.approx(1 / 3)
    older = {name: state[name] for name in ("bound", "center")}
    region.load_state_dict(older)
    assert region.share_clamped() == 0.0
