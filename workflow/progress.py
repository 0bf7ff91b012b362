"""What a build is going to do and how long it takes, and how far it is."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from experiments.run.atomic import write_text
from experiments.run.provenance import run_digest
from experiments.run.results import load_record
from workflow.project import MAIN_RUN, ROOT, RUNS, chapter_source, chapters, parameter_file
from workflow.render import HTML, STAMP

TIMES = ROOT / "results" / "build.json"  # of a build from nothing, see `told`
RENDER_SECONDS = 60.0
BAR = 20


def pending(names: Sequence[str], profile: str) -> list[str]:
    """The chapters that a build has to execute: nothing is there, or it is of other code."""

    def is_current(name: str) -> bool:
        digest = run_digest(chapter_source(name), parameter_file(name, profile))
        return record_file(name, profile).exists() and _checked(name, profile) == digest

    return [name for name in names if not is_current(name)]


def record_file(name: str, profile: str) -> Path:
    """Where the record of a chapter's run for the book is."""
    return RUNS / name / profile / MAIN_RUN / "result.json"


def _checked(name: str, profile: str) -> str:
    """Digest of what the last run was made with."""
    with suppress(FileNotFoundError):
        return (RUNS / ".checked" / f"{name}.{profile}.{MAIN_RUN}").read_text().strip()
    return ""


def expected_seconds(names: Sequence[str], profile: str) -> dict[str, float]:
    """How long chapters take: their last run here, or else the recorded build."""
    known: dict[str, float] = {}
    if profile == "cpu" and TIMES.exists():
        known |= json.loads(TIMES.read_text(encoding="utf-8"))["chapters"]
    for name in names:
        with suppress(FileNotFoundError, ValueError):
            record = load_record(record_file(name, profile))
            if not record.from_cache:
                known[name] = record.wall_seconds
    return {name: known[name] for name in names if name in known}


def longest_first(names: Sequence[str], profile: str) -> list[str]:
    """Chapters by how long they take; those that nothing is known of at the end."""
    seconds = expected_seconds(names, profile)
    return sorted(names, key=lambda name: -seconds.get(name, 0.0))


@contextmanager
def told(profile: str, cores: int) -> Iterator[None]:
    """Say what a build does, and while it does it how far it is; render pages to read meanwhile.

    A build that executes all chapters is noted in ``runs/build.json``.
    """
    names, started = chapters(), time.monotonic()
    from_nothing = not (RUNS / "cache").exists()
    todo = pending(names, profile)
    if not todo:
        yield
        return
    build = Build(profile, cores, todo, expected_seconds(names, profile))
    what = f"{len(todo)} of {len(names)} chapters to execute (profile {profile}, {cores} cores)"
    print(f"{what}: {build.left(todo)}.", flush=True)
    build.start()
    try:
        yield
    finally:
        build.ended.set()
        build.join()
    made = all(record_file(name, profile).exists() for name in names)
    if made and from_nothing and len(todo) == len(names):
        records = [load_record(record_file(name, profile)) for name in names]
        note = {
            "profile": profile,
            "date": records[0].started_at[:10],
            "hardware": records[0].hardware,
            "cores": cores,
            "seconds": round(time.monotonic() - started),
            "chapters": {record.chapter: round(record.wall_seconds) for record in records},
        }
        write_text(RUNS / TIMES.name, json.dumps(note, indent=2) + "\n")


class Build(threading.Thread):
    """Prints a bar when a chapter has ended; renders what there is, where there was no book yet.

    Args:
        profile: what is built.
        cores: of the processor, to use.
        todo: the chapters that are executed.
        seconds: how long chapters take, as far as known.
    """

    def __init__(
        self, profile: str, cores: int, todo: Sequence[str], seconds: Mapping[str, float]
    ) -> None:
        super().__init__()
        self.profile, self.cores, self.todo, self.seconds = profile, cores, todo, seconds
        self.before = {name: self.made(name) for name in todo}
        # Nobody waits for minutes at the smoke size.
        self.first_book = profile != "smoke" and not (HTML / STAMP).exists()
        self.ended = threading.Event()

    def made(self, name: str) -> int:
        """When the record of a chapter was made; 0 where there is none."""
        with suppress(FileNotFoundError):
            return record_file(name, self.profile).stat().st_mtime_ns
        return 0

    def left(self, names: Sequence[str]) -> str:
        """How long these chapters and the rendering take, in words."""
        if not {*names} <= self.seconds.keys():
            return "how long that takes is not known yet"
        at_once = max(1, self.cores // max(1, self.cores // 2))
        left = [self.seconds[name] for name in names] or [0.0]
        total = max(sum(left) / at_once, *left) + RENDER_SECONDS
        return f"about {max(1, round(total / 60))} min"

    def run(self) -> None:
        """Look twice a second until the build has ended."""
        done, rendered, started, next_at = 0, -1, 0.0, 0.0
        rendering: subprocess.Popen[bytes] | None = None
        while not self.ended.wait(0.5):
            left = [name for name in self.todo if self.made(name) == self.before[name]]
            now = len(self.todo) - len(left)
            if now > done:
                done, filled = now, BAR * now // len(self.todo)
                bar = "#" * filled + "-" * (BAR - filled)
                print(
                    f"[{bar}] {done} of {len(self.todo)} chapters; left: {self.left(left)}",
                    flush=True,
                )
            if rendering is not None and rendering.poll() is not None:
                if rendered == 0 and rendering.returncode == 0:
                    print(f"Pages to read meanwhile: {HTML / 'index.html'}", flush=True)
                # At most a sixth of the time: the chapters need the processor.
                next_at, rendering = 6 * time.monotonic() - 5 * started, None
            if (
                self.first_book
                and left
                and not rendering
                and done > rendered
                and time.monotonic() > next_at
            ):
                rendered, started = done, time.monotonic()
                command = [sys.executable, "-m", "workflow.preview", self.profile]
                rendering = subprocess.Popen(
                    command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True
                )
            if rendering is not None and not left:
                break
        if rendering is not None:
            with suppress(ProcessLookupError):
                os.killpg(rendering.pid, signal.SIGKILL)
            rendering.wait()
