"""Cheap scores of layers: against derivatives, dense matrices and models without an update."""

import pytest
import torch

from ktlib.ila.baselines import (
    FirstOrderScores,
    ablation_scores,
    first_order_scores,
    update_norms,
)
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


def close(one, other):
    """Equal up to rounding, in parts of the largest score."""
    assert list(one) == list(other)
    found, wanted = torch.tensor(list(one.values())), torch.tensor(list(other.values()))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-6 * float(wanted.abs().max()))


@pytest.mark.parametrize("settings", [{}, {"use_rslora": True}, {"rank_pattern": {"q_proj": 2}}])
def test_a_training_gives_the_first_order_scores(settings, new_llama, new_lora, batches):
    model = new_lora(new_llama(), **settings).eval()
    scores = FirstOrderScores(model)
    for batch in batches:
        model.zero_grad()
        model(**batch).loss.backward()
        scores.step()
    found, wanted = scores.ranking(data="some"), first_order_scores(model, batches, data="some")
    close(found.scores, wanted.scores)
    close(found.standard_errors, wanted.standard_errors)
    assert found.names == wanted.names
    assert found.provenance == wanted.provenance
    assert found.settings == {"method": "first_order_training", "batches": 3, "left_out": 0}


def test_biases_of_b_are_a_part_of_the_update(new_llama, new_lora, batches):
    model = new_lora(new_llama(attention_bias=True), targets=["q_proj"], lora_bias=True).eval()
    scores = FirstOrderScores(model)
    for layer in adapted_layers(model).values():
        layer.lora_B["default"].bias.data.normal_()
    model(**batches[0]).loss.backward()
    scores.step()
    close(scores.ranking().scores, first_order_scores(model, batches[:1]).scores)


def test_scores_of_a_training_follow_its_steps(new_llama, new_lora, batches):
    """Accumulated, with dropout, with a factor on the loss; a step that overflows is left out."""
    model = new_lora(new_llama(), lora_dropout=0.5).train()
    scores, expected = FirstOrderScores(model), []
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    layer = adapted_layers(model)["model.layers.1.mlp.up_proj"]
    for factor in (1.0, 1024.0, float("inf")):
        losses = [model(**batch).loss for batch in batches[:2]]
        second = layer.lora_B["default"].weight
        gradient = torch.autograd.grad(sum(losses), second, retain_graph=True)[0]
        expected.append(-float((gradient * second.detach()).sum()))
        for value in losses:  # twice backward, one step
            (value * factor).backward()
        scores.step(min(factor, 2.0**16))
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        optimizer.step()
        optimizer.zero_grad()
    ranking = scores.ranking()
    mean = sum(expected[:2]) / 2
    assert ranking.scores["model.layers.1.mlp.up_proj"] == pytest.approx(mean, rel=1e-4)
    assert ranking.settings["batches"] == 2
    assert ranking.settings["left_out"] == 1


def test_scores_of_a_training_that_cannot_be_known_are_refused(new_llama, new_lora, batches):
    with pytest.raises(ValueError, match="DoraLinearVariant"):
        FirstOrderScores(new_lora(new_llama(), use_dora=True))
    model = new_lora(new_llama())
    scores = FirstOrderScores(model)
    with pytest.raises(ValueError, match="must be called before"):
        scores.ranking()
    with pytest.raises(ValueError, match=r"after loss.backward\(\), before zero_grad"):
        scores.step()
    model(**batches[0]).loss.backward()
    with pytest.raises(ValueError, match="scale must be positive. Found scale=0"):
        scores.step(0)
    for parameter in model.parameters():
        if parameter.grad is not None:
            parameter.grad.fill_(float("nan"))
    scores.step()
    with pytest.raises(FloatingPointError, match="no step in which all are"):
        scores.ranking()
    name = "model.layers.0.self_attn.q_proj"
    adapted_layers(model)[name].lora_B["default"].weight.requires_grad_(False)
    for call in (scores.step, lambda: FirstOrderScores(model)):
        with pytest.raises(ValueError, match=f"frozen or sharded: {name}"):
            call()


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
