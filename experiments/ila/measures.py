"""What is measured on every fine-tuned model: losses, benchmarks, and answers for a judge."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from experiments.ila.experiment import LayerExperiment
from experiments.ila.harness import best_metric, evaluate
from experiments.ila.judge import Answer, answer_questions, read_questions, write_answers
from experiments.ila.report import loss_rows

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Measured(NamedTuple):
    """What was found on one model.

    Attributes:
        rows: of the record table ``finetune``, without the method: dataset, metric, value. Losses
            in nats per token, scores of benchmarks in percent.
        answers: to the questions, one after the other; none without questions.
    """

    rows: list[dict[str, Any]]
    answers: list[Answer]


def measure(
    experiment: LayerExperiment[Any],
    model: PreTrainedModel,
    *,
    benchmarks: Sequence[str] = (),
    limit: int | None = None,
    tasks: Path | None = None,
    questions: str = "",
    max_new_tokens: int = 1024,
) -> Measured:
    """Held-out losses of a model, scores of benchmarks, and answers to questions.

    Args:
        experiment: holds what is held out, and the tokenizer.
        model: fine-tuned or not.
        benchmarks: names as :func:`experiments.ila.harness.evaluate` takes them.
        limit: questions of each benchmark; 0 or None for all.
        tasks: folder with tasks of your own, see there.
        questions: file for :func:`experiments.ila.judge.read_questions`; "" for none.
        max_new_tokens: longest answer.

    Raises:
        ValueError: an unknown benchmark.
        RuntimeError: data of a benchmark are missing; the message says how to get them.
    """
    rows = loss_rows(experiment.losses(model))
    for name in benchmarks:
        found = evaluate(model, experiment.tokenizer, name, limit=limit or None, tasks=tasks)
        best = best_metric(found)
        value = 100 * float(best["value"] or 0.0)
        rows.append({"dataset": name, "metric": f"{best['metric']} (%)", "value": value})
    answers: list[Answer] = []
    if questions:
        asked = read_questions(Path(questions))
        answers = answer_questions(
            model, experiment.tokenizer, asked, name="", max_new_tokens=max_new_tokens
        )
    return Measured(rows, answers)


def save_answers(measured: Measured, run_dir: str, name: str) -> None:
    """Write answers for a judge to ``answers/<name>.jsonl`` in the folder of the run.

    Without a folder, or without answers, nothing is written.
    """
    if run_dir and measured.answers:
        folder = Path(run_dir) / "answers"
        folder.mkdir(parents=True, exist_ok=True)
        answers = [answer.model_copy(update={"model_id": name}) for answer in measured.answers]
        write_answers(folder / f"{name.replace(' ', '_')}.jsonl", answers)
