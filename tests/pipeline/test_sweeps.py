"""Many runs, and records that are kept."""

import subprocess

import pytest

from ktlib.results import collect, load_record

pytestmark = pytest.mark.slow


def test_sweep_makes_one_run_per_combination(project):
    done = project.build(
        "sweep", "--profile", "cpu", "--chapter", "mini", "--seeds", "3", "--set", "rate=1.0,2.0"
    )
    assert done.returncode == 0, done.stdout
    folder = project.root / "runs/mini/cpu"
    names = sorted(path.name for path in folder.iterdir())
    assert names == ["rate=1.0,seeds=3", "rate=2.0,seeds=3"]
    records = [load_record(folder / name) for name in names]
    assert [record.metrics["scaled"] for record in records] == [3.0, 6.0]
    assert [record.seeds for record in records] == [[3], [3]]
    collected = collect(folder)
    assert "collect" in done.stdout
    assert all(set(names) == set(frame["run"]) for frame in collected.values())


def test_sweep_refuses_a_wrong_value_for_its_run(project):
    done = project.build("sweep", "--profile", "cpu", "--chapter", "mini", "--set", "rate=0")
    assert done.returncode == 1
    assert "1 problem with the parameters (run `rate=0`)" in done.stdout
    assert "`rate` = 0 is not allowed" in done.stdout


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
    kept = project.root / "results/mini.smoke.json"
    assert load_record(kept).metrics == {"scaled": 0.75}

    chapter.write_text(committed)
    done = project.build("record", "--chapter", "mini", "--profile", "smoke")
    assert done.returncode == 0, done.stdout
    assert load_record(kept).git_dirty is False
