"""Logits only where a token is to be predicted.

A language model ends in its largest matrix: one logit for each of 50,000 to 150,000 tokens, at
every position of the text. Where only the answer is to be learned, most of these logits are
computed, and kept for the backward pass, for nothing. Models of transformers can leave them out.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from torch import Tensor, nn

IGNORED = -100
"""The label of tokens that are no target: prompts and padding."""


def keep_target_logits(model: nn.Module, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The batch, with arguments that make the model compute logits at target positions alone.

    The loss is that of the whole batch up to rounding, and so are its gradients. Logits have shape
    ``(batch, kept, vocabulary)``: the positions at which any row has a target.

    Args:
        model: with adapters or without, in a wrapper for several processes or not. One that cannot
            leave logits out, or computes its loss in its own way, gets the batch unchanged.
        batch: of ``input_ids``, ``attention_mask`` and ``labels``, each ``(batch, length)``.

    Returns:
        The batch with ``logits_to_keep``, positions of shape ``(kept,)``, and ``shift_labels`` of
        shape ``(batch, kept)``: the label of the token that follows each of them.
    """
    given = dict(batch)
    inner = innermost(model)
    if target_kind(model) != "next token" or not type(inner).__name__.endswith("ForCausalLM"):
        return given
    if not _can_skip_positions(type(inner).forward):
        return given
    following = given["labels"][:, 1:]  # (batch, length - 1)
    kept = (following != IGNORED).any(dim=0).nonzero().flatten()  # (kept,)
    if not len(kept):
        return given
    return given | {"logits_to_keep": kept, "shift_labels": following[:, kept]}


def target_kind(model: nn.Module) -> str:
    """What the labels of a model of transformers are, from its class and configuration.

    Returns:
        ``"next token"`` for causal models, whose labels are shifted by one; ``"token"`` where each
        token has a label of its own; ``"text"`` for encoder-decoders that write one; else ``""``.
    """
    # Where the library was never imported, no model is of it.
    known = getattr(sys.modules.get("transformers"), "PreTrainedModel", ())
    inner = innermost(model)
    name = type(inner).__name__
    if isinstance(inner, known) and name.endswith(("ForMaskedLM", "ForTokenClassification")):
        return "token"
    endings = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")
    if not isinstance(inner, known) or not name.endswith(endings):
        return ""
    if inner.config.is_encoder_decoder:
        return "text"
    # A decoder taken out of an encoder-decoder, such as BartForCausalLM, does not shift.
    source = _source(type(inner).forward)
    shifts = not source or "self.loss_function(" in source or "1:]" in source
    return "next token" if shifts else "token"


def innermost(model: nn.Module) -> nn.Module:
    """The model of transformers inside the wrappers of torch, accelerate and peft."""
    inner: Any = model
    while isinstance(getattr(inner, "module", None), nn.Module):
        inner = inner.module
    found: nn.Module = inner.get_base_model() if hasattr(inner, "get_base_model") else inner
    return found


@lru_cache(maxsize=32)
def _source(forward: Callable[..., Any]) -> str:
    try:
        return inspect.getsource(forward)
    except OSError:  # defined without a file
        return ""


@lru_cache(maxsize=32)
def _can_skip_positions(forward: Callable[..., Any]) -> bool:
    """Whether a forward pass can skip positions and passes other arguments on to the usual loss."""
    known = inspect.signature(forward).parameters
    calls = "self.loss_function(" in _source(forward)
    return calls and "logits_to_keep" in known and "kwargs" in known
