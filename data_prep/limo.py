"""LIMO, 817 tasks of mathematics (Ye et al., 2025): ``python -m data_prep.limo``."""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.instruction_sets import InstructionSet, prepare_instruction_set
from data_prep.reading.root import data_root

LIMO = InstructionSet(
    name="limo",
    hub="GAIR/LIMO",
    file="limo.jsonl",
    rows=817,
)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/limo`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_instruction_set(LIMO, root or data_root())


if __name__ == "__main__":
    sys.exit(run_command(LIMO.name, prepare))
