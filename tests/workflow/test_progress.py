"""What a build says before and while it runs, and the pages to read meanwhile."""

import json
import sys
import threading

import pytest

from experiments.run.results import RunRecord, load_record
from workflow import progress
from workflow.progress import Build, expected_seconds, longest_first, pending, record_file

NAMES = ["fcl", "recon", "ila"]


@pytest.fixture
def runs(tmp_path, monkeypatch):
    """Empty folders of runs and of recorded times."""
    monkeypatch.setattr(progress, "RUNS", tmp_path / "runs")
    monkeypatch.setattr(progress, "TIMES", tmp_path / "build.json")
    (tmp_path / "build.json").write_text(json.dumps({"chapters": {"fcl": 100, "recon": 300}}))
    return tmp_path / "runs"


def put_record(name, profile, seconds, **values):
    """A record of a run, and the note of what it was made with."""
    record = load_record("results/ila.full.json")
    record = record.model_copy(update={"chapter": name, "wall_seconds": seconds, **values})
    file = record_file(name, profile)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(record.to_json())
    assert isinstance(load_record(file), RunRecord)


def put_check(name, profile):
    digest = progress.run_digest(
        progress.chapter_source(name), progress.parameter_file(name, profile)
    )
    file = progress.RUNS / ".checked" / f"{name}.{profile}.main"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(f"{digest}\n")


@pytest.mark.usefixtures("runs")
def test_a_chapter_is_pending_without_its_run_or_with_other_code():
    assert pending(NAMES, "cpu") == NAMES
    put_record("fcl", "cpu", 1.0)
    assert pending(NAMES, "cpu") == NAMES
    put_check("fcl", "cpu")
    assert pending(NAMES, "cpu") == ["recon", "ila"]
    assert pending(NAMES, "smoke") == NAMES
    (progress.RUNS / ".checked" / "fcl.cpu.main").write_text("other\n")
    assert pending(NAMES, "cpu") == NAMES


@pytest.mark.usefixtures("runs")
def test_times_are_those_of_the_last_run_here():
    assert expected_seconds(NAMES, "cpu") == {"fcl": 100, "recon": 300}
    assert expected_seconds(NAMES, "full") == {}
    put_record("fcl", "cpu", 200.0)
    put_record("recon", "cpu", 5.0, from_cache={"training": 4})  # says nothing of the next one
    assert expected_seconds(NAMES, "cpu") == {"fcl": 200, "recon": 300}
    assert longest_first(NAMES, "cpu") == ["recon", "fcl", "ila"]
    put_record("ila", "cpu", 900.0)
    assert longest_first(NAMES, "cpu") == ["ila", "recon", "fcl"]


@pytest.mark.usefixtures("runs")
@pytest.mark.parametrize(
    ("seconds", "cores", "words"),
    [
        ({"fcl": 600, "recon": 600, "ila": 600}, 2, "about 16 min"),
        ({"fcl": 600, "recon": 600, "ila": 600}, 1, "about 31 min"),
        ({"fcl": 60, "recon": 60, "ila": 1800}, 2, "about 31 min"),  # the longest alone
        ({"fcl": 60, "recon": 60}, 2, "how long that takes is not known yet"),
    ],
)
def test_what_is_left_in_words(seconds, cores, words):
    assert Build("cpu", cores, NAMES, seconds).left(NAMES) == words


@pytest.mark.usefixtures("runs")
def test_a_bar_grows_with_every_chapter(capsys, monkeypatch):
    monkeypatch.setattr(progress.subprocess, "Popen", None)  # no pages at the smoke size
    build = Build("smoke", 2, NAMES, dict.fromkeys(NAMES, 120.0))
    build.start()
    for name in NAMES:
        put_record(name, "smoke", 1.0)
        threading.Event().wait(1.2)
    build.ended.set()
    build.join()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "[######--------------] 1 of 3 chapters; left: about 3 min"
    assert lines[-1].startswith("[####################] 3 of 3 chapters")


def build_of(names, *, fails=False):
    """What is printed and noted of a build that makes these records."""
    for name in names:
        put_record(name, "smoke", 60.0)
    if fails:
        raise RuntimeError("no book")


def test_a_build_from_nothing_is_noted(runs, monkeypatch, capsys):
    monkeypatch.setattr(progress, "chapters", lambda: NAMES)
    with progress.told("smoke", 2):
        build_of(NAMES)
    assert "3 of 3 chapters to execute (profile smoke, 2 cores)" in capsys.readouterr().out
    note = json.loads((runs / "build.json").read_text())
    assert note["chapters"] == dict.fromkeys(NAMES, 60)
    assert note["cores"] == 2


@pytest.mark.parametrize("why", ["one is there", "trainings are kept", "one fails"])
def test_another_build_is_not_noted(why, runs, monkeypatch):
    monkeypatch.setattr(progress, "chapters", lambda: NAMES)
    if why == "one is there":
        put_record("fcl", "smoke", 1.0)
        put_check("fcl", "smoke")
    if why == "trainings are kept":
        (runs / "cache").mkdir(parents=True)
    with progress.told("smoke", 2):
        build_of(NAMES[:2] if why == "one fails" else NAMES)
    assert not (runs / "build.json").exists()


def test_an_error_of_a_build_goes_on(monkeypatch, runs):
    monkeypatch.setattr(progress, "chapters", lambda: NAMES)
    with pytest.raises(RuntimeError, match="no book"), progress.told("smoke", 2):
        build_of(NAMES, fails=True)
    assert not (runs / "build.json").exists()


@pytest.mark.slow
def test_pages_while_a_chapter_runs(project):
    (project.root / "runs/mini/smoke/main/executed.ipynb").unlink()
    done = project.run(sys.executable, "-m", "workflow.preview", "smoke")
    assert done.returncode == 0, done.stdout
    assert "still running" in project.page("chapters/mini")
    assert "Its only result" not in project.page("chapters/mini")
    assert project.page("intro")
    assert not (project.html / ".rendered").exists()  # the next build renders the book itself


@pytest.mark.slow
def test_finished_chapters_are_among_these_pages(project):
    done = project.run(sys.executable, "-m", "workflow.preview", "smoke")
    assert done.returncode == 0, done.stdout
    assert "Its only result is 0.75." in project.page("chapters/mini")
    assert "mini" in project.page("parameters")
