"""What may import what: the contracts in pyproject.toml hold, and would be seen to break."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import copy_files, project_files
from tests.paths import ROOT

PARTS = {"benchmarks", "data_prep", "experiments", "ktlib", "pyproject.toml", "workflow"}
LINT = Path(sys.executable).with_name("lint-imports")


def lint(folder):
    """Exit status and words of import-linter on the project in a folder."""
    done = subprocess.run(
        [LINT, "--no-cache", "--no-logo"],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_contracts_are_kept():
    status, words = lint(ROOT)
    assert status == 0, words


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """A copy of the code."""
    folder = tmp_path_factory.mktemp("contracts")
    copy_files((file for file in project_files() if file.parts[0] in PARTS), folder)
    return folder


@pytest.mark.parametrize(
    ("file", "line", "contract"),
    [
        ("ktlib/seeding.py", "import experiments.run.tables", "ktlib imports nothing"),
        ("ktlib/seeding.py", "import benchmarks.fcl", "ktlib imports nothing"),
        ("data_prep/common/storage.py", "import ktlib.device", "data_prep imports nothing"),
        ("experiments/run/tables.py", "import workflow.project", "experiments do not know"),
        ("workflow/project.py", "from ktlib.fcl import f2m_loss", "workflow uses the records"),
        ("ktlib/mtl/layers.py", "import ktlib.ila.layers", "Layers of ktlib"),
        ("ktlib/fcl/noise.py", "import ktlib.cpeft", "Layers of ktlib"),
        ("experiments/models/resnet.py", "import experiments.fcl.figures", "Layers of experiments"),
        ("ktlib/fcl/noise.py", "import ktlib.fcl.f2m", "No cycles"),
    ],
)
def test_forbidden_import_is_seen(copy, file, line, contract):
    path = copy / file
    before = path.read_text(encoding="utf-8")
    # Inside a function: a late import is an import, too.
    path.write_text(f"{before}\n\ndef _late():\n    {line}\n", encoding="utf-8")
    status, words = lint(copy)
    path.write_text(before, encoding="utf-8")
    assert status != 0
    assert [name for name in words.splitlines() if contract in name and name.endswith("BROKEN")]
