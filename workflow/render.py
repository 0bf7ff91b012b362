"""Render the book with Jupyter Book, warnings as errors: ``python -m workflow.render``.

Always renders all pages, into a temporary folder that replaces the last book when it is finished.
So a warning shows in every build that has it, and a killed build leaves the last book as it was.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from experiments.run.atomic import write_text
from workflow.guard import move_into_place, partial_folder, run_step
from workflow.project import ROOT, RUNS

BOOK = ROOT / "book"
HTML = BOOK / "_build" / "html"
STAMP = ".rendered"
LOG = RUNS / "render.log"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def render() -> Path:
    """Render ``book/`` into ``book/_build/html``; returns the folder.

    Raises:
        RuntimeError: a warning or an error; the message lists them.
    """
    print("Rendering the book", flush=True)
    with partial_folder(HTML) as folder:
        done = jupyter_book(BOOK, folder, "-W", "-n")
        output = COLOUR.sub("", done.stdout)
        write_text(LOG, output)
        if done.returncode != 0:
            raise RuntimeError(_failure(output))
        pages = folder / "_build" / "html"
        (pages / STAMP).touch()
        move_into_place(pages, HTML)
    return HTML


def jupyter_book(source: Path, target: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Render the pages in ``source`` into ``target/_build/html``."""
    start = "from jupyter_book.cli.main import main; main()"
    command = [sys.executable, "-c", start, "build", str(source), *options]
    return subprocess.run(
        [*command, "--keep-going", "--path-output", str(target)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _failure(output: str) -> str:
    """The warnings, or the end of the output where no line is marked as one."""
    lines = output.splitlines()
    found = [line for line in lines if re.search(r"\b(WARNING|ERROR|CRITICAL)\b", line)]
    listed = "\n".join(f"  {line.replace(f'{ROOT}/', '')}" for line in found or lines[-15:])
    return (
        "The book was not rendered: warnings count as errors.\n"
        f"{listed}\n  Full output of Jupyter Book: {LOG.relative_to(ROOT)}"
    )


if __name__ == "__main__":
    sys.exit(run_step(render))
