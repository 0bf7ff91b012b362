"""What takes seconds to import is imported when it is needed."""

import json
import subprocess
import sys

import pytest

# cvxpy and SciPy come with torchjd, which imports them together with all its aggregators.
SOLVERS = {"cvxpy", "qpsolvers", "torchjd"}
CODE = """
import importlib, json, pkgutil, sys
package = importlib.import_module(sys.argv[1])
for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
    importlib.import_module(module.name)
print(json.dumps(sorted(sys.modules)))
"""


@pytest.mark.parametrize(
    ("package", "heavy"),
    [
        (
            "ktlib",
            SOLVERS
            | {"datasets", "lm_eval", "matplotlib", "pandas", "peft"}
            | {"sklearn", "torchvision", "transformers"},
        ),
        pytest.param(
            "experiments",
            SOLVERS | {"datasets", "lm_eval", "peft", "sklearn"},
            marks=pytest.mark.slow,
        ),
    ],
)
def test_no_module_imports_what_only_some_functions_need(package, heavy):
    run = [sys.executable, "-c", CODE, package]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    imported = set(json.loads(done.stdout))
    assert f"{package}.mtl" in imported
    assert not heavy & imported
