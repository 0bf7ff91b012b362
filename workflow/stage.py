"""Put an executed chapter into the book: ``python -m workflow.stage fcl cpu``.

The text comes from the chapter as it is now, the outputs from its last execution. So a change in
the text needs no execution, while changed code does: the code cells must be the same, one to one.
"""

from __future__ import annotations

import argparse
import ast
import itertools
import sys
from pathlib import Path
from typing import Any

import jupytext
import nbformat

from experiments.run.atomic import write_text
from workflow.guard import end_with_build
from workflow.project import MAIN_RUN, ROOT, RUNS, chapter_source

INJECTED = "injected-parameters"
PIPELINE_VALUES = ("run_dir",)  # set by the pipeline; of no interest to a reader


def staged_notebook(source: Path, executed: Path) -> Any:
    """The chapter's current text with the outputs of its execution.

    Args:
        source: the chapter, in percent format.
        executed: the notebook that papermill wrote.

    Raises:
        ValueError: the code of the two differs, so that the outputs belong to other code.
    """
    notebook = jupytext.read(source)
    run = nbformat.read(executed, as_version=4)  # type: ignore[no-untyped-call]
    run_cells = [cell for cell in run.cells if cell.cell_type == "code"]
    injected = [cell for cell in run_cells if INJECTED in cell.metadata.get("tags", [])]
    executed_cells = [cell for cell in run_cells if cell not in injected]
    code_cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    _same_code(source, code_cells, executed_cells)
    for cell, done in zip(code_cells, executed_cells, strict=True):
        cell.outputs = [_clean(output) for output in done.outputs]
        cell.execution_count = done.execution_count
    if injected:
        _insert_parameters(notebook, injected[0])
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"  # Jupytext draws ids at random
    notebook.metadata = {
        "kernelspec": run.metadata.kernelspec,
        "language_info": run.metadata.language_info,
    }
    return notebook


def _same_code(source: Path, cells: list[Any], executed: list[Any]) -> None:
    now, then = ([cell.source.strip() for cell in group] for group in (cells, executed))
    if now != then:
        pairs = itertools.zip_longest(now, then)
        first = next(number for number, (a, b) in enumerate(pairs, start=1) if a != b)
        raise ValueError(
            f"{source.name}: the outputs must come from the same code cells. Code cell {first} of "
            f"{len(now)} is not the one that was executed; `make book` executes the chapter again."
        )


def _insert_parameters(notebook: Any, injected: Any) -> None:
    """Show the values that this run set, behind the parameters cell, where they differ from it."""
    place = next(
        i for i, cell in enumerate(notebook.cells) if "parameters" in cell.metadata.get("tags", [])
    )
    defaults, values = (_assignments(cell.source) for cell in (notebook.cells[place], injected))
    differing = {
        name: value
        for name, value in values.items()
        if name not in PIPELINE_VALUES and defaults.get(name) != value
    }
    if differing:
        lines = [f"{name} = {value!r}" for name, value in differing.items()]
        text = "\n".join(["# Set for this run instead of the values above", *lines])
        cell = nbformat.v4.new_code_cell(text)  # type: ignore[no-untyped-call]
        cell.metadata["tags"] = [INJECTED]
        cell.execution_count = injected.execution_count
        notebook.cells.insert(place + 1, cell)


def _assignments(source: str) -> dict[str, Any]:
    return {
        target.id: ast.literal_eval(statement.value)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _clean(output: Any) -> Any:
    """The output without what belongs to the machine it was made on: the paths of its folders."""
    text = nbformat.from_dict(output)  # type: ignore[no-untyped-call]
    return _replaced(text, {f"{ROOT}/": "", str(ROOT): ".", f"{Path.home()}/": "~/"})


def _replaced(value: Any, names: dict[str, str]) -> Any:
    if isinstance(value, str):
        for old, new in names.items():
            value = value.replace(old, new)
        return value
    if isinstance(value, list):
        return [_replaced(item, names) for item in value]
    if isinstance(value, dict):
        return type(value)({key: _replaced(item, names) for key, item in value.items()})
    return value


def stage(chapter: str, profile: str) -> Path:
    """Write ``book/chapters/<chapter>.ipynb`` from the chapter and its run ``main``."""
    executed = RUNS / chapter / profile / MAIN_RUN / "executed.ipynb"
    notebook = staged_notebook(chapter_source(chapter), executed)
    target = ROOT / "book" / "chapters" / f"{chapter}.ipynb"
    target.parent.mkdir(parents=True, exist_ok=True)
    return write_text(target, nbformat.writes(notebook) + "\n")  # type: ignore[no-untyped-call]


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("chapter")
    parser.add_argument("profile")
    given = parser.parse_args(arguments)
    end_with_build(RUNS)
    try:
        stage(given.chapter, given.profile)
    except (ValueError, OSError) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
