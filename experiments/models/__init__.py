"""Backbones: embedding networks that map a batch of images to feature vectors or feature maps."""

from experiments.models.resnet import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    imagenet_resnet18_features,
    resnet18_features,
)

__all__ = ["IMAGENET_MEAN", "IMAGENET_STD", "imagenet_resnet18_features", "resnet18_features"]
