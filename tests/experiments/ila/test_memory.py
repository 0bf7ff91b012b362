"""Peak memory and time of training steps."""

import os

import pytest
import torch

from experiments.ila.adapters import trained_parameters, with_all_weights, with_lora
from experiments.ila.finetuning import TrainingOptions
from experiments.ila.memory import cost_row, model_bytes, peak_growth, ranking_cost, training_cost

pytestmark = pytest.mark.slow
FIRST, LAST = "model.layers.0.mlp.up_proj", "model.layers.3.mlp.up_proj"
WIDE = {"hidden_size": 64, "intermediate_size": 128, "blocks": 4}


@pytest.fixture
def short(new_batches):
    """So few tokens that weights take nearly all of the memory."""
    return new_batches(1, size=1, length=6)[0]


@pytest.fixture
def long(new_batches):
    """So many that activations take most of it."""
    return new_batches(1, size=16, length=32)[0]


def test_growth_by_hand(capfd):
    """Kept to the end, freed, and a second one after the first is gone."""

    def work():
        kept = torch.empty(1000)
        del kept
        both = [torch.empty(700), torch.empty(800)]
        return torch.empty(10), both

    for _ in range(2):
        assert peak_growth(work, "cpu") == 4 * (700 + 800 + 10)
    assert "KINETO_LOG_LEVEL" not in os.environ
    assert capfd.readouterr() == ("", ""), "nothing is written to the terminal"


def test_memory_of_a_model(new_llama):
    tied, free = new_llama(), new_llama(tied=False)
    for model in (tied, free):
        parameters = sum(p.numel() for p in model.parameters())
        buffers = sum(b.numel() for b in model.buffers())
        assert model_bytes(model) == 4 * (parameters + buffers)
    assert model_bytes(free) - model_bytes(tied) == 4 * 64 * 16


def test_all_weights_need_four_times_their_memory(new_llama, short):
    """Weights, gradients and two averages; and activations and scratch, little here."""
    model = with_all_weights(new_llama(**WIDE))
    cost = training_cost(model, short, steps=1)
    assert 4 <= cost.peak_bytes / cost.model_bytes < 4.7
    assert cost.seconds_per_step > 0


def test_chosen_weights_need_three_times_less_of_the_others(new_llama, short):
    model = with_all_weights(new_llama(**WIDE), [LAST])
    cost = training_cost(model, short, steps=1)
    chosen = 4 * sum(p.numel() for p in trained_parameters(model).values())
    grown = cost.peak_bytes - cost.model_bytes
    assert 3 * chosen <= grown < 3 * chosen + 0.5 * cost.model_bytes


def test_equal_from_run_to_run_and_leaves_the_model(new_llama, long):
    model = with_lora(new_llama(**WIDE), rank=2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    peaks = {training_cost(model, long, steps=1).peak_bytes for _ in range(2)}
    assert len(peaks) == 1
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
        assert p.grad is None


def test_fewer_layers_and_higher_ones_keep_fewer_activations(new_llama, long):
    def peak(layers):
        return training_cost(with_lora(new_llama(**WIDE), rank=2, layers=layers), long).peak_bytes

    everything, first, last = peak("all"), peak([FIRST]), peak([LAST])
    assert last < 0.8 * first < 0.8 * everything


def test_backward_stops_at_the_lowest_trained_layer(new_llama, short):
    model, reached = with_lora(new_llama(**WIDE), rank=2, layers=[LAST]), []
    for number, block in enumerate(model.get_base_model().model.layers):
        block.register_forward_hook(
            lambda module, args, out, n=number: reached.append((n, out.requires_grad))
        )
    model(**short)
    assert reached == [(0, False), (1, False), (2, False), (3, True)]


def test_scores_need_less_than_adapters_and_leave_the_model(new_llama, short):
    """So many weights in the adapters that their gradients and averages are most of the memory."""
    model = with_lora(new_llama(**WIDE), rank=64)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    adapters = 4 * sum(p.numel() for p in trained_parameters(model).values())
    first, second = training_cost(model, short), ranking_cost(model, short)
    saved = first.peak_bytes - second.peak_bytes
    assert 2.9 * adapters < saved < 3 * adapters, "gradients, and two averages of AdamW"
    assert second.seconds_per_step > 0
    assert second.model_bytes - first.model_bytes == 4 * 28, "one score for each of 4 x 7 layers"
    for name, p in model.named_parameters():
        assert torch.equal(p, before[name]), name
        assert p.grad is None


def test_as_many_steps_of_the_ranking_as_were_asked_for(new_llama, short):
    model, passes = with_lora(new_llama(), rank=1), []
    model.register_forward_hook(lambda *_: passes.append(1))
    ranking_cost(model, short, steps=3, warmup=4)
    assert len(passes) == 4 + 2 + 3, "before, for memory, and for time"


def test_row_of_the_record(new_llama, short):
    options = TrainingOptions(precision="bfloat16")
    cost = training_cost(with_lora(new_llama(), rank=1), short, steps=1, options=options)
    assert cost_row("LoRA", "all", cost) == {
        "method": "LoRA",
        "layers": "all",
        "peak_bytes": cost.peak_bytes,
        "seconds_per_step": cost.seconds_per_step,
    }


def test_bad_arguments(new_llama, short):
    for name in ("steps", "warmup"):
        with pytest.raises(ValueError, match=f"{name} must be at least 1. Found {name}=0"):
            training_cost(new_llama(), short, **{name: 0})
        with pytest.raises(ValueError, match=f"{name} must be at least 1. Found {name}=0"):
            ranking_cost(new_llama(), short, **{name: 0})
    with pytest.raises(ValueError, match="must have LoRA adapters"):
        ranking_cost(new_llama(), short)
    with pytest.raises(ValueError, match="must hold values. Found its parameters on the meta"):
        training_cost(new_llama().to("meta"), short)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_on_a_gpu(new_llama, short):
    model = with_all_weights(new_llama(**WIDE).cuda())
    cost = training_cost(model, short, steps=1)
    assert 4 <= cost.peak_bytes / cost.model_bytes < 8, "blocks of 512 bytes"
    assert peak_growth(lambda: torch.empty(1 << 20, device="cuda"), "cuda") == 4 << 20


def test_on_another_accelerator_a_copy_is_measured(new_llama, short, strict):
    model = new_llama().to(strict)
    cost = training_cost(model, short, steps=1, warmup=1)
    assert cost.peak_bytes > cost.model_bytes > 0
    assert next(model.parameters()).device == strict
