"""LIMA, 1,000 conversations (Zhou et al., 2023): ``python -m data_prep.lima``."""

from __future__ import annotations

from data_prep.common.command import main
from data_prep.common.instruction_sets import InstructionSet

DATA = InstructionSet(
    name="lima",
    hub="GAIR/lima",
    file="train.jsonl",
    rows=1_000,
    direct=True,
    note="The publishers ask for a login and for consent to their licence (CC BY-NC-SA).",
)
prepare, load = DATA.prepare, DATA.load

if __name__ == "__main__":
    main(DATA)
