"""Batches that cannot be used are refused before anything runs."""

import pytest
import torch
import transformers
from torch import nn

from ktlib.ila.checks import checked_batches, context_length, model_loss, require_finite


def test_good_batches_come_back_as_they_are(lora_llama, batches):
    found = checked_batches(lora_llama, iter(batches))
    assert len(found) == 3
    for one, other in zip(found, batches, strict=True):
        assert all(one[key] is other[key] for key in other)


def test_no_batches_and_things_that_are_none(llama, batches):
    with pytest.raises(ValueError, match="at least one batch"):
        checked_batches(llama, [])
    with pytest.raises(TypeError, match="Found a single one"):
        checked_batches(llama, batches[0])
    with pytest.raises(TypeError, match="Found list as batch 1"):
        checked_batches(llama, [batches[0], [1]])
    with pytest.raises(TypeError, match="Batch 0: 'labels'"):
        checked_batches(llama, [{**batches[0], "labels": [1, 2]}])
    with pytest.raises(ValueError, match=r"Batch 0 lacks \['labels'\]"):
        checked_batches(llama, [{"input_ids": batches[0]["input_ids"]}])


def test_a_batch_longer_than_the_context_is_named(llama, batches, new_batches):
    assert context_length(llama) == 32
    long = new_batches(1, length=33)
    with pytest.raises(ValueError, match="context of 32 tokens. Found 33 in batch 3"):
        checked_batches(llama, batches + long)
    checked_batches(llama, new_batches(1, length=32))


def test_a_batch_without_targets_is_named(llama, batches):
    labels = torch.full_like(batches[1]["labels"], -100)
    labels[:, 0] = 5  # a causal model never predicts the first token
    bad = {**batches[1], "labels": labels}
    with pytest.raises(ValueError, match="Found none in batch 1"):
        checked_batches(llama, [batches[0], bad])
    labels[0, 1] = 5
    checked_batches(llama, [bad])


def test_batches_of_a_tokenizer_work_and_its_lists_are_refused(llama, batches):
    encoding = transformers.BatchEncoding(dict(batches[0]))
    assert checked_batches(llama, [encoding])[0].keys() == batches[0].keys()
    with pytest.raises(TypeError, match="Found a single one"):
        checked_batches(llama, encoding)
    lists = transformers.BatchEncoding({key: v.tolist() for key, v in batches[0].items()})
    with pytest.raises(TypeError, match=r"is not a tensor but list.*return_tensors='pt'"):
        checked_batches(llama, [lists])


@pytest.mark.parametrize(
    ("key", "change", "message"),
    [
        ("labels", lambda t: t.float(), r"labels must be torch.int64 of shape \(2, 10\).*float32"),
        ("labels", lambda t: t.int(), r"Found torch.int32 of \(2, 10\) in batch 1"),
        ("labels", lambda t: t[:, 1:], r"Found torch.int64 of \(2, 9\) in batch 1"),
        ("labels", lambda t: t[:, 0], r"Found torch.int64 of \(2,\) in batch 1"),
        ("labels", lambda t: t[:1], r"Found torch.int64 of \(1, 10\) in batch 1"),
        ("labels", lambda t: t.where(t >= 0, -1), r"-100 or lie in \[0, 64\). Found -1 to"),
        ("labels", lambda t: t + 64 * (t >= 0), r"lie in \[0, 64\). Found .* in batch 1"),
        ("labels", lambda t: torch.full_like(t, -100), "after the first token. Found none in ba"),
        ("input_ids", lambda t: t.float(), r"whole numbers .* Found torch.float32 of \(2, 10\)"),
        ("attention_mask", lambda t: t[:, 1:], r"shape of input_ids, \(2, 10\). Found \(2, 9\)"),
    ],
)
def test_odd_tensors_are_named(llama, batches, key, change, message):
    with pytest.raises(ValueError, match=message):
        checked_batches(llama, [batches[0], {**batches[1], key: change(batches[1][key])}])


def test_tokens_that_the_model_does_not_know_are_refused(llama, batches):
    ids = batches[0]["input_ids"].clone()
    ids[0, 0] = 64
    with pytest.raises(ValueError, match=r"\[0, 64\).*to 64 in batch 0"):
        checked_batches(llama, [{**batches[0], "input_ids": ids}])
    with pytest.raises(ValueError, match=r"shape \(batch, length\).*\(20,\) in batch 0"):
        checked_batches(llama, [{**batches[0], "input_ids": torch.arange(20)}])


def test_the_loss_is_the_models_own(llama, batches):
    assert torch.equal(model_loss(llama, batches[0]), llama(**batches[0]).loss)
    bare = nn.Linear(2, 2)
    bare.forward = lambda **_: object()
    with pytest.raises(TypeError, match="Linear does not"):
        model_loss(bare, batches[0])


def test_a_loss_that_is_not_finite_is_refused_with_its_place():
    assert require_finite(torch.tensor(2.0), "step 1") == 2.0
    for value in ("nan", "inf", "-inf"):
        with pytest.raises(FloatingPointError, match=f"Found {value} at step 3, batch 7"):
            require_finite(torch.tensor(float(value)), "step 3, batch 7")
