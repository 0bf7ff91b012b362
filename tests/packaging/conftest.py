"""The wheel, and an environment that has nothing but it and what it asks for."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import copy_files, project_files
from tests.paths import ROOT

UV = Path(sys.executable).with_name("uv")
SOURCES = {"LICENSE", "README.md", "ktlib", "pyproject.toml"}


def run(*command, cwd=None):
    """Run a command; its output, errors included."""
    done = subprocess.run(
        list(map(str, command)),
        cwd=cwd,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


@pytest.fixture(scope="session")
def wheel(tmp_path_factory):
    """The wheel of the project as it is now."""
    folder = tmp_path_factory.mktemp("wheel")
    files = [file for file in project_files() if file.parts[0] in SOURCES]
    copy_files(files, folder / "source")
    options = ["--wheel", "--no-build-isolation", "--python", sys.executable]
    run(UV, "build", *options, "--out-dir", folder, folder / "source")
    (built,) = folder.glob("*.whl")
    return built


class Environment:
    """A virtual environment of its own."""

    def __init__(self, folder):
        self.folder = folder
        run(UV, "venv", "--python", sys.executable, folder)

    @property
    def python(self):
        return self.folder / "bin" / "python"

    def install(self, *requirements):
        """With the versions of requirements.txt: ``make env`` has left them in uv's cache."""
        pins = ["--constraint", ROOT / "requirements.txt"]
        command = [UV, "pip", "install", "--python", self.python, *pins, *requirements]
        try:
            run(*command, "--offline")
        except AssertionError:  # the cache was emptied
            run(*command)

    def run(self, code):
        """Run Python code far from the project; its output."""
        return run(self.python, "-I", "-W", "error", "-c", code, cwd=self.folder)
