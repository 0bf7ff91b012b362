"""Reading chapters."""

import ast
import re

import jupytext
import pytest

from experiments.run import chapter_source
from tests.paths import ROOT


def test_code_cells_with_their_place_and_tags(chapter):
    cells = chapter_source.code_cells(chapter)
    assert [cell.number for cell in cells] == [2, 3, 5, 6]
    assert cells[0].tags == ("parameters",)
    assert cells[-1].tags == ("figure",)
    assert cells[-1].first_line == "print(accuracy)  # a figure"


@pytest.mark.parametrize("path", sorted((ROOT / "chapters").rglob("*.py")), ids=lambda p: p.stem)
def test_code_cells_are_those_of_jupytext(path):
    cells = enumerate(jupytext.read(path, fmt="py:percent").cells, start=1)
    expected = [
        (number, cell.source.strip("\n"), tuple(cell.metadata.get("tags", ())))
        for number, cell in cells
        if cell.cell_type == "code"
    ]
    found = [(cell.number, cell.source, cell.tags) for cell in chapter_source.code_cells(path)]
    assert found == expected
    assert len(found) > 20


def test_first_line_skips_blank_lines():
    assert chapter_source.Cell(1, "\n\n  x = 1\ny = 2", ()).first_line == "x = 1"
    assert chapter_source.Cell(1, "\n", ()).first_line == ""


def test_parameters_cell(chapter):
    lines = {line.name: line for line in chapter_source.parameters_cell(chapter)}
    assert lines["seeds"].value == [0, 1]
    assert lines["noise_bound"].value == 0.01
    assert lines["noise_draws"].comment == "draws per batch"


@pytest.mark.parametrize(
    "line", ["wide = 2 * 0.01", "a = b = 1", "a, b = 1, 2", "import os", "n: int = 3", "f(1)"]
)
def test_parameters_cell_holds_literals_only(chapter, rewrite, line):
    rewrite(chapter, "noise_draws = 2 ", f"{line} ")
    found = re.escape(ast.unparse(ast.parse(line)))
    with pytest.raises(ValueError, match=f"toy.py.*Found `{found}` in line 7"):
        chapter_source.parameters_cell(chapter)


def test_negative_numbers_are_literals(chapter, rewrite):
    rewrite(chapter, "noise_draws = 2 ", "noise_draws = -2 ")
    assert chapter_source.parameters_cell(chapter)[-1].value == -2


@pytest.mark.parametrize(
    ("old", "new", "count"), [("parameters", "other", 0), ("figure", "parameters", 2)]
)
def test_exactly_one_cell_is_tagged(chapter, rewrite, old, new, count):
    rewrite(chapter, f'tags=["{old}"]', f'tags=["{new}"]')
    with pytest.raises(ValueError, match=f"exactly one cell must be tagged .* Found {count}"):
        chapter_source.parameters_cell(chapter)


def test_model_is_found(chapter):
    assert chapter_source.parameter_model(chapter).__name__ == "ToyParameters"


@pytest.mark.parametrize(
    ("old", "message"),
    [
        ("check_parameters(globals(), ToyParameters)", "must call `check_parameters"),
        ("from toykit.model import ToyParameters", "`from module import ToyParameters`"),
    ],
)
def test_model_that_is_not_named(chapter, rewrite, old, message):
    rewrite(chapter, old, "1")
    with pytest.raises(ValueError, match=message):
        chapter_source.parameter_model(chapter)


def test_imports_are_found_beside_magic_lines(chapter, rewrite):
    rewrite(chapter, "accuracy = ", "%matplotlib inline\n!ls\nimport json, os.path\naccuracy = ")
    names = chapter_source.imported_names(chapter)
    assert ("toykit.model", "ToyParameters") in names
    assert ("json", None) in names
    assert ("os.path", None) in names


def test_cell_that_is_no_python_imports_nothing(chapter, rewrite):
    rewrite(chapter, "accuracy = noise_bound", "import json ; ) = noise_bound")
    assert ("json", None) not in chapter_source.imported_names(chapter)
    assert ("toykit.model", "ToyParameters") in chapter_source.imported_names(chapter)
