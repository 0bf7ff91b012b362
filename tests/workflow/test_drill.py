"""The drill: which values it tries, and what it says of a chapter that does not hold."""

import json
import math
import shutil
import sys
from dataclasses import replace
from typing import Annotated, Literal

import pytest
from pydantic import BaseModel, ConfigDict, Field, model_validator

from data_prep import DataError
from workflow import drill


class Small(BaseModel):
    """A model with one parameter of each kind, of which two bound each other."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)

    steps: int = Field(ge=1, le=1000)
    parts: int = Field(ge=1)
    keep: float = Field(gt=0, lt=1)
    top: float = Field(ge=0)
    way: Literal["a", "b", "c"]
    plain: bool
    counts: list[Annotated[int, Field(ge=1, le=9)]] = Field(min_length=1)
    rates: dict[str, float]
    folder: str

    @model_validator(mode="after")
    def _fits(self):
        assert self.top < self.keep
        assert 12 % self.parts == 0
        assert 3 in self.counts
        assert all(0 < rate <= 10 for rate in self.rates.values())
        return self


BASE = {
    "steps": 5, "parts": 3, "keep": 0.5, "top": 0.25, "way": "a", "plain": True, "counts": [3, 4],
    "rates": {"x": 1.0}, "folder": "",
}  # fmt: skip
TINY = math.nextafter(0, 1)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("steps", [1, 1000, 10]),
        ("parts", [1, 12, 6]),
        ("keep", [math.nextafter(0.25, 1), math.nextafter(1, 0)]),
        ("top", [0.0, math.nextafter(0.5, 0)]),
        ("way", ["b", "c"]),
        ("plain", [False]),
        ("counts", [[3], [1, 3, 4, 6, 9]]),
        ("rates", [{}, {"x": TINY}, {"x": 10.0}]),
        ("folder", []),
    ],
)
def test_extremes_are_what_the_model_still_accepts(name, expected):
    assert drill.extremes(Small, BASE, name) == expected


@pytest.mark.parametrize(
    ("error", "trained", "expected"),
    [
        (ValueError("rate must be below 1"), False, drill.REFUSED),
        (ValueError("rate must be below 1"), True, drill.LATE),
        (ValueError("it must be below 1"), False, drill.LATE),
        (DataError("Data set digits is not prepared"), False, drill.REFUSED),
        (DataError("Data set digits is not prepared"), True, drill.LATE),
        (KeyError("rate"), False, drill.LATE),
        (FloatingPointError("the loss is nan: lower rate=10"), True, drill.DIVERGED),
        (FloatingPointError("the loss is nan"), True, drill.LATE),
        (ValueError("Metric `loss` must be finite. Found nan."), True, drill.INFINITE),
        (RuntimeError("can't allocate memory"), True, drill.OVER),
    ],
)
def test_kinds_of_errors(error, trained, expected):
    assert drill._kind(error, "rate", "digits", trained=trained) == expected


@pytest.mark.slow
def test_faults_are_listed_and_the_next_call_goes_on(new_project, tmp_path):
    """The small chapter fails where it is told to, and a huge rate makes its number infinite."""
    project = replace(new_project, root=tmp_path / "project")
    shutil.copytree(new_project.root, project.root)
    command = (sys.executable, "-m", "workflow.drill")
    first = project.run(*command, "--parameter", "rate")
    assert first.returncode == 1, first.stdout
    assert (
        "2 held, 0 refused, 0 diverged, 0 over limits, 0 late failure, 1 not finite" in first.stdout
    )
    done = project.run(*command)
    assert done.returncode == 1
    assert "0 over limits, 1 late failure, 1 not finite" in done.stdout
    log = (project.root / "runs/drill/mini.jsonl").read_text().splitlines()
    results = [json.loads(line) for line in log]
    tried = [(result["parameter"], json.dumps(result["value"])) for result in results]
    assert len(set(tried)) == len(tried)
    faults = [result for result in results if result["outcome"] in drill.FAULTS]
    assert [result["value"] for result in faults] == [sys.float_info.max, True]
    table = (project.root / "runs/drill/report.md").read_text().splitlines()
    assert "| mini | fail = True | late failure |" in table[3]
    assert "cell 5, `if fail:`: RuntimeError: this chapter was told to fail" in table[3]
    held = project.run(*command, "--parameter", "precision")
    assert held.returncode == 0, held.stdout
    assert len((project.root / "runs/drill/mini.jsonl").read_text().splitlines()) == len(log)
