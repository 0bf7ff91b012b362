"""Backbones: networks that map a batch of images, or of tokens, to features."""
