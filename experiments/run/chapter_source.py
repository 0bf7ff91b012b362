"""Read a chapter's source: a notebook kept as text, in Jupytext's percent format.

Needs the ``book`` extra (Jupytext) at the time of the call.
"""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PARAMETERS_TAG = "parameters"


@dataclass(frozen=True)
class Cell:
    """One code cell: its place among all cells (from 1), its source and its tags."""

    number: int
    source: str
    tags: tuple[str, ...]

    @property
    def first_line(self) -> str:
        """The first line that is not blank, to name the cell in a message."""
        return next((line.strip() for line in self.source.splitlines() if line.strip()), "")


@dataclass(frozen=True)
class ParameterLine:
    """One line of the parameters cell: the name, its value, and the comment behind it."""

    name: str
    value: Any
    comment: str


def code_cells(chapter_source: Path | str) -> list[Cell]:
    """The code cells of a chapter, in order."""
    import jupytext  # belongs to the `book` extra

    notebook = jupytext.read(chapter_source, fmt="py:percent")
    return [
        Cell(number, cell.source, tuple(cell.metadata.get("tags", ())))
        for number, cell in enumerate(notebook.cells, start=1)
        if cell.cell_type == "code"
    ]


def parameters_cell(chapter_source: Path | str) -> list[ParameterLine]:
    """The parameters of a chapter with their default values, from the cell tagged ``parameters``.

    papermill puts the values of a run behind this cell, so it may hold literals only: what was
    derived from a default here would keep the default's value. (`papermill.inspect_notebook` would
    cut the comments at their first colon.)

    Raises:
        ValueError: the number of tagged cells is not one, or a line is not ``name = literal``.
    """
    tagged = [cell for cell in code_cells(chapter_source) if PARAMETERS_TAG in cell.tags]
    if len(tagged) != 1:
        raise ValueError(
            f"{chapter_source}: exactly one cell must be tagged 'parameters'. Found {len(tagged)}."
        )
    tokens = tokenize.generate_tokens(io.StringIO(tagged[0].source).readline)
    comments = {t.start[0]: t.string.lstrip("# ") for t in tokens if t.type == tokenize.COMMENT}
    lines = []
    for statement in ast.parse(tagged[0].source).body:
        try:
            match statement:
                case ast.Assign(targets=[ast.Name(id=name)], value=literal):
                    value = ast.literal_eval(literal)
                case _:
                    raise ValueError  # noqa: TRY301 - one message for both
        except ValueError:
            raise ValueError(
                f"{chapter_source}: the parameters cell must hold literals only, as "
                f"`name = value`. Found `{ast.unparse(statement)}` in line {statement.lineno}."
            ) from None
        lines.append(ParameterLine(name, value, comments.get(statement.end_lineno or 0, "")))
    return lines


def parameter_model(chapter_source: Path | str) -> type[Any]:
    """The model that the chapter passes to ``check_parameters(globals(), Model)``.

    Raises:
        ValueError: the chapter does not make that call, or does not import the model by name.
    """
    used = ""
    for node in syntax_nodes(code_cells(chapter_source)):
        match node:
            case ast.Call(func=ast.Name(id="check_parameters"), args=[_, ast.Name() as model_name]):
                used = model_name.id
    if not used:
        raise ValueError(
            f"{chapter_source}: a chapter must call `check_parameters(globals(), Model)` after its "
            "parameters cell. Found no such call."
        )
    for module, name in imported_names(chapter_source):
        if name == used:
            model: type[Any] = getattr(importlib.import_module(module), name)
            return model
    raise ValueError(
        f"{chapter_source}: `{used}` must be imported by `from module import {used}`. "
        "Found no such import."
    )


def imported_names(chapter_source: Path | str) -> list[tuple[str, str | None]]:
    """The chapter's imports as pairs ``(module, name)``; the name is None for ``import m``."""
    found: list[tuple[str, str | None]] = []
    for node in syntax_nodes(code_cells(chapter_source)):
        if isinstance(node, ast.Import):
            found += [(alias.name, None) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found += [(node.module, alias.name) for alias in node.names]
    return found


def syntax_nodes(cells: Iterable[Cell]) -> Iterator[ast.AST]:
    """The syntax nodes of some cells; one that is not Python has none."""
    for cell in cells:
        with contextlib.suppress(SyntaxError):
            yield from ast.walk(ast.parse(plain_python(cell.source)))


def plain_python(source: str) -> str:
    """A cell without its lines for IPython (``%magic``, ``!command``)."""
    lines = source.splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))
