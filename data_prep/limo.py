"""LIMO, 817 tasks of mathematics (Ye et al., 2025): ``python -m data_prep.limo``."""

from __future__ import annotations

from data_prep.common.command import main
from data_prep.common.instruction_sets import InstructionSet

DATA = InstructionSet(
    name="limo",
    hub="GAIR/LIMO",
    file="limo.jsonl",
    rows=817,
)
prepare, load = DATA.prepare, DATA.load

if __name__ == "__main__":
    main(DATA)
