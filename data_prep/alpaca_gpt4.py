"""Alpaca-GPT4, 52,002 instructions (Peng et al., 2023): ``python -m data_prep.alpaca_gpt4``.

The licence is CC BY-NC 4.0.
"""

from __future__ import annotations

from data_prep.common.command import main
from data_prep.common.instruction_sets import InstructionSet

DATA = InstructionSet(
    name="alpaca_gpt4",
    hub="vicgalle/alpaca-gpt4",
    file="alpaca_gpt4_data.json",
    rows=52_002,
)
prepare, load = DATA.prepare, DATA.load

if __name__ == "__main__":
    main(DATA)
