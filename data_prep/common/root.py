"""Where the data lives on this machine."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

VARIABLE = "KTLIB_DATA"
HERE = Path(__file__).resolve()


def data_root() -> Path:
    """The folder that holds one sub-folder per data set.

    The environment variable ``KTLIB_DATA`` names it. Without the variable it is ``data`` in the
    project that the current folder belongs to, or else in the one of this file; outside of both it
    is ``data`` in the current folder. The folder need not exist.
    """
    named = os.environ.get(VARIABLE, "").strip()
    if named:
        return Path(named).expanduser().absolute()
    here = Path.cwd()
    for folder in (here, *here.parents, *HERE.parents):
        if _is_project(folder):
            return folder / "data"
    return here / "data"


def _is_project(folder: Path) -> bool:
    """Whether ``folder`` is the root of this project: its pyproject.toml names ``ktlib``."""
    try:
        text = (folder / "pyproject.toml").read_text(encoding="utf-8")
        project = tomllib.loads(text).get("project")
    except (OSError, ValueError):  # TOMLDecodeError and UnicodeDecodeError are ValueErrors
        return False
    return isinstance(project, dict) and project.get("name") == "knowledge-transfer-lib"
