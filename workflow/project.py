"""What the project contains: its chapters, their profiles and data sets, the names of runs.

Light on imports, as every build reads this, also one that finds nothing to do.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import yaml

# The one import from outside of `experiments.run`: which data can be prepared, and where it lies.
from data_prep import DATA_SETS, data_root
from experiments.run.chapter_source import (
    PROFILES,
    chapter_source,
    chapters,
    parameter_file,
    parameters_cell,
)
from experiments.run.provenance import chapter_header

__all__ = ["PROFILES", "chapter_source", "chapters", "parameter_file"]

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs"
GENERATED = ("reasoning", "tiny")  # generated tasks; a random model
MAIN_RUN = "main"  # the run that the book shows; others belong to sweeps
RUN_NAME = re.compile(r"main|[a-z_]\w*=[\w.+-]+(,[a-z_]\w*=[\w.+-]+)*")


def data_folder(root: Path = ROOT) -> str:
    """The data root as Snakemake can take it: relative to the project where it lies in it.

    Raises:
        ValueError: the path holds a brace. Snakemake knows no way to write one.
    """
    folder = data_root()
    text = folder.relative_to(root).as_posix() if folder.is_relative_to(root) else str(folder)
    if "{" in text or "}" in text:
        raise ValueError(f"KTLIB_DATA must be a folder without braces in its path. Found {text!r}.")
    return text


def data_sets(chapter: str, profile: str, root: Path = ROOT, run: str = MAIN_RUN) -> list[str]:
    """The data sets that a run of a chapter needs, named in its header; models count as such.

    The header's ``ktlib: {data: [pairs]}`` lists them. With ``data_parameter: dataset`` beside it,
    the value of that parameter, in the name of the run or else in the profile's file, replaces the
    list. With several parameters, ``data_parameter: [dataset, other_dataset]``, a run needs the
    sets of all of them; one that is set in neither place may have any default, and so stands for
    the whole list. What is generated (``reasoning``, ``tiny``), the user's own files, and what
    comes from a hub (``owner/name``) is left out: there is nothing to prepare.

    Raises:
        ValueError: an unknown data set. Snakemake would not report it: where it cannot make a
            chapter, it takes what an earlier build left.
    """
    header = chapter_header(chapter_source(chapter, root))
    names = _listed(header.get("data"))
    parameters = _listed(header.get("data_parameter"))
    if parameters:
        values = {**_yaml_mapping(parameter_file(chapter, profile, root)), **run_values(run)}
        needed = [name for key in parameters for name in _listed(values.get(key, names))]
        names = [name for name in dict.fromkeys(needed) if not _needs_nothing(str(name))]
    for name in names:
        if name not in DATA_SETS:
            known = ", ".join(DATA_SETS)
            raise ValueError(f"Chapter {chapter!r}: data must be among {known}. Found {name!r}.")
    return names


def _needs_nothing(name: str) -> bool:
    return name in GENERATED or "/" in name or name.endswith((".json", ".jsonl"))


def list_parameters(chapter: str, root: Path = ROOT) -> list[str]:
    """The parameters of a chapter whose values are lists, such as ``seeds``."""
    lines = parameters_cell(chapter_source(chapter, root))
    return [line.name for line in lines if isinstance(line.value, list)]


def run_values(run: str, lists: Collection[str] = ("seeds",)) -> dict[str, Any]:
    """The parameter values that the name of a run stands for; ``main`` stands for none.

    ``seeds=3,noise_bound=0.01`` gives ``{"seeds": [3], "noise_bound": 0.01}``.

    Args:
        run: its name.
        lists: the parameters whose values are lists, here of one value.

    Raises:
        ValueError: it is not a name of a run.
    """
    if not RUN_NAME.fullmatch(run):
        raise ValueError(f"A run must be named `main` or `name=value,name=value`. Found {run!r}.")
    if run == MAIN_RUN:
        return {}
    pairs = (part.split("=", 1) for part in run.split(","))
    values = {name: yaml.safe_load(text) for name, text in pairs}
    return {name: [value] if name in lists else value for name, value in values.items()}


def sweep_runs(choices: Mapping[str, str]) -> list[str]:
    """Names of the runs of a sweep: one for each combination of the values.

    Args:
        choices: parameter -> values with commas between, such as ``{"seeds": "0,1,2"}``.
    """
    if not choices:
        raise ValueError("A sweep needs values: SEEDS=0,1,2, or SET='noise_bound=0.01,0.02'.")
    columns = []
    for name, values in choices.items():
        texts = [text.strip() for text in values.split(",") if text.strip()]
        columns.append([f"{name}={text}" for text in texts])
    runs = [",".join(combination) for combination in itertools.product(*columns)]
    for run in runs:
        run_values(run)
    return runs


def _listed(value: Any) -> list[str]:
    """The names in a value of YAML: one, several or none."""
    if value is None:
        return []
    return [str(name) for name in value] if isinstance(value, list) else [str(value)]


def _yaml_mapping(path: Path) -> dict[str, Any]:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    return values if isinstance(values, dict) else {}
