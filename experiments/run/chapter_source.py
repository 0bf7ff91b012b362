"""Read a chapter's source: a notebook kept as text, in Jupytext's percent format.

Needs the ``book`` extra (Jupytext) at the time of the call.
"""

from __future__ import annotations

import ast
import importlib
import io
import tokenize
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
    """The parameters of a chapter with their default values, as the tagged cell gives them.

    papermill puts the values of a run behind this cell, so it may hold nothing else: what was
    derived from a default here would keep the default's value.

    Raises:
        ValueError: there is not exactly one cell tagged ``parameters``, or it holds something else
            than one literal per line.
    """
    tagged = [cell for cell in code_cells(chapter_source) if PARAMETERS_TAG in cell.tags]
    if len(tagged) != 1:
        raise ValueError(
            f"{chapter_source}: exactly one cell must be tagged 'parameters'. Found {len(tagged)}."
        )
    source = tagged[0].source
    comments = _comments(source)
    lines = []
    for statement in ast.parse(source).body:
        name, value = literal_assignment(statement, where=str(chapter_source))
        lines.append(ParameterLine(name, value, comments.get(statement.end_lineno or 0, "")))
    return lines


def literal_assignment(statement: ast.stmt, where: str) -> tuple[str, Any]:
    """Name and value of a statement ``name = literal``.

    Raises:
        ValueError: it is another statement; ``where`` starts the message.
    """
    target = statement.targets[0] if isinstance(statement, ast.Assign) else None
    if (
        isinstance(statement, ast.Assign)
        and isinstance(target, ast.Name)
        and len(statement.targets) == 1
    ):
        try:
            return target.id, ast.literal_eval(statement.value)
        except ValueError:
            pass  # not a literal: reported below, with the line
    raise ValueError(
        f"{where}: the parameters cell must hold literals only, as `name = value`. "
        f"Found `{ast.unparse(statement)}` in its line {statement.lineno}."
    )


def parameter_model(chapter_source: Path | str) -> type[Any]:
    """The model that the chapter passes to ``check_parameters(globals(), Model)``.

    Raises:
        ValueError: the chapter does not make that call, or does not import the model by name.
    """
    trees = [_parsed(cell.source) for cell in code_cells(chapter_source)]
    nodes = [node for tree in trees if tree is not None for node in ast.walk(tree)]
    names = [
        node.args[1].id
        for node in nodes
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Name)
        and node.func.id == "check_parameters"
        and len(node.args) == 2
        and isinstance(node.args[1], ast.Name)
    ]
    if not names:
        raise ValueError(
            f"{chapter_source}: a chapter must call `check_parameters(globals(), Model)` after its "
            "parameters cell. Found no such call."
        )
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                if (alias.asname or alias.name) == names[0]:
                    model: type[Any] = getattr(importlib.import_module(node.module), alias.name)
                    return model
    raise ValueError(
        f"{chapter_source}: `{names[0]}` must be imported by `from module import {names[0]}`. "
        "Found no such import."
    )


def imported_names(chapter_source: Path | str) -> list[tuple[str, str | None]]:
    """The chapter's imports as pairs ``(module, name)``; the name is None for ``import m``."""
    found: list[tuple[str, str | None]] = []
    for cell in code_cells(chapter_source):
        tree = _parsed(cell.source)
        for node in ast.walk(tree) if tree is not None else ():
            if isinstance(node, ast.Import):
                found += [(alias.name, None) for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found += [(node.module, alias.name) for alias in node.names]
    return found


def _parsed(source: str) -> ast.Module | None:
    """The syntax tree of a cell without its lines for IPython (``%magic``, ``!command``)."""
    lines = [line for line in source.splitlines() if not line.lstrip().startswith(("%", "!"))]
    try:
        return ast.parse("\n".join(lines))
    except SyntaxError:
        return None


def _comments(source: str) -> dict[int, str]:
    """Line number -> text of the comment in that line."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {
        token.start[0]: token.string.lstrip("#").strip()
        for token in tokens
        if token.type == tokenize.COMMENT
    }
