"""Many runs, and records that are kept."""

import subprocess

import pytest

from experiments.run.results import load_record

pytestmark = pytest.mark.slow


def test_sweep_makes_a_run_of_its_own(project):
    values = ("--profile", "cpu", "--chapter", "mini", "--seeds", "3", "--set", "rate=2.0")
    done = project.build("sweep", *values)
    assert done.returncode == 0, done.stdout
    folder = project.root / "runs/mini/cpu"
    assert [path.name for path in folder.iterdir()] == ["rate=2.0,seeds=3"]
    record = load_record(folder / "rate=2.0,seeds=3")
    assert (record.metrics, record.seeds) == ({"scaled": 6.0}, [3])
    assert project.planned("sweep", *values) == set()
    assert "collect('runs/mini/cpu')" in done.stdout


def test_wrong_value_of_a_sweep_is_refused(project):
    done = project.build("sweep", "--profile", "cpu", "--chapter", "mini", "--set", "rate=0,2.0")
    assert done.returncode == 1
    assert "`rate` = 0 is not allowed" in done.stdout
    assert "chapters/params/mini.cpu.yaml, rate = 0" in done.stdout
    assert [path.name for path in (project.root / "runs/mini/cpu").iterdir()] == ["rate=2.0"]


def test_record_needs_a_clean_tree_and_is_kept(project):
    def git(*arguments):
        author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
        subprocess.run(["git", *author, *arguments], cwd=project.root, check=True)

    (project.root / ".gitignore").write_text("/runs/\n.snakemake/\nbook/\n__pycache__/\n")
    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "start")
    chapter = project.root / "chapters/mini.py"
    committed = chapter.read_text()
    chapter.write_text(committed.replace("A small chapter", "A changed chapter"))

    refused = project.build("record", "--chapter", "mini", "--profile", "smoke")
    assert refused.returncode == 1
    assert "must hold no uncommitted change" in refused.stdout
    allowed = project.build("record", "--chapter", "mini", "--profile", "smoke", "--allow-dirty")
    assert allowed.returncode == 0, allowed.stdout
    kept, trial = (project.root / f"{name}/mini.smoke.json" for name in ("results", "runs/trials"))
    assert load_record(trial).metrics == {"scaled": 0.75}
    assert not kept.exists()

    chapter.write_text(committed)
    done = project.build("record", "--chapter", "mini", "--profile", "smoke")
    assert done.returncode == 0, done.stdout
    assert load_record(kept).git_dirty is False
