"""How well a language model predicts text: held-out loss, perplexity, and what was forgotten."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktlib.device import PrecisionName, autocast
from ktlib.ila.targets import IGNORED, keep_target_logits


def held_out_loss(
    model: nn.Module,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    precision: PrecisionName = "auto",
) -> float:
    """Mean cross-entropy per target token, in nats, in evaluation mode.

    The mean is over all target tokens of all batches together. The mean over batches of their
    losses is something else: it gives a token of a batch with few targets more weight. Computed
    from the logits, because AdaLoRA adds its regulariser to the loss that the model returns.

    Args:
        model: a causal language model of transformers, with adapters or without. For the loss of
            its base call this in ``with model.disable_adapter():``.
        batches: dicts of ``input_ids``, ``attention_mask`` and ``labels``, each
            ``(batch, length)``; labels are -100 where there is nothing to predict. One pass.
        precision: as in :func:`ktlib.device.autocast`.

    Raises:
        ValueError: the batches hold no target token.
        FloatingPointError: the loss of a batch is not finite; the batch is named.
    """
    device = device_of(model)
    total, count = 0.0, 0
    with in_mode(model, training=False), torch.no_grad():
        for number, batch in enumerate(batches):
            loss, targets = _summed_loss(model, on_device(batch, device), precision)
            if not math.isfinite(loss):
                raise FloatingPointError(f"The loss of batch {number} is not finite: {loss}.")
            total, count = total + loss, count + targets
    if count == 0:
        raise ValueError("batches must hold at least one target token. Found none.")
    return total / count


def perplexity(loss: float) -> float:
    """``exp(loss)`` of a mean loss in nats per token; infinite where that is too large."""
    try:
        return math.exp(loss)
    except OverflowError:
        return math.inf


def held_out_losses(
    model: nn.Module,
    sets: Mapping[str, Iterable[Mapping[str, Tensor]]],
    *,
    precision: PrecisionName = "auto",
) -> dict[str, float]:
    """:func:`held_out_loss` on every one of some data sets: name -> loss."""
    return {
        name: held_out_loss(model, batches, precision=precision) for name, batches in sets.items()
    }


def forgetting(before: Mapping[str, float], after: Mapping[str, float]) -> dict[str, float]:
    """By how much the loss on each text rose in training, in nats per token.

    Above zero is forgotten, below zero is learned along the way.

    Args:
        before: name of a text -> held-out loss before training.
        after: the same texts after it.

    Raises:
        ValueError: the two name different texts.
    """
    if before.keys() != after.keys():
        raise ValueError(
            f"before and after must name the same texts. "
            f"Found {sorted(before)} and {sorted(after)}."
        )
    return {name: after[name] - before[name] for name in before}


def target_tokens(batch: Mapping[str, Tensor]) -> int:
    """Number of tokens to predict. The first of a sequence is never one: nothing precedes it."""
    return int((batch["labels"][:, 1:] != IGNORED).sum())


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter of the model lies."""
    return next(model.parameters()).device


def on_device(batch: Mapping[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """The batch on a device; tensors that lie there already are not copied."""
    return {key: value.to(device) for key, value in batch.items()}


@contextmanager
def in_mode(model: nn.Module, *, training: bool) -> Iterator[None]:
    """Put a model in training or evaluation mode; every module gets its own mode back."""
    modes = {module: module.training for module in model.modules()}
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


def _summed_loss(
    model: nn.Module, batch: Mapping[str, Tensor], precision: PrecisionName
) -> tuple[float, int]:
    """Loss of a batch summed over its target tokens, and their number."""
    inputs = keep_target_logits(model, batch)
    labels = inputs.pop("labels")
    following = inputs.pop("shift_labels", None)  # (batch, kept)
    with autocast(labels.device, precision):
        # The cache is for generating text; here it would only copy keys and values.
        logits = model(**inputs, use_cache=False).logits  # (batch, kept or length, vocabulary)
    if following is None:
        logits, following = logits[:, :-1], labels[:, 1:]
    loss = F.cross_entropy(
        logits.flatten(0, 1).float(),
        following.flatten(),
        ignore_index=IGNORED,
        reduction="sum",
    )
    return float(loss), target_tokens(batch)
