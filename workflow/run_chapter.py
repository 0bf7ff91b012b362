"""Execute one chapter: ``python -m workflow.run_chapter fcl cpu main``.

Everything is written into a temporary folder beside the target, which is renamed only when the
chapter has succeeded. So a run folder is complete or does not exist.
"""

from __future__ import annotations

import argparse
import logging
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import yaml

from experiments.run.parameters import read_parameter_file
from workflow.guard import end_with_build, move_into_place, partial_folder
from workflow.project import (
    MAIN_RUN,
    ROOT,
    RUNS,
    chapter_source,
    list_parameters,
    parameter_file,
    run_values,
)

NOTEBOOK = "executed.ipynb"
RECORD = "result.json"
LOG = "log.txt"
KERNEL_START_SECONDS = 120
# How many turns (a few microseconds) a thread spins before it sleeps. Small networks wait often:
# sleeping at once costs them all that a second thread gains, and spinning for long costs five times
# that as soon as another program wants the core.
SPINS = "10000"
# A page has no use for the widgets that tqdm misses, and the cell that shows the warning varies.
NO_WIDGETS = "ignore:IProgress not found"
# joblib restarts a worker whose memory has grown and warns of it, on some machines only.
NO_RESTARTS = "ignore:A worker stopped while some jobs"


class ChapterError(RuntimeError):
    """A chapter failed; the message names chapter, cell and error."""


def run_chapter(
    chapter: str, profile: str, run: str, threads: int, workers: int, cell_seconds: int | None
) -> Path:
    """Execute a chapter and put the results into ``runs/<chapter>/<profile>/<run>``.

    Args:
        chapter: its name.
        profile: the set of parameter values.
        run: ``main``, or values that replace some, such as ``seeds=3``.
        threads: CPU threads; the last digits of the results depend on their number.
        workers: trainings at once, which share the threads or have one each.
        cell_seconds: time limit of one cell; None: no limit.

    Raises:
        ChapterError: a cell raised (the first one if a parameter is not allowed) or took too long,
            the kernel died, or no record was written.
        ValueError: the chapter, the profile or the run has a wrong name; nothing was started.
    """
    values = {
        **read_parameter_file(parameter_file(chapter, profile)),
        **run_values(run, list_parameters(chapter)),
        "profile": profile,
    }
    target = RUNS / chapter / profile / run
    name = f"chapter {chapter} (profile {profile}{'' if run == MAIN_RUN else f', {run}'})"
    print(f"Running {name}", flush=True)
    started = time.monotonic()
    failed = target.with_name(f"{run}.failed")
    shutil.rmtree(failed, ignore_errors=True)
    with partial_folder(target) as folder:
        values["run_dir"] = folder.relative_to(ROOT).as_posix()
        (folder / "parameters.yaml").write_text(yaml.safe_dump(values, sort_keys=False))
        os.environ.update(kernel_environment(threads, workers))
        _log_to(folder / LOG)
        try:
            _execute(chapter, values, folder, cell_seconds)
        except ChapterError as error:
            _rename_paths(folder, target)
            os.replace(folder, failed)
            where = failed.relative_to(ROOT)
            raise ChapterError(
                f"{name[0].upper()}{name[1:]} failed: {error}\n"
                f"  The notebook as far as it got: {where / NOTEBOOK}\n"
                f"  What was logged: {where / LOG}"
            ) from None
        _rename_paths(folder, target)
        move_into_place(folder, target)
    print(f"Finished {name} in {time.monotonic() - started:.0f} s", flush=True)
    return target


def _execute(chapter: str, values: dict[str, Any], folder: Path, cell_seconds: int | None) -> None:
    import jupytext
    import papermill
    from nbclient.exceptions import CellTimeoutError, DeadKernelError
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

    notebook = jupytext.read(chapter_source(chapter))
    with tempfile.TemporaryDirectory(prefix="ktlib-", dir=_short_temporary_folder()) as sockets:
        os.environ["JUPYTER_RUNTIME_DIR"] = sockets
        try:
            papermill.execute_notebook(
                notebook,
                # papermill fills in parameters between braces.
                str(folder / NOTEBOOK).replace("{", "{{").replace("}", "}}"),
                parameters=values,
                kernel_name="python3",
                cwd=str(ROOT),
                start_timeout=KERNEL_START_SECONDS,
                execution_timeout=cell_seconds,
                progress_bar=sys.stderr.isatty(),
                log_output=True,
                shutdown_kernel="immediate",
                # Two runs that start together can pick the same network port. Files in a folder of
                # this run cannot collide; by default they would lie in the working folder, which
                # all runs share, and a run would talk to the kernel of another.
                config=Config({"KernelManager": {"transport": "ipc", "ip": f"{sockets}/kernel"}}),
            )
        except PapermillExecutionError as error:
            raise ChapterError(_cell_error(notebook, error)) from None
        except CellTimeoutError as error:
            raise ChapterError(f"a cell took longer than {cell_seconds} s. {error}") from None
        except DeadKernelError:
            raise ChapterError(
                "the kernel died without an error. Nearly always the memory was used up: close "
                "other programs, or take a smaller PROFILE."
            ) from None
    if not (folder / RECORD).is_file():
        raise ChapterError(f"it ended without a record; a chapter must save {RECORD} to `run_dir`.")


def _cell_error(notebook: Any, error: Any) -> str:
    """Which cell of the chapter raised what; cells are counted from 1, text cells included."""
    sources = [cell.source for cell in notebook.cells]
    total = len(sources)
    if error.source in sources:
        number = sources.index(error.source) + 1
        first = next((line for line in error.source.splitlines() if line.strip()), "")
        place = f"cell {number} of {total}, which starts with `{first.strip()}`"
    else:
        place = "the cell with the parameters of the run"
    return f"{place}\n  {error.ename}: {error.evalue}"


def kernel_environment(threads: int, workers: int) -> dict[str, str]:
    """Environment variables that must be set before the process of a chapter starts.

    Equal settings, parameters, versions and kind of processor give equal numbers.
    """
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    waiting = {"GOMP_SPINCOUNT": SPINS} if "OMP_WAIT_POLICY" not in os.environ else {}
    return waiting | {
        "KTLIB_WORKERS": os.environ.get("KTLIB_WORKERS", str(workers)),
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "PYTHONHASHSEED": "0",
        "TQDM_DISABLE": "1",
        "CUBLAS_WORKSPACE_CONFIG": ":4096:8",  # read when CUDA starts; for deterministic products
        "JUPYTER_PREFER_ENV_PATH": "1",  # this environment's kernel, not one in the home folder
        "PYDEVD_DISABLE_FILE_VALIDATION": "1",  # else the debugger warns in every kernel
        "PYTHONWARNINGS": ",".join(
            filter(None, [os.environ.get("PYTHONWARNINGS"), NO_WIDGETS, NO_RESTARTS])
        ),
        "PYTHONPATH": os.pathsep.join(paths),
    }


def _log_to(file: Path) -> None:
    logger = logging.getLogger("papermill")
    logger.setLevel(logging.INFO)
    logger.propagate = False
    handler = logging.FileHandler(file, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
    logger.addHandler(handler)


def _short_temporary_folder() -> str | None:
    """A folder with a short path: that of a socket may have about 100 characters."""
    return None if len(tempfile.gettempdir()) < 40 else "/tmp"  # noqa: S108 - mkdtemp is safe there


def _rename_paths(folder: Path, target: Path) -> None:
    """Replace the temporary folder's path by the final one in the notebook and the log."""
    for name in (NOTEBOOK, LOG, "parameters.yaml"):
        path = folder / name
        if path.is_file():
            text = path.read_text(encoding="utf-8")
            old, new = (p.relative_to(ROOT).as_posix() for p in (folder, target))
            path.write_text(text.replace(old, new), encoding="utf-8")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("chapter")
    parser.add_argument("profile")
    parser.add_argument("run", nargs="?", default=MAIN_RUN)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, help="trainings at once; by default the threads")
    parser.add_argument("--cell-seconds", type=int, default=0, help="0: no limit")
    given = parser.parse_args(arguments)
    end_with_build(RUNS)
    try:
        limit = given.cell_seconds or None
        workers = given.workers or given.threads
        run_chapter(given.chapter, given.profile, given.run, given.threads, workers, limit)
    except (ChapterError, ValueError, OSError) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
