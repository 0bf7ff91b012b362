"""What tests take is measured, and too much of it is a failure."""

import csv
import subprocess
import sys

import pytest

from tests.paths import ROOT

TEST = "tests/experiments/run/test_atomic.py"
pytestmark = pytest.mark.slow


@pytest.mark.parametrize("workers", ["0", "2"])
def test_more_than_the_budget_is_a_failure(workers):
    command = [sys.executable, "-m", "pytest", TEST, "-q", "-n", workers, "-p", "no:cacheprovider"]
    codes = {}
    for budget in ("0", "5"):
        done = subprocess.run(
            [*command, "--budget", budget], cwd=ROOT, capture_output=True, text=True, check=False
        )
        codes[budget] = done.returncode
        assert ("The tests took too long" in done.stdout) == (budget == "0"), done.stdout
    assert codes == {"0": 1, "5": 0}
    with (ROOT / "runs" / "tests" / "minutes.csv").open() as stream:
        rows = list(csv.reader(stream))
    assert {test.partition("::")[0] for _, test in rows} == {TEST}
    assert all(float(minutes) >= 0 for minutes, _ in rows)
