import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ktlib.fcl import FlatRegion

FLOATS = st.floats(-1e3, 1e3, width=32)


@given(
    center=st.lists(FLOATS, min_size=1, max_size=8),
    step=FLOATS,
    bound=st.floats(0, 10),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float64]),
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


@pytest.mark.parametrize("bound", [-0.01, float("nan"), float("inf")])
def test_wrong_bound(bound):
    with pytest.raises(ValueError, match="bound must be a finite number >= 0"):
        FlatRegion({"w": torch.zeros(1)}, bound)


def test_no_parameters():
    with pytest.raises(ValueError, match="at least one tensor"):
        FlatRegion({}, 0.1)
