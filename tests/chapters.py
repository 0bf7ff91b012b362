"""Chapters in this process: their parameters, checked by the model of each, and their code."""

import pytest

from experiments.run.chapter_source import code_cells, parameters_cell
from experiments.run.parameters import check_parameter_file, check_parameters
from tests.paths import ROOT

CHAPTERS = ROOT / "chapters"


def check_cell(model, chapter, /, **changes):
    """The values of the parameters cell, some of them changed."""
    values = {line.name: line.value for line in parameters_cell(CHAPTERS / f"{chapter}.py")}
    return check_parameters(values | changes, model)


def check_profile(model, chapter, path):
    """The values of a profile, given by its file."""
    return check_parameter_file(CHAPTERS / f"{chapter}.py", path, model)


def profiles(chapters):
    """Chapter and file of every profile, for ``parametrize``."""
    return [
        pytest.param(chapter, path, id=path.name)
        for chapter in chapters
        for path in sorted(CHAPTERS.glob(f"params/{chapter}.*"))
    ]


def execute(chapter, values):
    """Run the code of a chapter here, with other values than its cell has; starts no kernel."""
    names = {"__name__": "chapter", "display": print}
    for cell in code_cells(CHAPTERS / f"{chapter}.py"):
        exec(compile(cell.source, f"{chapter}, cell {cell.number}", "exec"), names)  # noqa: S102
        if "parameters" in cell.tags:
            names |= values
