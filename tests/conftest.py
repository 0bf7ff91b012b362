"""Shared by all tests: how torch runs here, and copies of the project to build and change."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from bs4 import BeautifulSoup
from filelock import FileLock

from tests.paths import ROOT

if TYPE_CHECKING:
    import torch

# The long ones first: the workers of pytest-xdist share the tests in this order, and one that has
# ended takes over half of what another still has. Those that give PyTorch another device, which it
# keeps, at the end.
ORDER = ("tests/book/", "tests/workflow/", "tests/", "tests/strict/")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Own options."""
    parser.addoption("--strict-device", action="store_true", help="see tests/strict_device.py")
    parser.addoption(
        "--budget", type=float, help="fail where all tests take more minutes of the processor"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Keep no trainings between tests; make the strict device for the whole run, if asked to."""
    os.environ["KTLIB_CACHE"] = ""
    if config.getoption("--strict-device"):
        from tests import strict_device

        block = strict_device.active()
        os.environ["KTLIB_TEST_DEVICE"] = str(block.__enter__())
        config.add_cleanup(lambda: block.__exit__(None, None, None))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than cores, as one waits for a build most of the time; each takes up to 3 GB."""
    return min(4, (os.cpu_count() or 1) + 1)


MINUTES = pytest.StashKey[dict[str, float]]()  # a test -> what it took of the processor


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Measure what a test takes, with its fixtures and the processes that it starts."""
    before = sum(os.times()[:4])
    try:
        return (yield)
    finally:
        item.config.stash.setdefault(MINUTES, {})[item.nodeid] = (sum(os.times()[:4]) - before) / 60


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Fetch what a worker of pytest-xdist measured; one that crashed has nothing to tell."""
    measured = getattr(node, "workeroutput", {}).get("minutes", {})
    node.config.stash.setdefault(MINUTES, {}).update(measured)


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Write ``runs/tests/minutes.csv``, the longest first; more than the budget is a failure."""
    config, minutes = session.config, session.config.stash.get(MINUTES, {})
    if hasattr(config, "workeroutput"):
        config.workeroutput["minutes"] = minutes
        return
    budget, total = config.getoption("--budget"), sum(minutes.values())
    longest = sorted(minutes.items(), key=lambda found: -found[1])
    if budget is not None:
        file = ROOT / "runs" / "tests" / "minutes.csv"
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("w", newline="") as stream:
            csv.writer(stream).writerows((f"{took:.4f}", test) for test, took in longest)
    if budget is not None and total > budget:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
        config.stash[OVER] = f"{total:.1f} minutes of the processor, more than {budget:g}"


OVER = pytest.StashKey[str]()


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Say that the tests took too long, and which did."""
    if OVER in config.stash:
        terminalreporter.section("The tests took too long", red=True)
        terminalreporter.line(f"{config.stash[OVER]}; the longest are:")
        longest = sorted(config.stash[MINUTES].items(), key=lambda found: -found[1])
        for test, took in longest[:20]:
            terminalreporter.line(f"{60 * took:6.0f} s  {test}")


# A name of a folder with what a shell, a URL or a pattern would take for something else.
STRANGE = "a b é'\"&;$x (1) [2] #%!"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Long tests first, those of the strict device last."""

    def place(item: pytest.Item) -> int:
        path = item.path.relative_to(ROOT).as_posix()
        return max(
            (i for i, start in enumerate(ORDER) if path.startswith(start)),
            key=lambda i: len(ORDER[i]),
        )

    items.sort(key=place)
    # Coverage asks what the tests of ktlib reach; counting lines doubles the time of the others.
    for item in items:
        if not item.path.is_relative_to(ROOT / "tests" / "ktlib"):
            item.add_marker("no_cover")
    if any(place(item) == len(ORDER) - 1 for item in items):
        from tests import strict_device

        strict_device.install()  # before the first backward pass, which counts the devices


@pytest.fixture
def strict() -> Iterator[torch.device]:
    """A device that is no CPU, see :mod:`tests.strict_device`."""
    from tests import strict_device

    if reason := strict_device.missing():
        pytest.skip(reason)
    with strict_device.active() as device:
        yield device


@pytest.fixture(scope="session", autouse=True)
def _one_thread_per_worker() -> None:
    """Workers of pytest-xdist share the processor: more threads each would only wait for others."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        import torch

        torch.set_num_threads(1)


@dataclass(frozen=True)
class Project:
    """A copy of the project, in a folder of its own."""

    root: Path
    data: Path

    @property
    def own(self) -> dict[str, str]:
        """Variables for commands in the copy: its code, and where the data lies."""
        return {"PYTHONPATH": str(self.root), "KTLIB_DATA": str(self.data)}

    @property
    def surroundings(self) -> dict[str, str]:
        """Variables of commands in the copy; what was trained is kept in its folder."""
        return {**os.environ, "KTLIB_CACHE": str(self.root / "runs" / "cache"), **self.own}

    def command(self, *arguments: str) -> list[str]:
        """The command behind ``make``, with the arguments for it."""
        return [sys.executable, "-m", "workflow.build", *arguments]

    def build(self, *arguments: str, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """Run the command behind ``make`` to its end; output and errors together."""
        return self.run(*self.command(*arguments), timeout=timeout)

    def run(
        self, *command: str, timeout: float = 600, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command in the copy; output and errors together."""
        return subprocess.run(
            command,
            cwd=self.root,
            env={**self.surroundings, **variables, **self.own},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=timeout,
            check=False,
        )

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start the command behind ``make`` and do not wait."""
        return subprocess.Popen(
            self.command(*arguments),
            cwd=self.root,
            env=self.surroundings,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def planned(self, *arguments: str) -> set[str]:
        """Names of the rules that a build would run now."""
        plan = self.build(*arguments, "--dry-run")
        assert plan.returncode == 0, plan.stdout
        lines = plan.stdout.splitlines()
        words = [line.split() for line in lines if line.startswith(("rule ", "localrule "))]
        return {name.rstrip(":") for _, name in words}

    @property
    def html(self) -> Path:
        """The rendered book."""
        return self.root / "book" / "_build" / "html"

    def page(self, name: str) -> str:
        """The text of a rendered page, without its markup."""
        html = (self.html / f"{name}.html").read_text(encoding="utf-8")
        article = BeautifulSoup(html, "html.parser").article
        assert article is not None
        return " ".join(article.get_text().split())


def project_files() -> Iterator[Path]:
    """The project's own files, also those not committed yet, relative to its root."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in filter(None, listed.split("\0")):
        if (ROOT / name).is_file():  # one that was removed and not committed is still listed
            yield Path(name)


def copy_files(files: Iterable[Path], target: Path) -> None:
    """Copy files of the project, given relative to its root."""
    for file in files:
        (target / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / file, target / file)


@pytest.fixture(scope="session")
def data_folder() -> Path:
    """The project's prepared data."""
    return Path(os.environ.get("KTLIB_DATA") or ROOT / "data").absolute()


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder that is made once for all workers: the first one makes it, the others wait.

    (Groups of pytest-xdist 3.8 would keep such tests on one worker, but pytest 9.2 no longer tells
    it of them.)
    """
    base = factory.getbasetemp()
    base = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, made = base / name, base / f"{name}.made"
    with FileLock(base / f"{name}.lock"):
        if not made.exists():
            shutil.rmtree(folder, ignore_errors=True)
            make(folder)
            made.touch()
    return folder


@pytest.fixture(scope="session")
def smoke_build(tmp_path_factory: pytest.TempPathFactory, data_folder: Path) -> tuple[Project, str]:
    """The whole book at the smoke size, built once in a copy of the project; and what was said."""

    def make(folder: Path) -> None:
        project = Project(folder / "project", data_folder)
        copy_files(project_files(), project.root)
        command = project.command("book", "--profile", "smoke")
        done = project.run(*command, KTLIB_WORKERS="1", timeout=2400)
        (folder / "said.txt").write_text(done.stdout, encoding="utf-8")
        (folder / "returncode.txt").write_text(str(done.returncode))

    folder = once(tmp_path_factory, "smoke", make)
    said = (folder / "said.txt").read_text(encoding="utf-8")
    assert (folder / "returncode.txt").read_text() == "0", said
    return Project(folder / "project", data_folder), said


@pytest.fixture(scope="session")
def smoke_book(smoke_build: tuple[Project, str]) -> Project:
    """The copy in which the whole book was built at the smoke size. Do not change it."""
    return smoke_build[0]


@pytest.fixture(scope="session")
def new_project(tmp_path_factory: pytest.TempPathFactory) -> Project:
    """A small project that is not built yet: the real pipeline around one small chapter."""
    root, data = (tmp_path_factory.mktemp(name) for name in ("mini", "data"))
    project = Project(root / "project", data / STRANGE)
    copy_mini(project.root)
    return project


def copy_mini(root: Path) -> None:
    """The real pipeline around one small chapter."""
    code = ("data_prep", "experiments", "ktlib", "workflow")
    parts = ("Snakefile", "pyproject.toml", "results/thesis", *code)
    book = ("_config.yml", "_ext", "_static", "references.bib")
    wanted = tuple(Path(part) for part in (*parts, *(f"book/{name}" for name in book)))
    files = [file for file in project_files() if any(file.is_relative_to(part) for part in wanted)]
    copy_files(files, root)
    shutil.copytree(ROOT / "tests" / "workflow" / "mini", root, dirs_exist_ok=True)
