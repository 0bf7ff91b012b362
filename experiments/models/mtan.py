"""MTAN: a task's attention over the encoder and decoder of SegNet."""

from __future__ import annotations

from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from experiments.models.segnet import SegNet, block, initialise


class MTAN(nn.Module):
    """The multi-task attention network of Liu et al. (CVPR 2019), as one task sees it.

    In every stage of SegNet a mask from 0 to 1 chooses among its features; what is chosen passes
    through a convolution to the next stage. Layers that compute masks (:attr:`attention_layers`)
    are a task's own; SegNet and those convolutions, 72 layers, are shared by all tasks. The network
    for several tasks is the split of this one::

        network = MTAN()
        split(network, network.attention_layers, tasks=["depth", "normals"])

    There SegNet is computed once, and the attention of each task starts from the same values. In
    the released code (https://github.com/lorenmt/mtan) each starts from its own, which
    ``trunk_of(task).redraw_attention()`` gives. More layers that are made task-specific are added
    to the list.

    Args:
        in_channels: channels of the images.
        width: channels of the first stage; 64 is the published network.

    Attributes:
        feature_dim: channels of the features, ``width``.

    Raises:
        ValueError: an argument is below 1.
    """

    def __init__(self, in_channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.segnet = SegNet(in_channels, width)
        self.feature_dim = width
        stages = self.segnet.channels
        # In the order of the computation: the decoder's stages run from the coarsest to the finest.
        self.encoder_attention = nn.ModuleList(
            _attention(stages[i] if i == 0 else 2 * stages[i], stages[i]) for i in range(5)
        )
        self.encoder_passes = nn.ModuleList(
            block(stages[i], stages[min(i + 1, 4)]) for i in range(5)
        )
        finer = (stages[0], *stages[:4])
        self.decoder_passes = nn.ModuleList(
            block(stages[4] if i == 4 else finer[i + 1], finer[i]) for i in reversed(range(5))
        )
        self.decoder_attention = nn.ModuleList(
            _attention(stages[i] + finer[i], finer[i]) for i in reversed(range(5))
        )
        for part in (self.encoder_passes, self.decoder_passes):
            initialise(part)
        self.redraw_attention()

    @property
    def attention_layers(self) -> list[str]:
        """Names of the layers that compute masks: 20 convolutions and 20 batch norms."""
        return [
            name
            for name, part in self.named_modules()
            if name.startswith(("encoder_attention", "decoder_attention"))
            and next(part.parameters(recurse=False), None) is not None
        ]

    def redraw_attention(self) -> None:
        """Draw the convolutions of the attention anew."""
        initialise(self.encoder_attention)
        initialise(self.decoder_attention)

    def forward(self, images: Tensor) -> Tensor:
        """Features ``(batch, width, height, width of the image)`` of ``(batch, in, h, w)``.

        The images may have any size from 32 x 32 pixels.
        """
        encoded, decoded = self.segnet.stages(images)
        # The first block of a stage decides, with what comes from the stage before, about the last.
        passed = images
        for i, (attention, onward) in enumerate(
            zip(self.encoder_attention, self.encoder_passes, strict=True)
        ):
            first, last = encoded[i][0], encoded[i][-1]
            mask = attention(first if i == 0 else torch.cat((first, passed), dim=1))
            passed = F.max_pool2d(onward(mask * last), kernel_size=2)
        for i, (onward, attention) in enumerate(
            zip(self.decoder_passes, self.decoder_attention, strict=True)
        ):
            restored, last = decoded[i][0], decoded[i][-1]
            finer = F.interpolate(passed, restored.shape[-2:], mode="bilinear", align_corners=True)
            mask = attention(torch.cat((restored, onward(finer)), dim=1))
            passed = mask * last
        return passed


def _attention(in_channels: int, out_channels: int) -> nn.Sequential:
    """Two 1x1 convolutions that end in a mask from 0 to 1."""
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(in_channels, out_channels, kernel_size=1),
            bn1=nn.BatchNorm2d(out_channels),
            relu=nn.ReLU(inplace=True),
            conv2=nn.Conv2d(out_channels, out_channels, kernel_size=1),
            bn2=nn.BatchNorm2d(out_channels),
            mask=nn.Sigmoid(),
        )
    )
