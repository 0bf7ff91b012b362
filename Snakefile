# Data -> executed chapters -> the book. Called through `make`; `make plan` shows what a build would do.
#
# Every `:q` quotes for the shell: the project may lie in a folder with any name.
#
# What makes a chapter run again is a digest of its code cells, the project's modules behind them and its
# parameters, not the age of files: a change in the text, or a fresh clone, executes nothing. Of the runs that
# the book does not show, what their numbers follow from.
import json
import re
import sys
from functools import cache
from pathlib import Path

from data_prep import DATA_SETS, MANIFEST
from experiments.run.provenance import numbers_digest, run_digest
from workflow.project import (
    MAIN_RUN, PROFILES, RUN_NAME, chapter_source, chapters, data_folder, data_sets, list_parameters,
    parameter_file, run_values,
)

PROFILE = config["profile"]
CHAPTERS = chapters()
DATA = data_folder()
PYTHON = sys.executable
RUN = "runs/{chapter}/{profile}/{run}"

# Threads are fixed: the last digits of a result depend on their number. By default two chapters run at
# once, and each trains several networks at once where there are more cores than two.
THREADS = {"smoke": 1, "cpu": 1, "full": 2, "gpu": 4, "paper": 4}
WORKERS = THREADS | {"cpu": max(1, workflow.cores // 2)}
# What a cluster has to know of a run: the longest time in minutes, and the memory.
MINUTES = {"smoke": 10, "cpu": 60, "full": 120, "gpu": 120, "paper": 7 * 24 * 60}
MEMORY_MB = {"smoke": 2000, "cpu": 3000, "full": 6000, "gpu": 16000, "paper": 32000}
# The longest time for one cell, in seconds; 0: no limit.
CELL_SECONDS = {"smoke": 300, "cpu": 1800, "full": 0, "gpu": 0, "paper": 0}
if config.get("parts"):
    # The parts of a record take one core each: as many run at once as there are cores. A part ends
    # within two hours.
    THREADS |= {"cpu": 1, "full": 1}
    WORKERS = THREADS
    MINUTES |= {"paper": 120}


def source(wildcards):
    return f"chapters/{wildcards.chapter}.py"


def values(wildcards):
    return f"chapters/params/{wildcards.chapter}.{wildcards.profile}.yaml"


@cache
def digest_of(chapter, profile, run=MAIN_RUN):
    digest = run_digest if run == MAIN_RUN else numbers_digest
    return digest(chapter_source(chapter), parameter_file(chapter, profile))


def given(wildcards):
    return run_values(wildcards.run, list_parameters(wildcards.chapter))


def digest(wildcards):
    return digest_of(wildcards.chapter, wildcards.profile, wildcards.run)


def manifests(wildcards):
    names = data_sets(wildcards.chapter, wildcards.profile, run=wildcards.run)
    return [f"{DATA}/{name}/{MANIFEST}" for name in names]


def main_runs(file):
    return [f"runs/{name}/{PROFILE}/{MAIN_RUN}/{file}" for name in CHAPTERS]


def tracked(*patterns):
    """Sources of the book and of the steps; what is generated lies in folders of its own."""
    return sorted(path.as_posix() for pattern in patterns for path in Path(".").glob(pattern))


wildcard_constraints:
    chapter="|".join(map(re.escape, CHAPTERS)) or "none",
    profile="|".join(PROFILES),
    run=RUN_NAME.pattern,
    name="|".join(DATA_SETS),


# On a cluster only the runs are jobs: what is small, or needs the network, stays where `make` is.
localrules:
    book,
    data,
    check,
    merge_outputs,
    pages,
    render,


rule book:
    input:
        "book/_build/html/.rendered",


rule data:
    output:
        update(f"{DATA}/{{name}}/{MANIFEST}"),
    shell:
        "{PYTHON:q} -m data_prep.{wildcards.name:q}"


# Wrong values are refused before anything is computed: checks come before all runs.
rule check:
    input:
        ancient(source),
        ancient(values),
    output:
        "runs/.checked/{chapter}.{profile}.{run}",
    params:
        digest=digest,
        values=lambda wildcards: [f"-p={n}={json.dumps(v)}" for n, v in given(wildcards).items()],
    priority: 10
    shell:
        "{PYTHON:q} -m experiments.check {wildcards.chapter:q} --profile {wildcards.profile:q}"
        " {params.values:q} > /dev/null && echo {params.digest:q} > {output:q}"


# `ancient` only for files that no rule makes: where it marks one that is being made, Snakemake overlooks
# that this rule has reasons of its own to run.
rule run:
    input:
        manifests,
        ancient(source),
        ancient(values),
        "runs/.checked/{chapter}.{profile}.{run}",
    output:
        f"{RUN}/executed.ipynb",
        f"{RUN}/result.json",
    params:
        digest=digest,
        threads=lambda wildcards: THREADS[wildcards.profile],
        workers=lambda wildcards: WORKERS[wildcards.profile],
        cell_seconds=lambda wildcards: CELL_SECONDS[wildcards.profile],
    threads: lambda wildcards: WORKERS[wildcards.profile]
    resources:
        runtime=lambda wildcards: MINUTES[wildcards.profile],
        mem_mb=lambda wildcards: MEMORY_MB[wildcards.profile],
        gpu=lambda wildcards: int(wildcards.profile in ("gpu", "paper")),
    shell:
        "{PYTHON:q} -m workflow.run_chapter {wildcards.chapter:q} {wildcards.profile:q} {wildcards.run:q}"
        " --threads {params.threads:q} --workers {params.workers:q} --cell-seconds {params.cell_seconds:q}"


rule merge_outputs:
    input:
        source,
        f"runs/{{chapter}}/{PROFILE}/{MAIN_RUN}/executed.ipynb",
        "workflow/merge_outputs.py",
    output:
        "book/chapters/{chapter}.ipynb",
    shell:
        "{PYTHON:q} -m workflow.merge_outputs {wildcards.chapter:q} {PROFILE:q}"


rule pages:
    input:
        main_runs("result.json"),
        [f"chapters/{name}.py" for name in CHAPTERS],
        tracked("results/**/*.json", "results/**/*.json.gz", "results/thesis/*.csv"),
        tracked("experiments/*/claims.py"),
        "experiments/run/verdicts.py",
        "workflow/pages.py",
        "workflow/ledger.py",
        "workflow/ledger_coverage.py",
        "workflow/ledger_figure.py",
        "workflow/thesis_page.py",
        "workflow/benchmark_page.py",
        "workflow/markdown.py",
    output:
        "book/_generated/execution.md",
        "book/_generated/parameters.md",
        "book/_generated/claims.md",  # and ledger.svg
        "book/_generated/thesis.md",
        "book/_generated/benchmarks.md",  # and growth.svg, where speeds have been measured
    params:
        # Whether a committed record is older than the code it came from
        digests=lambda wildcards: [digest_of(name, PROFILE) for name in CHAPTERS],
    shell:
        "{PYTHON:q} -m workflow.pages {PROFILE:q}"


rule render:
    input:
        expand("book/chapters/{chapter}.ipynb", chapter=CHAPTERS),
        "book/_generated/execution.md",
        "book/_generated/parameters.md",
        "book/_generated/claims.md",
        "book/_generated/thesis.md",
        "book/_generated/benchmarks.md",
        tracked("book/*.*", "book/api/*", "book/_static/**/*", "book/_ext/*.py", "ktlib/**/*.py"),
        "workflow/render.py",
    output:
        "book/_build/html/.rendered",
    shell:
        "{PYTHON:q} -m workflow.render"
