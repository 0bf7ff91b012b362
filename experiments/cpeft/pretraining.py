"""A small pre-trained model, made in minutes: supervised training on base classes, kept on disk.

Chapters on continual learning start from a model that knows other classes of the same kind. Where
none can be fetched, this makes one. With a ``sam_radius`` it is *flat* in the sense of the chapter
on F2M: its loss rises less when the weights are moved.
"""

from __future__ import annotations

import hashlib
import json
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional as F

from ktlib.checks import require_at_least, require_positive
from ktlib.device import autocast
from ktlib.fcl.sam import sam_step
from ktlib.seeding import generator

FOLDER = "pretrained"
WARM_UP = 0.1  # share of the steps in which the rate rises: transformers need it
WEIGHT_DECAY = 0.05


def pretrain(
    network: nn.Module,
    head: nn.Module,
    images: Any,
    targets: Tensor,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    seed: int,
    sam_radius: float = 0.0,
    precision: str = "auto",
) -> list[float]:
    """Minimise the cross-entropy of a classifier with AdamW; the rate rises, then falls to 0.

    Runs with one seed see the same batches, whatever the radius.

    Args:
        network: images -> features ``(batch, dim)``; left in ``eval`` mode.
        head: features -> one score per class.
        images: ``images[rows]`` is ``(len(rows), channels, height, width)``.
        targets: ``(n,)`` columns of the head.
        epochs: passes over the images.
        batch_size: images per step.
        lr: highest learning rate.
        seed: of the batches.
        sam_radius: Euclidean length of the step uphill of sharpness-aware minimisation (Foret et
            al., ICLR 2021), over all weights together; every step then costs two. 0: plain AdamW.
        precision: of the products, see :func:`ktlib.device.autocast`.

    Returns:
        Mean loss of each epoch.

    Raises:
        ValueError: an argument outside its range, or no images.
        FloatingPointError: the loss is no longer finite.
    """
    for name, value in (("epochs", epochs), ("batch_size", batch_size), ("images", len(targets))):
        require_at_least(name, value, 1)
    require_positive("lr", lr)
    require_at_least("sam_radius", sam_radius, 0)
    parameters = [*network.parameters(), *head.parameters()]
    optimizer, steered = _optimizers(parameters, lr, sam_radius)
    batches = -(-len(targets) // batch_size)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        steered, max_lr=lr, total_steps=epochs * batches, pct_start=WARM_UP, cycle_momentum=False
    )
    source = generator(seed, "pre-training")
    both = nn.ModuleList([network, head]).train()
    losses = []
    for epoch in range(1, epochs + 1):
        total = 0.0
        for rows in torch.randperm(len(targets), generator=source).split(batch_size):
            loss = _step(optimizer, both, images[rows], targets[rows], sam_radius, precision)
            if not loss == loss or loss in (float("inf"), float("-inf")):
                raise FloatingPointError(
                    f"the loss of the pre-training is {loss} in epoch {epoch}; lr={lr} is too large"
                )
            schedule.step()
            total += loss * len(rows)
        losses.append(total / len(targets))
    both.eval()
    return losses


def kept(path: Path, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """Weights from a file of safetensors; made, and written there, where there is none.

    A file that cannot be read is made anew; a folder that cannot be written to costs a warning.
    """
    if path.is_file():
        try:
            return load_file(path)
        except Exception as error:  # noqa: BLE001 - safetensors raises an error of its own
            warnings.warn(f"{path} cannot be read ({error}); it is made anew.", stacklevel=2)
    made = make()
    try:
        _write(path, made)
    except OSError as error:
        warnings.warn(f"pre-trained weights are not kept: {error}", stacklevel=2)
    return made


def _write(path: Path, values: Mapping[str, Tensor]) -> None:
    """Under a temporary name first, so that no half-written file is ever read."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        save_file({name: value.contiguous().cpu() for name, value in values.items()}, temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def file_for(root: Path, settings: Mapping[str, Any], modules: list[str]) -> Path:
    """Where weights are kept: the name is a hash of all that they follow from.

    Args:
        root: the data root.
        settings: values that JSON can hold: sizes, rates, seeds, checksums of the data, the device.
        modules: files of code that make the weights; when one changes, so does the name.
    """
    code = [hashlib.sha256(Path(file).read_bytes()).hexdigest() for file in modules]
    told = json.dumps([dict(settings), code, torch.__version__], sort_keys=True)
    return root / FOLDER / f"{hashlib.sha256(told.encode()).hexdigest()[:32]}.safetensors"


def _optimizers(
    parameters: list[nn.Parameter], lr: float, radius: float
) -> tuple[Any, torch.optim.Optimizer]:
    """What takes the steps, and what the schedule changes."""
    if not radius:
        plain = torch.optim.AdamW(parameters, lr=lr, weight_decay=WEIGHT_DECAY)
        return plain, plain
    from pytorch_optimizer import SAM  # slow to import, and rarely needed

    sam: Any = SAM(parameters, torch.optim.AdamW, rho=radius, lr=lr, weight_decay=WEIGHT_DECAY)
    return sam, sam.base_optimizer


def _step(
    optimizer: Any,
    both: nn.ModuleList,
    images: Tensor,
    targets: Tensor,
    radius: float,
    precision: str,
) -> float:
    network, head = both

    def compute() -> Tensor:
        with autocast(images.device, precision):
            return F.cross_entropy(head(network(images)), targets)

    optimizer.zero_grad()
    loss = compute()
    torch.autograd.backward(loss)
    if radius:
        sam_step(optimizer, both, compute)
    else:
        optimizer.step()
    return loss.item()
