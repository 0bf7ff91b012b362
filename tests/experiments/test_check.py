"""Parameters are checked from the command line, before anything heavy is imported."""

import re
import subprocess
import sys

import pytest

from experiments.check import main
from tests.paths import ROOT

HEAVY = ("torch", "matplotlib", "pandas", "jupytext", "sklearn", "scipy", "transformers")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["recon", "-p", "severity=-2"], "`severity` = -2 is not allowed: .*greater than -1"),
        (["recon", "-p", "sevrity=-0.2"], "not a parameter here. Did you mean `severity`"),
        (["recon", "-p", "seeds=3"], "`seeds` = 3 .*list.*seeds: \\[3\\]"),
        (["recon", "-p", "lr=1e-3"], "It is text: in YAML write a number as 1.0e-3"),
        (["recon", "-p", "severity"], "-p must be given as name=value.*'severity'"),
        (["recon", "-p", "lr=0.1", "-p", "lr=0.2"], "once a name"),
        (["recon", "-p", "seeds=["], "must hold a value of YAML.*seeds="),
        (["recon", "--profile", "large"], "PROFILE must be one of smoke, .*'large'"),
        (["recn"], "CHAPTER must be one of continual_peft, .*'recn'"),
    ],
)
def test_what_is_wrong_is_named(arguments, words, capsys):
    assert main(arguments) == 1
    said = capsys.readouterr().err
    assert re.search(words, said, re.DOTALL), said


def test_all_problems_are_named_at_once(capsys):
    assert main(["recon", "-p", "severity=-2", "-p", "epochs=0"]) == 1
    said = capsys.readouterr().err
    assert "2 problems" in said
    assert "severity = -2" in said


def test_allowed_values(capsys):
    assert main(["recon", "-p", "severity=-0.2", "-p", "seeds=[7]"]) == 0
    assert "Chapter recon, profile cpu: these values are allowed." in capsys.readouterr().out


def test_it_takes_no_time():
    """Within 3 seconds of the processor, of which half is Python's own start and pydantic."""
    code = (
        "import sys, time; from experiments.check import main; main(['ila', '-p', 'top=2']);"
        f"print([m for m in {HEAVY} if m in sys.modules], time.process_time())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    imported, seconds = done.stdout.rsplit(" ", 1)
    assert imported == "[]"
    assert float(seconds) < 3
