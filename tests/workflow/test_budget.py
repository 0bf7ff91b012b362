"""What tests take is measured, and too much of it is a failure."""

import csv
import subprocess
import sys

import pytest

from tests.paths import ROOT

TEST = "tests/experiments/run/test_atomic.py"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("workers", "budget"), [("0", "5"), ("2", "0")])
def test_more_than_the_budget_is_a_failure(workers, budget):
    command = [sys.executable, "-m", "pytest", TEST, "-q", "-n", workers, "-p", "no:cacheprovider"]
    done = subprocess.run(
        [*command, "--budget", budget], cwd=ROOT, capture_output=True, text=True, check=False
    )
    over = budget == "0"
    assert ("The tests took too long" in done.stdout) == over, done.stdout
    assert done.returncode == int(over)
    with (ROOT / "runs" / "tests" / "minutes.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert {test.partition("::")[0] for _, test in rows} == {TEST}
    assert all(float(minutes) >= 0 for minutes, _ in rows)
