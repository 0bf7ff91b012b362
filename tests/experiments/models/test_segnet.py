"""SegNet: shapes, the published size, and unpooling."""

import pytest
import torch
from torch import nn

from experiments.models.segnet import SegNet, _Unpool


def test_the_published_network_has_its_published_size():
    # 24,981,069 parameters: what Liu et al. divide by in https://github.com/lorenmt/mtan, with a
    # 3x3 and a 1x1 convolution on top for the 13 classes of NYUv2.
    network = SegNet(3, 64)
    head = (64 * 64 * 9 + 64) + (64 * 13 + 13)
    assert sum(p.numel() for p in network.parameters()) + head == 24_981_069


def test_26_convolutions_with_a_norm_each_in_the_order_of_the_computation():
    network = SegNet(1, 2).eval()
    called = []
    for name, part in network.named_modules():
        if isinstance(part, (nn.Conv2d, nn.BatchNorm2d)):
            part.register_forward_hook(lambda *_, name=name: called.append(name))
    network(torch.randn(1, 1, 32, 32))
    own = [
        n for n, m in network.named_modules() if next(m.parameters(recurse=False), None) is not None
    ]
    assert called == own
    assert len(called) == 52


@pytest.mark.parametrize("size", [(32, 32), (32, 64), (41, 50)])
def test_features_at_the_resolution_of_the_image(size):
    network = SegNet(2, 3).eval()
    assert network.feature_dim == 3
    assert network(torch.randn(2, 2, *size)).shape == (2, 3, *size)


def test_unpooling_is_that_of_torch_and_repeatable():
    torch.use_deterministic_algorithms(False)  # of which torch's own unpooling warns
    before = torch.randn(2, 3, 9, 6, requires_grad=True)
    pooled, places = nn.MaxPool2d(2, return_indices=True)(before)
    theirs = nn.MaxUnpool2d(2)(pooled, places, output_size=before.shape)
    (gradient,) = torch.autograd.grad(theirs.square().sum(), before, retain_graph=True)
    torch.use_deterministic_algorithms(True)
    try:
        ours = _Unpool()(pooled, places, before)
        (own_gradient,) = torch.autograd.grad(ours.square().sum(), before)
    finally:
        torch.use_deterministic_algorithms(False)
    assert torch.equal(ours, theirs)
    assert torch.equal(own_gradient, gradient)
    assert (ours != 0).sum() == pooled.numel()


def test_every_parameter_is_trained():
    network = SegNet(1, 2)
    network(torch.randn(4, 1, 64, 64)).square().sum().backward()
    # The bias of a convolution in front of a batch norm changes nothing.
    for name, parameter in network.named_parameters():
        if not name.endswith("conv.bias"):
            assert parameter.grad.abs().sum() > 0, name


def test_the_seed_decides_the_values():
    networks = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        networks.append(SegNet(1, 2))
    first, second, third = (n.encoder[0][0].conv.weight for n in networks)
    assert torch.equal(first, second)
    assert not torch.equal(first, third)
    assert all(not n.decoder[0][0].conv.bias.any() for n in networks)


@pytest.mark.parametrize(("arguments", "name"), [((0, 4), "in_channels"), ((3, 0), "width")])
def test_wrong_sizes(arguments, name):
    with pytest.raises(ValueError, match=f"{name} must be at least 1. Found {name}=0."):
        SegNet(*arguments)
