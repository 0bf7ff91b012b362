"""Cheap scores of layers: against derivatives, dense matrices and models without an update."""

import pytest
import torch

from ktlib.ila.baselines import ablation_scores, first_order_scores, update_norms
from ktlib.ila.gates import gated_updates
from ktlib.ila.layers import adapted_layers, linear_layers


def loss(model, batch):
    with torch.no_grad():
        return float(model(**batch).loss)


def test_the_first_order_score_is_minus_gradient_times_update(new_llama, new_lora, batches):
    model = new_lora(new_llama()).eval()
    scores = first_order_scores(model, batches[:1]).scores
    # The merged weights' own gradient, by plain autograd.
    layers = adapted_layers(model)
    updates = {name: layer.get_delta_weight("default").detach() for name, layer in layers.items()}
    plain = model.merge_and_unload().eval().requires_grad_(True)
    plain(**batches[0]).loss.backward()
    for name, update in updates.items():
        gradient = plain.get_submodule(name).weight.grad
        expected = -float((gradient * update).sum())
        assert scores[name] == pytest.approx(expected, rel=1e-3, abs=1e-6), name


def test_the_first_order_score_is_the_slope_at_a_gate_of_one(lora_llama, batches):
    scores = first_order_scores(lora_llama, batches[:1]).scores
    name = max(scores, key=lambda n: abs(scores[n]))
    with gated_updates(lora_llama, 1.0, link=lambda score: score) as gates:
        values = []
        for gamma in (1.01, 0.99):
            gates[name].score.data.fill_(gamma)
            values.append(loss(lora_llama, batches[0]))
    assert scores[name] == pytest.approx((values[1] - values[0]) / 0.02, rel=0.01)


def test_the_first_order_score_of_a_whole_model(new_llama, batches):
    tuned, base = new_llama(tied=False).eval(), new_llama(seed=3, tied=False).state_dict()
    ranking = first_order_scores(tuned, batches[:1], base_state=base)
    tuned(**batches[0]).loss.backward()
    for name, layer in linear_layers(tuned).items():
        update = layer.weight.detach() - base[f"{name}.weight"]
        expected = -float((layer.weight.grad * update).sum())
        assert ranking.scores[name] == pytest.approx(expected, rel=1e-3, abs=1e-6), name
    assert ranking.provenance["tuning"] == "full"


def test_ablation_is_the_loss_without_one_update(lora_llama, batches):
    lora_llama.eval()
    scores = ablation_scores(lora_llama, batches).scores
    whole = [loss(lora_llama, batch) for batch in batches]
    for name in ("model.layers.0.self_attn.v_proj", "model.layers.1.mlp.down_proj"):
        second = adapted_layers(lora_llama)[name].lora_B["default"].weight
        kept = second.detach().clone()
        second.data.zero_()
        without = [loss(lora_llama, batch) for batch in batches]
        second.data.copy_(kept)
        assert scores[name] == pytest.approx((sum(without) - sum(whole)) / 3, abs=1e-6)


def test_ablation_of_a_whole_model_puts_one_layer_back(new_llama, batches):
    tuned, base = new_llama().eval(), new_llama(seed=3).state_dict()
    ranking = ablation_scores(tuned, batches[:1], base_state=base)
    name = "model.layers.1.self_attn.o_proj"
    whole = loss(tuned, batches[0])
    tuned.get_submodule(name).weight.data.copy_(base[f"{name}.weight"])
    assert ranking.scores[name] == pytest.approx(loss(tuned, batches[0]) - whole, abs=1e-6)


def test_small_updates_have_equal_first_order_and_ablation_scores(new_llama, new_lora, batches):
    model = new_lora(new_llama(), size=1e-3)
    slopes, losses = first_order_scores(model, batches), ablation_scores(model, batches)
    one, other = (torch.tensor(list(r.scores.values())) for r in (slopes, losses))
    assert float((one - other).norm() / other.norm()) < 0.1
    one, other = (torch.tensor(list(r.standard_errors.values())) for r in (slopes, losses))
    assert float((one - other).norm() / other.norm()) < 0.1


def test_standard_errors_are_those_of_a_mean_over_batches(lora_llama, batches):
    single = [first_order_scores(lora_llama, [batch]) for batch in batches]
    assert all(ranking.standard_errors == {} for ranking in single)
    both = first_order_scores(lora_llama, batches)
    name = "model.layers.0.mlp.up_proj"
    values = torch.tensor([ranking.scores[name] for ranking in single], dtype=torch.float64)
    assert both.scores[name] == pytest.approx(float(values.mean()))
    assert both.standard_errors[name] == pytest.approx(float(values.std() / 3**0.5))


def test_the_norm_of_an_update_is_that_of_its_matrix(new_llama, new_lora):
    model = new_lora(new_llama(), use_rslora=True)
    ranking = update_norms(model)
    for name, layer in adapted_layers(model).items():
        expected = float(layer.get_delta_weight("default").detach().norm())
        assert ranking.scores[name] == pytest.approx(expected, rel=1e-5), name
    assert ranking.settings == {"method": "update_norm"}
    assert ranking.standard_errors == {}


def test_the_norm_of_an_update_by_hand(lora_llama):
    layer = adapted_layers(lora_llama)["model.layers.0.self_attn.q_proj"]
    with torch.no_grad():
        layer.lora_A["default"].weight.zero_()[0, :2] = torch.tensor([3.0, 4.0])
        layer.lora_B["default"].weight.zero_()[1, 0] = -2.0
    # beta = 6 / 3; |-2| * 5 * 2
    assert update_norms(lora_llama).scores["model.layers.0.self_attn.q_proj"] == pytest.approx(20)


def test_the_norm_of_weights(new_llama):
    tuned, base = new_llama(), new_llama(seed=3).state_dict()
    scores = update_norms(tuned, base_state=base).scores
    head = tuned.lm_head.weight.detach() - base["lm_head.weight"]
    assert scores["lm_head"] == pytest.approx(float(head.norm()), rel=1e-5)


def test_scoring_changes_nothing_and_needs_finite_losses(lora_llama, batches):
    before = {name: value.clone() for name, value in lora_llama.state_dict().items()}
    first_order_scores(lora_llama, batches)
    ablation_scores(lora_llama, batches)
    update_norms(lora_llama)
    after = lora_llama.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert all(p.grad is None for p in lora_llama.parameters())
    lora_llama.base_model.model.model.norm.weight.data.fill_(float("nan"))
    for score in (first_order_scores, ablation_scores):
        with pytest.raises(FloatingPointError, match="Found nan at batch 0"):
            score(lora_llama, batches)
