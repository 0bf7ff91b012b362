"""One build at a time, and no step that outlives its build.

The operating system releases the lock when the process that holds it ends, however it ends. So a
killed build leaves nothing behind that blocks the next one.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from workflow.project import RUNS

BUILD_VARIABLE = "KTLIB_BUILD"  # in a step: which build it belongs to
LOCK = ".build.lock"
OWNER = ".build.txt"  # two lines: the number of the build, and a description for messages
POLL_SECONDS = 0.5
PARTIAL = ".partial-"


class BuildRunningError(RuntimeError):
    """Another build holds the lock; the message says which."""


@contextmanager
def build_lock(folder: Path, command: str) -> Iterator[None]:
    """Hold the lock of a project while a build runs.

    Args:
        folder: where the lock file is.
        command: what the build does, for the message of a second build.

    Raises:
        BuildRunningError: another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    owner = folder / OWNER
    try:
        # It waits a little, as a step that looks for its build takes the lock for a moment.
        lock = FileLock(folder / LOCK, timeout=0.3).acquire(poll_interval=0.05)
    except Timeout:
        detail = "".join(f" ({line})" for line in _lines(owner)[1:])
        raise BuildRunningError(
            f"Another build is running in this folder{detail}. Wait until it has ended, or stop it."
        ) from None
    with lock:
        build = uuid.uuid4().hex
        since = time.strftime("%H:%M:%S")
        owner.write_text(f"{build}\n`{command}`, process {os.getpid()}, since {since}\n")
        os.environ[BUILD_VARIABLE] = build
        try:
            yield
        finally:
            del os.environ[BUILD_VARIABLE]
            owner.unlink(missing_ok=True)


def _lines(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []


def run_step(step: Callable[..., object], *arguments: str) -> int:
    """Run a step of a build from the command line, whose errors are shown without a call stack.

    Args:
        step: what to do; the first line of its docstring is the help text.
        arguments: names of its arguments, in the order of the command line.

    Returns:
        The exit status.
    """
    parser = argparse.ArgumentParser(description=(step.__doc__ or "").partition("\n")[0])
    for name in arguments:
        parser.add_argument(name)
    given = parser.parse_args()
    end_with_build(RUNS)
    try:
        step(**vars(given))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    return 0


def end_with_build(folder: Path) -> None:
    """End this process when the build that it is a step of is gone; outside a build, do nothing.

    A build that is killed cannot stop its steps itself. A notebook's kernel ends with this process.

    Args:
        folder: where the lock file is.
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
        with FileLock(folder / LOCK, blocking=False):
            return False
    except Timeout:
        # Nothing to read: another build is just starting, or another step looks too. Look again.
        return _lines(folder / OWNER)[:1] in ([], [build])
    except OSError:
        return False


@contextmanager
def partial_folder(target: Path) -> Iterator[Path]:
    """An empty folder beside ``target`` to write into; removed afterwards, unless it was moved.

    What a killed process left for the same target is removed, too.
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
    """Rename a finished folder to ``target``, which it replaces."""
    old = target.with_name(f"{target.name}{PARTIAL}{os.getpid()}-old")
    if target.exists():
        target.replace(old)
    folder.replace(target)
    shutil.rmtree(old, ignore_errors=True)
