"""ResNet18 embedding networks with a choice of width and stem."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models.resnet import BasicBlock


def resnet18_features(in_channels: int = 3, width: int = 64, stem_stride: int = 1) -> nn.Sequential:
    """ResNet18 without its classifier, with the 3x3 stem used for small images.

    The stages have ``width``, ``2 width``, ``4 width`` and ``8 width`` channels; ``width=64`` is
    the ResNet18 of He et al. (2016). Multiples of 16 are several times faster on a CPU.

    Args:
        in_channels: channels of the images, 1 for grey and 3 for colour.
        width: channels of the first stage.
        stem_stride: stride of the first convolution; 2 halves the resolution of everything after
            it, which makes the network about four times cheaper.

    Returns:
        A module from images ``(batch, in_channels, height, width)`` to embeddings
        ``(batch, 8 * width)``. Its attribute ``feature_dim`` is ``8 * width``.

    Raises:
        ValueError: if an argument is below 1.
    """
    for name, value in (
        ("in_channels", in_channels),
        ("width", width),
        ("stem_stride", stem_stride),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Found {name}={value!r}.")
    channels = [width, width, 2 * width, 4 * width, 8 * width]
    stages = {
        f"layer{i}": _stage(channels[i - 1], channels[i], stride=1 if i == 1 else 2)
        for i in range(1, 5)
    }
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(
                in_channels, width, kernel_size=3, stride=stem_stride, padding=1, bias=False
            ),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            **stages,
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    network.feature_dim = channels[-1]  # type: ignore[assignment]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Two basic blocks; the first one may halve the resolution."""
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride, shortcut),
        BasicBlock(out_channels, out_channels),
    )
