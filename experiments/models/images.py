"""Images as networks take them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

import data_prep as data


class NormalisedImages:
    """Images that are normalised when they are asked for, as all at once would fill the memory.

    Args:
        pixels: uint8, or floating-point from 0 to 1, ``(n, channels, height, width)``.
        mean: of the pixels on the scale 0 to 1, one number or one for each channel.
        std: their spread.
    """

    def __init__(self, pixels: Tensor, mean: Any, std: Any) -> None:
        self.pixels, self.mean, self.std = pixels, mean, std

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self.pixels)

    def __getitem__(self, rows: Tensor) -> Tensor:
        """``(len(rows), channels, height, width)``, float32."""
        return data.normalised(self.pixels[rows], self.mean, self.std)
