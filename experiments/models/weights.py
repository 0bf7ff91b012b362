"""Weights that torchvision publishes, or those of a file, for a network without its classifier."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Collection
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import WeightsEnum


def read_weights(weights: str, choices: type[WeightsEnum]) -> dict[str, Tensor]:
    """The state dict that ``weights`` names.

    Args:
        weights: a member of ``choices``, which torchvision has in its cache or fetches; or the path
            of a file.
        choices: torchvision's weights of one network.

    Raises:
        FileNotFoundError: ``weights`` is neither a name nor a file.
        RuntimeError: torchvision could not fetch the weights; the message tells how to place them.
        ValueError: the file is not a state dict.
    """
    if weights in choices.__members__:
        chosen = choices[weights]
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
        names = ", ".join(repr(name) for name in choices.__members__)
        raise FileNotFoundError(
            f"weights must be None, one of {names}, or the path of a file. Found "
            f"weights={weights!r}, and there is no such file."
        )
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(
            f"weights must be a file of tensors. {path} cannot be read: {error}"
        ) from error
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError(f"weights must be a file with a state dict. {path} holds something else.")
    return state


def weights_checksum(weights: str) -> str:
    """SHA-256 of a file of weights; names of torchvision's stand for themselves."""
    path = Path(weights).expanduser()
    return hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else weights


def load_weights(
    network: nn.Module,
    state: dict[str, Tensor],
    source: str,
    title: str,
    unused: Collection[str] = ("fc.",),
) -> None:
    """Copy a state dict into the network; it must fit exactly.

    Args:
        network: what is to be filled.
        state: name -> tensor.
        source: where it comes from, for the message.
        title: what it must fit, for the message, such as "torchvision's ResNet18".
        unused: beginnings of names that the network need not have, such as the classifier's.

    Raises:
        ValueError: a tensor is missing, unknown, or of another shape.
    """
    own = network.state_dict()
    given = {name: value for name, value in state.items() if not name.startswith(tuple(unused))}
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
            f"weights must fit {title}. In {source} {'; '.join(wrong[:3])}"
            f"{f' and {len(wrong) - 3} more' if len(wrong) > 3 else ''}."
        )
    network.load_state_dict(given, strict=False)
