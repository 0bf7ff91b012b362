"""Gates on updates: their two limits, their gradients, and a model that is afterwards as before."""

import math
from contextlib import contextmanager

import peft
import pytest
import torch
from torch import nn
from torch.func import functional_call

from ktlib.device import autocast
from ktlib.ila.gates import GATE, LayerGate, gated_updates, gated_weights
from ktlib.ila.layers import adapted_layers, linear_layers
from ktlib.testing import assert_gradient_flow

ON, OFF = math.inf, -math.inf


def logits(model, batch):
    with torch.no_grad():
        return model(**batch).logits


def checkpoint(model, **options):
    """Switch gradient checkpointing on, under its new or its old name."""
    new = getattr(model, "activation_checkpointing_enable", None)
    (new or model.gradient_checkpointing_enable)({"use_reentrant": False} | options)


def photograph(model):
    """Everything about a model that a gate could leave changed."""
    modules = dict(model.named_modules())
    return {
        "values": {name: value.clone() for name, value in model.state_dict().items()},
        "parameters": [
            (n, id(p), p.requires_grad, id(p.grad)) for n, p in model.named_parameters()
        ],
        "modes": {name: module.training for name, module in modules.items()},
        "classes": {name: type(module) for name, module in modules.items()},
        "attributes": {
            name: [(key, str(value)) for key, value in module.__dict__.items() if key[0] != "_"]
            for name, module in modules.items()
        },
        "children": {name: list(module._modules) for name, module in modules.items()},
        "own": {name: list(module._parameters) for name, module in modules.items()},
        "hooks": {
            name: (
                len(module._forward_hooks),
                len(module._forward_pre_hooks),
                len(module._forward_hooks_always_called),
            )
            for name, module in modules.items()
        },
        "config": model.config.to_dict(),
        "random": torch.get_rng_state(),
    }


def assert_same(before, after):
    values, others = before.pop("values"), after.pop("values")
    assert list(values) == list(others)
    assert all(torch.equal(values[name], others[name]) for name in values)
    assert torch.equal(before.pop("random"), after.pop("random"))
    assert before == after


@contextmanager
def doubled(gated):
    """Gates in double precision, for comparisons to many digits."""
    with gated as gates:
        for gate in gates.values():
            gate.double()
        yield gates


# The limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("bias", [False, True])
def test_gates_of_one_and_zero_are_the_adapted_and_the_base_model(
    new_llama, new_lora, batches, device, precision, bias
):
    biased = {"attention_bias": True, "mlp_bias": True}
    model = new_lora(new_llama(**biased), lora_bias=bias, lora_dropout=0.5).to(device).eval()
    if bias:
        for layer in adapted_layers(model).values():
            nn.init.normal_(layer.lora_B["default"].bias)
    with autocast(device, precision):
        adapted = logits(model, batches[0])
        with model.disable_adapter():
            base = logits(model, batches[0])
        assert not torch.equal(adapted, base)
        with gated_updates(model, ON):
            assert torch.equal(logits(model, batches[0]), adapted)
        with gated_updates(model, OFF):
            assert torch.equal(logits(model, batches[0]), base)
        with gated_updates(model, 4.0):
            between = logits(model, batches[0])
    assert not torch.equal(between, adapted)
    assert not torch.equal(between, base)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("tied", [True, False])
def test_gates_on_weights_reach_both_checkpoints(new_llama, batches, device, dtype, tied):
    # Only linear layers differ, because only these go back to the base with gates of 0.
    tuned = new_llama(tied=False, attention_bias=True).to(device, dtype).eval()
    base = new_llama(tied=False, attention_bias=True).to(device, dtype).eval()
    with torch.no_grad():
        for layer in linear_layers(tuned).values():
            for parameter in layer.parameters():
                parameter.add_(torch.randn_like(parameter) / 3)
    if tied:  # embeddings tied to the head follow the fine-tuned model
        tuned.tie_weights()
        tuned.model.embed_tokens.weight = tuned.lm_head.weight
        base.model.embed_tokens.weight = nn.Parameter(tuned.lm_head.weight.detach().clone())
    after, before = logits(tuned, batches[0]), logits(base, batches[0])
    assert not torch.equal(after, before)
    with gated_weights(tuned, base.state_dict(), ON):
        assert torch.equal(logits(tuned, batches[0]), after)
    with gated_weights(tuned, base.state_dict(), OFF):
        assert torch.equal(logits(tuned, batches[0]), before)
    assert torch.equal(logits(tuned, batches[0]), after)


def test_a_mix_of_weights_is_exact_at_both_ends_where_the_plain_formula_is_not():
    before, after = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(0))
    gate = LayerGate(ON, torch.sigmoid, torch.device("cpu"))
    assert torch.equal(gate.between(before, after), after)
    assert not torch.equal(before + (after - before), after)
    gate.score.data.fill_(OFF)
    assert torch.equal(gate.between(before, after), before)
    gate.score.data.fill_(0.0)
    assert torch.allclose(gate.between(before, after), (before + after) / 2, atol=1e-6)


def test_gates_of_half_precision_models_are_not_rounded_to_half_precision():
    gate = LayerGate(4.0, torch.sigmoid, torch.device("cpu"))
    update, slope = torch.rand(2, 1000, generator=torch.Generator().manual_seed(0)).bfloat16()
    result = gate(update)
    # In bfloat16 gamma itself would be the nearest multiple of 1/256.
    assert torch.equal(result, (update.float() * 0.98201379).bfloat16())
    result.backward(slope)
    exact = float((update.double() * slope.double()).sum()) * 0.98201379 * (1 - 0.98201379)
    assert float(gate.score.grad) == pytest.approx(exact, rel=1e-5)


def test_a_tied_adapted_head_has_both_limits(new_llama, new_lora, batches):
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model = new_lora(new_llama(), targets=["lm_head", "up_proj"]).eval()
    adapted = logits(model, batches[0])
    with model.disable_adapter():
        base = logits(model, batches[0])
    with gated_updates(model, ON) as gates:
        assert torch.equal(logits(model, batches[0]), adapted)
        for gate in gates.values():
            gate.score.data.fill_(OFF)
        assert torch.equal(logits(model, batches[0]), base)


# Gradients ------------------------------------------------------------------------------------


def test_only_the_scores_train_and_they_are_parameters_of_the_model(lora_llama, batches):
    with gated_updates(lora_llama) as gates:
        named = dict(lora_llama.named_parameters())
        scores = {name: p for name, p in named.items() if name.endswith(f"{GATE}.score")}
        assert len(scores) == len(gates) == 14
        assert set(scores) <= set(lora_llama.state_dict())
        assert {id(p) for p in scores.values()} == {id(g.score) for g in gates.values()}
        trainable = [name for name, p in named.items() if p.requires_grad]
        assert trainable == list(scores)
        frozen = {name: p for name, p in named.items() if name not in scores}
        assert_gradient_flow(lambda: {"loss": lora_llama(**batches[0]).loss}, scores, frozen)
        lora_llama(**batches[0]).loss.backward()
        assert all(p.grad is None for p in frozen.values())


def closed_form(plain, start, update, gates, batch):
    """sigmoid'(s_i) <Dtheta^i, grad_i L>, with dense weights and without peft or gates."""
    gamma = {name: gate.gamma().detach() for name, gate in gates.items()}
    weights = {
        key: (start[key] + gamma[key.rpartition(".")[0]] * delta).requires_grad_()
        for key, delta in update.items()
    }
    loss = functional_call(plain, weights, kwargs={**batch, "use_cache": False}).loss
    gradients = torch.autograd.grad(loss, list(weights.values()))
    products = dict.fromkeys(gamma, 0.0)
    for (key, delta), gradient in zip(update.items(), gradients, strict=True):
        products[key.rpartition(".")[0]] += float((delta * gradient).sum())
    slopes = {name: float(g * (1 - g)) for name, g in gamma.items()}
    return loss.detach(), {name: slopes[name] * products[name] for name in gamma}


def test_the_gradient_of_a_lora_score_is_the_closed_form(new_llama, new_lora, batches):
    plain = new_llama().double().eval()
    model = new_lora(new_llama()).double().eval()
    layers = adapted_layers(model)
    start = {f"{n}.weight": layer.base_layer.weight.detach() for n, layer in layers.items()}
    update = {f"{n}.weight": la.get_delta_weight("default").detach() for n, la in layers.items()}
    with doubled(gated_updates(model)) as gates:
        for number, gate in enumerate(gates.values()):
            gate.score.data.fill_(number / 3 - 2)  # gates of 0.12 to 0.91, all different
        loss = model(**batches[0]).loss
        loss.backward()
        expected_loss, expected = closed_form(plain, start, update, gates, batches[0])
        assert torch.allclose(loss, expected_loss, rtol=1e-12)
        for name, gate in gates.items():
            assert float(gate.score.grad) == pytest.approx(expected[name], rel=1e-8), name


def test_the_gradient_of_a_score_on_weights_is_the_closed_form(new_llama, batches):
    options = {"tied": False, "attention_bias": True}
    plain, tuned = (new_llama(**options).double().eval() for _ in range(2))
    base = new_llama(seed=5, **options).double().state_dict()
    keys = [f"{n}.{k}" for n, m in linear_layers(plain).items() for k, _ in m.named_parameters()]
    update = {key: tuned.state_dict()[key] - base[key] for key in keys}
    with doubled(gated_weights(tuned, base)) as gates:
        for number, gate in enumerate(gates.values()):
            gate.score.data.fill_(number / 3 - 2)
        loss = tuned(**batches[0]).loss
        loss.backward()
        expected_loss, expected = closed_form(plain, base, update, gates, batches[0])
        assert torch.allclose(loss, expected_loss, rtol=1e-12)
        for name, gate in gates.items():
            assert float(gate.score.grad) == pytest.approx(expected[name], rel=1e-8), name
        trained = [n for n, p in tuned.named_parameters() if p.requires_grad]
        assert len(trained) == len(gates) == 15
        assert all(name.endswith(f"{GATE}.score") for name in trained)


def test_the_gradient_of_a_score_is_the_slope_of_the_loss(lora_llama, batches):
    with gated_updates(lora_llama, 1.0) as gates:
        gate = gates["model.layers.1.mlp.down_proj"]
        lora_llama(**batches[0]).loss.backward()
        values = []
        for score in (1.02, 0.98):
            gate.score.data.fill_(score)
            values.append(float(lora_llama(**batches[0]).loss.detach()))
        slope = (values[0] - values[1]) / 0.04
        assert abs(slope) > 1e-3
        assert float(gate.score.grad) == pytest.approx(slope, rel=0.01)


# Modes ----------------------------------------------------------------------------------------


def test_dropout_is_off_inside(new_llama, new_lora, batches):
    model = new_lora(new_llama(attention_dropout=0.5), lora_dropout=0.5).train()
    assert not torch.equal(logits(model, batches[0]), logits(model, batches[0]))
    with gated_updates(model):
        assert torch.equal(logits(model, batches[0]), logits(model, batches[0]))
    assert all(module.training for module in model.modules())


def test_checkpointing_stays_on_and_changes_no_gradient(lora_llama, batches):
    def gradients():
        with gated_updates(lora_llama) as gates:
            lora_llama(**batches[0]).loss.backward()
            return [gate.uses for gate in gates.values()], [g.score.grad for g in gates.values()]

    lora_llama.train()
    uses, plain = gradients()
    assert set(uses) == {1}
    checkpoint(lora_llama)
    uses, checkpointed = gradients()
    assert set(uses) == {2}  # computed once more in the backward pass
    assert torch.equal(torch.stack(plain), torch.stack(checkpointed))


def test_only_the_active_adapter_is_gated(lora_llama, batches):
    lora_llama.add_adapter("other", peft.LoraConfig(r=2, target_modules=["q_proj"]))
    with torch.no_grad():
        for name, parameter in lora_llama.named_parameters():
            if ".lora_B.other." in name:
                parameter.normal_()
    lora_llama.set_adapter("other")
    lora_llama.eval()
    other = logits(lora_llama, batches[0])
    with gated_updates(lora_llama, ON) as gates:
        assert len(gates) == 2
        assert torch.equal(logits(lora_llama, batches[0]), other)
    with lora_llama.disable_adapter():
        base = logits(lora_llama, batches[0])
    lora_llama.set_adapter("other")
    with gated_updates(lora_llama, OFF):
        assert torch.equal(logits(lora_llama, batches[0]), base)


# Restoring ------------------------------------------------------------------------------------


def used(model, gated, batch, fail):
    with gated as gates:
        loss = model(**batch).loss
        loss.backward()
        torch.rand(3)
        model.zero_grad()
        for gate in gates.values():
            gate.score.data += 1
        if fail:
            raise KeyboardInterrupt


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_restored_with_adapters(lora_llama, batches, fail):
    lora_llama.train()
    lora_llama.base_model.model.model.layers[0].eval()
    lora_llama(**batches[0]).loss.backward()  # gradients that must still be there afterwards
    first = next(p for p in lora_llama.parameters() if p.requires_grad)
    first.requires_grad_(False)
    gradients = [None if p.grad is None else p.grad.clone() for p in lora_llama.parameters()]
    before = photograph(lora_llama)
    try:
        used(lora_llama, gated_updates(lora_llama), batches[1], fail)
    except KeyboardInterrupt:
        assert fail
    assert_same(before, photograph(lora_llama))
    for parameter, gradient in zip(lora_llama.parameters(), gradients, strict=True):
        assert (parameter.grad is None) == (gradient is None)
        assert gradient is None or torch.equal(parameter.grad, gradient)


@pytest.mark.parametrize("fail", [False, True])
def test_the_model_is_restored_without_adapters(llama, new_llama, batches, fail):
    base = new_llama(seed=4).state_dict()
    llama.train()
    before = photograph(llama)
    try:
        used(llama, gated_weights(llama, base), batches[1], fail)
    except KeyboardInterrupt:
        assert fail
    assert_same(before, photograph(llama))
    assert llama.lm_head.weight is llama.model.embed_tokens.weight


def test_an_error_inside_a_layer_leaves_no_mixed_weights(llama, new_llama, batches):
    def broken(_module, _arguments):
        raise OSError

    layer = llama.model.layers[0].mlp.down_proj
    before = photograph(llama)
    with gated_weights(llama, new_llama(seed=4).state_dict()):
        handle = layer.register_forward_pre_hook(broken)  # after the weights were swapped in
        with pytest.raises(OSError, match="^$"):
            llama(**batches[0])
        handle.remove()
        assert "weight" in layer.__dict__ or isinstance(layer.weight, nn.Parameter)
    assert isinstance(layer.weight, nn.Parameter)
    assert_same(before, photograph(llama))


def test_gates_inside_gates_are_refused(lora_llama):
    before = photograph(lora_llama)
    with (
        gated_updates(lora_llama),
        pytest.raises(RuntimeError, match="Found one in model.layers.0.self_attn.q_proj"),
        gated_updates(lora_llama),
    ):
        pass
    assert_same(before, photograph(lora_llama))


def test_a_refused_model_is_as_it_was(lora_llama):
    lora_llama.merge_adapter()
    before = photograph(lora_llama)
    with pytest.raises(ValueError, match="unmerge_adapter"), gated_updates(lora_llama):
        pass
    assert_same(before, photograph(lora_llama))
