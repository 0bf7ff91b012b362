"""Read a chapter's source: a notebook kept as text, in Jupytext's percent format."""

from __future__ import annotations

import ast
import contextlib
import importlib
import io
import re
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PROFILES = ("smoke", "cpu", "full", "gpu", "paper")
PARAMETERS_TAG = "parameters"
TAGS = re.compile(r"\btags=(\[[^\]]*\])")
TEXT = re.compile(r"# %%+ \[(markdown|md|raw)\]")


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


def chapters(root: Path = ROOT) -> list[str]:
    """Names of all chapters, such as ``"fcl"`` for ``chapters/fcl.py``."""
    folder = root / "chapters"
    files = (path.relative_to(folder) for path in folder.rglob("*.py"))
    return sorted(file.with_suffix("").as_posix() for file in files)


def chapter_source(chapter: str, root: Path = ROOT) -> Path:
    """The file of a chapter.

    Raises:
        ValueError: there is no such chapter.
    """
    path = root / "chapters" / f"{chapter}.py"
    if not path.is_file():
        raise ValueError(f"CHAPTER must be one of {', '.join(chapters(root))}. Found {chapter!r}.")
    return path


def parameter_file(chapter: str, profile: str, root: Path = ROOT) -> Path:
    """The file with a chapter's parameter values in a profile.

    Raises:
        ValueError: there is no such profile, or the chapter has no values for it.
    """
    if profile not in PROFILES:
        raise ValueError(f"PROFILE must be one of {', '.join(PROFILES)}. Found {profile!r}.")
    chapter_source(chapter, root)
    files = {p: root / "chapters" / "params" / f"{chapter}.{p}.yaml" for p in PROFILES}
    if not files[profile].is_file():
        there = ", ".join(p for p in PROFILES if files[p].is_file()) or "none"
        raise ValueError(
            f"PROFILE must be one that chapter {chapter!r} has values for: {there}. "
            f"Found {profile!r}, whose file {files[profile].relative_to(root)} is missing."
        )
    return files[profile]


def code_cells(chapter_source: Path | str) -> list[Cell]:
    """The code cells of a chapter, in order.

    As Jupytext reads them, whose import alone takes seconds: too long for a check of parameters.
    """
    lines = Path(chapter_source).read_text(encoding="utf-8").splitlines()
    if lines[:1] == ["# ---"] and "# ---" in lines[1:]:
        lines = lines[lines.index("# ---", 1) + 1 :]
    found: list[tuple[str, list[str]]] = [("", [])]
    for line in lines:
        if line.startswith("# %%"):
            found.append((line, []))
        else:
            found[-1][1].append(line)
    texts = [(head, "\n".join(body).strip("\n")) for head, body in found]
    cells = [text for text in texts if text[0] or text[1].strip()]
    return [
        Cell(number, text, tuple(ast.literal_eval(tags[1])) if (tags := TAGS.search(head)) else ())
        for number, (head, text) in enumerate(cells, start=1)
        if not TEXT.match(head)
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
