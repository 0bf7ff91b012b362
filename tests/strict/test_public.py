"""Every public function of ktlib runs on a device that is no CPU, and gives the CPU's results."""

from types import FunctionType

import pytest
import torch
from torch.utils._pytree import tree_leaves, tree_structure

from ktlib import cpeft, device, fcl, ila, mtl, seeding
from tests.strict.public import CHECKS

SEEDS = {"seeding: streams"}  # it is for the global streams


@pytest.mark.parametrize("name", CHECKS)
def test_as_on_the_cpu(name, strict):
    check, _ = CHECKS[name]
    torch.strict.manual_seed_all(5)
    before = torch.strict.get_rng_state()
    expected, found = check(torch.device("cpu")), check(strict)
    assert name in SEEDS or torch.equal(before, torch.strict.get_rng_state())
    assert tree_structure(found) == tree_structure(expected)
    for mine, theirs in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        if isinstance(theirs, torch.Tensor):
            torch.testing.assert_close(mine.cpu(), theirs, rtol=1e-4, atol=1e-6, equal_nan=True)
        elif isinstance(theirs, float):
            assert mine == pytest.approx(theirs, rel=1e-4, abs=1e-6, nan_ok=True)
        else:
            assert mine == theirs


def test_no_public_name_is_left_out():
    public = {f"{part.__name__[6:]}.{name}" for part in (fcl, mtl, ila, cpeft)
              for name in part.__all__}  # fmt: skip
    for part in (device, seeding):  # they have no list: what is defined there and has no underscore
        for name, value in vars(part).items():
            own = getattr(value, "__module__", None) == part.__name__
            if own and isinstance(value, FunctionType) and not name.startswith("_"):
                public.add(f"{part.__name__[6:]}.{name}")
    covered = frozenset().union(*(names for _, names in CHECKS.values()))
    assert sorted(public ^ covered) == []
