"""Vision transformers as encoders: one architecture, with weights of several sources."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchvision.models import ViT_B_16_Weights

from experiments.models.weights import load_weights, read_weights
from ktlib.seeding import generator

if TYPE_CHECKING:
    from transformers import ViTModel

# torchvision's names as timm has them. Published files still say `linear_1` for `mlp.0`.
_TORCHVISION = (
    (r"^class_token$", "cls_token"),
    (r"^encoder\.pos_embedding$", "pos_embed"),
    (r"^conv_proj\.", "patch_embed.proj."),
    (r"^encoder\.ln\.", "norm."),
    (r"^heads\.", "head."),
    (r"^encoder\.layers\.encoder_layer_(\d+)\.", r"blocks.\1."),
    (r"\.ln_([12])\.", r".norm\1."),
    (r"\.self_attention\.in_proj_", ".attn.qkv."),
    (r"\.self_attention\.out_proj\.", ".attn.proj."),
    (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
    (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
)
_HEAD = ("head.", "pre_logits.")
_HEADS = 12  # of the attention of a ViT-B


class VitFeatures(nn.Module):
    """Features of images: the class token of a vision transformer after its last norm.

    Query, key and value of every block are linear layers of their own, so that adapters can be put
    on each of them.

    Args:
        model: of transformers; its pooling layer, if it has one, is not used.

    Attributes:
        dim: number of features.
    """

    def __init__(self, model: ViTModel) -> None:
        super().__init__()
        self.model = model
        self.dim: int = model.config.hidden_size

    def forward(self, images: Tensor) -> Tensor:
        """``(n, dim)`` features of images ``(n, channels, height, width)``."""
        features: Tensor = self.model(pixel_values=images).last_hidden_state[:, 0]
        return features


def small_vit(
    *,
    image_size: int = 36,
    patch_size: int = 9,
    channels: int = 1,
    width: int = 96,
    blocks: int = 4,
    heads: int = 4,
    seed: int = 0,
) -> VitFeatures:
    """A vision transformer for small images, with random weights.

    Args:
        image_size: side of the images in pixels.
        patch_size: side of a patch in pixels, which divides ``image_size``.
        channels: 1 for grey, 3 for colour.
        width: numbers per token; the hidden layer of a block has four times as many.
        blocks: attention and feed-forward, one after the other.
        heads: of the attention; it divides ``width``.
        seed: decides the weights; the global generator is left as it was.

    Raises:
        ValueError: a size is below 1, or one that does not divide what it must.
    """
    sizes = {"image_size": image_size, "patch_size": patch_size, "channels": channels,
             "width": width, "blocks": blocks, "heads": heads}  # fmt: skip
    for name, value in sizes.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Found {name}={value!r}.")
    if image_size % patch_size:
        raise ValueError(
            f"patch_size must divide image_size={image_size}. Found patch_size={patch_size!r}."
        )
    if width % heads:
        raise ValueError(f"heads must divide width={width}. Found heads={heads!r}.")
    with torch.random.fork_rng(devices=[]):
        # transformers draws on the CPU, from the global generator.
        torch.default_generator.manual_seed(generator(seed, "vit").initial_seed())
        return _random_vit(image_size, patch_size, channels, width, 4 * width, blocks, heads)


def vit_b16(weights: str | None = None) -> VitFeatures:
    """The ViT-B/16 of Dosovitskiy et al. (ICLR 2021) without its classifier.

    12 blocks, 768 numbers per token, patches of 16 pixels. The images are to be normalised as the
    weights expect: those of torchvision by :data:`experiments.models.IMAGENET_MEAN` and
    :data:`experiments.models.IMAGENET_STD`, many of timm by 0.5 and 0.5.

    Args:
        weights: None for random ones, for images of 224 pixels; "IMAGENET1K_V1" or another name of
            torchvision's ``ViT_B_16_Weights`` for the ones that torchvision has in its cache or
            fetches; the path of a file with a state dict of torchvision's or timm's
            VisionTransformer, in safetensors or as ``torch.save`` writes it, whose classifier is
            left out; or a folder with a ViT of transformers.

    Raises:
        FileNotFoundError: ``weights`` is neither a name nor a file nor a folder.
        RuntimeError: torchvision could not fetch the weights; the message tells how to place them.
        ValueError: the weights are not those of a ViT-B/16.
    """
    if weights is None:
        return _random_vit(224, 16, 3, 768, 3072, 12, _HEADS)
    folder = Path(weights).expanduser()
    if folder.is_dir():
        network = _of_folder(folder)
    else:
        network = vit_from_state(_read_state(weights), heads=_HEADS, source=weights)
    config = network.model.config
    found = (config.hidden_size, config.num_hidden_layers, config.patch_size)
    if found != (768, 12, 16):
        raise ValueError(
            "weights must be of a ViT-B/16: width 768, 12 blocks, patches of 16. "
            f"{weights} has width {found[0]}, {found[1]} blocks, patches of {found[2]}."
        )
    return network


def vit_from_state(
    state: dict[str, Tensor], *, heads: int, source: str = "the state dict"
) -> VitFeatures:
    """A vision transformer with the weights of torchvision's or timm's VisionTransformer.

    All sizes but one are those of the weights. What a file has of a classifier is left out.

    Args:
        state: name -> tensor, as those two libraries name them.
        heads: of the attention, which weights do not tell; 64 numbers per head are usual.
        source: where the weights come from, for messages.

    Raises:
        ValueError: the weights are not those of such a network: a tensor is missing, unknown or of
            another shape, or ``heads`` does not divide the width.
    """
    state = {_timm_name(name): value for name, value in state.items()}
    needed = ("pos_embed", "patch_embed.proj.weight", "blocks.0.mlp.fc1.weight")
    missing = [name for name in needed if name not in state]
    if missing:
        raise ValueError(
            "weights must be of a VisionTransformer as torchvision and timm name them. "
            f"In {source} {', '.join(missing)} is missing."
        )
    position, patch, hidden = (state[name] for name in needed)
    width, channels, patch_size = (int(size) for size in patch.shape[:3])
    if heads < 1 or width % heads:
        raise ValueError(f"heads must divide width={width}. Found heads={heads!r}.")
    side = math.isqrt(position.shape[1] - 1)  # in patches; the first token is the class token
    numbers = [int(found[1]) for name in state if (found := re.match(r"blocks\.(\d+)\.", name))]
    network = _random_vit(
        side * patch_size, patch_size, channels, width, len(hidden), max(numbers) + 1, heads
    )
    ours = _names_of_timm(network)
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        parts = ours.get(name, (name,))  # load_weights reports an unknown name
        # timm and torchvision keep query, key and value in one matrix, one below the other.
        converted.update(zip(parts, value.tensor_split(len(parts)), strict=True))
    load_weights(network, converted, source, "a VisionTransformer of these sizes", _HEAD)
    return network


def _random_vit(
    image_size: int,
    patch_size: int,
    channels: int,
    width: int,
    hidden: int,
    blocks: int,
    heads: int,
) -> VitFeatures:
    from transformers import ViTConfig, ViTModel

    config = ViTConfig(
        image_size=image_size,
        patch_size=patch_size,
        num_channels=channels,
        hidden_size=width,
        intermediate_size=hidden,
        num_hidden_layers=blocks,
        num_attention_heads=heads,
        layer_norm_eps=1e-6,  # of torchvision and timm; transformers has 1e-12
    )
    return VitFeatures(ViTModel(config, add_pooling_layer=False)).eval()


def _read_state(weights: str) -> dict[str, Tensor]:
    path = Path(weights).expanduser()
    if path.suffix != ".safetensors" or not path.is_file():
        return read_weights(weights, ViT_B_16_Weights)
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        state: dict[str, Tensor] = load_file(path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"weights must be a file of tensors. {path} cannot be read: {error}"
        ) from error
    return state


def _of_folder(folder: Path) -> VitFeatures:
    from transformers import ViTModel

    try:
        settings = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"weights must be a folder of transformers. {folder} has no readable config.json."
        ) from error
    kind = settings.get("model_type")
    if kind != "vit":
        raise ValueError(f"weights must be a ViT of transformers. {folder} holds {kind!r}.")
    try:
        model, info = ViTModel.from_pretrained(
            folder,
            add_pooling_layer=False,
            local_files_only=True,
            use_safetensors=True,
            output_loading_info=True,
        )
    except OSError as error:
        raise ValueError(
            f"weights must be a folder with safetensors of transformers. {error}"
        ) from error
    if info["missing_keys"]:
        raise ValueError(
            f"weights must be all of a ViT. In {folder} {sorted(info['missing_keys'])[:3]} are "
            "missing."
        )
    return VitFeatures(model).eval()


def _timm_name(name: str) -> str:
    for pattern, replacement in _TORCHVISION:
        name = re.sub(pattern, replacement, name)
    return name


def _names_of_timm(network: VitFeatures) -> dict[str, tuple[str, ...]]:
    """Name of a tensor in timm -> our names of its parts.

    Layers are found by their order, as versions of transformers name them differently.
    """
    own = {id(value): name for name, value in network.named_parameters()}
    model: Any = network.model
    embeddings = model.embeddings
    names: dict[str, tuple[str, ...]] = {
        "cls_token": (own[id(embeddings.cls_token)],),
        "pos_embed": (own[id(embeddings.position_embeddings)],),
    }
    layers: dict[str, tuple[Any, ...]] = {
        "patch_embed.proj": (embeddings.patch_embeddings.projection,),
        "norm": (model.layernorm,),
    }
    blocks = next(module for module in model.modules() if isinstance(module, nn.ModuleList))
    for number, block in enumerate(blocks):
        query, key, value, out, first, second = _of_kind(block, nn.Linear)
        before, after = _of_kind(block, nn.LayerNorm)
        layers |= {
            f"blocks.{number}.norm1": (before,),
            f"blocks.{number}.attn.qkv": (query, key, value),
            f"blocks.{number}.attn.proj": (out,),
            f"blocks.{number}.norm2": (after,),
            f"blocks.{number}.mlp.fc1": (first,),
            f"blocks.{number}.mlp.fc2": (second,),
        }
    for name, parts in layers.items():
        names[f"{name}.weight"] = tuple(own[id(part.weight)] for part in parts)
        names[f"{name}.bias"] = tuple(own[id(part.bias)] for part in parts)
    return names


def _of_kind(block: nn.Module, kind: type[nn.Module]) -> list[nn.Module]:
    return [module for module in block.modules() if isinstance(module, kind)]
