"""s1.1, 1,000 tasks with thoughts (Muennighoff et al., 2025): ``python -m data_prep.s1k``."""

from __future__ import annotations

from data_prep.common.command import main
from data_prep.common.instruction_sets import InstructionSet

DATA = InstructionSet(
    name="s1k",
    hub="simplescaling/s1K-1.1",
    file="train-00000-of-00001.parquet",
    rows=1_000,
)
prepare, load = DATA.prepare, DATA.load

if __name__ == "__main__":
    main(DATA)
