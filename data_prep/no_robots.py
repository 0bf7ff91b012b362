"""No Robots, 9,500 conversations (Rajani et al., 2023): ``python -m data_prep.no_robots``.

The licence is CC BY-NC 4.0.
"""

from __future__ import annotations

from data_prep.common.command import main
from data_prep.common.instruction_sets import InstructionSet

DATA = InstructionSet(
    name="no_robots",
    hub="HuggingFaceH4/no_robots",
    file="train-00000-of-00001.parquet",
    rows=9_500,
)
prepare, load = DATA.prepare, DATA.load

if __name__ == "__main__":
    main(DATA)
