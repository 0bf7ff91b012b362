"""What can go wrong while a data set is prepared."""

from __future__ import annotations


class PrepareError(RuntimeError):
    """A data set could not be prepared; the message is meant for the person at the terminal."""


class SourceError(RuntimeError):
    """One source could not give the files; the next one is tried."""
