"""What the code of a chapter imports, sets and uses; see ``workflow.check_chapters``."""

from __future__ import annotations

import ast
import symtable
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

import jupytext

from experiments.run.chapter_source import (
    Cell,
    code_cells,
    imported_names,
    plain_python,
    syntax_nodes,
)
from experiments.run.provenance import chapter_header

# Where methods and experiments are; loading data is not a method.
OWN = ("ktlib", "experiments")


@dataclass(frozen=True)
class Chapter:
    """A chapter's source, read once for all checks."""

    path: Path

    @cached_property
    def code(self) -> list[Cell]:
        """The code cells."""
        return code_cells(self.path)

    @cached_property
    def notebook(self) -> Any:
        """The whole notebook, as nbformat has it."""
        return jupytext.read(self.path, fmt="py:percent")

    @cached_property
    def text(self) -> str:
        """The text cells, joined."""
        cells = self.notebook.cells
        return "\n\n".join(cell.source for cell in cells if cell.cell_type == "markdown")

    @property
    def is_proof(self) -> bool:
        """Whether it is a proof, whose structure differs from that of a chapter."""
        return self.path.parent.name == "proofs"

    @property
    def is_evidence(self) -> bool:
        """Whether it is a page of evidence: its header names the module that makes its claims."""
        return "claims" in chapter_header(self.path)


def names_used(source: str) -> set[str]:
    """Names of the notebook that a cell reads, also inside of its functions."""
    return set(_read(symtable.symtable(plain_python(source), "cell", "exec")))


def names_set(source: str) -> set[str]:
    """Names of the notebook that a cell sets."""
    symbols = symtable.symtable(plain_python(source), "cell", "exec").get_symbols()
    return {s.get_name() for s in symbols if s.is_assigned() or s.is_imported()}


def _read(table: symtable.SymbolTable) -> Iterator[str]:
    outermost = table.get_type() == "module"
    for symbol in table.get_symbols():
        if symbol.is_referenced() and (outermost or symbol.is_global()):
            yield symbol.get_name()
    for child in table.get_children():
        yield from _read(child)


def names_of_project(chapter: Chapter) -> list[str]:
    """Names imported from the project exist, are public and are not defined again."""
    problems = []
    public: set[str] = set()
    modules: dict[str, ModuleType] = {}
    for module, name in imported_names(chapter.path):
        if name is None or module.partition(".")[0] not in OWN:
            continue
        found = _find(module, name)
        if found is None:
            problems.append(f"`{name}` is not a public name of {module}")
        elif isinstance(found, ModuleType):
            modules[name] = found
        else:
            public.add(name)
    for node in syntax_nodes(chapter.code):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = modules.get(node.value.id)
            if owner is not None and _find(owner.__name__, node.attr) is None:
                problems.append(f"`{node.attr}` is not a public name of {owner.__name__}")
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name in public:
            problems.append(f"`{node.name}` is imported from the project and defined again")
    return problems


def _find(module: str, name: str) -> object | None:
    """The public name of a module, or its submodule of that name; None where there is neither."""
    try:
        owner = import_module(module)
    except ModuleNotFoundError:
        return None
    if name in getattr(owner, "__all__", [n for n in vars(owner) if not n.startswith("_")]):
        found: object = getattr(owner, name)
        return found
    try:
        return import_module(f"{module}.{name}")
    except ModuleNotFoundError:
        return None
