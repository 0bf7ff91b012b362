"""LIMA, 1,000 conversations (Zhou et al., 2023): ``python -m data_prep.lima``."""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.instruction_sets import InstructionSet, prepare_instruction_set
from data_prep.reading.root import data_root

LIMA = InstructionSet(
    name="lima",
    hub="GAIR/lima",
    file="train.jsonl",
    rows=1_000,
    direct=True,
    note="The publishers ask for a login and for consent to their licence (CC BY-NC-SA).",
)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/lima`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_instruction_set(LIMA, root or data_root())


if __name__ == "__main__":
    sys.exit(run_command(LIMA.name, prepare))
