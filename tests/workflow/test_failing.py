"""What a build says and leaves behind when it cannot go on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbclient
import nbformat
import pytest

from experiments.run.chapter_source import code_cells

RUNS = "runs/mini/smoke"
RUN_CHAPTER = (sys.executable, "-m", "workflow.run_chapter", "mini", "smoke")
RENDER = (sys.executable, "-m", "workflow.render")
pytestmark = pytest.mark.slow


def set_values(project, **values):
    """Replace the values of the smoke profile."""
    lines = [f"{name}: {value}\n" for name, value in values.items()]
    (project.root / "chapters/params/mini.smoke.yaml").write_text("".join(lines))


def wait_for(condition, what, seconds=240):
    """Look again and again until the condition holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"waited {seconds} s for {what}"
        time.sleep(0.05)


def is_alive(process):
    """Whether a process with this number runs; one that ended and was not fetched does not."""
    command = ["ps", "-o", "stat=", "-p", str(process)]
    state = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return bool(state) and not state.startswith("Z")


def failed(done, *words):
    """A command failed and printed some words, but no call stack."""
    assert done.returncode == 1
    assert [word for word in words if word not in done.stdout] == [], done.stdout
    assert "Traceback" not in done.stdout


def test_cell_that_raises_is_named(project):
    set_values(project, fail="true")
    done = project.build("book", "--profile", "smoke")
    error = "RuntimeError: this chapter was told to fail"
    failed(done, "Chapter mini (profile smoke)", "cell 5 of 7", "`if fail:`", error)
    folder = project.root / RUNS / "main.failed"
    assert str(folder.relative_to(project.root) / "executed.ipynb") in done.stdout
    outputs = str(nbformat.read(folder / "executed.ipynb", as_version=4))
    assert "this chapter was told to fail" in outputs
    assert (folder / "log.txt").stat().st_size > 0
    assert not (project.root / RUNS / "main" / "result.json").exists()
    assert (project.html / "index.html").exists()  # the last good book


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("record.save(run_dir)", "pass", "ended without a record"),
        ("result = scaled", "import os\n\nos._exit(9)\nresult = scaled", "the kernel died"),
    ],
)
def test_run_without_an_error_of_its_own(project, old, new, words):
    chapter = project.root / "chapters/mini.py"
    chapter.write_text(chapter.read_text().replace(old, new))
    failed(project.run(*RUN_CHAPTER), words)


def test_wrong_values_are_refused_before_anything_runs(project):
    set_values(project, rate="1e-3", lerning_rate=1, seeds="[0, 0]")
    done = project.build("book", "--profile", "smoke")
    failed(
        done, "3 problems", "chapters/params/mini.smoke.yaml", "`rate` = '1e-3'", "1.0e-3",
        "`lerning_rate` = 1 is not", "`seeds` = [0, 0]",
    )  # fmt: skip
    assert "Running chapter" not in done.stdout


def test_wrong_values_are_refused_by_papermill_too(project):
    notebook = jupytext.read(project.root / "chapters/mini.py")
    nbformat.write(notebook, project.root / "mini.ipynb")
    papermill = (sys.executable, "-m", "papermill", "mini.ipynb", "out.ipynb")
    done = project.run(*papermill, "-p", "rat", "1", "-p", "rate", "-1")
    assert done.returncode != 0
    assert "`rat` = 1 is not a parameter here. Did you mean `rate`" in done.stdout
    assert "`rate` = -1 is not allowed" in done.stdout
    cells = nbformat.read(project.root / "out.ipynb", as_version=4).cells
    executed = [c for c in cells if c.cell_type == "code" and c.execution_count]
    assert len(executed) == 3  # parameters, injected parameters, the check
    errors = [o for c in executed for o in c.outputs if o.output_type == "error"]
    assert [error.ename for error in errors] == ["ParameterError"]
    assert len(errors[0].traceback) == 1  # the message without the call stack


def test_a_reader_can_start_again_from_the_top(project, monkeypatch):
    """The names that the first pass left behind are not taken for unknown parameters."""
    monkeypatch.setenv("PYTHONPATH", str(project.root))
    parameters, check = (c.source for c in code_cells(project.root / "chapters/mini.py")[:2])
    changed = parameters.replace("rate = 0.5", "rate = 2.0")
    sources = [parameters, check, "accuracy = 1.0", changed, check, "print(parameters.rate)"]
    notebook = nbformat.v4.new_notebook(cells=[*map(nbformat.v4.new_code_cell, sources)])
    folder = {"metadata": {"path": str(project.root)}}
    nbclient.NotebookClient(notebook, kernel_name="python3", resources=folder).execute()
    assert notebook.cells[-1].outputs[0].text == "2.0\n"


def test_error_in_the_plan_is_told(project):
    snakefile = project.root / "Snakefile"
    snakefile.write_text(snakefile.read_text() + "\nrule broken\n")
    failed(project.build("book", "--profile", "smoke"), "SyntaxError in file")


def test_warning_of_the_book_fails_each_time(project):
    page = project.root / "book/intro.md"
    page.write_text(page.read_text() + "\nSee [](nowhere.md).\n")
    for _ in range(2):  # also when the pages were read before
        done = project.run(*RENDER)
        assert done.returncode == 1
        assert re.search(r"book/intro\.md:.*WARNING.*nowhere", done.stdout)
    assert (project.html / "index.html").exists()
    assert not list(project.root.rglob("*.partial-*"))


def test_builds_do_not_meet_and_a_killed_one_is_taken_up(project, tmp_path):
    signal_file = tmp_path / "waiting"
    set_values(project, rate=0.5, wait=f'"{signal_file}"')
    with project.start("book", "--profile", "smoke") as first:
        try:
            wait_for(signal_file.exists, "the chapter to start")
            kernel = int(signal_file.read_text())
            second = project.build("book", "--profile", "smoke")
            failed(second, "Another build", f"`make book PROFILE=smoke`, process {first.pid}")
        finally:
            os.kill(first.pid, signal.SIGKILL)
        first.wait(timeout=30)
        wait_for(lambda: not is_alive(kernel), "the chapter to end with its build")
    assert not (project.root / RUNS / "main" / "result.json").exists()

    Path(f"{signal_file}.go").touch()
    third = project.build("book", "--profile", "smoke")
    assert third.returncode == 0, third.stdout
    assert (project.root / RUNS / "main" / "result.json").exists()
    assert not list(project.root.rglob("*.partial-*"))
    assert "Its only result is 1.50." in project.page("chapters/mini")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("book --profile tiny", ["PROFILE", "smoke, cpu, full, gpu, paper", "'tiny'"]),
        ("book --profile full", ["smoke, cpu", "'full'"]),
        ("sweep --chapter none --seeds 1", ["CHAPTER", "mini", "'none'"]),
        ("sweep --chapter mini", ["SEEDS=0,1,2"]),
        ("sweep --chapter mini --set rate", ["SET", "name=value,value"]),
    ],
)
def test_wrong_words_on_the_command_line(project, arguments, words):
    failed(project.build(*arguments.split()), *words)
