"""Checks of arguments and losses, and small things that several methods share."""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ktlib import DISTRIBUTION


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


def require_extra(module: str, extra: str) -> Any:
    """A module of an optional dependency, imported when it is needed.

    Raises:
        ImportError: it is not installed; the message names the extra that brings it.
    """
    package = module.partition(".")[0]
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != package:
            raise
        raise ImportError(f"needs {package}: pip install '{DISTRIBUTION}[{extra}]'") from error


HALF = (torch.float16, torch.bfloat16)


class ImagePool(Protocol):
    """Images of which some can be asked for by their numbers: a tensor, or what makes one."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """``(len(rows), ...)``."""


def as_labels(labels: Any, device: Any = None, *, name: str = "labels") -> Tensor:
    """Class numbers or positions ``(n,)`` as int64, from a tensor, an array or a list."""
    found = torch.as_tensor(labels, device=device)
    if found.ndim != 1 or (len(found) and (found.is_floating_point() or found.is_complex())):
        kind = f"shape {tuple(found.shape)} of {found.dtype}"
        raise ValueError(f"{name} must be (n,) integers. Found {kind}.")
    return found.long()


@contextmanager
def images_for(network: nn.Module, images: Any) -> Iterator[Tensor]:
    """Images on a network's device and in its precision; a ValueError for integers it refuses."""
    given = torch.as_tensor(images)
    first = next((p for p in network.parameters() if p.is_floating_point()), None)
    if first is not None:
        given = given.to(first.device, first.dtype if given.is_floating_point() else None)
    try:
        yield given
    except RuntimeError as error:
        if given.is_floating_point() or "type" not in str(error):
            raise
        message = "images must be floating-point numbers for this network, such as images / 255. "
        raise ValueError(f"{message}Found {given.dtype}.") from error


def widened(values: Tensor) -> Tensor:
    """Half-precision values in float32, for sums over many and for distances; others as given."""
    return values.float() if values.dtype in HALF else values


def percent(correct: Tensor) -> float:
    """Share of ``True`` in percent; NaN for none."""
    return 100.0 * float(correct.double().mean())
