"""s1.1, 1,000 tasks with thoughts (Muennighoff et al., 2025): ``python -m data_prep.s1k``."""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.instruction_sets import InstructionSet, prepare_instruction_set
from data_prep.reading.root import data_root

S1K = InstructionSet(
    name="s1k",
    hub="simplescaling/s1K-1.1",
    file="train-00000-of-00001.parquet",
    rows=1_000,
)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/s1k`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_instruction_set(S1K, root or data_root())


if __name__ == "__main__":
    sys.exit(run_command(S1K.name, prepare))
