"""Measure the project against peers, the obvious way and the floor: ``python -m benchmarks``.

Prints one table of ratios, and of exponents with which times grow. The whole, but not a part or a
quick try, is written to ``results/benchmarks.json``, from which the book makes a page.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.compare import Growth, Row
from experiments.run.atomic import write_text
from experiments.run.provenance import git_state, package_versions
from ktlib.device import hardware_name

PARTS = ("recon", "fcl", "ila", "cpeft")
PACKAGES = ("ktlib", "torch", "torchjd", "peft", "transformers")
OUT = Path(__file__).resolve().parents[1] / "results" / "benchmarks.json"


def lines(found: Row | Growth) -> list[str]:
    """The lines of the printed table for one measurement."""
    if isinstance(found, Growth):
        times = ", ".join(f"{time:.2f}x" for time in found.times)
        sizes = ", ".join(map(str, found.sizes))
        return [
            f"{found.work} against {found.over} {sizes}: {times}; exponent {found.exponent:.2f}"
        ]
    head = f"{found.work} ({found.size}), {found.measure} against {found.unit}"
    if not found.sides:
        return [f"{head}: REFUSED, results differ by {found.difference:.0e}"]
    same = "" if found.difference is None else f"; results differ by {found.difference:.0e}"
    rows = [f"  {s.name:<36}{s.ratio:8.2f}x  ({s.low:.2f} to {s.high:.2f})" for s in found.sides]
    return [f"{head}{same}", *rows]


def main() -> int:
    """Command line; returns the exit status: 1 where sides did not compute the same."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="tiny sizes: does everything run?")
    parser.add_argument("--only", choices=PARTS)
    parser.add_argument("--out", type=Path, help="a file for the numbers")
    given = parser.parse_args()
    torch.set_num_threads(1)  # the clock counts what all threads take
    started = datetime.now(UTC).isoformat(timespec="seconds")
    rows: list[dict[str, Any]] = []
    grown: list[dict[str, Any]] = []
    for part in [given.only] if given.only else PARTS:
        torch.manual_seed(0)
        for found in importlib.import_module(f"benchmarks.{part}").measure(given.quick):
            kept = rows if isinstance(found, Row) else grown
            kept.append({"part": part, **dataclasses.asdict(found)})
            print("\n".join(lines(found)), flush=True)
    commit, changed = git_state()
    out = given.out or (None if given.quick or given.only else OUT)
    if out is not None:
        content = {
            "machine": hardware_name("cpu"),
            "started_at": started,
            "git_commit": commit,
            "git_dirty": changed,
            "packages": package_versions(PACKAGES),
            "threads": torch.get_num_threads(),
            "rows": rows,
            "growth": grown,
        }
        write_text(out, json.dumps(content, indent=1) + "\n")
        print(f"Written: {out}")
    return int(any(not row["sides"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
