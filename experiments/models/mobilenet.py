"""MobileNetV2 for tasks that ask for a value at every pixel, and the decoder of one task."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchvision.models import MobileNet_V2_Weights, mobilenet_v2
from torchvision.ops.misc import Conv2dNormActivation

from experiments.models.weights import load_weights, read_weights

# The stride of the finer of the two maps, at which the decoder works.
STRIDE = 4


class MobileNetV2(nn.Module):
    """The encoder of Bruggemann et al. (BMTAS, BMVC 2020): MobileNetV2 and a reduced ASPP.

    torchvision's MobileNetV2 without its last convolution and with dilation in the last four blocks
    in place of their stride: 1/16 of the resolution. The reduced ASPP (Sandler et al., CVPR 2018)
    joins a 1x1 convolution of it with one of its mean over the image. That is interpolated to the
    map of 1/4, the output of the second stage, and laid behind it: so that the trunk has one
    tensor, where the released code (https://github.com/brdav/bmtas) hands on both, which is the
    same computation.

    Names of layers and parameters in ``features`` are torchvision's. With the mean over the image
    and a batch norm behind it, a batch in training must hold two images or more.

    Args:
        in_channels: channels of the images.
        width: channels of the first convolution, a multiple of 4; 32 is the published network.
        weights: for ``features``, as in ``resnet.imagenet_resnet18_features``. The
            published runs begin with torchvision's weights of ImageNet.

    Attributes:
        low_channels: channels of the finer map, ``3 / 4 * width``, which come first.
        feature_dim: channels of the features, ``19 / 4 * width``.

    Raises:
        ValueError: an argument is below 1, ``width`` is not a multiple of 4, or the weights do not
            fit. Besides, as ``resnet.imagenet_resnet18_features`` for ``weights``.
    """

    def __init__(self, in_channels: int = 3, width: int = 32, weights: str | None = None) -> None:
        super().__init__()
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1. Found in_channels={in_channels!r}.")
        if width < 4 or width % 4:
            raise ValueError(f"width must be a multiple of 4. Found width={width!r}.")
        state = None if weights is None else read_weights(weights, MobileNet_V2_Weights)
        # Without rounding to multiples of 8, which changes nothing at full width.
        whole = mobilenet_v2(weights=None, width_mult=width / 32, round_nearest=1)
        stages: Any = whole.features  # torchvision's blocks know their channels, their types do not
        self.features = nn.Sequential(*stages[:-1])
        self.sides = _Sides(STRIDE)
        if in_channels != 3:
            first = nn.Conv2d(in_channels, width, 3, stride=2, padding=1, bias=False)
            nn.init.kaiming_normal_(first.weight, mode="fan_out")
            stages[0][0] = first
        _depthwise(stages[14]).stride = (1, 1)
        for block in self.features[15:]:
            _depthwise(block).dilation = _depthwise(block).padding = (2, 2)
        self.low_channels: int = stages[3].out_channels
        self.aspp = _ReducedASPP(stages[17].out_channels, 4 * width)
        self.feature_dim = self.low_channels + 4 * width
        if state is not None:
            unused = ("features.18.", "classifier.")
            holder = nn.ModuleDict({"features": self.features})
            load_weights(holder, state, str(weights), "torchvision's MobileNetV2", unused)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(batch, feature_dim, h / 4, w / 4)`` of images ``(batch, in_channels, h, w)``.

        Raises:
            ValueError: a side of the images is not a multiple of 4.
        """
        x = low = self.sides(images)
        for index, part in enumerate(self.features):
            x = part(x)
            if index == 3:
                low = x
        x = self.aspp(x)
        # Interpolated here, once, and not by every task: it has no parameters.
        x = F.interpolate(x, low.shape[-2:], mode="bilinear", align_corners=False)
        return torch.cat((low, x), dim=1)


class Decoder(nn.Module):
    """The decoder of DeepLabv3+ with separable convolutions, as BMTAS gives one to each task.

    Args:
        in_channels: :attr:`MobileNetV2.feature_dim` of the trunk.
        low_channels: :attr:`MobileNetV2.low_channels` of the trunk.
        out_channels: of the map it computes.

    Raises:
        ValueError: an argument is below 1, or there are no channels besides the low ones.
    """

    def __init__(self, in_channels: int, low_channels: int, out_channels: int) -> None:
        super().__init__()
        if not 1 <= low_channels < in_channels:
            rule = f"low_channels must lie in [1, {in_channels})"
            raise ValueError(f"{rule}. Found low_channels={low_channels!r}.")
        if out_channels < 1:
            raise ValueError(
                f"out_channels must be at least 1. Found out_channels={out_channels!r}."
            )
        high, reduced = in_channels - low_channels, 2 * low_channels
        self.low_channels = low_channels
        self.reduce = _block(low_channels, reduced, 1)
        self.convolutions = nn.Sequential(
            _block(high + reduced, high + reduced, 3, groups=high + reduced),
            _block(high + reduced, high, 1),
            _block(high, high, 3, groups=high),
            _block(high, high, 1),
        )
        self.logits = nn.Conv2d(high, out_channels, kernel_size=1)
        _initialise(self)
        nn.init.normal_(self.logits.weight, std=0.01)

    def forward(self, features: Tensor) -> Tensor:
        """A map ``(batch, out_channels, h, w)`` of features ``(batch, in, h / 4, w / 4)``."""
        low, high = features[:, : self.low_channels], features[:, self.low_channels :]
        x = self.logits(self.convolutions(torch.cat((self.reduce(low), high), dim=1)))
        return F.interpolate(x, scale_factor=STRIDE, mode="bilinear", align_corners=False)


class _ReducedASPP(nn.Module):
    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.local = _block(in_channels, out_channels, 1)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.whole = _block(in_channels, out_channels, 1)
        self.dropout = nn.Dropout(0.1)
        self.projection = _block(2 * out_channels, out_channels, 1)
        _initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        local = self.local(x)
        whole = self.whole(self.pool(x)).expand_as(local)
        projected: Tensor = self.projection(self.dropout(torch.cat((local, whole), dim=1)))
        return projected


class _Sides(nn.Module):
    """Hands on images whose sides are multiples of a number, and refuses others."""

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        if height % self.factor or width % self.factor:
            rule = f"images must have sides that are multiples of {self.factor}"
            raise ValueError(f"{rule}. Found {height} x {width}.")
        return images


def _block(in_channels: int, out_channels: int, kernel: int, groups: int = 1) -> nn.Sequential:
    """A convolution without bias, a batch norm and a ReLU6."""
    block: nn.Sequential = Conv2dNormActivation(
        in_channels, out_channels, kernel, groups=groups, activation_layer=nn.ReLU6
    )
    return block


def _depthwise(block: nn.Module) -> nn.Conv2d:
    """The 3x3 convolution of one of torchvision's inverted residual blocks that expand."""
    convolution = block.get_submodule("conv.1.0")
    assert isinstance(convolution, nn.Conv2d)  # noqa: S101 - for the type checker
    return convolution


def _initialise(module: nn.Module) -> None:
    """As torchvision's MobileNetV2: Kaiming's normal, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out")
            if part.bias is not None:
                nn.init.zeros_(part.bias)
