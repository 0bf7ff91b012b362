"""Solving generated tasks: what is generated, and how it is judged."""

from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from peft.tuners.lora import LoraLayer

from data_prep.reasoning import reasoning_tasks
from experiments.ila.adapters import trained_parameters, with_lora
from experiments.ila.chat import encode_prompt
from experiments.ila.reasoning import accuracy, judged
from experiments.models.language import byte_tokenizer, tiny_language_model


@pytest.fixture(scope="module")
def tasks():
    return reasoning_tasks("test", families=["chain_sum", "spell_backward"], size=6)


def test_only_the_full_score_counts(tasks):
    right = [task.answer for task in tasks]
    assert judged(tasks, right).accuracy == judged(tasks, right).mean_score == 1
    # Half right; and a sum inside a sentence, which reasoning-gym gives a part of the score.
    answers = [right[0], right[1], f"It is {right[2]}", "no", right[4], "no"]
    found = judged(tasks, answers)
    assert found.accuracy == pytest.approx(3 / 6)
    assert found.by_family == {"chain_sum": pytest.approx(2 / 3), "spell_backward": 1 / 3}
    assert found.accuracy < found.mean_score < 1
    assert found.answers == tuple(answers)


class Knowing(torch.nn.Module):
    """Answers each prompt with what a dictionary says, as a model of transformers would."""

    def __init__(self, answers, tokenizer):
        super().__init__()
        self.answers, self.tokenizer = answers, tokenizer
        self.device = torch.device("cpu")
        self.config = SimpleNamespace(max_position_embeddings=512)
        self.seen = []

    def generate(self, input_ids, attention_mask, max_new_tokens, do_sample, pad_token_id):
        assert not self.training
        assert not do_sample
        self.seen.append(len(input_ids))
        rows = []
        for ids, mask in zip(input_ids, attention_mask, strict=True):
            assert mask.tolist() == sorted(mask.tolist())  # filled up on the left
            prompt = tuple(ids[mask == 1].tolist())
            answer = self.tokenizer(f" {self.answers[prompt]}<|im_end|>")["input_ids"]
            filler = [pad_token_id] * (max_new_tokens - len(answer))
            rows.append(torch.cat([ids, torch.tensor(answer + filler)]))
        return torch.stack(rows)


@pytest.mark.parametrize("batch_size", [1, 4, 16])
def test_each_answer_goes_to_its_own_task(batch_size, tasks):
    tokenizer = byte_tokenizer()
    known = {tuple(encode_prompt(t.conversation, tokenizer)): t.answer for t in tasks}
    model = Knowing(known, tokenizer)
    found = accuracy(model, tokenizer, tasks, batch_size=batch_size)
    assert found.accuracy == 1
    assert found.answers == tuple(task.answer for task in tasks)
    assert sum(model.seen) == len(tasks)
    assert max(model.seen) == min(batch_size, len(tasks))
    assert model.training


def test_answers_of_a_model_do_not_depend_on_its_neighbours(tasks):
    """Filling up on the left must not be seen: alone and together give the same tokens."""
    model, tokenizer = tiny_language_model(seed=2)
    model.train()
    alone = accuracy(model, tokenizer, tasks, batch_size=1, max_new_tokens=6)
    together = accuracy(model, tokenizer, tasks, batch_size=6, max_new_tokens=6)
    assert alone == together
    assert alone.answers == accuracy(model, tokenizer, tasks, max_new_tokens=6).answers
    assert model.training
    assert alone.accuracy == 0  # it has learned nothing


@pytest.fixture
def adapted():
    """The tiny model with LoRA that changes its answers, and its tokenizer."""
    model, tokenizer = tiny_language_model(seed=2)
    model = with_lora(model, rank=4)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        for parameter in trained_parameters(model).values():
            parameter.data.normal_(std=0.3)
    return model, tokenizer


def test_adapters_are_merged_while_a_model_answers(adapted, tasks, monkeypatch):
    model, tokenizer = adapted
    layers = [module for module in model.modules() if isinstance(module, LoraLayer)]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    seen, generate = [], model.generate

    def spy(**arguments):
        seen.extend(layer.merged for layer in layers)
        return generate(**arguments)

    monkeypatch.setattr(model, "generate", spy)
    merged = accuracy(model, tokenizer, tasks, max_new_tokens=8)
    assert len(seen) == len(layers)
    assert all(seen)
    after = model.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(layer.merged for layer in layers)
    monkeypatch.setattr("experiments.ila.reasoning.merged_adapters", nullcontext)
    apart = accuracy(model, tokenizer, tasks, max_new_tokens=8)
    assert apart == merged
    assert not all(seen)
    with model.disable_adapter():
        assert accuracy(model, tokenizer, tasks, max_new_tokens=8) != apart


def test_a_model_that_fails_is_left_as_it_was(adapted, tasks):
    model, tokenizer = adapted
    before = {name: value.clone() for name, value in model.state_dict().items()}
    model.train()
    model.generate = None
    with pytest.raises(TypeError):
        accuracy(model, tokenizer, tasks)
    assert model.training
    assert not any(getattr(module, "merged", False) for module in model.modules())
    assert all(torch.equal(v, before[name]) for name, v in model.state_dict().items())


def test_what_cannot_be_answered_is_refused(tasks):
    model, tokenizer = tiny_language_model()
    with pytest.raises(ValueError, match="tasks must not be empty"):
        accuracy(model, tokenizer, [])
    with pytest.raises(ValueError, match="Found 6, 0 and 24"):
        accuracy(model, tokenizer, tasks, batch_size=0)
    with pytest.raises(ValueError, match="must fit the context of 512 tokens. Found 588"):
        accuracy(model, tokenizer, tasks, max_new_tokens=500)
    with pytest.raises(ValueError, match="Found 5 answers to 6 tasks"):
        judged(tasks, ["1"] * 5)
