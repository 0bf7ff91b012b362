"""The parts of the pipeline one by one, without executing anything."""

import contextlib
import os
import re
import shutil
import subprocess
import sys

import jupytext
import nbformat
import pytest

from data_prep import DATA_SETS
from experiments.run.results import RunRecord, load_record
from tests.conftest import STRANGE
from workflow import browser, guard, merge_outputs, pages, project
from workflow.check_chapters import Chapter, parameter_files
from workflow.guard import BuildRunningError, build_lock, move_into_place, partial_folder
from workflow.run_chapter import kernel_environment

SOURCE = """\
# ---
# jupyter:
#   ktlib:
#     data: [pairs]
#     data_parameter: dataset
# ---

# %% [markdown]
# # A chapter

# %% tags=["parameters"]
rate = 1.0  # step
seeds = [0]  # repetitions

# %%
rate + 1
"""


@pytest.fixture
def root(tmp_path):
    """A folder with one chapter that is not executed."""
    (tmp_path / "chapters/params").mkdir(parents=True)
    (tmp_path / "chapters/part.py").write_text(SOURCE)
    (tmp_path / "chapters/params/part.cpu.yaml").write_text("{}\n")
    (tmp_path / "chapters/params/part.smoke.yaml").write_text("dataset: digits\n")
    return tmp_path


@pytest.fixture
def executed(root):
    """The chapter as papermill would leave it."""
    notebook = jupytext.read(root / "chapters/part.py")
    injected = nbformat.v4.new_code_cell("# Parameters\nrate = 2.0\nrun_dir = 'x'\nseeds = [0]\n")
    injected.metadata["tags"] = ["injected-parameters"]
    notebook.cells.insert(2, injected)
    text = f"3.0 {merge_outputs.ROOT}/runs {merge_outputs.ROOT}"
    output = nbformat.v4.new_output("execute_result", {"text/plain": text})
    notebook.cells[3].outputs = [output]
    for cell in notebook.cells:
        cell.metadata["papermill"] = {"start_time": "2020-01-01"}
    notebook.metadata["language_info"] = {"name": "python"}
    notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
    values = {"rate": 2.0, "run_dir": "x", "seeds": [0]}
    notebook.metadata["papermill"] = {"input_path": "/somewhere", "parameters": values}
    path = root / "executed.ipynb"
    nbformat.write(notebook, path)
    return path


def test_merged_notebook_has_new_text_and_old_outputs(root, executed):
    source = root / "chapters/part.py"
    better = SOURCE.replace("# # A chapter", "# # A better title")
    source.write_text(better.replace("# %%\nrate", "# %%\n\n\nrate"))
    notebook = merge_outputs.merged_notebook(source, executed)
    assert notebook.cells[3].source == "rate + 1"
    assert notebook.cells[0].source == "# A better title"
    assert notebook.cells[3].outputs[0]["data"]["text/plain"] == "3.0 runs ."
    nbformat.validate(notebook)


def test_merged_notebook_carries_no_times_paths_or_random_names(root, executed):
    source = root / "chapters/part.py"
    first, second = (
        nbformat.writes(merge_outputs.merged_notebook(source, executed)) for _ in range(2)
    )
    assert first == second
    for word in ("2020-01-01", "/somewhere", str(merge_outputs.ROOT), "papermill"):
        assert word not in first


def test_paths_go_whatever_is_in_them(root, executed, monkeypatch):
    """Also that of the data elsewhere; a quote is written in another way in a notebook."""
    places = {"ROOT": root / STRANGE, "data": root / "other" / STRANGE}
    monkeypatch.setattr(merge_outputs, "ROOT", places["ROOT"])
    monkeypatch.setenv("KTLIB_DATA", str(places["data"]))
    notebook = nbformat.read(executed, as_version=4)
    text = f"{places['ROOT']}/runs {places['ROOT']} {places['data']}/mnist"
    notebook.cells[3].outputs[0]["data"]["text/plain"] = text
    nbformat.write(notebook, executed)
    merged = merge_outputs.merged_notebook(root / "chapters/part.py", executed)
    assert merged.cells[3].outputs[0]["data"]["text/plain"] == "runs . data/mnist"


def test_data_folder_is_one_that_snakemake_can_name(tmp_path, monkeypatch):
    monkeypatch.setenv("KTLIB_DATA", str(tmp_path / "{x}" / "data"))
    assert project.data_folder(tmp_path / "{x}") == "data"
    with pytest.raises(ValueError, match="KTLIB_DATA must be a folder without braces"):
        project.data_folder(tmp_path)


def test_merged_notebook_shows_the_values_that_differ(root, executed):
    notebook = merge_outputs.merged_notebook(root / "chapters/part.py", executed)
    assert notebook.cells[2].source == "# Set for this run instead of the values above\nrate = 2.0"


def test_outputs_of_other_code_are_refused(root, executed):
    source = root / "chapters/part.py"
    for text in (SOURCE.replace("rate + 1", "rate + 2"), SOURCE + "\n# %%\nrate\n"):
        source.write_text(text)
        with pytest.raises(ValueError, match="Code cell [23] of [23] is not the one"):
            merge_outputs.merged_notebook(source, executed)


def test_data_sets_follow_the_header_the_profile_and_the_run(root):
    assert project.data_sets("part", "cpu", root) == ["pairs"]
    assert project.data_sets("part", "smoke", root) == ["digits"]
    assert project.data_sets("part", "smoke", root, "rate=2.0") == ["digits"]
    for name in DATA_SETS:
        assert project.data_sets("part", "smoke", root, f"dataset={name},seeds=1") == [name]
    with pytest.raises(ValueError, match="data must be among .*digits.*. Found 'digit'."):
        project.data_sets("part", "smoke", root, "dataset=digit")


def test_data_sets_of_several_parameters(root):
    """One that is set nowhere may have any default: then the whole list is needed."""
    source = root / "chapters/several.py"
    names = "data: [multi_fashion_mnist, multi_mnist]"
    both = SOURCE.replace("data: [pairs]", names)
    source.write_text(both.replace("data_parameter: dataset", "data_parameter: [dataset, other]"))
    for text, expected in (
        ("{}", ["multi_fashion_mnist", "multi_mnist"]),
        ("dataset: multi_fashion\nother: multi_mnist", ["multi_fashion", "multi_mnist"]),
        ("dataset: multi_fashion\nother: multi_fashion", ["multi_fashion"]),
        ("dataset: multi_fashion\nother: null", ["multi_fashion"]),
        ("dataset: multi_fashion\nother: [pairs, digits]", ["multi_fashion", "pairs", "digits"]),
        ("other: multi_mnist", ["multi_fashion_mnist", "multi_mnist"]),
        ("dataset: digits", ["digits", "multi_fashion_mnist", "multi_mnist"]),
    ):
        (root / "chapters/params/several.cpu.yaml").write_text(f"{text}\n")
        assert project.data_sets("several", "cpu", root) == expected


def test_make_data_prepares_what_the_default_profile_uses():
    """And what the tests of the data sets read: a test without its data is only skipped."""
    rule = (project.ROOT / "Makefile").read_text().split("\ndata:")[1]
    prepared = re.search(r"for name in ([\w ]+);", rule)[1].split()
    used = {d for name in project.chapters() for d in project.data_sets(name, "cpu")}
    assert used <= set(prepared)
    assert {"mnist", "fashion_mnist", "pairs", "multi_mnist", "multi_fashion"} <= set(prepared)
    for name in DATA_SETS:
        assert (project.ROOT / f"data_prep/{name}.py").is_file()


def test_chapter_in_a_folder_of_its_own(root):
    """A proof is a chapter too: its name has the folder, and so have its values."""
    (root / "chapters/params/proofs").mkdir()
    (root / "chapters/proofs").mkdir()
    (root / "chapters/proofs/part.py").write_text(SOURCE)
    assert project.chapters(root) == ["part", "proofs/part"]
    with pytest.raises(ValueError, match="whose file chapters/params/proofs/part.cpu.yaml is miss"):
        project.parameter_file("proofs/part", "cpu", root)
    chapter = Chapter(project.chapter_source("proofs/part", root))
    message = "there is no parameter file part.<profile>.yaml in params/proofs/"
    assert parameter_files(chapter) == [message]
    values = root / "chapters/params/proofs/part.cpu.yaml"
    values.write_text("rate: 2.0\n")
    assert project.parameter_file("proofs/part", "cpu", root) == values
    assert parameter_files(chapter) != [message]


@pytest.mark.parametrize(
    ("chapter", "profile", "message"),
    [
        ("part", "huge", "PROFILE .* smoke, cpu, full, gpu, paper. Found 'huge'"),
        ("part", "gpu", "smoke, cpu. Found 'gpu', whose file chapters/params/part.gpu.yaml"),
        ("port", "cpu", "CHAPTER .* part. Found 'port'"),
    ],
)
def test_wrong_names_are_refused(root, chapter, profile, message):
    with pytest.raises(ValueError, match=message):
        project.parameter_file(chapter, profile, root)


def test_sweep_makes_every_combination():
    runs = project.sweep_runs({"rate": "0.1, 0.2", "seeds": "0,1"})
    assert runs == ["rate=0.1,seeds=0", "rate=0.1,seeds=1", "rate=0.2,seeds=0", "rate=0.2,seeds=1"]
    assert project.run_values(runs[2]) == {"rate": 0.2, "seeds": [0]}
    assert project.run_values("main") == {}


def test_values_of_lists_are_lists(root):
    assert project.list_parameters("part", root) == ["seeds"]
    values = project.run_values("kinds=a,seeds=3,rate=0.5", ["seeds", "kinds"])
    assert values == {"kinds": ["a"], "seeds": [3], "rate": 0.5}


@pytest.mark.parametrize("run", ["", "other", "rate=", "rate=../x", "rate=1;b=2", "=1", "a=1,"])
def test_wrong_names_of_runs_are_refused(run):
    with pytest.raises(ValueError, match="A run must be named `main` or `name=value,name=value`"):
        project.run_values(run)


def record(**changes):
    """A record with made-up content."""
    content = {
        "schema_version": 1, "chapter": "part", "profile": "cpu", "parameters": {}, "seeds": [0, 1],
        "git_commit": "0123456789abcdef", "git_dirty": False, "code_digest": None,
        "packages": {"torch": "2.15.0"}, "python": "3.11.7", "system": "Linux x86_64",
        "device": "cpu", "hardware": "A | B", "precision": "float32", "threads": 2,
        "start": "2026-01-02T03:04:05+00:00", "wall_seconds": 61.2, "peak_memory_bytes": 2**30,
        "peak_device_memory_bytes": None, "data": {}, "metrics": {}, "tables": {}, "figures": [],
    }  # fmt: skip
    return RunRecord.model_validate({**content, **changes})


def test_execution_part_tells_time_device_and_versions():
    text = pages.execution_part([record(workers=4)], [record(wall_seconds=3600.0)])
    row = (
        "| cpu | 0, 1 | 2026-01-02 03:04 | 61 s | 1.0 GiB | cpu (A \\| B), float32 | 2, 4 workers |"
    )
    for words in (row, "| torch | 2.15.0 |", "| 60.0 min |", "`0123456789`"):
        assert words in text


@pytest.mark.parametrize(
    ("profile", "command"),
    [
        ("full", "make record CHAPTER=part PROFILE=full"),
        ("search", "python -m experiments.searches.part"),
    ],
)
def test_execution_part_names_the_command_behind_a_record(profile, command):
    assert f"`{command}`" in pages.execution_part([record()], [record(profile=profile)])


def test_a_chapter_has_a_worker_for_each_thread_by_default(monkeypatch):
    monkeypatch.delenv("KTLIB_WORKERS", raising=False)
    assert kernel_environment(threads=1, workers=2)["KTLIB_WORKERS"] == "2"
    monkeypatch.setenv("KTLIB_WORKERS", "1")  # as a record says that is rechecked
    assert kernel_environment(threads=1, workers=2)["KTLIB_WORKERS"] == "1"


@pytest.mark.parametrize("path", pages.record_files(project.ROOT / "results"))
def test_the_command_named_for_a_committed_record_is_there(path):
    text = pages.execution_part([record()], [load_record(path)])
    scripts = re.findall(r"`python -m experiments\.searches\.(\w+)(?: --profile \w+)?`", text)
    named = scripts or re.findall(r"`make record CHAPTER=(\S+) PROFILE", text)
    assert len(named) == 1
    folder = "experiments/searches" if scripts else "chapters"
    assert (project.ROOT / folder / f"{named[0]}.py").is_file()


def test_versions_are_told_apart_where_they_differ():
    other = record(chapter="other", packages={"torch": "2.11.0"})
    text = pages.execution_part([record(), other], [])
    assert "| What | part | other |" in text
    assert "| torch | 2.15.0 | 2.11.0 |" in text
    assert "No long run has been recorded yet." in text


def test_lock_is_held_by_one_and_released(tmp_path, monkeypatch):
    for _ in range(2):
        with build_lock(tmp_path, "make book"):
            message = f"`make book`, process {os.getpid()}, since "
            with pytest.raises(BuildRunningError, match=message), build_lock(tmp_path, "make test"):
                pytest.fail("the lock was taken twice")
            build = os.environ[guard.BUILD_VARIABLE]
            assert guard._is_running(tmp_path, build)
            assert not guard._is_running(tmp_path, "an earlier build")
        assert not guard._is_running(tmp_path, build)
        assert guard.BUILD_VARIABLE not in os.environ
        assert [path.name for path in tmp_path.iterdir()] == [guard.LOCK]


def test_partial_folder_leaves_nothing_of_a_failure(tmp_path):
    target = tmp_path / "run"
    (tmp_path / "run.partial-1").mkdir()  # left by a killed process
    with contextlib.suppress(RuntimeError), partial_folder(target) as folder:
        assert [path.name for path in tmp_path.iterdir()] == [folder.name]
        (folder / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())


def test_finished_folder_takes_the_place_of_the_old_one(tmp_path):
    target = tmp_path / "run"
    target.mkdir()
    (target / "old").touch()
    with partial_folder(target) as folder:
        (folder / "new").touch()
        move_into_place(folder, target)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    assert [path.name for path in target.iterdir()] == ["new"]


@pytest.mark.parametrize("fails", [False, True])
def test_missing_browser_gives_advice(monkeypatch, tmp_path, fails):
    for name in ("sudo", "apt-get") if fails else ():
        script = tmp_path / name
        script.write_text("#!/bin/sh\necho 'no network here' >&2\nexit 100\n")
        script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if fails else str(tmp_path))
    monkeypatch.setattr(browser, "NAMES", ("no-such-browser",))
    monkeypatch.delenv("CHROMIUM", raising=False)
    reason = "no network here" if fails else "`.*` was not found"
    with pytest.raises(RuntimeError, match=f"{reason}.*apt-get install chromium"):
        browser.require()
    monkeypatch.setenv("CHROMIUM", "/no/such/browser")
    with pytest.raises(RuntimeError, match="Found '/no/such"):
        browser.require()


def make(*arguments, cwd=project.ROOT):
    """Run make, as if it were not inside of `make test`; output and errors together."""
    own = {
        key: value for key, value in os.environ.items() if not key.startswith(("MAKE", "MFLAGS"))
    }
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "env": own}
    return subprocess.run(["make", *arguments], cwd=cwd, text=True, check=False, **pipes)


def test_what_make_is_given_arrives_as_it_is(tmp_path, monkeypatch):
    """In a folder with a strange name, with values that hold a quote; bytecode is always kept."""
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    folder = tmp_path / STRANGE
    python = folder / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(project.ROOT / name, folder)
    python.write_text('#!/bin/sh\nprintf "<%s>" "$PYTHONPATH" "$PYTHONDONTWRITEBYTECODE" "$@"\n')
    python.chmod(0o755)
    (folder / ".venv/.ready").touch()
    asked = ("CHAPTER=fcl", "SEEDS=0,1", "SET=a=x b=y", "SNAKEMAKE=--executor slurm -j 8")
    done = make("merge", *asked, cwd=folder)
    assert "<--profile><cpu><--snakemake=--executor slurm -j 8><--chapter><fcl>" in done.stdout
    assert done.stdout.endswith("<--seeds><0,1><--set><a=x b=y>")
    done = make("recheck", "CHAPTER=it's $x", f"AGAINST={folder}/result.json", cwd=folder)
    given = ["-m", "workflow.build", "recheck", "--profile", "cpu", "--chapter", "it's $x"]
    words = [str(folder), "", *given, "--against", f"{folder}/result.json"]
    assert done.stdout == "".join(f"<{word}>" for word in words)
    assert "record" in make("help", cwd=folder).stdout


@pytest.mark.slow
def test_no_gpu_is_said_before_anything_is_fetched(tmp_path):
    python = tmp_path / ".venv/bin/python"
    python.parent.mkdir(parents=True)
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(project.ROOT / name, tmp_path)
    python.write_text(f'#!/bin/sh\nCUDA_VISIBLE_DEVICES= exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (tmp_path / ".venv/.ready").touch()
    done = make("gpu", cwd=tmp_path)
    assert done.returncode != 0
    sentence, _ = done.stdout.splitlines()  # the other one is make's
    assert sentence == "make gpu needs a CUDA device, and PyTorch finds none here."


def test_help_names_every_target():
    lines = (project.ROOT / "Makefile").read_text().splitlines()
    phony = next(line for line in lines if line.startswith(".PHONY:")).split()[1:]
    told = make("help").stdout
    assert [target for target in phony if f"\n  {target} " not in told] == []


def test_old_python_is_refused_before_anything_is_made(tmp_path):
    for name in ("Makefile", "requirements.txt", "pyproject.toml"):
        shutil.copy(project.ROOT / name, tmp_path)
    old = tmp_path / "it's python-old"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.2"\nexit 1\n')
    old.chmod(0o755)
    done = make("book", f"PYTHON={old}", cwd=tmp_path)
    assert done.returncode != 0
    assert "Python 3.11 or newer is needed. Found: Python 3.9.2." in done.stdout
    assert not (tmp_path / ".venv").exists()


def test_ci_runs_the_tests():
    script = (project.ROOT / ".ci/run").read_text().splitlines()
    assert script[-1] == "exec make test"
    assert os.access(project.ROOT / ".ci/run", os.X_OK)


def test_every_chapter_has_values_and_a_place_in_the_book():
    toc = (project.ROOT / "book/_toc.yml").read_text()
    for chapter in project.chapters():
        assert f"file: chapters/{chapter}\n" in toc
        for profile in ("smoke", "cpu"):
            project.parameter_file(chapter, profile)
            # These proofs make their data themselves; the first may take the pre-trained model.
            made = chapter in ("proofs/ila", "proofs/continual_peft")
            assert project.data_sets(chapter, profile) or made
    assert project.data_sets("proofs/ila", "gpu") == ["smollm2"]


def test_no_notebook_is_kept_in_the_project():
    command = ["git", "ls-files", "*.ipynb", "book/_build", "book/chapters", "runs", "data"]
    kept = subprocess.run(
        command, cwd=project.ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert kept == ""
