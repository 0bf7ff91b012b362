"""Small sets of conversations, and the experiment on them."""

import json

import pytest
import yaml

from experiments.ila.experiment import LayerExperiment
from experiments.ila.parameters import LanguageParameters
from tests.ktlib.ila.conftest import (
    batches,
    device,
    llama,
    lora_llama,
    new_batches,
    new_llama,
    new_lora,
)

__all__ = ["batches", "device", "llama", "lora_llama", "new_batches", "new_llama", "new_lora"]

WORDS = ("apple", "river", "seven", "cloud", "stone", "green", "paper", "light", "sound", "table")


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Two small sets of conversations in files."""
    folder, paths = tmp_path_factory.mktemp("conversations"), []
    for name, answer in (("echo", str), ("twice", lambda word: f"{word} {word}")):
        rows = [
            {"instruction": f"{name} {a} {b}", "input": "", "output": answer(f"{a}{b}")}
            for a in WORDS
            for b in WORDS[:4]
        ]
        path = folder / f"{name}.json"
        path.write_text(json.dumps(rows))
        paths.append(str(path))
    return paths


@pytest.fixture
def experiment(sets, monkeypatch):
    monkeypatch.setattr(
        "experiments.ila.experiment.load_text",
        lambda name: [f"{name} {word} " * 4 for word in WORDS],
    )
    return LayerExperiment(parameters(sets), "cpu")


def parameters(sets, **values):
    known = {
        "seeds": [0, 1], "device": "cpu", "precision": "float32", "profile": "test", "run_dir": "",
        "model": "tiny", "quantized": False, "datasets": sets, "general_text": "moby_dick",
        "train_examples": 12, "test_examples": 4, "text_examples": 3, "max_tokens": 120,
        "batch_size": 4, "lora_rank": 2, "lr": 0.01, "full_lr": 0.001, "stage_1_steps": 4,
        "epsilon": 0.1, "initial_score": 4.0, "score_lr": 0.05, "stage_2_steps": 3,
        "stage_2_batch_size": 2, "keep": 0.75, "top": 0.25,
    }  # fmt: skip
    return LanguageParameters.model_validate(known | values)


def write_task(folder, documents):
    """A folder with the multiple-choice task ``colours`` of lm-evaluation-harness."""
    data = folder / "colours.json"
    data.write_text("\n".join(json.dumps(document) for document in documents))
    task = {
        "task": "colours",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}, "cache_dir": str(folder / "c")},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_target": "{{answer}}",
        "doc_to_choice": "{{choices}}",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    tasks = folder / "tasks"
    tasks.mkdir()
    (tasks / "colours.yaml").write_text(yaml.safe_dump(task))
    return tasks
