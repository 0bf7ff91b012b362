"""What a build says and leaves behind when it cannot go on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import jupytext
import nbformat
import pytest

RUNS = "runs/mini/smoke"
RUN_CHAPTER = (sys.executable, "-m", "workflow.run_chapter", "mini", "smoke")
RENDER = (sys.executable, "-m", "workflow.render")
pytestmark = pytest.mark.slow


def set_values(project, **values):
    """Replace the values of the smoke profile."""
    lines = [f"{name}: {value}\n" for name, value in values.items()]
    (project.root / "chapters/params/mini.smoke.yaml").write_text("".join(lines))


def wait_for(condition, what, seconds=90):
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


def test_cell_that_raises_is_named(project):
    set_values(project, fail="true")
    done = project.build("book", "--profile", "smoke")
    assert done.returncode == 1
    assert "Chapter mini (profile smoke) failed: cell 5 of 7, which starts with `if fail:`" in (
        done.stdout
    )
    assert "RuntimeError: this chapter was told to fail" in done.stdout
    assert "Traceback" not in done.stdout
    failed = project.root / RUNS / "main.failed"
    assert str(failed.relative_to(project.root) / "executed.ipynb") in done.stdout
    outputs = str(nbformat.read(failed / "executed.ipynb", as_version=4))
    assert "this chapter was told to fail" in outputs
    assert (failed / "log.txt").stat().st_size > 0
    assert not (project.root / RUNS / "main" / "result.json").exists()
    assert (project.html / "index.html").exists()  # the last good book


def test_run_without_record_fails(project):
    chapter = project.root / "chapters/mini.py"
    chapter.write_text(chapter.read_text().replace("record.save(run_dir)", "pass"))
    done = project.run(*RUN_CHAPTER)
    assert done.returncode == 1
    assert "it ended without a record" in done.stdout


def test_kernel_that_dies_is_told(project):
    chapter = project.root / "chapters/mini.py"
    text = chapter.read_text().replace(
        "result = scaled", "import os\n\nos._exit(9)\nresult = scaled"
    )
    chapter.write_text(text)
    done = project.run(*RUN_CHAPTER)
    assert done.returncode == 1
    assert "its Python process ended without a word" in done.stdout
    assert "Traceback" not in done.stdout


def test_wrong_values_are_refused_before_anything_runs(project):
    set_values(project, rate="1e-3", lerning_rate=1, seeds="[0, 0]")
    done = project.build("book", "--profile", "smoke")
    assert done.returncode == 1
    assert "Running chapter" not in done.stdout
    assert "3 problems with the parameters (chapters/params/mini.smoke.yaml)" in done.stdout
    for words in ("`rate` = '1e-3'", "1.0e-3", "`lerning_rate` = 1 is not", "`seeds` = [0, 0]"):
        assert words in done.stdout
    assert "Traceback" not in done.stdout


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
    assert len(errors[0].traceback) == 1  # the message, not the way to it


def test_error_in_the_plan_is_told(project):
    snakefile = project.root / "Snakefile"
    snakefile.write_text(snakefile.read_text() + "\nrule broken\n")
    done = project.build("book", "--profile", "smoke")
    assert done.returncode == 1
    assert "SyntaxError in file" in done.stdout


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
        wait_for(signal_file.exists, "the chapter to start")
        kernel = int(signal_file.read_text())

        second = project.build("book", "--profile", "smoke")
        assert second.returncode == 1
        owner = f"(`make book PROFILE=smoke`, process {first.pid}"
        assert f"Another build is running in this folder {owner}" in second.stdout

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
        (
            ["book", "--profile", "tiny"],
            "PROFILE must be one of smoke, cpu, full, gpu, paper. Found",
        ),
        (["book", "--profile", "full"], "has values for: smoke, cpu. Found 'full'"),
        (
            ["sweep", "--chapter", "none", "--seeds", "1"],
            "CHAPTER must be one of mini. Found 'none'",
        ),
        (["sweep", "--chapter", "mini"], "A sweep needs values: SEEDS=0,1,2"),
        (["sweep", "--chapter", "mini", "--set", "rate"], "SET must be `name=value,value"),
    ],
)
def test_wrong_words_on_the_command_line(project, arguments, words):
    done = project.build(*arguments)
    assert done.returncode == 1
    assert words in done.stdout
    assert "Traceback" not in done.stdout
