"""What the fixed part of a network makes of images: kept while small, else computed each time.

Behind the first half of a ResNet18 without a stride in its stem a photograph has about ten times
the numbers that it had before: the 40,000 images of miniImageNet would take 36 GB.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.fcl.evaluation import embed

LARGEST = 2 << 30
"""Bytes of features that are kept at most."""

BATCH = 500
"""Images behind the decision: those of the first pass of :func:`ktlib.fcl.evaluation.embed`."""


class PrefixFeatures:
    """Features of images, a row an image, computed whenever some of them are asked for.

    Args:
        prefix: the fixed part of a network.
        images: ``(n, ...)``.
    """

    def __init__(self, prefix: nn.Module, images: Tensor) -> None:
        self.prefix, self.images = prefix, images

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self.images)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """``(len(rows), ...)``, without gradients."""
        return embed(self.prefix, self.images[rows])

    def split(self, size: int) -> Iterator[Tensor]:
        """The features of all images, ``size`` at a time."""
        return (embed(self.prefix, part) for part in self.images.split(size))


Features = Tensor | PrefixFeatures


def prefix_features(prefix: nn.Module, images: Tensor) -> Features:
    """Features of images ``(n, ...)``: all at once where they take :data:`LARGEST` or less."""
    first, rest = embed(prefix, images[:BATCH]), images[BATCH:]
    if len(images) * first[0].numel() * first.element_size() > LARGEST:
        return PrefixFeatures(prefix, images)
    return torch.cat([first, embed(prefix, rest)]) if len(rest) else first


def chosen(features: Features, rows: Tensor) -> Features:
    """The features at ``rows``, numbers or a mask, as they are: kept, or still to be computed."""
    if isinstance(features, PrefixFeatures):
        return PrefixFeatures(features.prefix, features.images[rows])
    return features[rows]


def joined(features: Features, images: Tensor, prefix: nn.Module | None) -> Features:
    """Features, followed by those of further images; a prefix of None stands for the images."""
    if isinstance(features, PrefixFeatures):
        return PrefixFeatures(features.prefix, torch.cat([features.images, images]))
    return torch.cat([features, images if prefix is None else embed(prefix, images)])


def embedded(module: nn.Module, features: Features) -> Tensor:
    """:func:`ktlib.fcl.evaluation.embed` of features, which it takes in batches."""
    given: Any = features
    return embed(module, given)
