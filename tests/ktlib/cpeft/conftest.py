"""A tiny transformer and tiny images for the tests; ``KTLIB_TEST_DEVICE=cuda`` runs them there."""

import os
from dataclasses import dataclass

import pytest
import torch

from experiments.models.vit import small_vit


@dataclass
class TinyData:
    """Six classes of 8x8 images, each a pattern of its own and noise; test images are others."""

    images: torch.Tensor
    labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor


@pytest.fixture
def device():
    return torch.device(os.environ.get("KTLIB_TEST_DEVICE", "cpu"))


@pytest.fixture
def tiny_vit(device):
    """Two blocks of width 16, on 8x8 images of one channel; its weights are large enough to matter.

    Its linear layers are found by "query", "key" and "value".
    """
    network = small_vit(image_size=8, patch_size=4, width=16, blocks=2, heads=2, seed=0)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if parameter.dim() > 1 and "embeddings.cls" not in name:
                parameter.mul_(8)
    return network.to(device)


@pytest.fixture
def tiny_data():
    stream = torch.Generator().manual_seed(5)
    patterns = torch.randn(6, 1, 8, 8, generator=stream)

    def draw(per_class):
        labels = torch.arange(6).repeat_interleave(per_class)
        noise = torch.randn(len(labels), 1, 8, 8, generator=stream)
        return patterns[labels] + 0.3 * noise, labels

    return TinyData(*draw(16), *draw(8))
