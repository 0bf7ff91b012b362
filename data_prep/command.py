"""The command line that all modules share."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from data_prep.errors import PrepareError
from data_prep.reading.files import DataError

INTERRUPTED = 130


def run_command(
    name: str, prepare: Callable[[Path | None], Path], arguments: Sequence[str] | None = None
) -> int:
    """Prepare a data set; problems are told in words, without a traceback.

    Returns:
        The exit status: 0 prepared, 1 not, 130 interrupted.
    """
    parser = argparse.ArgumentParser(
        prog=f"python -m data_prep.{name}",
        description=f"Fetch, verify and convert the data set {name}. Running it again is harmless.",
    )
    parser.add_argument("--root", type=Path, help="data root (default: KTLIB_DATA, else data/)")
    options = parser.parse_args(arguments)
    try:
        prepare(options.root)
    except (PrepareError, DataError) as error:
        print(f"{name}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{name}: interrupted; the next run continues", file=sys.stderr)
        return INTERRUPTED
    return 0
