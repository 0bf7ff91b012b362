"""Argument checks shared by the few-shot methods."""

from __future__ import annotations

import math


def require_bound(name: str, value: float) -> None:
    """Refuse a half-width that is negative or not finite."""
    if not (math.isfinite(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number >= 0. Found {name}={value!r}.")


def require_at_least(name: str, value: float, least: float) -> None:
    """Refuse a number below ``least``."""
    if not value >= least:
        raise ValueError(f"{name} must be at least {least}. Found {name}={value!r}.")
