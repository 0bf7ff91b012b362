"""What is measured on every fine-tuned model: losses, and benchmarks and answers if asked for."""

import json

import pytest

from experiments.ila import measures
from experiments.ila.experiment import GENERAL_TEXT
from experiments.ila.harness import evaluate
from experiments.ila.judge import grade_answers, read_answers, read_questions
from experiments.ila.measures import measure, save_answers
from tests.experiments.ila.conftest import write_task


@pytest.fixture
def tasks(tmp_path):
    """A folder with a task of two questions."""
    documents = [
        {"question": "Grass is", "choices": ["green", "red"], "answer": 0},
        {"question": "Snow is", "choices": ["black", "white"], "answer": 1},
    ]
    return write_task(tmp_path, documents)


@pytest.fixture
def questions(tmp_path):
    """A file of two questions, one with two turns."""
    path = tmp_path / "question.jsonl"
    asked = [
        {"question_id": 1, "category": "words", "turns": ["say apple", "again"]},
        {"question_id": 2, "category": "words", "turns": ["say river"]},
    ]
    path.write_text("\n".join(json.dumps(q) for q in asked))
    return path


def test_losses_alone(experiment, sets, tmp_path):
    model = experiment.new_model()
    found = measure(experiment, model)
    assert {row["dataset"]: row["value"] for row in found.rows} == experiment.losses(model)
    assert [row["dataset"] for row in found.rows] == [*sets, GENERAL_TEXT]
    assert {row["metric"] for row in found.rows} == {"loss"}
    save_answers(found, str(tmp_path), "not tuned")
    assert not list(tmp_path.glob("answers/*"))


def test_benchmarks_stand_beside_the_losses_in_percent(experiment, tasks):
    model = experiment.new_model()
    found = measure(experiment, model, benchmarks=["colours"], limit=0, tasks=tasks)
    (wanted,) = evaluate(model, experiment.tokenizer, "colours", tasks=tasks)
    row = {"dataset": "colours", "metric": "acc (%)", "value": 100 * wanted["value"]}
    assert found.rows[-1] == row
    assert len(found.rows) == 4


def test_all_questions_or_so_many_are_asked_and_scores_are_percent(experiment, monkeypatch):
    """The tiny model may be right never or always, which says nothing about percent."""
    asked = []

    def evaluated(model, tokenizer, name, *, limit, tasks):
        asked.append((name, limit))
        return [{"task": name, "metric": "acc", "value": 0.25}]

    monkeypatch.setattr(measures, "evaluate", evaluated)
    model = experiment.new_model()
    rows = measure(experiment, model, benchmarks=["one", "two"], limit=0).rows[-2:]
    assert [(row["dataset"], row["value"]) for row in rows] == [("one", 25.0), ("two", 25.0)]
    measure(experiment, model, benchmarks=["one"], limit=7)
    assert asked == [("one", None), ("two", None), ("one", 7)]


def test_answers_are_kept_for_any_judge(experiment, questions, tmp_path):
    found = measure(experiment, experiment.new_model(), questions=str(questions), max_new_tokens=3)
    save_answers(found, str(tmp_path / "run"), "lora top 0")
    answers = read_answers(tmp_path / "run/answers/lora_top_0.jsonl")
    assert [(a.question_id, a.model_id, len(a.turns)) for a in answers] == [
        (1, "lora top 0", 2),
        (2, "lora top 0", 1),
    ]
    grades = grade_answers(read_questions(questions), answers, lambda *_: 7.0)
    assert [grade.grade for grade in grades] == [7.0] * 3


def test_without_a_folder_nothing_is_written(experiment, questions, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = measure(experiment, experiment.new_model(), questions=str(questions), max_new_tokens=2)
    save_answers(found, "", "not tuned")
    assert not (tmp_path / "answers").exists()


def test_an_unknown_benchmark_is_named(experiment, tasks):
    with pytest.raises(ValueError, match="task of lm-evaluation-harness. Found 'colors'"):
        measure(experiment, experiment.new_model(), benchmarks=["colors"], tasks=tasks)
