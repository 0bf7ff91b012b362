"""Benchmarks through lm-evaluation-harness, on a task and data of this folder alone."""

import random

import numpy as np
import pytest
import torch
import yaml

from experiments.ila import harness
from experiments.ila.harness import BENCHMARKS, best_metric, evaluate
from experiments.models.language import tiny_language_model
from tests.experiments.ila.conftest import write_task

DOCUMENTS = [
    {"question": "Grass is", "choices": ["green", "red"], "answer": 0},
    {"question": "Snow is", "choices": ["black", "white"], "answer": 1},
    {"question": "Coal is", "choices": ["black", "white"], "answer": 0},
    {"question": "Two and two", "choices": ["three", "four", "five"], "answer": 1},
    {"question": "One and one", "choices": ["two", "six", "one"], "answer": 0},
]


@pytest.fixture
def tasks(tmp_path):
    """A folder with a task of five questions."""
    return write_task(tmp_path, DOCUMENTS)


@torch.no_grad()
def log_likelihood(model, tokenizer, question, choice):
    context, ids = len(tokenizer.encode(question)), tokenizer.encode(f"{question} {choice}")
    scores = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
    return sum(float(scores[i - 1, ids[i]]) for i in range(context, len(ids)))


def numpy_state():
    return np.random.get_state()[1].tolist()  # noqa: NPY002 - the global one is looked at


@pytest.mark.slow
def test_accuracy_is_that_of_the_likelier_choice(tasks):
    model, tokenizer = tiny_language_model(seed=3)
    model.train()
    random.seed(1)
    before = torch.get_rng_state(), random.getstate(), numpy_state()
    rows = evaluate(model, tokenizer, "colours", tasks=tasks, batch_size=2)
    after = torch.get_rng_state(), random.getstate(), numpy_state()
    assert torch.equal(before[0], after[0])
    assert before[1:] == after[1:], "the global generators are left alone"
    assert all(module.training for module in model.modules())
    model.eval()
    right = [
        max(d["choices"], key=lambda c: log_likelihood(model, tokenizer, d["question"], c))
        == d["choices"][d["answer"]]
        for d in DOCUMENTS
    ]
    accuracy = sum(right) / 5
    error = (accuracy * (1 - accuracy) / 4) ** 0.5
    assert rows == [
        {
            "benchmark": "colours",
            "task": "colours",
            "metric": "acc",
            "value": pytest.approx(accuracy),
            "standard_error": pytest.approx(error),
            "shots": 0,
            "questions": 5,
        }
    ]
    assert best_metric(rows) == rows[0]
    limited = evaluate(model, tokenizer, "colours", tasks=tasks, limit=3)
    assert limited[0]["questions"] == 3
    assert limited[0]["value"] == pytest.approx(sum(right[:3]) / 3)


def test_without_the_data_it_says_what_to_fetch(tasks, monkeypatch):
    model, tokenizer = tiny_language_model()
    task = yaml.safe_load((tasks / "colours.yaml").read_text())
    task["task"], task["dataset_path"] = "hellaswag", "Rowan/hellaswag"
    del task["dataset_kwargs"]
    (tasks / "colours.yaml").write_text(yaml.safe_dump(task))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setitem(BENCHMARKS, "hidden", BENCHMARKS["hellaswag"])
    monkeypatch.setattr(harness, "BENCHMARKS", {})  # so that the task of the folder is taken
    with pytest.raises(RuntimeError) as caught:
        evaluate(model, tokenizer, "hellaswag", tasks=tasks)
    message = str(caught.value)
    assert "lm_eval --model dummy --tasks hellaswag --limit 1" in message
    assert "HF_HOME" in message
    known = harness._how_to_fetch("mmlu", "mmlu", BENCHMARKS["mmlu"], OSError("no route"))
    assert "needs cais/mmlu of the Hugging Face hub" in known
    assert "(no route)" in known


def test_bad_arguments(tasks):
    model, tokenizer = tiny_language_model()
    with pytest.raises(ValueError, match="batch_size must be at least 1. Found batch_size=0"):
        evaluate(model, tokenizer, "mmlu", batch_size=0)
    with pytest.raises(ValueError, match="limit must be at least 1. Found limit=0"):
        evaluate(model, tokenizer, "mmlu", limit=0)
    with pytest.raises(ValueError, match="shots must be at least 0. Found shots=-1"):
        evaluate(model, tokenizer, "mmlu", shots=-1)
    with pytest.raises(ValueError, match=r"benchmark must be one of \['hellaswag', 'math500'"):
        evaluate(model, tokenizer, "color", tasks=tasks)
    with pytest.raises(ValueError, match="rows must hold at least one row"):
        best_metric([])


def test_rows_of_groups_and_metrics():
    found = {
        "results": {
            "mmlu": {"alias": "mmlu", "acc,none": 0.5, "acc_stderr,none": 0.1},
            "mmlu_law": {"acc,none": 0.25, "acc_stderr,none": "N/A", "acc_norm,none": 0.75},
        },
        "n-samples": {"mmlu_law": {"original": 9, "effective": 4}},
        "n-shot": {"mmlu_law": 5},
    }
    rows = harness._rows("mmlu", found)
    assert [(r["task"], r["metric"], r["value"], r["standard_error"]) for r in rows] == [
        ("mmlu", "acc", 0.5, 0.1),
        ("mmlu_law", "acc", 0.25, None),
        ("mmlu_law", "acc_norm", 0.75, None),
    ]
    assert [(r["shots"], r["questions"]) for r in rows] == [(None, None), (5, 4), (5, 4)]
    assert best_metric(rows)["task"] == "mmlu"
    assert best_metric(rows[1:])["metric"] == "acc_norm"


@pytest.mark.slow
def test_the_harness_knows_every_benchmark():
    from lm_eval.tasks import TaskManager

    known = set(TaskManager().all_tasks)
    assert {benchmark.task for benchmark in BENCHMARKS.values()} <= known
