"""The networks of the thesis's multi-task experiments, by name and by data set."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import nn

from experiments.models.mobilenet import MobileNetV2
from experiments.models.mtan import MTAN
from experiments.models.resnet import resnet18_features
from experiments.models.segnet import SegNet

# Name -> the width of the published network.
BACKBONES: Mapping[str, int] = {"resnet18": 64, "segnet": 64, "mtan": 64, "mobilenet_v2": 32}


def backbone(
    name: str,
    in_channels: int = 3,
    width: int | None = None,
    *,
    embedding: int | None = None,
    pool_size: int = 1,
    weights: str | None = None,
) -> nn.Module:
    """A trunk whose features heads of tasks are put on: :func:`experiments.mtl.tasks.task_head`.

    Args:
        name: ``"resnet18"`` with the stem of He et al. (2016), a 7x7 convolution of stride 2 and
            max pooling; ``"segnet"``; ``"mtan"``, whose attention is to be split off for each task
            by :func:`experiments.mtl.tasks.split_trunk`; or ``"mobilenet_v2"``.
        in_channels: channels of the images.
        width: channels of the first convolution; None is the published network's.
        embedding: of ``resnet18``; see :func:`experiments.models.resnet.resnet18_features`.
        pool_size: as ``embedding``.
        weights: of ``mobilenet_v2``; see :class:`experiments.models.mobilenet.MobileNetV2`. The
            other networks start from random ones, as in the released code.

    Returns:
        A module from images ``(batch, in_channels, height, width)`` to features: ``(batch,
        feature_dim)`` of ``resnet18``, ``(batch, feature_dim, height, width)`` of ``segnet`` and
        ``mtan``, a quarter of this height and width of ``mobilenet_v2``. ``feature_dim`` is an
        attribute of the module.

    Raises:
        ValueError: an unknown name, an option that the network does not have, or a width that it
            cannot have. For ``weights``, also what is raised by ``MobileNetV2``.
    """
    if name not in BACKBONES:
        raise ValueError(f"name must be one of {', '.join(BACKBONES)}. Found name={name!r}.")
    width = BACKBONES[name] if width is None else width
    if weights is not None and name != "mobilenet_v2":
        found = f"weights={weights!r} for {name}"
        raise ValueError(f"weights must be None but for mobilenet_v2. Found {found}.")
    if name == "resnet18":
        return resnet18_features(
            in_channels, width, 2, stem_kernel=7, stem_pool=True, pool_size=pool_size,
            embedding=embedding,
        )  # fmt: skip
    if embedding is not None or pool_size != 1:
        found = f"embedding={embedding!r}, pool_size={pool_size!r} for {name}"
        raise ValueError(
            f"embedding and pool_size must be left out but for resnet18. Found {found}."
        )
    if name == "mobilenet_v2":
        return MobileNetV2(in_channels, width, weights)
    return {"segnet": SegNet, "mtan": MTAN}[name](in_channels, width)


@dataclass(frozen=True)
class _Setting:
    """What a data set needs: the names of its networks, the thesis's main one first."""

    names: tuple[str, ...]
    in_channels: int = 3
    options: Mapping[str, int] = field(default_factory=dict)


# The options of ResNet18 are read off the printed sizes, 42.81 MB (table 4.1) and 43.26 MB (table
# 4.2). Those of Multi-Fashion+MNIST are in the released code of Recon too; it has no CelebA, where
# all of the last map, 2x2 for faces of 64x64, goes to the heads, as in Sener and Koltun (2018).
SETTINGS: Mapping[str, _Setting] = {
    "multi_fashion_mnist": _Setting(("resnet18",), 1, {"embedding": 100}),
    "celeba": _Setting(("resnet18",), 3, {"pool_size": 2}),
    "cityscapes": _Setting(("segnet", "mtan")),
    "nyuv2": _Setting(("mtan", "segnet")),
    "pascal_context": _Setting(("mobilenet_v2",)),
}


def backbone_for(
    data: str, name: str | None = None, width: int | None = None, *, weights: str | None = None
) -> nn.Module:
    """The thesis's network for a data set, as :func:`backbone` gives it.

    Args:
        data: one of :data:`SETTINGS`.
        name: one of its networks; None is that of the thesis's main table.
        width: as in :func:`backbone`.
        weights: as in :func:`backbone`.

    Raises:
        ValueError: an unknown data set, or a network that the thesis does not use on it.
    """
    if data not in SETTINGS:
        raise ValueError(f"data must be one of {', '.join(SETTINGS)}. Found data={data!r}.")
    setting = SETTINGS[data]
    name = setting.names[0] if name is None else name
    if name not in setting.names:
        known = ", ".join(setting.names)
        raise ValueError(f"name must be one of {known} for {data}. Found name={name!r}.")
    return backbone(name, setting.in_channels, width, weights=weights, **setting.options)
