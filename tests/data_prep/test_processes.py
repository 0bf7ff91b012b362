"""Two processes at once, and one that is killed: real processes, a server on this machine."""

import json
import subprocess
import sys

import pytest

from tests.paths import ROOT

PROGRAM = """
import json, sys
from pathlib import Path
from data_prep.common.files import FileFacts
from data_prep.common.idx_sets import mirror_sources
from tests.data_prep.small_set import with_sources

root, mirror, facts = sys.argv[1:]
expected = {name: FileFacts(*known) for name, known in json.loads(facts).items()}
archives = [name + ".gz" for name in expected]
with_sources(expected, lambda _: mirror_sources([mirror], archives, expected)).prepare(Path(root))
"""
HELD = "t10k-images-idx3-ubyte"


@pytest.fixture
def start(small_set, web, tmp_path):
    """Start a process that prepares the small set from the server."""
    mirror = web.offer("a", small_set.content)
    running = []

    def begin():
        arguments = [str(tmp_path), mirror, json.dumps(small_set.facts)]
        process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, stderr=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield begin
    web.go_on.set()
    for process in running:
        process.kill()
        process.communicate()


def test_of_two_processes_one_fetches_and_one_waits(small_set, web, tmp_path, start):
    web.held.add(f"/a/{HELD}.gz")
    first = start()
    assert web.asked.wait(60)  # the first is in the middle of its third file
    second = start()
    assert "another process is preparing it" in second.stderr.readline()
    web.go_on.set()
    assert first.wait(60) == 0
    assert second.wait(60) == 0
    assert sorted(web.requests) == sorted(f"/a/{name}" for name in small_set.archives)
    assert small_set.is_whole(tmp_path)


def test_a_killed_process_leaves_nothing_that_could_be_taken_for_data(
    small_set, web, tmp_path, start
):
    web.held.add(f"/a/{HELD}.gz")
    process = start()
    assert web.asked.wait(60)
    process.kill()
    process.wait(60)
    web.go_on.set()
    left = list((tmp_path / "mnist").iterdir())
    assert left, "the process was killed before it began"
    assert all(path.name.startswith(".incoming-") for path in left)
    # The lock went with the process, and the next run clears up.
    small_set.prepare(tmp_path, web.url + "/a/")
    assert small_set.is_whole(tmp_path)
