"""Records in parts, made by the real pipeline around a small chapter."""

import base64
import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess

import pytest

from experiments.run.results import collect, load_record
from tests.paths import ROOT
from tests.workflow.test_failing import failed, is_alive, wait_for
from tests.workflow.test_rebuilding import change

pytestmark = pytest.mark.slow
CLAIMS = '''
"""The claim of the small chapter."""

from experiments.run.claims import Claim


def claims(record):
    found = f"{len(record.tables['points'])} points"
    return [Claim("c", "Table 1", "6", found, "none", "reproduced", "sec-c")]
'''


def commit(project):
    """Commit all, as the records ask for."""
    author = ["-c", "user.name=test", "-c", "user.email=test@example.org"]
    for arguments in (["add", "."], [*author, "commit", "--quiet", "--message", "change"]):
        subprocess.run(["git", *arguments], cwd=project.root, check=True)


@pytest.fixture
def kept(project):
    """The small project under version control, its chapter with a module that makes claims."""
    named = "uses: [mini]\n#     claims: experiments.told"
    change(project.root / "chapters/mini.py", "uses: [mini]", named)
    (project.root / "experiments/told.py").write_text(CLAIMS)
    ignored = "/runs/\n.snakemake/\nbook/\n__pycache__/\nsubmitted.jsonl\n"
    (project.root / ".gitignore").write_text(ignored)
    subprocess.run(["git", "init", "--quiet"], cwd=project.root, check=True)
    commit(project)
    return project


def ran(done):
    """The runs that a build executed."""
    return sorted(re.findall(r"Running chapter mini \(profile smoke, ([^)]*)\)", done.stdout))


def record(project, *options, command="record", profile="smoke"):
    return project.build(command, "--chapter", "mini", "--profile", profile, *options)


def test_record_of_seeds_and_groups(kept):
    """One run each; the merged record tells where each came from; nothing is computed twice."""
    asked = ("--seeds", "4,2", "--set", "groups=many,few")
    done = record(kept, *asked)
    assert done.returncode == 0, done.stdout
    runs = [f"groups={group},seeds={seed}" for group in ("few", "many") for seed in (2, 4)]
    assert ran(done) == runs
    file = kept.root / "results/mini.smoke.json"
    merged = load_record(file)
    assert (merged.seeds, merged.parameters["groups"]) == ([2, 4], ["few", "many"])
    points = [(r["seed"], r["group"], r["value"]) for r in merged.tables["points"]]
    assert points == [(2, "few", 1.25), (2, "many", 1.5), (4, "few", 1.75), (4, "many", 2.0)]
    assert merged.tables["settings"] == [{"setting": "rate", "value": 0.25}]
    assert [row["found"] for row in merged.tables["claims"]] == ["4 points"]
    assert merged.metrics == {"scaled": 0.75}
    facts = {(part.git_dirty, part.threads, part.git_commit) for part in merged.parts}
    assert facts == {(False, 1, merged.git_commit)}
    assert merged.wall_seconds == pytest.approx(sum(p.wall_seconds for p in merged.parts))

    first = file.read_bytes()
    change(kept.root / "experiments/mini.py", '"""The value times the rate."""', '"""A product."""')
    commit(kept)
    again = record(kept, *asked)
    assert (again.returncode, ran(again)) == (0, [])
    assert file.read_bytes() == first
    file.unlink()
    assert record(kept, command="merge").returncode == 0
    assert file.read_bytes() == first
    assert len(collect(kept.root / "runs/mini/smoke")["points"]) == 6  # two of the run `main`

    missing = record(kept, "--seeds", "4,2,9", "--set", "groups=many,few", command="merge")
    failed(missing, "are missing: groups=many,seeds=9, groups=few,seeds=9")
    failed(record(kept, "--set", "rate=1.0"), "SET must name lists", "seeds, groups", "'rate'")


def test_parts_of_two_versions_of_the_code_are_not_merged(kept):
    assert record(kept, "--seeds", "0").returncode == 0
    change(kept.root / "experiments/mini.py", "value * rate", "value * rate * 1.5")
    commit(kept)
    assert record(kept, "--seeds", "1").returncode == 0
    merged = record(kept, command="merge")
    failed(merged, "Parts of a record must agree", "code_digest: ", "seeds=0", "seeds=1")
    assert load_record(kept.root / "results/mini.smoke.json").seeds == [1]
    done = record(kept, "--seeds", "0,1")  # computes the one that is too old
    assert (done.returncode, ran(done)) == (0, ["seeds=0"])
    assert load_record(kept.root / "results/mini.smoke.json").seeds == [0, 1]


def test_part_of_changed_code_is_a_trial_and_computed_again(kept):
    chapter = kept.root / "chapters/mini.py"
    change(chapter, "A small chapter", "A changed chapter")
    failed(record(kept, "--seeds", "0,1"), "must hold no uncommitted change")
    trial = record(kept, "--seeds", "0,1", "--allow-dirty")
    assert trial.returncode == 0, trial.stdout
    assert not (kept.root / "results/mini.smoke.json").exists()
    assert load_record(kept.root / "runs/trials/mini.smoke.json").git_dirty is True
    failed(record(kept, command="merge"), "Found uncommitted changes in seeds=0, seeds=1;")
    commit(kept)
    done = record(kept, "--seeds", "0,1")
    assert (done.returncode, ran(done)) == (0, ["seeds=0", "seeds=1"])
    assert load_record(kept.root / "results/mini.smoke.json").git_dirty is False


def test_a_killed_and_a_failing_part_leave_the_others(kept, tmp_path):
    waiting, failing = tmp_path / "waiting", tmp_path / "failing"
    chapter = kept.root / "chapters/mini.py"
    change(chapter, "if wait:", "if wait and seeds == [1]:")
    change(chapter, "if fail:", f'if seeds == [2] and Path("{failing}").exists():')
    (kept.root / "chapters/params/mini.smoke.yaml").write_text(f'rate: 0.25\nwait: "{waiting}"\n')
    commit(kept)
    failing.touch()
    asked = ("--chapter", "mini", "--profile", "smoke", "--seeds", "0,1,2", "--cores", "2")
    folder, result = kept.root / "runs/mini/smoke", kept.root / "results/mini.smoke.json"
    # Snakemake's note that a file is complete
    name = base64.urlsafe_b64encode(b"runs/mini/smoke/seeds=0/result.json").decode()
    noted = kept.root / ".snakemake/metadata" / name
    with kept.start("record", *asked) as killed:
        try:
            wait_for(waiting.exists, "the part to start")
            kernel = int(waiting.read_text())
            wait_for(noted.exists, "the first part")
            wait_for((folder / "seeds=2.failed").exists, "the part that fails")
        finally:
            os.kill(killed.pid, signal.SIGKILL)
        killed.wait(timeout=30)
        wait_for(lambda: not is_alive(kernel), "the part to end with its build")
    assert not result.exists()

    (tmp_path / "waiting.go").touch()
    second = record(kept, "--seeds", "0,1,2", "--cores", "2")
    failed(second, "this chapter was told to fail", "Not all parts were made")
    assert ran(second) == ["seeds=1", "seeds=2"]
    assert not result.exists()
    assert record(kept, command="merge").returncode == 0  # what is there
    assert load_record(result).seeds == [0, 1]
    failing.unlink()
    third = record(kept, "--seeds", "0,1,2")
    assert (third.returncode, ran(third)) == (0, ["seeds=2"])
    assert load_record(result).seeds == [0, 1, 2]
    assert not list(kept.root.rglob("*.partial-*"))


def test_a_part_is_rechecked_by_computing_one_again(kept):
    assert record(kept, "--seeds", "0,1", "--set", "groups=few,many").returncode == 0
    change(kept.root / "experiments/mini.py", "value * rate", "rate * value")
    commit(kept)
    done = record(kept, command="recheck")
    assert (done.returncode, ran(done)) == (0, ["groups=few,seeds=0"])
    note = load_record(kept.root / "results/mini.smoke.json").rechecked
    assert (note.seeds, note.rows) == ([0], 2)


def test_the_parts_are_jobs_of_a_cluster(kept, tmp_path):
    """Of one that is made up; they are told neither this build nor to share one GPU."""
    # Snakemake cannot send a job away that needs a file whose name holds a quote.
    shutil.copytree(kept.data, tmp_path / "data")
    kept = dataclasses.replace(kept, data=tmp_path / "data")
    cluster = ROOT / "tests/workflow/cluster"
    shutil.copytree(cluster, kept.root, dirs_exist_ok=True)
    (kept.root / "chapters/params/mini.full.yaml").write_text("rate: 0.25\n")
    commit(kept)
    asked = ("--seeds", "0,1", "--snakemake=--executor fake --jobs 2")
    done = record(kept, *asked, profile="full")
    assert done.returncode == 0, done.stdout
    lines = (kept.root / "submitted.jsonl").read_text().splitlines()
    job = {"rule": "run", "build": "", "runtime": 120, "mem_mb": 6000, "gpu": 0, "_cores": 1}
    assert [json.loads(line) for line in lines] == [job, job]
    merged = load_record(kept.root / "results/mini.full.json")
    assert (merged.seeds, merged.threads, merged.workers) == ([0, 1], 1, 1)
