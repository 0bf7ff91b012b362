"""Small trunks that are split in the tests, and what is compared of them."""

from collections import OrderedDict

import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

LEFT_RIGHT = ["left", "right"]


def names(count):
    return [f"task {i}" for i in range(count)]


def small_resnet():
    """Two residual blocks, the second with a convolution and a batch norm on its shortcut."""
    shortcut = nn.Sequential(nn.Conv2d(2, 4, 1, 2, bias=False), nn.BatchNorm2d(4))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 2, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(2),
            relu=nn.ReLU(inplace=True),
            layer1=BasicBlock(2, 2),
            layer2=BasicBlock(2, 4, stride=2, downsample=shortcut),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )


def by_hand():
    """y = 2 * relu(3 x), with both layers of one weight."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(3.0)
        network[2].weight.fill_(2.0)
    return network


def loss_of(features, i):
    """A loss for task ``i``, different for every task."""
    flat = features.flatten(1)
    target = torch.linspace(-1 - i, 1 + 2 * i, flat.shape[1]).to(flat)
    return (i + 1) * (flat - target).square().mean()


def summed(features):
    return sum(loss_of(value, i) for i, value in enumerate(features.values()))


def assert_same(ours, theirs, tolerance=0.0):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=tolerance, atol=tolerance, msg=key)


def numbers(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def perturb(trunk, tasks):
    """Make every task's own layers differ from each other's."""
    with torch.no_grad():
        for i, task in enumerate(tasks):
            for p in trunk.task_parameters(task):
                p.mul_(1 + 0.1 * i).add_(0.01 * i)
