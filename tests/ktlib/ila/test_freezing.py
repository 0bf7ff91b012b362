"""Frozen layers stay as they are, whatever the optimiser does."""

import pytest
import torch

from ktlib.ila.freezing import freeze_unimportant
from ktlib.ila.layers import adapted_layers, linear_layers
from ktlib.ila.ranking import LayerRanking
from ktlib.testing import assert_step_updates


def ranking_of(names):
    return LayerRanking(scores={name: float(i * 7 % 13) for i, name in enumerate(names)})


def train(model, batches, optimizer, steps=3):
    for step in range(steps):
        optimizer.zero_grad()
        model(**batches[step % len(batches)]).loss.backward()
        optimizer.step()


def adapter_weights(model, names):
    layers = adapted_layers(model)
    parts = ("lora_A", "lora_B")
    return {f"{n}.{p}": getattr(layers[n], p)["default"].weight for n in names for p in parts}


@pytest.mark.parametrize("early", [False, True])
def test_frozen_adapters_stay_and_the_others_train(lora_llama, batches, early):
    ranking = ranking_of(adapted_layers(lora_llama))
    build = lambda: torch.optim.AdamW(  # noqa: E731
        (p for p in lora_llama.parameters() if p.requires_grad), lr=0.01, weight_decay=0.5
    )
    if early:  # the optimiser knows all weights, and has momentum of all of them
        optimizer = build()
        train(lora_llama, batches, optimizer)
    frozen = freeze_unimportant(lora_llama, ranking, keep=0.75)
    assert frozen == ranking.names[::-1][:3]  # 14 layers, 10.5 of them kept: 11
    assert set(frozen) == set(ranking.names) - set(ranking.top(0.75))
    # A gradient from before the call would be applied by the next step.
    assert all(p.grad is None for p in adapter_weights(lora_llama, frozen).values())
    optimizer = optimizer if early else build()
    assert_step_updates(
        lambda: train(lora_llama, batches, optimizer),
        adapter_weights(lora_llama, ranking.top(0.75)),
        adapter_weights(lora_llama, frozen),
    )
    assert all(not p.requires_grad for p in adapter_weights(lora_llama, frozen).values())


@pytest.mark.parametrize("early", [False, True])
def test_frozen_weights_of_a_whole_model_stay(new_llama, batches, early):
    model = new_llama(tied=False, attention_bias=True)
    ranking = ranking_of(linear_layers(model))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.5)
    if early:
        train(model, batches, optimizer)
    frozen = freeze_unimportant(model, ranking, keep=0.5)
    assert len(frozen) == 7
    parameters = dict(model.named_parameters())
    still = {n: p for n, p in parameters.items() if n.rpartition(".")[0] in frozen}
    biases = [name for name in still if name.endswith(".bias")]
    assert biases
    rest = {n: p for n, p in parameters.items() if n not in still and not n.endswith(".bias")}
    assert_step_updates(lambda: train(model, batches, optimizer), rest, still)


def test_a_second_call_changes_nothing_and_all_may_be_kept(lora_llama):
    ranking = ranking_of(adapted_layers(lora_llama))
    assert freeze_unimportant(lora_llama, ranking, keep=1) == ()
    assert any(p.requires_grad for p in lora_llama.parameters())
    once = freeze_unimportant(lora_llama, ranking)
    flags = [p.requires_grad for p in lora_llama.parameters()]
    assert freeze_unimportant(lora_llama, ranking) == once
    assert [p.requires_grad for p in lora_llama.parameters()] == flags


def test_layers_without_a_rank_stay_trainable(lora_llama):
    names = [name for name in adapted_layers(lora_llama) if name.endswith("q_proj")]
    frozen = freeze_unimportant(lora_llama, ranking_of(names), keep=0.5)
    assert len(frozen) == 1
    weights = adapter_weights(lora_llama, set(adapted_layers(lora_llama)) - set(frozen))
    assert all(weight.requires_grad for weight in weights.values())


@pytest.mark.parametrize("keep", [0, -1, 1.2, float("nan")])
def test_a_share_outside_is_refused(lora_llama, keep):
    ranking = ranking_of(adapted_layers(lora_llama))
    with pytest.raises(ValueError, match=rf"^keep must lie in \(0, 1\]. Found keep={keep!r}"):
        freeze_unimportant(lora_llama, ranking, keep=keep)


def test_a_ranking_of_another_model_is_refused_and_nothing_is_frozen(
    lora_llama, new_llama, new_lora
):
    flags = [p.requires_grad for p in lora_llama.parameters()]
    larger = ranking_of(adapted_layers(new_lora(new_llama(blocks=3))))
    with pytest.raises(ValueError, match=r"missing: model.layers.2.self_attn.q_proj.*2 more"):
        freeze_unimportant(lora_llama, larger)
    head = LayerRanking(scores={"lm_head": 0.0, "model.layers.0.mlp.up_proj": 1.0})
    with pytest.raises(ValueError, match=r"no adapter on \['lm_head'\]"):
        freeze_unimportant(lora_llama, head, keep=0.5)
    assert [p.requires_grad for p in lora_llama.parameters()] == flags
