"""Backbones: embedding networks that map a batch of images to feature vectors."""

from ktlib.models.resnet import resnet18_features

__all__ = ["resnet18_features"]
