"""SegNet: an encoder and a decoder that give features for every pixel."""

from __future__ import annotations

from collections import OrderedDict

from torch import Tensor, nn

# Convolutions per stage of the encoder, those of VGG-16; the decoder mirrors them.
_BLOCKS = (2, 2, 3, 3, 3)


class SegNet(nn.Module):
    """The encoder and decoder of Badrinarayanan et al. (2017), without a classifier.

    Five stages halve the resolution by max pooling; five more restore it by putting values back
    where the maxima were. There are 26 convolutions with a bias, each with a batch norm: 52 layers.
    The last stage has as many channels as the fourth, and the first convolution of a decoder stage
    is the one that changes their number, as in the network of Liu et al. (2019), "End-to-end
    multi-task learning with attention", that the multi-task literature calls SegNet
    (https://github.com/lorenmt/mtan). ``width=64`` is that network.

    Args:
        in_channels: channels of the images.
        width: channels of the first stage; the others have 2, 4, 8 and 8 times as many.

    Attributes:
        feature_dim: channels of the features, ``width``.
        channels: channels of the five stages.

    Raises:
        ValueError: an argument is below 1.
    """

    def __init__(self, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        for name, value in (("in_channels", in_channels), ("width", width)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1. Found {name}={value!r}.")
        self.feature_dim = width
        self.channels = (width, 2 * width, 4 * width, 8 * width, 8 * width)
        entering = (in_channels, *self.channels)
        self.encoder = nn.ModuleList(
            _stage(entering[i], entering[i + 1], count) for i, count in enumerate(_BLOCKS)
        )
        leaving = (width, *self.channels)
        self.decoder = nn.ModuleList(
            _stage(leaving[i + 1], leaving[i], _BLOCKS[i]) for i in reversed(range(5))
        )
        self.pool = nn.MaxPool2d(2, return_indices=True)
        self.unpool = _Unpool()
        initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(batch, width, height, width of the image)`` of ``(batch, in, h, w)``.

        The images may have any size from 32 x 32 pixels.
        """
        return self.stages(images)[1][-1][-1]

    def stages(self, images: Tensor) -> tuple[list[list[Tensor]], list[list[Tensor]]]:
        """What every stage computes, in the order of the computation.

        Returns:
            For each stage of the encoder the output of its blocks; and for each of the decoder its
            input at the restored resolution, followed by the output of its blocks.
        """
        encoded: list[list[Tensor]] = []
        places = []
        features = images
        for stage in self.encoder:
            encoded.append(_outputs(stage, features))
            pooled = self.pool(encoded[-1][-1])
            features = pooled[0]
            places.append(pooled[1])
        decoded: list[list[Tensor]] = []
        for i, stage in enumerate(self.decoder):
            restored = self.unpool(features, places[-1 - i], encoded[-1 - i][-1])
            decoded.append([restored, *_outputs(stage, restored)])
            features = decoded[-1][-1]
        return encoded, decoded


class _Unpool(nn.Module):
    """``nn.MaxUnpool2d``, which PyTorch refuses to compute where results must be repeatable."""

    def forward(self, values: Tensor, places: Tensor, like: Tensor) -> Tensor:
        """Put values at their places in zeros of the shape of ``like``."""
        zeros = values.new_zeros(like.shape).flatten(2)
        return zeros.scatter(2, places.flatten(2), values.flatten(2)).view(like.shape)


def dense_head(in_channels: int, out_channels: int) -> nn.Sequential:
    """What Liu et al. put on top of SegNet and MTAN for a task: a 3x3 and a 1x1 convolution.

    There is nothing between the two, as in their released code.

    Returns:
        A module from features ``(batch, in_channels, h, w)`` to ``(batch, out_channels, h, w)``.
    """
    head = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, in_channels, kernel_size=3, padding=1),
            conv2=nn.Conv2d(in_channels, out_channels, kernel_size=1),
        )
    )
    initialise(head)
    return head


def block(in_channels: int, out_channels: int) -> nn.Sequential:
    """A 3x3 convolution with a bias, a batch norm and a ReLU."""
    return nn.Sequential(
        OrderedDict(
            conv=nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            bn=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
        )
    )


def initialise(module: nn.Module) -> None:
    """Convolutions as in the released code of Liu et al.: Xavier's normal, biases 0."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.xavier_normal_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)


def _stage(in_channels: int, out_channels: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(
        block(in_channels if i == 0 else out_channels, out_channels) for i in range(count)
    )


def _outputs(stage: nn.Module, features: Tensor) -> list[Tensor]:
    """The output of every block of a stage."""
    outputs = []
    for part in stage.children():
        features = part(features)
        outputs.append(features)
    return outputs
