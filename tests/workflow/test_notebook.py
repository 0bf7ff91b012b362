"""Parameters are checked inside a real notebook kernel."""

import os
from pathlib import Path

import nbclient
import nbformat
import pytest

from experiments.run.chapter_source import code_cells
from tests.paths import ROOT

pytestmark = pytest.mark.slow


@pytest.fixture
def execute(project, monkeypatch):
    """Run cells of code in a new kernel in the toy project; returns the notebook."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(project), str(ROOT)]))

    def run(*cells):
        notebook = nbformat.v4.new_notebook()
        notebook.cells = [nbformat.v4.new_code_cell(source) for source in cells]
        client = nbclient.NotebookClient(
            notebook, kernel_name="python3", resources={"metadata": {"path": str(Path.cwd())}}
        )
        client.execute()
        return notebook

    return run


@pytest.fixture
def cells(chapter):
    """The chapter's code up to the check."""
    return [cell.source for cell in code_cells(chapter)[:2]]


def test_wrong_parameters_show_the_message_alone(execute, cells):
    injected = '# Parameters\nnoise_bound = "1e-3"\nnoise_drwas = 3\n'
    with pytest.raises(nbclient.exceptions.CellExecutionError) as error:
        execute(cells[0], injected, cells[1])
    message = str(error.value)
    assert "2 problems with the parameters" in message
    assert "`noise_drwas` = 3 is not a parameter here. Did you mean `noise_draws`" in message
    assert "'1e-3' is text" in message
    assert "Traceback" not in message
    assert "parameters.py" not in message


def test_a_reader_can_start_again_from_the_top(execute, cells):
    """The names that the first pass left behind are no unknown parameters."""
    parameters, check = cells
    work = "accuracy = noise_bound + noise_draws\nrows = [accuracy]"
    changed = parameters.replace("noise_draws = 2", "noise_draws = 5")
    notebook = execute(parameters, check, work, changed, check, "print(parameters.noise_draws)")
    assert notebook.cells[-1].outputs[0].text == "5\n"
