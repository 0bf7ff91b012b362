"""Benchmarks of language models through lm-evaluation-harness, on a model in memory.

The data come from the Hugging Face hub, and stay in its cache on this machine.
"""

from __future__ import annotations

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from experiments.ila.evaluation import in_mode

Row = dict[str, str | int | float | None]


@dataclass(frozen=True)
class Benchmark:
    """A benchmark as the thesis, or else its usual protocol, runs it.

    Attributes:
        task: name of the task in lm-evaluation-harness.
        shots: number of solved examples before each question.
        data: id of the data set on the hub.
        packages: what has to be installed for it besides lm-eval.
    """

    task: str
    shots: int
    data: str
    packages: str = ""


BENCHMARKS = {
    "mmlu": Benchmark("mmlu", 5, "cais/mmlu"),
    "hellaswag": Benchmark("hellaswag", 0, "Rowan/hellaswag"),
    # The thesis does not say with how many examples; 5 is usual.
    "winogrande": Benchmark("winogrande", 5, "allenai/winogrande"),
    # Four examples belong to the task; none is asked for.
    "math500": Benchmark("minerva_math500", 4, "HuggingFaceH4/MATH-500", "lm-eval[math]"),
}
"""Name -> benchmark. Shots of MMLU and HellaSwag are those of the thesis."""


def evaluate(
    model: nn.Module,
    tokenizer: Any,
    benchmark: str,
    *,
    shots: int | None = None,
    limit: int | None = None,
    batch_size: int = 8,
    chat: bool = False,
    tasks: Path | None = None,
    seed: int = 0,
) -> list[Row]:
    """Scores of a model on a benchmark, in evaluation mode; its own mode is restored.

    Args:
        model: a causal language model of transformers, with adapters or without.
        tokenizer: the one it belongs to.
        benchmark: a name in ``BENCHMARKS``, or another task of the harness.
        shots: number of solved examples before each question; by default that of ``BENCHMARKS``,
            for another task its own.
        limit: number of questions to take (of each subject of MMLU); None for all.
        batch_size: number of sequences at a time.
        chat: write questions in the chat format of the tokenizer.
        tasks: folder with YAML files of further tasks, which then are the only ones besides
            ``BENCHMARKS``.
        seed: decides which examples are shown, where the task draws them.

    Returns:
        Rows ``benchmark, task, metric, value, standard_error, shots, questions``; several metrics
        where the task has them, such as ``acc`` and ``acc_norm``, and subjects where it has groups.

    Raises:
        ValueError: a bad argument or an unknown task.
        RuntimeError: the data are not on this machine and the hub is out of reach, or a package is
            missing. The message says what to fetch and where to put it.
    """
    for name, value in (("batch_size", batch_size), ("limit", 1 if limit is None else limit)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Found {name}={value!r}.")
    if shots is not None and shots < 0:
        raise ValueError(f"shots must be at least 0. Found shots={shots!r}.")
    known = BENCHMARKS.get(benchmark)
    task = known.task if known is not None else benchmark
    wanted = known.shots if known is not None and shots is None else shots

    import lm_eval
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    # The tasks of the harness are thousands of files: they are read only if needed.
    manager = TaskManager(
        include_path=None if tasks is None else str(tasks),
        include_defaults=tasks is None or known is not None,
    )
    if task not in manager.all_tasks:
        raise ValueError(
            f"benchmark must be one of {sorted(BENCHMARKS)} or a task of lm-evaluation-harness. "
            f"Found {benchmark!r}."
        )
    state = random.getstate()  # the harness draws from it, whatever the seeds below
    with in_mode(model, training=False):
        try:
            found = lm_eval.simple_evaluate(
                model=HFLM(pretrained=model, tokenizer=tokenizer, batch_size=batch_size),
                tasks=[task],
                num_fewshot=wanted,
                limit=limit,
                apply_chat_template=chat,
                task_manager=manager,
                log_samples=False,
                # The global generators are the caller's.
                random_seed=None,
                numpy_random_seed=None,
                torch_random_seed=None,
                fewshot_random_seed=seed,
            )
        except ImportError as error:
            packages = known.packages if known is not None else "what the task needs"
            raise RuntimeError(
                f"Benchmark {benchmark!r} needs packages that are missing: {error} "
                f"Install {packages or 'lm-eval'}."
            ) from error
        except (OSError, _data_error()) as error:
            raise RuntimeError(_how_to_fetch(benchmark, task, known, error)) from error
        finally:
            random.setstate(state)
    return _rows(benchmark, found)


def best_metric(rows: Sequence[Row]) -> Row:
    """The row to compare: of the benchmark as a whole, normalised accuracy where there is one.

    Raises:
        ValueError: there are no rows.
    """
    if not rows:
        raise ValueError("rows must hold at least one row. Found none.")
    whole = [row for row in rows if row["task"] == rows[0]["task"]]
    order = ("acc_norm", "math_verify", "exact_match", "acc")
    rank = {metric: number for number, metric in enumerate(order)}
    return min(whole, key=lambda row: rank.get(str(row["metric"]), len(order)))


def _rows(benchmark: str, found: dict[str, Any]) -> list[Row]:
    """Rows of what the harness found; groups first, as it lists them."""
    counts, shots = found.get("n-samples", {}), found.get("n-shot", {})
    rows: list[Row] = []
    for task, values in found["results"].items():
        for key, value in values.items():
            metric, _, kind = key.partition(",")
            if not kind or metric.endswith("_stderr"):
                continue
            error = values.get(f"{metric}_stderr,{kind}")
            rows.append(
                {
                    "benchmark": benchmark,
                    "task": task,
                    "metric": metric,
                    "value": float(value),
                    "standard_error": float(error) if isinstance(error, int | float) else None,
                    "shots": shots.get(task),
                    "questions": counts.get(task, {}).get("effective"),
                }
            )
    return rows


def _data_error() -> type[Exception]:
    from datasets.exceptions import DatasetsError

    found: type[Exception] = DatasetsError
    return found


def _how_to_fetch(benchmark: str, task: str, known: Benchmark | None, error: Exception) -> str:
    data = known.data if known is not None else "its data set"
    home = os.environ.get("HF_HOME", str(Path.home() / ".cache" / "huggingface"))
    cause = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return (
        f"Benchmark {benchmark!r} needs {data} of the Hugging Face hub, which is not on this "
        f"machine and could not be fetched ({cause}). Where there is a network run "
        f"`lm_eval --model dummy --tasks {task} --limit 1`, which fetches it, and copy the folder "
        f"~/.cache/huggingface from there to {home} (HF_HOME) here."
    )
