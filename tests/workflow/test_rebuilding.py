"""What a build makes again, and what it leaves alone."""

import dataclasses
import os
import shutil
import time

import pytest

from experiments.run.results import load_record

RUN = "runs/mini/smoke/main"
EXECUTING = {"run", "check"}


def change(path, old, new):
    """Replace text in a file; a test that finds nothing to replace is wrong."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


@pytest.mark.slow
def test_first_build_makes_record_and_book(built_project):
    record = load_record(built_project.root / RUN)
    assert (record.chapter, record.profile, record.metrics) == ("mini", "smoke", {"scaled": 0.75})
    assert "Its only result is 0.75." in built_project.page("chapters/mini")
    assert not list(built_project.root.rglob("*.partial-*"))


@pytest.mark.slow
def test_second_build_does_nothing_and_says_so(project):
    stamp = (project.html / ".rendered").stat().st_mtime_ns
    started = time.monotonic()
    done = project.build("book", "--profile", "smoke")
    assert time.monotonic() - started < 15
    assert done.returncode == 0, done.stdout
    assert "Nothing has changed since the last build." in done.stdout
    assert done.stdout.strip().endswith(str(project.html / "index.html"))
    assert (project.html / ".rendered").stat().st_mtime_ns == stamp


@pytest.mark.slow
def test_change_in_text_only_renders(project):
    executed = (project.root / RUN / "executed.ipynb").stat().st_mtime_ns
    change(project.root / "chapters/mini.py", "Its only result is", "What comes out is")
    done = project.build("book", "--profile", "smoke")
    assert done.returncode == 0, done.stdout
    assert "Running chapter" not in done.stdout
    assert "What comes out is 0.75." in project.page("chapters/mini")
    assert (project.root / RUN / "executed.ipynb").stat().st_mtime_ns == executed


@pytest.mark.slow
@pytest.mark.parametrize(
    ("file", "old", "new"),
    [
        ("experiments/mini.py", "value * rate", "rate * value"),
        ("chapters/mini.py", "scaled(3.0, rate)", "scaled(4.0, rate)"),
        ("chapters/params/mini.smoke.yaml", "0.25", "0.125"),
    ],
    ids=["module", "code cell", "parameters"],
)
def test_change_in_what_a_chapter_computes_executes_it(project, file, old, new):
    change(project.root / file, old, new)
    assert project.planned("book", "--profile", "smoke") >= EXECUTING | {"merge_outputs", "render"}


@pytest.mark.slow
def test_nothing_else_executes_a_chapter(project):
    change(project.root / "ktlib/fcl/region.py", "class FlatRegion:", "class OtherRegion:")
    for file in ("chapters/mini.py", "chapters/params/mini.smoke.yaml", "experiments/mini.py"):
        os.utime(project.root / file)  # newer, with the same content: as after a fresh clone
    assert project.planned("book", "--profile", "smoke").isdisjoint(EXECUTING)


@pytest.mark.slow
def test_other_profile_has_runs_of_its_own(project):
    everything = EXECUTING | {"book", "merge_outputs", "pages", "render"}
    assert project.planned("book", "--profile", "cpu") == everything
    assert project.planned("book", "--profile", "smoke") == set()


@pytest.mark.slow
def test_altered_data_is_prepared_again_before_it_is_used(project, tmp_path):
    own = tmp_path / "data"  # other tests read the data, and would mend them
    shutil.copytree(project.data, own)
    project = dataclasses.replace(project, data=own)
    assert project.build("book", "--profile", "smoke").returncode == 0
    manifest = project.data / "digits" / "manifest.json"
    manifest.write_text("{")
    done = project.build("book", "--profile", "smoke")
    assert done.returncode == 0, done.stdout
    assert "Data set digits: its files have changed since they were prepared." in done.stdout
    assert project.planned("book", "--profile", "smoke") == set()  # what is there is still right
    change(project.root / "chapters/params/mini.smoke.yaml", "0.25", "0.125")
    assert "data" in project.planned("book", "--profile", "smoke")
