"""What counts as a layer."""

import re

import pytest
import torch
from torch import nn

from experiments.models.resnet import resnet18_features
from ktlib.mtl import layers_of
from ktlib.mtl.layers import check_layers


def test_weight_and_bias_together_and_containers_left_out():
    network = nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(8, 3),
    )
    layers = layers_of(network)
    assert [(name, [tuple(p.shape) for p in own]) for name, own in layers.items()] == [
        ("0.0", [(2, 1, 3, 3), (2,)]),
        ("0.1", [(2,), (2,)]),
        ("2", [(3, 8), (3,)]),
    ]
    assert layers["2"][0] is network[2].weight
    assert list(layers_of(network, batch_norm=False)) == ["0.0", "2"]


def test_resnet18_has_40_layers():
    # 20 convolutions, three of them on shortcuts, and a batch norm behind each.
    layers = layers_of(resnet18_features(1, 4))
    assert len(layers) == 40
    assert len(layers_of(resnet18_features(1, 4), batch_norm=False)) == 20
    assert list(layers)[:2] == ["conv1", "bn1"]


def test_every_trainable_parameter_is_in_exactly_one_layer(own_module):
    listed = [p for own in layers_of(own_module).values() for p in own]
    assert {id(p) for p in listed} == {id(p) for p in own_module.parameters()}
    assert len(listed) == len(list(own_module.parameters()))


def test_a_module_with_a_parameter_and_children_is_a_layer_of_its_own_parameters(own_module):
    assert layers_of(own_module)[""] == [own_module.scale]
    assert list(layers_of(nn.Linear(2, 3))) == [""]


def test_frozen_parameters_are_left_out(own_module):
    own_module.stem.weight.requires_grad_(False)
    own_module.last.requires_grad_(False)
    layers = layers_of(own_module)
    assert [tuple(p.shape) for p in layers["stem"]] == [(4,)]
    assert "last" not in layers
    with pytest.raises(ValueError, match="Found 'last' .Linear.; all its parameters are frozen"):
        check_layers(own_module, ["last"])


def test_names_come_back_in_the_order_of_the_network_each_once(own_module):
    assert check_layers(own_module, ["norm", "stem", "norm"]) == ("stem", "norm")
    assert check_layers(own_module, iter(())) == ()
    assert check_layers(own_module, "stem") == ("stem",)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("layer1.0.konv1", "Found 'layer1.0.konv1'; did you mean 'layer1.0.conv1'?"),
        ("bn", "Found 'bn'; did you mean 'bn1'?"),
        ("layer1", "Found 'layer1' (Sequential); it has no parameters of its own."),
        ("pool", "Found 'pool' (AdaptiveAvgPool2d); it has no parameters of its own."),
    ],
)
def test_unknown_names_are_told_with_the_closest(name, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        check_layers(resnet18_features(1, 4), [name])


def test_a_network_without_layers():
    assert layers_of(nn.ReLU()) == {}
    with pytest.raises(ValueError, match="Found 'a'; it has no layers."):
        check_layers(nn.ReLU(), ["a"])


@pytest.mark.parametrize("chosen", ["first", "second.0"])
def test_a_module_used_twice_counts_once_and_is_no_choice(chosen):
    layer, other = nn.Linear(2, 2), nn.Linear(2, 2)
    network = nn.ModuleDict({"first": layer, "second": nn.Sequential(layer), "other": other})
    assert layers_of(network) == {"first": list(layer.parameters()), "other": [*other.parameters()]}
    assert check_layers(network, ["other"]) == ("other",)
    with pytest.raises(ValueError, match="one Linear under the names 'first' and 'second.0'"):
        check_layers(network, [chosen, "other"])


@pytest.mark.parametrize("chosen", ["first", "second"])
def test_a_tied_parameter_counts_under_its_first_name_and_is_no_choice(chosen):
    """As the embedding and the output layer of a language model."""
    first, second, other = nn.Embedding(5, 2), nn.Linear(2, 5), nn.Linear(5, 2)
    second.weight = first.weight
    network = nn.ModuleDict({"first": first, "second": second, "other": other})
    layers = layers_of(network)
    assert list(layers) == ["first", "second", "other"]
    assert [*map(id, layers["first"])] == [id(first.weight)]
    assert [*map(id, layers["second"])] == [id(second.bias)]
    assert check_layers(network, ["other"]) == ("other",)
    with pytest.raises(ValueError, match="under the names 'first.weight' and 'second.weight'"):
        check_layers(network, [chosen])


def test_a_module_without_parameters_may_be_used_twice():
    relu = nn.ReLU()
    network = nn.Sequential(nn.Linear(2, 2), relu, nn.Linear(2, 2), relu)
    assert list(layers_of(network)) == ["0", "2"]
    assert network(torch.zeros(1, 2)).shape == (1, 2)
