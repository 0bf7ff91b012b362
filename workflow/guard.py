"""One build at a time, and no step that outlives its build.

The operating system releases a lock with the process that held it, however that ends. So a killed
build leaves nothing behind that blocks the next.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

BUILD_VARIABLE = "KTLIB_BUILD"  # in a step: which build it belongs to
LOCK = ".build.lock"
OWNER = ".build.json"
POLL_SECONDS = 0.5
PARTIAL = ".partial-"


class BuildRunningError(RuntimeError):
    """Another build holds the lock; the message says which."""


@contextmanager
def build_lock(folder: Path, command: str) -> Iterator[None]:
    """Hold the lock of a project while a build runs.

    Args:
        folder: where the lock file lies.
        command: what is being done, shown to whoever meets the lock.

    Raises:
        BuildRunningError: another process holds it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / OWNER
    with (folder / LOCK).open("ab") as handle:
        if not _taken(handle, tries=3):
            raise BuildRunningError(_who(owner))
        started = time.strftime("%H:%M:%S")
        build = f"{os.getpid()}-{uuid.uuid4().hex}"
        content = {"build": build, "command": command, "since": started}
        owner.write_text(json.dumps(content), encoding="utf-8")
        os.environ[BUILD_VARIABLE] = build
        try:
            yield
        finally:
            del os.environ[BUILD_VARIABLE]
            owner.unlink(missing_ok=True)


def _taken(handle: IO[bytes], tries: int) -> bool:
    """Try to take the lock; several times, as a step that looks for its build holds it briefly."""
    for attempt in range(tries):
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(0.1 * (attempt + 1 < tries))
        else:
            return True
    return False


def _who(owner: Path) -> str:
    try:
        found = json.loads(owner.read_text(encoding="utf-8"))
        process = found["build"].partition("-")[0]
        detail = f" (`{found['command']}`, process {process}, since {found['since']})"
    except (OSError, ValueError, KeyError):
        detail = ""
    return f"Another build is running in this folder{detail}. Wait until it has ended, or stop it."


def end_with_build(folder: Path) -> None:
    """End this process when the build that it is a step of is gone; outside a build, do nothing.

    A build that is killed cannot stop its steps itself. A notebook's process ends with this one.

    Args:
        folder: where the lock file lies.
    """
    build = os.environ.get(BUILD_VARIABLE)
    if build:
        threading.Thread(target=_watch, args=(folder, build), daemon=True).start()


def _watch(folder: Path, build: str) -> None:
    while _is_running(folder, build):
        time.sleep(POLL_SECONDS)
    os._exit(1)


def _is_running(folder: Path, build: str) -> bool:
    """Whether a build holds the lock, and it is this one."""
    try:
        with (folder / LOCK).open("rb") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        pass  # held: by which build?
    except OSError:
        return False
    else:
        return False
    try:
        owner = json.loads((folder / OWNER).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True  # being written at this moment; the next look tells
    return bool(owner.get("build") == build)


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target`` to write into; gone afterwards, unless it was moved.

    What a killed process left of the same target is removed.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    for left in target.parent.glob(f"{target.name}{PARTIAL}*"):
        shutil.rmtree(left, ignore_errors=True)
    folder = target.with_name(f"{target.name}{PARTIAL}{os.getpid()}")
    folder.mkdir()
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def move_into_place(folder: Path, target: Path) -> None:
    """Rename a finished folder to ``target``; what was there before is removed."""
    old = target.with_name(f"{target.name}{PARTIAL}{os.getpid()}-old")
    if target.exists():
        target.replace(old)
    folder.replace(target)
    shutil.rmtree(old, ignore_errors=True)
