"""No Robots, 9,500 conversations (Rajani et al., 2023): ``python -m data_prep.no_robots``.

The licence is CC BY-NC 4.0.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.instruction_sets import InstructionSet, prepare_instruction_set
from data_prep.reading.root import data_root

NO_ROBOTS = InstructionSet(
    name="no_robots",
    hub="HuggingFaceH4/no_robots",
    file="train-00000-of-00001.parquet",
    rows=9_500,
)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/no_robots`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_instruction_set(NO_ROBOTS, root or data_root())


if __name__ == "__main__":
    sys.exit(run_command(NO_ROBOTS.name, prepare))
