"""Layers chosen without looking at conflicts."""

import pytest
import torch
from torch import nn

from experiments.mtl.controls import CONTROLS, control_layers, parameter_count
from ktlib.seeding import generator

SIZES = {"a": 3, "b": 10, "c": 1, "d": 6, "e": 2}
LAYERS = {name: [nn.Parameter(torch.zeros(size))] for name, size in SIZES.items()}


def test_first_and_last_layers_by_hand() -> None:
    assert control_layers("first", LAYERS, ["b", "e"], generator(0)) == ["a", "b"]
    assert control_layers("last", LAYERS, ["b", "a", "c"], generator(0)) == ["c", "d", "e"]


def test_random_layers_are_as_many_as_chosen_in_network_order() -> None:
    for seed in range(20):
        found = control_layers("random_layers", LAYERS, ["b", "e"], generator(seed))
        assert len(found) == 2
        assert found == sorted(found)


def test_random_layers_take_every_layer_at_some_seed() -> None:
    draws = [control_layers("random_layers", LAYERS, ["a"], generator(s)) for s in range(60)]
    assert {name for names in draws for name in names} == set(LAYERS)


def test_random_parameters_fill_the_budget_without_passing_it() -> None:
    for seed in range(20):
        found = control_layers("random_parameters", LAYERS, ["d", "a"], generator(seed))
        used = sum(SIZES[name] for name in found)
        assert used <= 9
        rest = [SIZES[name] for name in LAYERS if name not in found]
        assert min(rest) > 9 - used  # no other layer would fit


@pytest.mark.parametrize("control", CONTROLS)
def test_all_layers_chosen_gives_all_layers(control: str) -> None:
    assert control_layers(control, LAYERS, list(LAYERS), generator(0)) == list(LAYERS)


@pytest.mark.parametrize("control", CONTROLS)
def test_equal_seeds_give_equal_choices_and_none_chosen_gives_none(control: str) -> None:
    one, other = (control_layers(control, LAYERS, ["b"], generator(3)) for _ in range(2))
    assert one == other
    assert control_layers(control, LAYERS, [], generator(0)) == []


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ValueError, match="control must be one of"):
        control_layers("best", LAYERS, ["a"], generator(0))
    with pytest.raises(ValueError, match=r"Found \['z'\]"):
        control_layers("first", LAYERS, ["z"], generator(0))


def test_a_layer_counts_weight_and_bias() -> None:
    assert parameter_count(list(nn.Linear(3, 4).parameters())) == 16
