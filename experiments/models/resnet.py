"""ResNet18 embedding networks with a choice of width and stem."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.models.resnet import BasicBlock

from experiments.models.weights import load_weights, read_weights

# Of ImageNet, per channel on the scale 0 to 1: what networks with its weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resnet18_features(
    in_channels: int = 3,
    width: int = 64,
    stem_stride: int = 1,
    *,
    stem_kernel: int = 3,
    stem_pool: bool = False,
    pool_size: int = 1,
    embedding: int | None = None,
) -> nn.Sequential:
    """ResNet18 without its classifier, with the 3x3 stem used for small images.

    The stages have ``width``, ``2 width``, ``4 width`` and ``8 width`` channels; ``width=64`` is
    the ResNet18 of He et al. (2016). Multiples of 16 are several times faster on a CPU. The stem of
    that paper is ``stem_stride=2, stem_kernel=7, stem_pool=True``.

    Args:
        in_channels: channels of the images, 1 for grey and 3 for colour.
        width: channels of the first stage.
        stem_stride: stride of the first convolution; 2 halves the resolution of everything after
            it, which makes the network about four times cheaper.
        stem_kernel: side of the first convolution's window, an odd number.
        stem_pool: whether max pooling with a 3x3 window and stride 2 follows the stem.
        pool_size: the last map is averaged down to this side, and all of it is the embedding.
        embedding: size of a linear layer ``fc`` with a ReLU at the end; None for none.

    Returns:
        A module from images ``(batch, in_channels, height, width)`` to embeddings
        ``(batch, feature_dim)``. Its attribute ``feature_dim`` is ``embedding``, or without one
        ``8 * width * pool_size**2``.

    Raises:
        ValueError: if an argument is below 1, or ``stem_kernel`` is even.
    """
    for name, value in (
        ("in_channels", in_channels),
        ("width", width),
        ("stem_stride", stem_stride),
        ("stem_kernel", stem_kernel),
        ("pool_size", pool_size),
        ("embedding", 1 if embedding is None else embedding),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Found {name}={value!r}.")
    if stem_kernel % 2 == 0:
        raise ValueError(f"stem_kernel must be odd. Found stem_kernel={stem_kernel!r}.")
    channels = [width, width, 2 * width, 4 * width, 8 * width]
    stages = {
        f"layer{i}": _stage(channels[i - 1], channels[i], stride=1 if i == 1 else 2)
        for i in range(1, 5)
    }
    conv1 = nn.Conv2d(
        in_channels, width, stem_kernel, stride=stem_stride, padding=stem_kernel // 2, bias=False
    )
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        conv1=conv1, bn1=nn.BatchNorm2d(width), relu=nn.ReLU(inplace=True)
    )
    if stem_pool:
        parts["maxpool"] = nn.MaxPool2d(kernel_size=3, stride=2, padding=1)
    parts.update(stages, pool=nn.AdaptiveAvgPool2d(pool_size), flatten=nn.Flatten())
    feature_dim = channels[-1] * pool_size**2
    if embedding is not None:
        parts["fc"] = nn.Linear(feature_dim, embedding)
        parts["fc_relu"] = nn.ReLU(inplace=True)
        feature_dim = embedding
    network = nn.Sequential(parts)
    network.feature_dim = feature_dim  # type: ignore[assignment]
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def imagenet_resnet18_features(weights: str | None = None) -> nn.Sequential:
    """The ResNet18 of torchvision without its classifier, for photographs of about 224 pixels.

    Its stem, a 7x7 convolution of stride 2 and max pooling, reduces the resolution by four before
    the first stage. With ImageNet weights the images are to be normalised by
    :data:`IMAGENET_MEAN` and :data:`IMAGENET_STD`.

    Args:
        weights: None for random ones; "DEFAULT" or another name of torchvision's
            ``ResNet18_Weights`` for the ones that torchvision has in its cache or fetches; or the
            path of a file with a state dict of torchvision's ResNet18, whose classifier, if it
            has one, is left out.

    Returns:
        A module from images ``(batch, 3, height, width)`` to embeddings ``(batch, 512)``. Its
        attribute ``feature_dim`` is 512. Names of layers and parameters are torchvision's.

    Raises:
        FileNotFoundError: ``weights`` is neither a name nor a file.
        RuntimeError: torchvision could not fetch the weights; the message tells how to place them.
        ValueError: the file is not a state dict of a ResNet18.
    """
    # Weights are read before the network is made: what can fail comes first.
    state = None if weights is None else read_weights(weights, ResNet18_Weights)
    whole = resnet18(weights=None)
    stages = {name: module for name, module in whole.named_children() if name != "fc"}
    pool = stages.pop("avgpool")
    network = nn.Sequential(OrderedDict(**stages, pool=pool, flatten=nn.Flatten()))
    network.feature_dim = whole.fc.in_features
    if state is not None:
        load_weights(network, state, str(weights), "torchvision's ResNet18")
    return network


def _stage(in_channels: int, out_channels: int, stride: int) -> nn.Sequential:
    """Two basic blocks; the first one may halve the resolution."""
    shortcut = None
    if stride != 1 or in_channels != out_channels:
        shortcut = nn.Sequential(
            nn.Conv2d(in_channels, out_channels, kernel_size=1, stride=stride, bias=False),
            nn.BatchNorm2d(out_channels),
        )
    return nn.Sequential(
        BasicBlock(in_channels, out_channels, stride, shortcut),
        BasicBlock(out_channels, out_channels),
    )
