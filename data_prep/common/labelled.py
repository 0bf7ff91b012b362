"""Images with their labels, and how they become numbers for a network."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    # Only for the types: reading manifests and checksums must not cost the import of torch.
    from torch import Tensor


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Images and labels of one split.

    Attributes:
        images: uint8, shape (n, channels, height, width), values 0 to 255.
        labels: int64, shape (n,), indices into ``class_names``.
        class_names: One name per class.
    """

    images: Tensor
    labels: Tensor
    class_names: tuple[str, ...]

    def __post_init__(self) -> None:
        """Refuse images and labels that do not belong together."""
        if str(self.images.dtype) != "torch.uint8" or self.images.ndim != 4:
            found = f"{self.images.dtype} of shape {tuple(self.images.shape)}"
            raise ValueError(f"images must be torch.uint8 of shape (n, c, h, w). Found {found}.")
        if str(self.labels.dtype) != "torch.int64" or self.labels.ndim != 1:
            found = f"{self.labels.dtype} of shape {tuple(self.labels.shape)}"
            raise ValueError(f"labels must be torch.int64 of shape (n,). Found {found}.")
        if len(self.images) != len(self.labels):
            found = f"{len(self.labels)} labels for {len(self.images)} images"
            raise ValueError(f"labels must have one entry per image. Found {found}.")
        if len(self.labels) and not self._labels_are_named():
            found = f"labels from {int(self.labels.min())} to {int(self.labels.max())}"
            raise ValueError(f"labels must lie in [0, {len(self.class_names)}). Found {found}.")

    def _labels_are_named(self) -> bool:
        """Whether every label is the index of a class name."""
        return int(self.labels.min()) >= 0 and int(self.labels.max()) < len(self.class_names)

    def __len__(self) -> int:
        """The number of images, n."""
        return len(self.labels)

    def subset(self, indices: Tensor | Sequence[int]) -> LabelledImages:
        """The images at ``indices`` (integers or a boolean mask of shape (n,)), in that order."""
        chosen = self.labels.new_tensor(indices) if isinstance(indices, Sequence) else indices
        return LabelledImages(self.images[chosen], self.labels[chosen], self.class_names)


def labelled_images(
    images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: tuple[str, ...]
) -> LabelledImages:
    """Arrays as tensors; the memory is shared where the array is contiguous."""
    import torch  # here, so that reading manifests and checksums does not cost this import

    return LabelledImages(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(labels)),
        class_names,
    )


def scaled(images: Tensor) -> Tensor:
    """Pixels as a new float32 tensor: bytes divided by 255, floating-point numbers as they are.

    Raises:
        ValueError: another dtype.
    """
    import torch

    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise ValueError(f"images must be torch.uint8 or floating-point. Found {images.dtype}.")
    found = images.to(torch.float32, copy=True)
    return found if images.is_floating_point() else found.div_(255)


def normalised(
    images: Tensor, mean: float | Sequence[float], std: float | Sequence[float]
) -> Tensor:
    """``(scaled(images) - mean) / std`` as float32.

    Args:
        images: uint8 or floating-point as :func:`scaled` takes them, (n, channels, height, width).
        mean: One number, or one per channel, on the scale 0 to 1.
        std: The same for the standard deviation; positive.

    Returns:
        float32, same shape and device as ``images``.

    Raises:
        ValueError: another dtype, a std that is not positive, or a wrong number of channels.
    """
    found = scaled(images)
    spread = _per_channel(found, std, "std")
    if not bool((spread > 0).all()):
        raise ValueError(f"std must be positive. Found std={std!r}.")
    return found.sub_(_per_channel(found, mean, "mean")).div_(spread)


def _per_channel(images: Tensor, values: float | Sequence[float], name: str) -> Tensor:
    """``values`` in the shape (1 or channels, 1, 1), which broadcasts over ``images``."""
    numbers = list(values) if isinstance(values, Sequence) else [values]
    if len(numbers) not in (1, images.shape[1]):
        rule = f"{name} must be one number or one for each of the {images.shape[1]} channels"
        raise ValueError(f"{rule}. Found {name}={values!r}.")
    return images.new_tensor(numbers).reshape(-1, 1, 1)
