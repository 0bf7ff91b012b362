"""Pages to read while the chapters still run: ``python -m workflow.preview cpu``.

The book as far as there is one: all pages of prose, the chapters that have been executed, and in
place of each other one a page that says so. It stands where the finished book will replace it.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import nbformat

from experiments.run.atomic import write_text
from workflow.guard import move_into_place, partial_folder, run_step
from workflow.merge_outputs import merged_notebook
from workflow.pages import title, write_pages
from workflow.project import MAIN_RUN, RUNS, chapter_source, chapters
from workflow.render import BOOK, HTML, jupyter_book

FOLDER = RUNS / "preview"
WAITING = "# {title}\n\nThis chapter is still running. Load this page again in some minutes.\n"


def preview(profile: str) -> None:
    """Render the pages that there are so far; warnings do not count.

    Raises:
        RuntimeError: Jupyter Book failed.
    """
    source, done = FOLDER / "book", []
    generated = shutil.ignore_patterns("_build", "_generated", "chapters")
    shutil.copytree(BOOK, source, ignore=generated, dirs_exist_ok=True)
    for name in chapters():
        executed = RUNS / name / profile / MAIN_RUN / "executed.ipynb"
        try:
            notebook = merged_notebook(chapter_source(name), executed)
        except (FileNotFoundError, ValueError):  # not executed, or not with this code
            notebook = nbformat.v4.new_notebook()  # type: ignore[no-untyped-call]
            text = WAITING.format(title=title(chapter_source(name)))
            cell = nbformat.v4.new_markdown_cell(text, id="cell-0")  # type: ignore[no-untyped-call]
            notebook.cells = [cell]
        else:
            done.append(name)
        _write(source / "chapters" / f"{name}.ipynb", nbformat.writes(notebook))  # type: ignore[no-untyped-call]
    write_pages(profile, source / "_generated", done)
    ended = jupyter_book(source, FOLDER)
    if ended.returncode != 0:
        raise RuntimeError(f"Jupyter Book failed: {ended.stdout[-1000:]}")
    with partial_folder(HTML) as folder:
        shutil.copytree(FOLDER / "_build" / "html", folder, dirs_exist_ok=True)
        move_into_place(folder, HTML)


def _write(file: Path, text: str) -> None:
    """Write a file, unless it has this content: Sphinx renders again what is newer."""
    if not file.exists() or file.read_text(encoding="utf-8") != text:
        write_text(file, text)


if __name__ == "__main__":
    sys.exit(run_step(preview, "profile"))
