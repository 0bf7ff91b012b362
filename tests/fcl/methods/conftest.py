"""A tiny few-shot problem that a tiny network can solve: bars at different places."""

import pytest
import torch

from ktlib.fcl import few_shot_sessions

CLASSES = 7  # 3 base classes, then 2 sessions of 2


@pytest.fixture
def problem(device):
    """Sessions, images and labels; each class has one bright row of its own, and noise."""
    generator = torch.Generator().manual_seed(5)
    labels = torch.arange(CLASSES * 12) % CLASSES
    images = 0.3 * torch.randn(len(labels), 1, 12, 12, generator=generator)
    images[torch.arange(len(labels)), :, labels] += 2.0
    tested = torch.arange(len(labels)) >= CLASSES * 8
    sizes = {"base_classes": 3, "sessions": 2, "ways": 2, "shots": 3, "base_images": 6}
    sessions = few_shot_sessions(labels[~tested], class_seed=1, seed=2, **sizes)
    images, labels = images.to(device), labels.to(device)
    return sessions, images[~tested], labels[~tested], images[tested], labels[tested]
