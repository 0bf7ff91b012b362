"""Checks of arguments and losses, and small things that several methods share."""

from __future__ import annotations

import math
from typing import Protocol

import torch
from torch import Tensor


def require_bound(name: str, value: float) -> None:
    """Refuse a half-width that is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0. Found {name}={value!r}.")


def require_at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below ``least``."""
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}. Found {name}={value!r}.")


def require_positive(name: str, value: float) -> None:
    """Refuse a number that is not above 0."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0. Found {name}={value!r}.")


def require_finite(loss: Tensor, step: int) -> Tensor:
    """The loss, if it is finite.

    Raises:
        FloatingPointError: naming the step and the value.
    """
    if not bool(torch.isfinite(loss)):
        raise FloatingPointError(f"the loss is {loss.item()} at step {step}: lower the lr.")
    return loss


class ImagePool(Protocol):
    """Images of which some can be asked for by their numbers: a tensor, or what makes one."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """``(len(rows), ...)``."""


def percent(correct: Tensor) -> float:
    """Share of ``True`` in percent; NaN for none."""
    return 100.0 * float(correct.double().mean())
