"""The command line that all modules share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn, Protocol

from data_prep.common.errors import PrepareError
from data_prep.common.files import DataError

INTERRUPTED = 130


class Preparable(Protocol):
    """A data set that can be prepared."""

    @property
    def name(self) -> str:
        """Of the set and its module."""

    def prepare(self, root: Path | None = None, /) -> Path:
        """Make the set complete."""


def main(data: Preparable) -> NoReturn:
    """The command ``python -m data_prep.<name>``."""
    sys.exit(run_command(data))


def run_command(data: Preparable, arguments: Sequence[str] | None = None) -> int:
    """Prepare a data set; problems are reported in words, without a traceback.

    Returns:
        The exit status: 0 prepared, 1 not, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{data.name}",
        description=f"Fetch, verify and convert the data set {data.name}; safe to run again.",
    )
    parser.add_argument("--root", type=Path, help="data root (default: KTLIB_DATA, else data/)")
    options = parser.parse_args(arguments)
    try:
        data.prepare(options.root)
    except (PrepareError, DataError) as error:
        print(f"{data.name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{data.name}: interrupted; the next run continues", file=sys.stderr)
        return INTERRUPTED
    return 0
