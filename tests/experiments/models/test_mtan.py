"""MTAN: shapes, the published size, and masks that are a task's own."""

import pytest
import torch
import torch.nn.functional as F

from experiments.models.mtan import MTAN
from ktlib.mtl import layers_of, split


def count(parameters):
    return sum(p.numel() for p in parameters)


def test_the_published_network_has_its_published_size():
    # 168.72 MB for the three tasks of NYUv2 (table 4.5 of the thesis, joint training): a 3x3 and a
    # 1x1 convolution on top of each task, for 13 classes, a depth and a normal vector.
    network = MTAN(3, 64)
    own = count(network.get_parameter(f"{layer}.{kind}")
                for layer in network.attention_layers for kind in ("weight", "bias"))  # fmt: skip
    heads = sum(64 * 64 * 9 + 64 + 64 * c + c for c in (13, 1, 3))
    total = count(network.parameters()) + 2 * own + heads
    assert round(total * 4 / 2**20, 2) == 168.72


def test_72_layers_are_shared_and_40_are_a_tasks_own():
    # 72 is what the released code of Recon chooses among on NYUv2.
    network = MTAN(1, 2)
    assert len(network.attention_layers) == 40
    assert len(layers_of(network)) == 40 + 72
    trunk = split(network, network.attention_layers, ["depth", "normals"])
    assert len(trunk.shared_layers()) == 72


@pytest.mark.parametrize("size", [(32, 32), (33, 70)])
def test_features_at_the_resolution_of_the_image(size):
    network = MTAN(2, 3).eval()
    assert network.feature_dim == 3
    assert network(torch.randn(2, 2, *size)).shape == (2, 3, *size)


def reference(network, images):
    """The forward pass in the order and with the indices of the released code (lorenmt/mtan)."""
    encoded, decoded = network.segnet.stages(images)
    chosen = []
    for j in range(5):
        inputs = encoded[j][0] if j == 0 else torch.cat((encoded[j][0], chosen[j - 1]), dim=1)
        mask = network.encoder_attention[j](inputs)
        chosen.append(F.max_pool2d(network.encoder_passes[j](mask * encoded[j][-1]), 2, 2))
    value = chosen[-1]
    for j in range(5):
        value = F.interpolate(value, scale_factor=2, mode="bilinear", align_corners=True)
        value = network.decoder_passes[j](value)
        mask = network.decoder_attention[j](torch.cat((decoded[j][0], value), dim=1))
        value = mask * decoded[j][-1]
    return value


def test_what_it_computes_is_the_released_network():
    torch.manual_seed(0)
    network = MTAN(1, 2)
    images = torch.randn(2, 1, 64, 32)
    torch.testing.assert_close(network(images), reference(network, images), rtol=0, atol=0)


def test_open_masks_give_the_features_of_segnet():
    network = MTAN(1, 2)
    images = torch.randn(2, 1, 32, 64)
    closed = network(images)
    for layer in network.attention_layers:
        if layer.endswith("bn2"):  # the mask is the sigmoid of this norm
            torch.nn.init.constant_(network.get_submodule(layer).bias, 100.0)
            torch.nn.init.zeros_(network.get_submodule(layer).weight)
    torch.testing.assert_close(network(images), network.segnet(images), rtol=0, atol=0)
    assert not torch.equal(closed, network.segnet(images))


def test_tasks_see_segnet_computed_once_through_masks_of_their_own():
    torch.manual_seed(0)
    network = MTAN(1, 2)
    trunk = split(network, network.attention_layers, ["depth", "normals"])
    assert trunk.shares_prefix
    calls = []
    trunk.trunk_of("depth").segnet.encoder[0][0].conv.register_forward_hook(
        lambda *_: calls.append(1)
    )
    images = torch.randn(4, 1, 32, 32)
    same = trunk(images)
    assert len(calls) == 1
    assert torch.equal(same["depth"], same["normals"])
    trunk.trunk_of("normals").redraw_attention()
    other = trunk(images)
    assert torch.equal(other["depth"], same["depth"])
    assert not torch.allclose(other["normals"], same["normals"])
    other["depth"].sum().backward()
    assert all(p.grad is None for p in trunk.task_parameters("normals"))
    assert trunk.trunk_of("normals").segnet.encoder[0][0].bn.weight.grad is not None
