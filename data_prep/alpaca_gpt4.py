"""Alpaca-GPT4, 52,002 instructions (Peng et al., 2023): ``python -m data_prep.alpaca_gpt4``.

The licence is CC BY-NC 4.0.
"""

from __future__ import annotations

import sys
from pathlib import Path

from data_prep.command import run_command
from data_prep.instruction_sets import InstructionSet, prepare_instruction_set
from data_prep.reading.root import data_root

ALPACA_GPT4 = InstructionSet(
    name="alpaca_gpt4",
    hub="vicgalle/alpaca-gpt4",
    file="alpaca_gpt4_data.json",
    rows=52_002,
)


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/alpaca_gpt4`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    return prepare_instruction_set(ALPACA_GPT4, root or data_root())


if __name__ == "__main__":
    sys.exit(run_command(ALPACA_GPT4.name, prepare))
