"""The English dialogues of chatterbot-corpus: ``python -m data_prep.chatterbot``."""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.packages import python_package
from data_prep.reading.root import data_root
from data_prep.reading.text_facts import CHATTERBOT_FILES
from data_prep.text_sets import prepare_text_set

NAME = "chatterbot"
PACKAGE = "chatterbot-corpus==1.3.3"


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/chatterbot`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    root = root or data_root()
    return prepare_text_set(NAME, root, CHATTERBOT_FILES, PACKAGE, _member, python_package)


def _member(file: str) -> str:
    """The name inside the package."""
    return f"chatterbot_corpus/data/english/{file}"


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
