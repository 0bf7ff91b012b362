"""Stage 2 of ILA: what the scores learn, how sure they are, and that nothing else changes."""

import itertools
import math
import warnings

import peft
import pytest
import torch
from torch import nn

from ktlib.ila import search
from ktlib.ila.baselines import ablation_scores, first_order_scores, update_norms
from ktlib.ila.gates import gated_updates
from ktlib.ila.layers import adapted_layers
from ktlib.ila.ranking import LayerRanking
from ktlib.ila.search import batch_contributions, rank_layers, rank_layers_full, standard_errors

# Updates drawn at random do as much harm as good.
pytestmark = pytest.mark.filterwarnings("ignore:.*scores are below the start")


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_unchanged(model, before):
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_first_step_of_adamw_follows_the_sign_of_the_first_order_score(lora_llama, batches):
    # Near gates of 1 the first step has the size lr, towards a smaller loss.
    scores = rank_layers(lora_llama, batches[:1], initial_score=6.0, lr=0.25).scores
    slopes = first_order_scores(lora_llama, batches[:1]).scores
    clear = {name: slope for name, slope in slopes.items() if abs(slope) > 0.02}
    assert {math.copysign(1, slope) for slope in clear.values()} == {-1.0, 1.0}
    for name, slope in clear.items():
        assert scores[name] == pytest.approx(6 + math.copysign(0.25, slope), abs=0.01), name


def test_learning_lowers_the_loss_and_reports_itself(lora_llama, batches):
    ranking = rank_layers(
        lora_llama, batches, initial_score=1.0, lr=0.2, steps=24, seed=3, data="random tokens"
    )
    losses = ranking.losses
    assert len(losses) == 24
    assert sum(losses[-3:]) < sum(losses[:3])
    assert list(ranking.scores) == list(adapted_layers(lora_llama))
    assert list(ranking.curve) == list(range(25))
    assert set(ranking.curve[0].values()) == {1.0}
    assert ranking.curve[24] == ranking.scores
    assert ranking.settings == {
        "method": "ila",
        "initial_score": 1.0,
        "lr": 0.2,
        "betas": [0.9, 0.99],
        "weight_decay": 0.0,
        "steps": 24,
        "batches": 3,
        "penalty": 0.0,
        "seed": 3,
        "precision": "float32",
    }
    provenance = ranking.provenance
    assert provenance["class"] == "LlamaForCausalLM"
    assert provenance["adapter"] == {"name": "default", "ranks": [3], "scalings": [2.0]}
    assert provenance["data"] == "random tokens"
    assert provenance["layers"] == 14
    assert {"torch", "peft", "transformers"} <= set(provenance["packages"])


def test_a_layer_whose_update_only_harms_comes_last(new_llama, new_lora, batches):
    # The head of an untied model moves all logits at random; the other updates are tiny.
    model = new_lora(new_llama(tied=False), targets=["q_proj", "up_proj", "lm_head"], size=1e-3)
    with torch.no_grad():
        harm = model.base_model.model.lm_head.lora_B["default"].weight
        harm.normal_(std=3.0, generator=torch.Generator().manual_seed(1))
    ranking = rank_layers(model, batches, steps=60, lr=0.2)
    assert ranking.names[-1] == "lm_head"
    assert ranking.scores["lm_head"] < 0


def test_equal_seeds_give_equal_rankings_whatever_the_random_state(lora_llama, batches):
    torch.manual_seed(0)
    one = rank_layers(lora_llama, batches, steps=5, seed=1)
    torch.manual_seed(99)
    state = torch.get_rng_state()
    other = rank_layers(lora_llama, batches, steps=5, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert one == other
    assert rank_layers(lora_llama, batches, steps=5, seed=2).scores != one.scores


def test_each_pass_takes_every_batch_once_in_a_new_order():
    options = search._Options(4.0, 0.1, 40, 0.0, 0, "auto", None)
    order = options.order(10)
    passes = [order[i : i + 10] for i in range(0, 40, 10)]
    assert all(sorted(one) == list(range(10)) for one in passes)
    assert all(one != other for one, other in itertools.pairwise(passes))


def test_scores_do_not_depend_on_the_order_of_the_layers(lora_llama, batches):
    options = search._Options(2.0, 0.1, 6, 0.01, 0, "auto", None)
    results = []
    for turned in (False, True):
        with gated_updates(lora_llama, 2.0) as gates:
            items = reversed(gates.items()) if turned else gates.items()
            results.append(search._learn(lora_llama, dict(items), batches, options))
    assert results[0]["scores"] == results[1]["scores"]
    assert results[0]["standard_errors"] == results[1]["standard_errors"]


def test_the_model_is_bit_for_bit_as_before(lora_llama, batches):
    before = weights(lora_llama)
    flags = [p.requires_grad for p in lora_llama.parameters()]
    lora_llama.train()
    rank_layers(lora_llama, batches, steps=3, lr=1.0)
    assert_unchanged(lora_llama, before)
    assert [p.requires_grad for p in lora_llama.parameters()] == flags
    assert lora_llama.training
    assert all(p.grad is None for p in lora_llama.parameters())


def test_bfloat16_gives_nearly_the_same_scores(lora_llama, batches):
    one = rank_layers(lora_llama, batches[:1], initial_score=0.0, precision="float32")
    other = rank_layers(lora_llama, batches[:1], initial_score=0.0, precision="bfloat16")
    assert other.settings["precision"] == "bfloat16"
    assert one.losses != other.losses
    assert one.losses == pytest.approx(other.losses, rel=0.02)


def test_the_penalty_pulls_every_gate_down(lora_llama, batches):
    free = rank_layers(lora_llama, batches, initial_score=1.0, steps=8, lr=0.1)
    held = rank_layers(lora_llama, batches, initial_score=1.0, steps=8, lr=0.1, penalty=1e3)
    # Against so large a penalty the loss counts nothing: every step goes down by lr.
    assert all(score == pytest.approx(0.2, abs=0.02) for score in held.scores.values())
    assert max(free.scores.values()) > 1
    assert held.losses[0] == free.losses[0]  # of the data alone


def test_the_penalty_adds_its_derivative(lora_llama, batches):
    rows = []
    for penalty in (0.0, 0.5):
        options = search._Options(1.0, 0.1, 1, penalty, 0, "auto", None)
        with gated_updates(lora_llama, 1.0) as gates:
            search._backward(lora_llama, gates, batches[0], options, "here")
            rows.append(torch.stack([gate.score.grad for gate in gates.values()]))
    gamma = torch.sigmoid(torch.tensor(1.0))
    assert torch.allclose(rows[1] - rows[0], 0.5 * gamma * (1 - gamma), rtol=1e-4)


def test_snapshots_are_taken_when_asked(lora_llama, batches):
    ranking = rank_layers(lora_llama, batches, steps=7, snapshot_every=3)
    assert list(ranking.curve) == [0, 3, 6, 7]
    longer = rank_layers(lora_llama, batches, steps=9, snapshot_every=3)
    assert longer.curve[6] == ranking.curve[6]


# How sure the scores are -----------------------------------------------------------------------


def adamw(gradients, lr, betas=(0.9, 0.99)):
    """The way that AdamW goes without weight decay, for given gradients ``(steps, layers)``."""
    score = nn.Parameter(torch.zeros_like(gradients[0]))
    optimizer = torch.optim.AdamW([score], lr=lr, betas=betas, weight_decay=0.0)
    for gradient in gradients:
        score.grad = gradient.clone()
        optimizer.step()
    return score.detach()


def noisy(steps, layers, mean=0.0, seed=0):
    noise = torch.randn(
        steps, layers, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)
    )
    return noise + mean


def test_contributions_of_batches_add_up_to_the_way_of_adamw():
    gradients = noisy(30, 5, mean=torch.linspace(-1, 1, 5).double())
    moved = batch_contributions(gradients, lr=0.05).sum(dim=0)
    assert torch.allclose(moved, adamw(gradients, lr=0.05), rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("mean", [0.0, 0.3])
def test_standard_errors_are_the_spread_over_other_batches(mean):
    # 4000 layers with the same noise: as many repetitions of one experiment.
    gradients = noisy(80, 4000, mean)
    spread = adamw(gradients, lr=0.05).std()
    errors = standard_errors(gradients, list(range(80)), lr=0.05)
    assert float(errors.square().mean().sqrt() / spread) == pytest.approx(1.0, abs=0.25)


def test_batches_that_come_again_bring_nothing_new():
    # Four passes over 20 batches: four times the same noise, not 80 independent draws.
    once = noisy(20, 4000)
    gradients = once.repeat(4, 1)
    spread = adamw(gradients, lr=0.05).std()
    errors = standard_errors(gradients, [*range(20)] * 4, lr=0.05)
    assert float(errors.square().mean().sqrt() / spread) == pytest.approx(1.0, abs=0.25)
    naive = standard_errors(gradients, list(range(80)), lr=0.05)
    assert float(naive.square().mean().sqrt() / spread) < 0.75


def test_one_batch_says_nothing_about_others_and_equal_batches_that_nothing_varies(
    lora_llama, batches
):
    assert rank_layers(lora_llama, batches[:1], steps=3).standard_errors == {}
    ranking = rank_layers(lora_llama, batches, steps=6)
    assert list(ranking.standard_errors) == list(ranking.scores)
    assert min(ranking.standard_errors.values()) > 0
    assert len(standard_errors(noisy(3, 2), [0, 0, 0], lr=0.1)) == 0


# Fine-tuned as a whole -------------------------------------------------------------------------


def test_a_model_fine_tuned_as_a_whole_is_ranked_and_restored(new_llama, batches):
    tuned, base = new_llama(), new_llama().state_dict()
    optimizer = torch.optim.AdamW(tuned.parameters(), lr=0.01)
    for _ in range(10):
        optimizer.zero_grad()
        tuned(**batches[0]).loss.backward()
        optimizer.step()
    optimizer.zero_grad()
    before = weights(tuned)
    one, other = (
        rank_layers_full(tuned, base, batches[:1], steps=4, initial_score=1.0) for _ in range(2)
    )
    assert_unchanged(tuned, before)
    assert one == other
    assert len(one.scores) == 15
    assert one.provenance["tuning"] == "full"
    assert one.provenance["class"] == "LlamaForCausalLM"
    # Training made these updates to lower this loss: most gates open further.
    assert sum(score > 1 for score in one.scores.values()) > 10
    assert one.losses[-1] < one.losses[0]


# What cannot be ranked -------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_with_step_and_batch(lora_llama, batches):
    poison = lora_llama.get_input_embeddings()
    used = set(torch.cat([b["input_ids"].flatten() for b in batches[:2]]).tolist())
    only_last = next(t for t in batches[2]["input_ids"].flatten().tolist() if t not in used)
    with torch.no_grad():
        poison.weight[only_last] = float("nan")
    before = {name: value for name, value in weights(lora_llama).items() if "embed" not in name}
    before = {name: value for name, value in before.items() if "lm_head" not in name}
    # The tied head has a NaN as well: cut it off.
    lora_llama.base_model.model.lm_head.weight = nn.Parameter(poison.weight.detach().nan_to_num())
    order = search._Options(4.0, 0.1, None, 0.0, 5, "auto", None).order(3)
    step = order.index(2) + 1
    with pytest.raises(FloatingPointError, match=f"Found nan at step {step}, batch 2"):
        rank_layers(lora_llama, batches, seed=5)
    after = lora_llama.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not [name for name in after if "gate.score" in name]


def test_a_gradient_that_is_not_finite_stops_with_the_layer(lora_llama, batches):
    name = "model.layers.1.mlp.down_proj"
    with gated_updates(lora_llama) as gates:
        lora_llama(**batches[0]).loss.backward()
        gates[name].score.grad.fill_(math.inf)
        with pytest.raises(FloatingPointError, match=f"step 2, batch 0 in {name}"):
            search._gradients(gates, "step 2, batch 0")


def test_a_layer_that_the_model_never_uses_is_named(new_llama, new_lora, batches):
    llama = new_llama()
    llama.model.layers[1].aside = nn.Linear(16, 16)
    model = new_lora(llama, targets=["q_proj", "aside"])
    with pytest.raises(ValueError, match="never used model.layers.1.aside"):
        rank_layers(model, batches)


def test_blocks_that_gradients_do_not_reach_are_named(lora_llama, batches):
    new = getattr(lora_llama, "activation_checkpointing_enable", None)
    (new or lora_llama.gradient_checkpointing_enable)({"use_reentrant": True})
    lora_llama.train()
    expected = rank_layers(lora_llama, batches, steps=2)
    lora_llama.disable_input_require_grads()
    with (
        pytest.warns(UserWarning, match="None of the inputs have requires_grad"),
        pytest.raises(ValueError, match=r"None reaches the scores of model.*use_reentrant=False"),
    ):
        rank_layers(lora_llama, batches, steps=2)
    lora_llama.eval()
    assert rank_layers(lora_llama, batches, steps=2).scores == expected.scores


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", 0.0),
        ("lr", math.nan),
        ("steps", 0),
        ("penalty", -1.0),
        ("initial_score", math.inf),
        ("snapshot_every", 0),
    ],
)
def test_bad_parameters_are_named(lora_llama, batches, name, value):
    with pytest.raises(ValueError, match=f"^{name} must be .* Found {name}={value!r}."):
        rank_layers(lora_llama, batches, **{name: value})


def test_models_and_batches_that_cannot_be_ranked(llama, lora_llama, batches):
    with pytest.raises(ValueError, match="must have LoRA adapters"):
        rank_layers(llama, batches)
    with pytest.raises(ValueError, match="use rank_layers"):
        rank_layers_full(lora_llama, llama.state_dict(), batches)
    with pytest.raises(ValueError, match="at least one batch"):
        rank_layers(lora_llama, [])


SCORERS = {
    "ila": lambda model, batches: rank_layers(model, batches, steps=4, lr=0.5),
    "first order": first_order_scores,
    "ablation": ablation_scores,
    "norms": lambda model, batches: update_norms(model),
}


def without_updates(model, *layers):
    with torch.no_grad():
        for name, layer in adapted_layers(model).items():
            if not layers or name in layers:
                layer.lora_B["default"].weight.zero_()
    return model


@pytest.mark.parametrize("score", SCORERS.values(), ids=SCORERS)
def test_adapters_without_any_update_are_refused(lora_llama, llama, batches, score):
    before = weights(without_updates(lora_llama))
    with pytest.raises(ValueError, match="nothing to rank: .* is zero in adapter 'default'"):
        score(lora_llama, batches)
    assert_unchanged(lora_llama, before)
    with pytest.raises(ValueError, match="nothing to rank: .* is zero in the model, which equals"):
        rank_layers_full(llama, llama.state_dict(), batches)


@pytest.mark.parametrize("score", SCORERS.values(), ids=SCORERS)
def test_layers_without_update_come_last_and_are_named(lora_llama, batches, score):
    names = list(adapted_layers(lora_llama))
    without_updates(lora_llama, names[0], names[5])
    with pytest.warns(UserWarning, match=f"ranked last.*{names[0]}, {names[5]}"):
        ranking = score(lora_llama, batches)
    assert ranking.names[-2:] == (names[0], names[5])
    assert ranking.without_update == [names[0], names[5]]
    assert set(ranking.top(0.8)).isdisjoint(ranking.without_update)
    assert LayerRanking.model_validate_json(ranking.model_dump_json()) == ranking
    if score is SCORERS["ila"]:  # the scores themselves are those of the theory
        assert ranking.scores[names[0]] == 4.0
        assert min(ranking.scores.values()) < 4.0
        assert ranking.at_step(2).names[-2:] == (names[0], names[5])


def test_a_layer_that_no_gradient_reaches_comes_last(image_network):
    model, data = image_network

    def loss(network, batch):
        first, last = (network.get_base_model()[place] for place in (1, 3))
        inputs = batch[0].flatten(1)
        return class_loss(last, (inputs[:, :8] + 0 * first(inputs), batch[1]))

    with pytest.warns(UserWarning, match="ranked last.*: 1"):
        ranking = rank_layers(model, data, loss=loss)
    assert ranking.names == ("3", "1")


@pytest.mark.filterwarnings("default:.*scores are below the start")
def test_updates_that_overshoot_are_warned_about(lora_llama, batches):
    def turned(model, batch):
        return -model(**batch).loss

    def plain(model, batch):
        return model(**batch).loss

    counts = []
    for loss in (plain, turned):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            scores = rank_layers(lora_llama, batches[:1], loss=loss, steps=2).scores
        below = sum(score < 4.0 for score in scores.values())
        said = [str(one.message) for one in caught if "below the start" in str(one.message)]
        assert bool(said) == (2 * below >= 14)
        assert all(
            line.startswith(f"{below} of 14 scores are below the start, 4.0") for line in said
        )
        counts.append(len(said))
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a penalty pulls every score down on purpose
            rank_layers(lora_llama, batches[:1], loss=loss, steps=2, penalty=1.0)
    assert sum(counts) >= 1


def class_loss(model, batch):
    """Cross-entropy of a network that gives logits only, on images."""
    images, labels = batch
    return nn.functional.cross_entropy(model(images), labels)


@pytest.fixture
def image_network():
    """A small network of images with LoRA of peft; the updates of two layers are not zero."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Flatten(), nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 3))
        config = peft.LoraConfig(r=2, target_modules=["1", "3"], init_lora_weights=False)
        model = peft.get_peft_model(network, config)
        data = [(torch.randn(5, 3, 2, 2), torch.randint(3, (5,))) for _ in range(2)]
    return model, data


def test_any_network_is_ranked_with_a_loss_of_its_own(image_network):
    model, data = image_network
    before = weights(model)
    slopes = first_order_scores(model, data[:1], loss=class_loss).scores
    assert list(slopes) == ["1", "3"]
    scores = rank_layers(model, data[:1], initial_score=6.0, lr=0.25, loss=class_loss).scores
    for name, slope in slopes.items():
        assert scores[name] == pytest.approx(6 + math.copysign(0.25, slope), abs=0.01), name
    gains = ablation_scores(model, data, loss=class_loss).scores
    with torch.no_grad():
        whole = [float(class_loss(model, batch)) for batch in data]
        for name in slopes:
            layer = model.get_base_model()[int(name)]
            layer.scaling["default"], kept = 0.0, layer.scaling["default"]
            without = [float(class_loss(model, batch)) for batch in data]
            layer.scaling["default"] = kept
            assert gains[name] == pytest.approx((sum(without) - sum(whole)) / 2, abs=1e-6)
    assert_unchanged(model, before)


def test_a_loss_of_its_own_must_be_a_scalar_and_have_batches(image_network):
    model, data = image_network
    with pytest.raises(TypeError, match=r"loss must return a scalar tensor. Found \(5, 3\)"):
        rank_layers(model, data, loss=lambda network, batch: network(batch[0]))
    with pytest.raises(TypeError, match="Found float"):
        rank_layers(model, data, loss=lambda network, batch: 0.5)
    with pytest.raises(ValueError, match="batches must hold at least one batch"):
        rank_layers(model, [], loss=class_loss)
