"""A progress bar for people that leaves no trace in executed notebooks and log files."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
VARIABLE = "KTLIB_PROGRESS"


def progress(iterable: Iterable[T], description: str, total: int | None = None) -> Iterator[T]:
    """Go through ``iterable`` and show how far it is where someone is watching.

    Someone is watching at a terminal and in an open notebook. The environment variable
    ``KTLIB_PROGRESS`` decides otherwise: ``off`` (set by the pipeline) or ``on``.

    Args:
        iterable: what to go through.
        description: a few words shown before the bar.
        total: number of items, where ``iterable`` has no length.
    """
    bar = tqdm(
        iterable, desc=description, total=total, disable=not shown(), leave=False, mininterval=0.5
    )
    yield from bar


def shown() -> bool:
    """Whether a bar would be shown now.

    Raises:
        ValueError: ``KTLIB_PROGRESS`` is set to something else than ``on`` or ``off``.
    """
    setting = os.environ.get(VARIABLE, "").lower()
    if setting in {"on", "off"}:
        return setting == "on"
    if setting:
        raise ValueError(
            f"Environment variable {VARIABLE} must be 'on' or 'off'. Found {setting!r}."
        )
    return sys.stderr.isatty() or _in_notebook()


def _in_notebook() -> bool:
    """Whether this process is a notebook kernel; IPython is not loaded to find out."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return type(shell).__name__ == "ZMQInteractiveShell"
