"""Batches of tokens: checked before a long run starts, moved to the model, turned into a loss."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.device import PrecisionName, autocast
from ktlib.ila.targets import IGNORED, innermost, keep_target_logits, target_kind

Batch = Mapping[str, Tensor]
Loss = Callable[[Any, Any], Tensor]
"""Function of a model and a batch that returns a scalar: for models that do not compute their loss
themselves, and for other kinds than language models. Batches may then be anything."""


def checked_batches(model: nn.Module, batches: Iterable[Batch]) -> list[dict[str, Tensor]]:
    """All batches as a list, if the model can compute a loss on each.

    Args:
        model: a transformers model, with or without adapters.
        batches: dicts of ``input_ids``, ``attention_mask`` and ``labels``, each
            ``(batch, length)``; labels are -100 where there is no target. Other models of
            transformers than causal ones read labels in their own way, without a shift.

    Raises:
        ValueError: there is no batch; or one has the wrong form, no target, more tokens than the
            model's context, or tokens or labels that it does not know. The batch is named.
        TypeError: a batch is not a dict of tensors.
    """
    if isinstance(batches, Mapping):
        raise TypeError(
            "batches must be a sequence of batches. Found a single one: pass [batch] instead."
        )
    found = [_checked_form(number, batch) for number, batch in enumerate(batches)]
    if not found:
        raise ValueError("batches must hold at least one batch. Found none.")
    context, kind, inner = context_length(model), target_kind(model), innermost(model)
    vocabulary = getattr(_part(model, "get_input_embeddings"), "num_embeddings", None)
    classes = getattr(_part(inner, "get_output_embeddings"), "out_features", None)
    if type(inner).__name__.endswith("ForTokenClassification"):
        classes = getattr(inner.config, "num_labels", None)
    for number, batch in enumerate(found):
        _check_tokens(number, batch, context, vocabulary)
        _check_labels(number, batch, kind, classes)
    return found


def batches_for(model: nn.Module, batches: Iterable[Any], loss: Loss | None = None) -> list[Any]:
    """All batches as a list: checked as by :func:`checked_batches`, unless the caller gives a loss.

    Raises:
        ValueError: there is no batch; without ``loss`` as :func:`checked_batches`.
        TypeError: without ``loss`` as :func:`checked_batches`.
    """
    if loss is None:
        return checked_batches(model, batches)
    found = list(batches)
    if not found:
        raise ValueError("batches must hold at least one batch. Found none.")
    return found


def _checked_form(number: int, batch: Any) -> dict[str, Tensor]:
    if not isinstance(batch, Mapping):
        raise TypeError(
            f"batches must be dicts of tensors. Found {type(batch).__name__} as batch {number}."
        )
    missing = [key for key in ("input_ids", "labels") if key not in batch]
    if missing:
        raise ValueError(
            f"batches must have `input_ids` and `labels`. Batch {number} lacks {missing}; it has "
            f"{sorted(batch)}."
        )
    for key, value in batch.items():
        if not isinstance(value, Tensor):
            raise TypeError(
                f"batches must be dicts of tensors. Batch {number}: {key!r} is not a tensor but "
                f"{type(value).__name__}; a tokenizer gives them with return_tensors='pt'."
            )
    return dict(batch)


def _check_tokens(number: int, batch: Batch, context: int | None, vocabulary: int | None) -> None:
    ids, mask = batch["input_ids"], batch.get("attention_mask")
    if ids.ndim != 2 or not ids.numel() or ids.dtype not in (torch.int32, torch.int64):
        raise ValueError(
            "input_ids must be whole numbers of shape (batch, length), both at least 1. Found "
            f"{ids.dtype} of {tuple(ids.shape)} in batch {number}."
        )
    if mask is not None and mask.ndim == 2 and mask.shape != ids.shape:
        raise ValueError(
            f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}. Found "
            f"{tuple(mask.shape)} in batch {number}."
        )
    if context is not None and ids.shape[1] > context:
        raise ValueError(
            f"batches must not be longer than the model's context of {context} tokens. Found "
            f"{ids.shape[1]} in batch {number}: shorten or split its texts."
        )
    if vocabulary is not None and not 0 <= int(ids.min()) <= int(ids.max()) < vocabulary:
        raise ValueError(
            f"input_ids must lie in [0, {vocabulary}), the model's vocabulary. Found "
            f"{int(ids.min())} to {int(ids.max())} in batch {number}: is "
            "this the model's tokenizer?"
        )


def _check_labels(number: int, batch: Batch, kind: str, classes: int | None) -> None:
    labels, size = batch["labels"], batch["input_ids"].shape
    # The text that an encoder-decoder writes has a length of its own.
    wanted = torch.Size([size[0], *labels.shape[1:2]]) if kind == "text" else size
    if kind and (labels.shape != wanted or labels.ndim != 2 or labels.dtype != torch.int64):
        shape = "(batch, length)" if kind == "text" else f"{tuple(size)}, that of input_ids"
        raise ValueError(
            f"labels must be torch.int64 of shape {shape}. Found {labels.dtype} of "
            f"{tuple(labels.shape)} in batch {number}."
        )
    # A causal model predicts the next token: the first label is never a target.
    targets = labels[:, 1:] if kind == "next token" else labels
    known = targets[targets != IGNORED]
    if not len(known):
        after = " after the first token" if kind == "next token" else ""
        raise ValueError(
            f"batches must have target tokens, labels other than {IGNORED}{after}. "
            f"Found none in batch {number}: was the answer cut off?"
        )
    if kind and not 0 <= int(known.min()) <= int(known.max()) < (classes or math.inf):
        raise ValueError(
            f"labels must be {IGNORED} or lie in [0, {classes}). Found {int(known.min())} to "
            f"{int(known.max())} in batch {number}."
        )


def context_length(model: nn.Module) -> int | None:
    """Longest input that the model's configuration allows, in tokens; None if it does not say."""
    length = getattr(getattr(model, "config", None), "max_position_embeddings", None)
    return length if isinstance(length, int) and length > 0 else None


def _part(model: Any, getter: str) -> Any:
    """A part of a model that one of its methods gives; None where it has none."""
    try:
        return getattr(model, getter)()
    except (AttributeError, NotImplementedError):
        return None


def input_device(model: nn.Module) -> torch.device:
    """The device of the model's input embeddings, where its tokens must lie."""
    embeddings = _part(model, "get_input_embeddings") or model
    return next(iter(embeddings.parameters())).device


def model_loss(model: nn.Module, batch: Batch, precision: PrecisionName = "auto") -> Tensor:
    """Mean loss over the target tokens of a batch, as the model itself computes it.

    Args:
        model: called as ``model(**batch)``; gives an output with ``.loss``.
        batch: tensors, moved to the model's device if they are elsewhere.
        precision: as in :func:`ktlib.device.autocast`.

    Raises:
        TypeError: the output has no loss.
    """
    device = input_device(model)
    given = keep_target_logits(model, batch)  # where the batch is: a GPU would wait for it
    here = {key: value.to(device, non_blocking=True) for key, value in given.items()}
    with autocast(device, precision):
        loss = getattr(model(**here), "loss", None)
    if not isinstance(loss, Tensor):
        raise TypeError(
            f"model must return a loss for a batch with labels. {type(model).__name__} does not."
        )
    return loss


def compute_loss(
    loss: Loss | None, model: nn.Module, batch: Any, precision: PrecisionName = "auto"
) -> Tensor:
    """The caller's loss if one is given, else the model's own.

    Raises:
        TypeError: the loss is not a scalar; as :func:`model_loss`.
    """
    if loss is None:
        return model_loss(model, batch, precision)
    with autocast(next(model.parameters()).device, precision):
        value = loss(model, batch)
    if not isinstance(value, Tensor) or value.ndim:
        found = tuple(value.shape) if isinstance(value, Tensor) else type(value).__name__
        raise TypeError(f"loss must return a scalar tensor. Found {found}.")
    return value


def require_finite(loss: Tensor, place: str) -> float:
    """The value of a loss, if it is finite.

    Raises:
        FloatingPointError: it is NaN or infinite; ``place`` says where.
    """
    value = float(loss.detach())
    if value - value != 0:  # NaN and the infinities differ from themselves by NaN
        raise FloatingPointError(f"loss must be finite. Found {value} at {place}.")
    return value
