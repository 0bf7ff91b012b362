"""Chromium for the tests of the rendered book: ``python -m workflow.browser``.

Prints its path. If it is missing, it is installed from Debian's packages, which needs root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VARIABLE = "CHROMIUM"


def find() -> str | None:
    """Path of the browser: what the variable CHROMIUM names, else a known name on the PATH.

    Raises:
        RuntimeError: the variable names no program.
    """
    named = os.environ.get(VARIABLE)
    if named:
        path = shutil.which(named)
        if path is None:
            raise RuntimeError(f"{VARIABLE} must name a program. Found {named!r}.")
        return path
    return next(filter(None, map(shutil.which, NAMES)), None)


def install() -> None:
    """Install Debian's Chromium.

    Raises:
        RuntimeError: it cannot be installed here; the message says why, and what to do.
    """
    prefix = [] if os.geteuid() == 0 else ["sudo", "--non-interactive"]
    for program in (*prefix[:1], "apt-get"):
        if shutil.which(program) is None:
            raise RuntimeError(_advice(f"`{program}` was not found"))
    packages = ["chromium", "fonts-dejavu-core"]
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    update = [*prefix, "apt-get", "update", "--quiet"]
    get = [*prefix, "apt-get", "install", "--quiet", "--yes", "--no-install-recommends", *packages]
    for command in (update, get):
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-3:]
            raise RuntimeError(_advice(f"`{' '.join(command)}` failed: {' / '.join(last)}"))


def _advice(reason: str) -> str:
    return (
        f"The tests open the book in Chromium, which could not be installed: {reason}. Install it "
        f"yourself (Debian: apt-get install chromium), or set {VARIABLE} to the "
        "path of a Chromium or Chrome."
    )


def require() -> str:
    """Path of the browser, which is installed if it is missing.

    Raises:
        RuntimeError: it is missing and cannot be installed; the message says what to do.
    """
    path = find()
    if path is None:
        print("Installing Chromium from Debian's packages", flush=True)
        install()
        path = find()
    if path is None:
        raise RuntimeError(_advice("the package contains no program of a known name"))
    return path


def main() -> int:
    """Command line; returns the exit status."""
    try:
        print(f"Chromium: {require()}")
    except RuntimeError as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
