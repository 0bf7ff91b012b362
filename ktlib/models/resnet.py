"""ResNet18 embedding networks with a choice of width and stem."""

from __future__ import annotations

import pickle
from collections import OrderedDict
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import ResNet18_Weights, resnet18
from torchvision.models.resnet import BasicBlock

# Of ImageNet, per channel on the scale 0 to 1: what networks with its weights expect.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def resnet18_features(in_channels: int = 3, width: int = 64, stem_stride: int = 1) -> nn.Sequential:
    """ResNet18 without its classifier, with the 3x3 stem used for small images.

    The stages have ``width``, ``2 width``, ``4 width`` and ``8 width`` channels; ``width=64`` is
    the ResNet18 of He et al. (2016). Multiples of 16 are several times faster on a CPU.

    Args:
        in_channels: channels of the images, 1 for grey and 3 for colour.
        width: channels of the first stage.
        stem_stride: stride of the first convolution; 2 halves the resolution of everything after
            it, which makes the network about four times cheaper.

    Returns:
        A module from images ``(batch, in_channels, height, width)`` to embeddings
        ``(batch, 8 * width)``. Its attribute ``feature_dim`` is ``8 * width``.

    Raises:
        ValueError: if an argument is below 1.
    """
    for name, value in (
        ("in_channels", in_channels),
        ("width", width),
        ("stem_stride", stem_stride),
    ):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Found {name}={value!r}.")
    channels = [width, width, 2 * width, 4 * width, 8 * width]
    stages = {
        f"layer{i}": _stage(channels[i - 1], channels[i], stride=1 if i == 1 else 2)
        for i in range(1, 5)
    }
    network = nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(
                in_channels, width, kernel_size=3, stride=stem_stride, padding=1, bias=False
            ),
            bn1=nn.BatchNorm2d(width),
            relu=nn.ReLU(inplace=True),
            **stages,
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )
    network.feature_dim = channels[-1]  # type: ignore[assignment]
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
    state = None if weights is None else _imagenet_state(weights)
    whole = resnet18(weights=None)
    stages = {name: module for name, module in whole.named_children() if name != "fc"}
    pool = stages.pop("avgpool")
    network = nn.Sequential(OrderedDict(**stages, pool=pool, flatten=nn.Flatten()))
    network.feature_dim = whole.fc.in_features
    if state is not None:
        _load(network, state, str(weights))
    return network


def _imagenet_state(weights: str) -> dict[str, Tensor]:
    """The state dict that ``weights`` names."""
    if weights in ResNet18_Weights.__members__:
        chosen = ResNet18_Weights[weights]
        try:
            return dict(chosen.get_state_dict(progress=False, check_hash=True))
        except (URLError, OSError, RuntimeError) as error:
            cache = Path(torch.hub.get_dir()) / "checkpoints"
            name = chosen.url.rpartition("/")[2]
            raise RuntimeError(
                f"torchvision cannot provide the weights {weights!r} ({error}). Without a network, "
                f"get {chosen.url} elsewhere and put {name} into {cache}, or name the file "
                "itself: weights='path/to/file.pth'."
            ) from error
    path = Path(weights).expanduser()
    if not path.is_file():
        names = ", ".join(repr(name) for name in ResNet18_Weights.__members__)
        raise FileNotFoundError(
            f"weights must be None, one of {names}, or the path of a file. Found "
            f"weights={weights!r}, and there is no such file."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"weights must be a file of tensors. {path} cannot be read: {error}"
        ) from (error)
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"weights must be a file with a state dict. {path} holds something else.")
    return state


def _load(network: nn.Module, state: dict[str, Tensor], source: str) -> None:
    """Copy a state dict into the network; it must fit exactly, its classifier apart."""
    own = network.state_dict()
    given = {name: value for name, value in state.items() if not name.startswith("fc.")}
    missing, unknown = sorted(own.keys() - given.keys()), sorted(given.keys() - own.keys())
    shapes = [name for name in own.keys() & given.keys() if own[name].shape != given[name].shape]
    # Older files lack these counters, which nothing here reads.
    missing = [name for name in missing if not name.endswith("num_batches_tracked")]
    if missing or unknown or shapes:
        wrong = (
            [f"{name} is missing" for name in missing]
            + [f"{name} is unknown" for name in unknown]
            + [f"{name} has shape {tuple(given[name].shape)}" for name in sorted(shapes)]
        )
        raise ValueError(
            f"weights must fit torchvision's ResNet18. In {source} {'; '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}."
        )
    network.load_state_dict(given, strict=False)


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
