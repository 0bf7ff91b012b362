"""What ``make`` calls: take the lock, then let Snakemake do what is missing.

For example ``python -m workflow.build book --profile cpu``, or
``python -m workflow.build sweep --chapter fcl --seeds 0,1,2``. What ``--snakemake`` names is handed
through to Snakemake, such as an executor for a cluster.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import subprocess
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

from workflow.guard import BUILD_VARIABLE, BuildRunningError, build_lock
from workflow.progress import longest_first, record_file, told
from workflow.project import (
    MAIN_RUN,
    ROOT,
    RUNS,
    chapter_source,
    chapters,
    data_folder,
    data_sets,
    parameter_file,
    sweep_runs,
)

if TYPE_CHECKING:
    from experiments.run.results import RunRecord

PRIORITIZED = 4  # chapters that start first, so that none of the long ones is left at the end
INDEX = ROOT / "book" / "_build" / "html" / "index.html"
STAMP = INDEX.with_name(".rendered")
# Options of Snakemake by which the runs may be computed elsewhere than here.
ELSEWHERE = frozenset({"-e", "--executor", "--profile", "--workflow-profile"})


def snakemake(
    targets: list[str],
    names: list[str],
    options: argparse.Namespace,
    runs: Sequence[str] = (MAIN_RUN,),
    *,
    parts: bool = False,
) -> bool:
    """Let Snakemake make the targets.

    Args:
        targets: files or rules.
        names: the chapters that run for them.
        options: the command line.
        runs: the runs of each of these chapters.
        parts: whether they are the parts of a record, which take one core each.

    Returns:
        Whether all targets exist now.
    """
    data_folder()  # a place that Snakemake could not name is refused in words
    for name in names:
        parameter_file(name, options.profile)
    if not options.dry_run:
        invalidate_modified_data(names, options.profile, runs)
    from snakemake.cli import main as snakemake_main  # takes seconds to import

    handed = shlex.split(options.snakemake)
    elsewhere = not ELSEWHERE.isdisjoint(word.partition("=")[0] for word in handed)
    if elsewhere:
        # There a run cannot see whether this process lives: the cluster ends what is cancelled.
        os.environ[BUILD_VARIABLE] = ""
    arguments = [
        *targets,
        *("--snakefile", str(ROOT / "Snakefile"), "--directory", str(ROOT)),
        *("--cores", str(options.cores)),
        *(() if elsewhere else ("--resources", "gpu=1")),
        # Snakemake's own lock would outlive a killed build; that of workflow.guard does not.
        *("--nolock", "--rerun-incomplete", "--keep-going"),
        *("--rerun-triggers", "mtime", "params", "input"),
        *("--config", f"profile={options.profile}", *(["parts=1"] if parts else [])),
    ]
    if options.dry_run:
        arguments += ["--dry-run", "--quiet", "host"]
    else:
        # The steps print what they do. Of Snakemake only errors are shown, also those of its plan.
        logging.getLogger("snakemake.logging").addFilter(lambda r: r.levelno >= logging.ERROR)
        arguments += ["--quiet", "rules", "progress", "host", "reason"]
    if options.first:
        arguments += ["--prioritize", *options.first]
    if options.force:
        arguments += ["--forcerun", *options.force]
    try:
        snakemake_main([*arguments, *handed])
    except SystemExit as end:
        return not end.code
    return True


def invalidate_modified_data(names: list[str], profile: str, runs: Sequence[str]) -> None:
    """Remove the manifests of data sets with missing or modified files, to prepare them again."""
    # Which files a data set consists of, and whether they are as prepared, only data_prep knows.
    from data_prep import MANIFEST, data_root, is_current

    needed = {d for name in names for run in runs for d in data_sets(name, profile, run=run)}
    for name in needed:
        manifest = data_root() / name / MANIFEST
        if manifest.exists() and not is_current(name):
            print(f"Data set {name}: its files have changed since they were prepared.")
            manifest.unlink()


def book(options: argparse.Namespace) -> int:
    """Make the book, and say where it is."""
    before = STAMP.stat().st_mtime_ns if STAMP.exists() else None
    first = longest_first(chapters(), options.profile)[:PRIORITIZED]
    options.first = [str(record_file(name, options.profile).relative_to(ROOT)) for name in first]
    with nullcontext() if options.dry_run else told(options.profile, options.cores):
        made = snakemake(["book"], chapters(), options)
    if not made:
        print("The book was not made; the messages above say why.", file=sys.stderr)
        return 1
    if options.dry_run:
        return 0
    if before is not None and STAMP.stat().st_mtime_ns == before:
        print("Nothing has changed since the last build.")
    print(f"The book (profile {options.profile}): {INDEX}")
    return 0


def choices(options: argparse.Namespace) -> dict[str, str]:
    """What SET and SEEDS ask for: parameter -> values with commas between."""
    given = [part.partition("=") for part in options.set.split()]
    if not all(values for _, _, values in given):
        raise ValueError(f"SET must be `name=value,value name=value`. Found {options.set!r}.")
    found = {name: values for name, _, values in given}
    return found | ({"seeds": options.seeds} if options.seeds else {})


def sweep(options: argparse.Namespace) -> int:
    """Make one run for each combination of values; say how to read them."""
    folder = f"runs/{options.chapter}/{options.profile}"
    runs = sweep_runs(choices(options))
    targets = [f"{folder}/{run}/result.json" for run in runs]
    if not snakemake(targets, [options.chapter], options, runs):
        print("Not all runs were made; the messages above say why.", file=sys.stderr)
        return 1
    print(f"{len(targets)} runs in {folder}. Tables: experiments.run.results.collect({folder!r})")
    return 0


def record(options: argparse.Namespace) -> int:
    """Make the run ``main``, or with SEEDS or SET parts, and keep the record in ``results/``."""
    from experiments.run.provenance import git_state
    from experiments.run.results import load_record
    from workflow.parts import part_runs

    dirty = git_state(ROOT)[1]
    if dirty and not options.allow_dirty:
        raise ValueError(
            "The working tree must hold no uncommitted change, so that the record names the code "
            "it came from. Commit first, or set ALLOW_DIRTY=1 for a trial that is not kept."
        )
    asked = choices(options)
    runs = part_runs(options.chapter, asked) if asked else [MAIN_RUN]
    folder = RUNS / options.chapter / options.profile
    files = [str((folder / run / "result.json").relative_to(ROOT)) for run in runs]
    if not options.allow_dirty:
        made = [file for file in files if (ROOT / file).exists()]
        clean = (dirty, False)  # None without git
        options.force += [f for f in made if load_record(ROOT / f).git_dirty not in clean]
    if not snakemake(files, [options.chapter], options, runs, parts=bool(asked)):
        if asked:
            print("Not all parts were made; the messages above say why.", file=sys.stderr)
        return 1
    if options.dry_run:
        return 0
    if asked:
        return _merge(options, runs)
    return _keep(load_record(folder / MAIN_RUN), trial=options.allow_dirty)


def merge(options: argparse.Namespace) -> int:
    """Merge the parts that are there, or those that SEEDS and SET name, into one record."""
    from workflow.parts import found_runs, part_runs

    asked = choices(options)
    if asked:
        return _merge(options, part_runs(options.chapter, asked))
    return _merge(options, found_runs(options.chapter, options.profile))


def _merge(options: argparse.Namespace, runs: Sequence[str]) -> int:
    from workflow import parts

    found = parts.read_parts(options.chapter, options.profile, runs)
    record = parts.merge(found, allow_dirty=options.allow_dirty)
    if left := parts.left_out(found, record):
        print(f"Left out, as they differ between the parts: metrics {', '.join(left)}")
    return _keep(record, trial=options.allow_dirty)


def _keep(record: RunRecord, *, trial: bool) -> int:
    """Keep a record in ``results/``; a trial, whose code nobody may find again, below ``runs/``."""
    from experiments.run.committed import keep
    from experiments.run.results import record_label

    file = keep(record, RUNS / "trials" if trial else ROOT / "results")
    print(record_label(record, record.chapter, record.profile))
    print(f"Record: {file.relative_to(ROOT)}")
    return 0


def recheck(options: argparse.Namespace) -> int:
    """Compute a part of a kept record again, and note in it that the present code gives the same.

    By default that is its first seed. Another processor rounds differently: with ``--against``, it
    is the run that the given one repeats, made on this machine by the code of the record.
    """
    from experiments.run.committed import committed_record, keep
    from experiments.run.committed import recheck as compare
    from experiments.run.results import load_record

    kept = committed_record(options.chapter, options.profile)
    if kept is None:
        raise ValueError(
            f"There is no record of chapter {options.chapter!r} and profile {options.profile!r} "
            "in results/."
        )
    reference = load_record(options.against) if options.against else None
    os.environ["KTLIB_WORKERS"] = str((reference or kept).workers)  # the last digits depend on it
    whole = kept.parts[0].run if kept.parts else f"seeds={kept.seeds[0]}"
    run = MAIN_RUN if reference else whole
    parts = bool(kept.parts) and reference is None
    options.profile = reference.profile if reference else options.profile
    path = RUNS / options.chapter / options.profile / run / "result.json"
    if not snakemake([str(path.relative_to(ROOT))], [options.chapter], options, [run], parts=parts):
        return 1
    if not options.dry_run:
        checked = compare(kept, load_record(path), reference)
        target = keep(checked, ROOT / "results")
        if checked.rechecked:
            print(f"{checked.rechecked.rows} rows are the same: {target.relative_to(ROOT)}")
    return 0


def notebooks(_options: argparse.Namespace) -> int:
    """Write every chapter as a plain notebook into ``notebooks/``."""
    for chapter in chapters():
        target = ROOT / "notebooks" / f"{chapter}.ipynb"
        target.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "jupytext", "--quiet", "--to", "ipynb"]
        subprocess.run([*command, "-o", target, chapter_source(chapter)], cwd=ROOT, check=True)
        print(target.relative_to(ROOT))
    return 0


COMMANDS = {
    "book": book,
    "sweep": sweep,
    "record": record,
    "merge": merge,
    "recheck": recheck,
    "notebooks": notebooks,
}


def parse(arguments: list[str] | None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("command", choices=COMMANDS)
    parser.add_argument("--profile", default="cpu")
    parser.add_argument("--chapter", default="")
    parser.add_argument("--seeds", default="", help="sweep, record, merge: 0,1,2")
    parser.add_argument("--set", default="", help="the same: 'name=value,value other=value'")
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--against", default="", help="recheck: result.json of the record's code")
    parser.add_argument("--allow-dirty", action="store_true", help="record, merge: for a trial")
    parser.add_argument("--snakemake", default="", help="handed to Snakemake: '--executor slurm'")
    parser.add_argument("--dry-run", action="store_true", help="only say what would be done")
    parser.add_argument("--force", nargs="*", default=[], help="targets to make again")
    parser.set_defaults(first=[])
    options = parser.parse_args(arguments)
    options.dry_run |= not {"-n", "--dry-run"}.isdisjoint(shlex.split(options.snakemake))
    return options


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    options = parse(arguments)
    os.chdir(ROOT)
    command = f"make {options.command} PROFILE={options.profile}"
    try:
        with build_lock(RUNS, command):
            return COMMANDS[options.command](options)
    except (BuildRunningError, ValueError, OSError) as error:
        print(f"\n{error}\n", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
