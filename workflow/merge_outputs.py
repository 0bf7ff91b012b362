"""Merge a chapter's text with its outputs: ``python -m workflow.merge_outputs fcl cpu``.

The text comes from the chapter as it is now, the outputs from its last execution. So a change in
the text needs no execution, while changed code does: the code cells must be the same, one to one.
(`jupytext --update` would also take the outputs of similar cells, and papermill's metadata.)
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from data_prep import data_root
from experiments.run.atomic import write_text
from experiments.run.chapter_source import parameters_cell
from workflow.guard import run_step
from workflow.project import MAIN_RUN, ROOT, RUNS, chapter_source

INJECTED = "injected-parameters"
PIPELINE_VALUES = ("run_dir",)  # set by the pipeline; of no interest to a reader


def merged_notebook(source: Path, executed: Path) -> Any:
    """The chapter's current text with the outputs of its execution.

    Args:
        source: the chapter, in percent format.
        executed: the notebook that papermill wrote.

    Raises:
        ValueError: the code of the two differs, so that the outputs belong to other code.
    """
    notebook = jupytext.read(source)
    run = nbformat.read(executed, as_version=4)  # type: ignore[no-untyped-call]
    run_cells = [
        cell
        for cell in run.cells
        if cell.cell_type == "code" and INJECTED not in cell.metadata.get("tags", [])
    ]
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    _require_same_code(source, code_cells, run_cells)
    for cell, executed_cell in zip(code_cells, run_cells, strict=True):
        # Blank lines in front are not on the page, where the links into code look for the cell.
        cell.source = cell.source.strip("\n")
        cell.outputs = _clean(executed_cell.outputs)
        cell.execution_count = executed_cell.execution_count
    _insert_parameters(notebook, source, run.metadata.papermill.parameters)
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # Jupytext draws ids at random
    notebook.metadata = {
        "kernelspec": run.metadata.kernelspec,
        "language_info": run.metadata.language_info,
    }
    return notebook


def _require_same_code(source: Path, cells: list[Any], executed: list[Any]) -> None:
    now, then = ([cell.source.strip() for cell in group] for group in (cells, executed))
    if now != then:
        pairs = itertools.zip_longest(now, then)
        first = next(number for number, (a, b) in enumerate(pairs, start=1) if a != b)
        raise ValueError(
            f"{source.name}: the outputs must come from the same code cells. Code cell {first} of "
            f"{len(now)} is not the one that was executed; `make book` executes the chapter again."
        )


def _insert_parameters(notebook: Any, source: Path, values: dict[str, Any]) -> None:
    """Show the values of this run that differ from the parameters cell, in a cell behind it."""
    defaults = {line.name: line.value for line in parameters_cell(source)}
    lines = [
        f"{name} = {value!r}"
        for name, value in values.items()
        if name not in PIPELINE_VALUES and defaults.get(name) != value
    ]
    if lines:
        text = "\n".join(["# Set for this run instead of the values above", *lines])
        cell = nbformat.v4.new_code_cell(text)  # type: ignore[no-untyped-call]
        cell.metadata["tags"] = [INJECTED]
        places = (
            i for i, c in enumerate(notebook.cells) if "parameters" in c.metadata.get("tags", [])
        )
        notebook.cells.insert(next(places) + 1, cell)


def _clean(outputs: list[Any]) -> Any:
    """Outputs without the paths of folders of the machine that they were made on."""
    text = json.dumps(outputs, ensure_ascii=False)
    names = {f"{ROOT}/": "", str(ROOT): ".", f"{data_root()}/": "data/", f"{Path.home()}/": "~/"}
    for old, new in names.items():
        text = text.replace(json.dumps(old, ensure_ascii=False)[1:-1], new)
    return nbformat.from_dict(json.loads(text))  # type: ignore[no-untyped-call]


def merge_outputs(chapter: str, profile: str) -> Path:
    """Write ``book/chapters/<chapter>.ipynb`` from the chapter and its run ``main``."""
    executed = RUNS / chapter / profile / MAIN_RUN / "executed.ipynb"
    notebook = merged_notebook(chapter_source(chapter), executed)
    target = ROOT / "book" / "chapters" / f"{chapter}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    return write_text(target, nbformat.writes(notebook) + "\n")  # type: ignore[no-untyped-call]


if __name__ == "__main__":
    sys.exit(run_step(merge_outputs, "chapter", "profile"))
