"""Fine-tuning: against a plain loop, what is trained and what is not, and its outcome."""

import math

import pytest
import torch
import transformers
from accelerate import Accelerator

from experiments.ila.finetuning import (
    TrainingOptions,
    active_ranks,
    finetune,
    layer_names,
    restore,
    snapshot,
    trained_parameters,
    with_adalora,
    with_all_weights,
    with_lora,
    with_qlora,
)
from ktlib.ila.baselines import FirstOrderScores, first_order_scores
from ktlib.ila.targets import keep_target_logits

FIRST, LAST = "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"


def values(model):
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def changed(model, before):
    return {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


def plain_loop(model, batches, steps, lr):
    """What everyone writes; norms and biases without decay."""
    trained = [p for p in model.parameters() if p.requires_grad]
    groups = [{"params": [p for p in trained if p.ndim > 1]}]
    if vectors := [p for p in trained if p.ndim <= 1]:
        groups.append({"params": vectors, "weight_decay": 0.0})
    optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.99), weight_decay=0.1)
    schedule = transformers.get_cosine_schedule_with_warmup(optimizer, round(0.01 * steps), steps)
    losses = []
    model.train()
    for step in range(steps):
        loss = model(
            **keep_target_logits(model, batches[step % len(batches)]), use_cache=False
        ).loss
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses


@pytest.mark.parametrize("adapted", [True, False])
def test_is_the_plain_loop(new_llama, batches, adapted):
    make = (lambda m: with_lora(m, rank=2)) if adapted else with_all_weights
    ours, plain = make(new_llama()), make(new_llama())
    training = finetune(ours, batches, steps=7, lr=0.01)
    assert training.losses == plain_loop(plain, batches, 7, 0.01)
    assert_same(values(ours), values(plain))
    assert training.losses[6] < training.losses[0], "the first batch again"
    assert len(training.seconds) == 7
    assert min(training.seconds) > 0
    assert all(p.grad is None for p in ours.parameters())


def test_first_step_by_hand(new_llama, batches):
    """Adam's first update has size lr whatever the gradient; matrices decay, norms do not."""
    model = with_all_weights(new_llama())
    before = values(model)
    finetune(model, batches, steps=1, lr=0.01, options=TrainingOptions(weight_decay=0.5))
    for name, p in model.named_parameters():
        kept = before[name] * (1 - 0.01 * 0.5) if p.ndim > 1 else before[name]
        moved = (p.detach() - kept).abs()
        assert moved.max() == pytest.approx(0.01, rel=1e-2), name


def test_lora_leaves_the_base_bit_for_bit(new_llama, batches):
    base = new_llama()
    names, before = list(base.state_dict()), {k: v.clone() for k, v in base.state_dict().items()}
    adapted = with_lora(base, rank=2, layers="attention")
    start = values(adapted)
    finetune(adapted, batches, steps=4, lr=0.1, options=TrainingOptions(weight_decay=0.9))
    moved = changed(adapted, start)
    assert moved == set(trained_parameters(adapted))
    assert all(".lora_" in name for name in moved)
    restored = adapted.unload()
    assert list(restored.state_dict()) == names
    assert_same(restored.state_dict(), before)


def test_lora_starts_as_the_base(new_llama, batches):
    model = new_llama().eval()
    with torch.no_grad():
        before = model(**batches[0]).logits
        assert torch.equal(with_lora(model, rank=2).eval()(**batches[0]).logits, before)


def test_same_seed_same_adapters(new_llama, batches):
    def train(seed, order):
        model = with_lora(new_llama(), rank=2, seed=seed)
        finetune(model, batches[::order], steps=7, lr=0.01)
        return snapshot(model)

    state = torch.get_rng_state()
    first = train(0, 1)
    assert torch.equal(torch.get_rng_state(), state), "the global generator is left alone"
    torch.manual_seed(99)
    assert_same(first, train(0, 1))
    for other in (train(1, 1), train(0, -1)):
        assert not all(torch.equal(first[name], other[name]) for name in first)


def test_rows_at_once_is_the_same_step(new_llama, new_batches):
    """Rows have 8, 6, 6 and 6 targets: a mean of the means of pieces would be another loss."""
    batches = new_batches(2, size=4)
    for batch in batches:
        batch["labels"][1:3, -4:] = -100
    whole, pieces = (with_lora(new_llama(), rank=2) for _ in range(2))
    a = finetune(whole, batches, steps=3, lr=0.01)
    b = finetune(pieces, batches, steps=3, lr=0.01, options=TrainingOptions(rows_at_once=1))
    assert a.losses == pytest.approx(b.losses, rel=1e-5)
    for name, value in snapshot(whole).items():
        torch.testing.assert_close(snapshot(pieces)[name], value, rtol=1e-3, atol=1e-4)


def test_rows_without_targets_count_for_nothing(new_llama, new_batches):
    batches = new_batches(1, size=3)
    batches[0]["labels"][1] = -100
    fewer = [{k: v[[0, 2]] for k, v in batches[0].items()}]
    all_rows, two_rows = (with_lora(new_llama(), rank=2) for _ in range(2))
    a = finetune(all_rows, batches, steps=2, lr=0.01, options=TrainingOptions(rows_at_once=1))
    b = finetune(two_rows, fewer, steps=2, lr=0.01)
    assert a.losses == pytest.approx(b.losses, rel=1e-5)


def test_weights_of_chosen_layers_only(new_llama, batches):
    model = with_all_weights(new_llama(), [FIRST, LAST])
    before = values(model)
    finetune(model, batches, steps=3, lr=0.01)
    assert changed(model, before) == {f"{FIRST}.weight", f"{LAST}.weight"}
    everything = with_all_weights(model)
    before = values(everything)
    finetune(everything, batches, steps=3, lr=0.01)
    assert changed(everything, before) == set(before), "frozen ones thaw again"


def test_chosen_layers_get_adapters_and_no_others(new_llama):
    names = trained_parameters(with_lora(new_llama(), rank=2, layers=[LAST, FIRST]))
    assert {name.split(".lora_")[0] for name in names} == {
        f"base_model.model.{FIRST}",
        f"base_model.model.{LAST}",
    }


@pytest.mark.parametrize(("tied", "count"), [(True, 14), (False, 15)])
def test_layers_by_component(new_llama, tied, count):
    model = new_llama(tied=tied)
    names = layer_names(model)
    assert len(names) == count
    assert ("lm_head" in names) == (not tied)
    assert [len(layer_names(model, c)) for c in ("attention", "qkv", "feed_forward")] == [8, 6, 6]
    attention, forward = layer_names(model, "attention"), layer_names(model, "feed_forward")
    assert set(attention) | set(forward) | {"lm_head"} == set(names) | {"lm_head"}
    assert layer_names(model, [LAST, FIRST]) == (FIRST, LAST), "in the order of the model"
    assert layer_names(model, "q_proj") == (FIRST, FIRST.replace("0", "1"))


def test_adalora_takes_ranks_away(new_llama, batches):
    base = new_llama()
    before = {k: v.clone() for k, v in base.state_dict().items()}
    model = with_adalora(base, steps=20, target_rank=2, initial_rank=4)
    totals = []
    finetune(
        model,
        batches,
        steps=20,
        lr=0.02,
        after_step=lambda *_: totals.append(sum(active_ranks(model).values())),
    )
    assert totals[0] == 4 * 14
    assert totals[-1] == 2 * 14, "the average rank is the target"
    assert sorted(totals, reverse=True) == totals
    assert set(totals) - {4 * 14, 2 * 14}, "not all at once"
    ranks = active_ranks(model)
    assert set(ranks) == set(layer_names(model.unload()))
    assert len(set(ranks.values())) > 1, "some layers keep more than others"
    assert_same(base.state_dict(), before)


def test_adalora_schedule_ends_as_planned(new_llama, batches):
    """Ranks fall between the shares of `shrink` only."""
    model, ranks = with_adalora(new_llama(), steps=20, target_rank=1, shrink=(0.5, 0.75)), []
    finetune(
        model,
        batches,
        steps=20,
        lr=0.02,
        after_step=lambda *_: ranks.append(sum(active_ranks(model).values())),
    )
    assert set(ranks[:9]) == {2 * 14}
    assert set(ranks[14:]) == {14}


def test_snapshots_at_milestones(new_llama, batches):
    model, seen = with_lora(new_llama(), rank=2), {}
    training = finetune(
        model,
        batches,
        steps=10,
        lr=0.01,
        milestones=(0.01, 0.5, 1.0),
        after_step=lambda step, _: seen.update({step: values(model)}),
    )
    assert list(training.snapshots) == [0.01, 0.5, 1.0]
    trained = trained_parameters(model)
    for share, step in ((0.01, 1), (0.5, 5), (1.0, 10)):
        assert_same(training.snapshots[share], {name: seen[step][name] for name in trained})
    for share, step in ((0.5, 5), (1.0, 10)):
        restore(model, training.snapshots[share])
        assert_same(values(model), seen[step])


def test_restore_refuses_what_does_not_fit(new_llama):
    model = with_lora(new_llama(), rank=2, layers=[FIRST])
    before = snapshot(model)
    other = snapshot(with_lora(new_llama(), rank=2, layers=[FIRST, LAST]))
    with pytest.raises(ValueError, match="values must be a snapshot of this model. Found 2"):
        restore(model, other)
    with pytest.raises(ValueError, match="values must be a snapshot of this model. Found 2"):
        restore(model, snapshot(with_lora(new_llama(), rank=3, layers=[FIRST])))
    assert_same(snapshot(model), before)


def test_loss_that_is_not_finite_changes_nothing(new_llama, batches):
    model, kept = with_lora(new_llama(), rank=2), {}

    def spoil(step, _):
        if step == 2:
            kept.update(snapshot(model))
            with torch.no_grad():
                model.get_input_embeddings().weight.fill_(math.nan)

    with pytest.raises(FloatingPointError, match="The loss of step 3 is not finite: nan"):
        finetune(model, batches, steps=5, lr=0.01, after_step=spoil)
    assert_same(snapshot(model), kept)
    assert all(p.grad is None for p in model.parameters())


def test_clip_bounds_and_refuses_what_is_not_finite(new_llama, batches):
    model = with_lora(new_llama(), rank=2, layers=[LAST])
    norms = []
    b = next(p for name, p in model.named_parameters() if ".lora_B." in name)
    b.register_post_accumulate_grad_hook(lambda p: norms.append(float(p.grad.norm())))
    finetune(model, batches, steps=1, lr=0.01, options=TrainingOptions(clip=1e-3))
    assert norms[0] > 1e-3, "the bound matters here"
    before = snapshot(model)
    b.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(FloatingPointError, match="The gradient of step 1 is not finite"):
        finetune(model, batches, steps=1, lr=0.01, options=TrainingOptions(clip=1.0))
    assert_same(snapshot(model), before)


@pytest.mark.parametrize("scaled", [False, True])
def test_scores_can_be_read_from_the_gradients_of_a_training(scaled, new_llama, batches):
    """Whole and not clipped, whatever the accelerator multiplies the loss by."""
    model = with_lora(new_llama(), rank=2, layers=[FIRST, LAST])
    for parameter in trained_parameters(model).values():
        torch.nn.init.normal_(parameter)
    scores, accelerator = FirstOrderScores(model), Accelerator()
    if scaled:
        accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    wanted = first_order_scores(model, batches[:1]).scores
    finetune(
        model,
        batches[:1],
        steps=1,
        lr=0.01,
        options=TrainingOptions(clip=1e-3, rows_at_once=1),
        after_backward=scores.step,
        accelerator=accelerator,
    )
    assert scores.ranking().scores == pytest.approx(wanted, rel=1e-4, abs=1e-7)
    assert wanted[FIRST]


def test_callback_ends_the_training(new_llama, batches):
    model = with_lora(new_llama(), rank=1)
    training = finetune(model, batches, steps=9, lr=0.01, after_step=lambda step, _: step == 4)
    assert len(training.losses) == 4


def test_callback_must_not_thaw(new_llama, batches):
    """The optimizer holds what was trained at the start: anything else would never move."""
    model = with_all_weights(new_llama(), [FIRST])

    def thaw(*_):
        model.requires_grad_(True)

    with pytest.raises(RuntimeError, match="What is trained was changed after step 1"):
        finetune(model, batches, steps=3, lr=0.01, after_step=thaw)


def test_modes_are_given_back(new_llama, batches):
    model, seen = with_lora(new_llama(), rank=1).eval(), []
    finetune(model, batches, steps=1, lr=0.01, after_step=lambda *_: seen.append(model.training))
    assert seen == [True]
    assert not any(module.training for module in model.modules())


def test_batches_from_an_iterator(new_llama, batches):
    one, other = with_lora(new_llama(), rank=1), with_lora(new_llama(), rank=1)
    finetune(one, iter(batches), steps=3, lr=0.01)
    finetune(other, batches, steps=3, lr=0.01)
    assert_same(snapshot(one), snapshot(other))
    with pytest.raises(ValueError, match=r"batches must be enough for steps=4.* Found 3"):
        finetune(one, iter(batches), steps=4, lr=0.01)
    with pytest.raises(ValueError, match="batches must hold at least one batch. Found none"):
        finetune(one, [], steps=1, lr=0.01)


def test_bfloat16_autocast_trains_float32_adapters(new_llama, batches):
    model = with_lora(new_llama(), rank=2)
    training = finetune(
        model, batches, steps=6, lr=0.01, options=TrainingOptions(precision="bfloat16")
    )
    exact = finetune(with_lora(new_llama(), rank=2), batches, steps=6, lr=0.01)
    assert training.losses == pytest.approx(exact.losses, rel=0.02)
    assert training.losses != exact.losses
    assert {p.dtype for p in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"steps": 0}, "steps must be at least 1. Found steps=0"),
        ({"lr": 0.0}, "lr must be a number above 0. Found lr=0.0"),
        ({"lr": math.nan}, "lr must be a number above 0. Found lr=nan"),
        ({"milestones": [0.5, 1.5]}, r"milestones must lie in \(0, 1\]. Found 1.5"),
    ],
)
def test_bad_arguments(new_llama, batches, argument, message):
    with pytest.raises(ValueError, match=message):
        finetune(new_llama(), batches, **{"steps": 2, "lr": 0.1, **argument})


@pytest.mark.parametrize(("name", "value"), [("warmup", 1.0), ("clip", 0.0), ("rows_at_once", 0)])
def test_bad_options(name, value):
    with pytest.raises(ValueError, match=f"Found {name}={value}"):
        TrainingOptions(**{name: value})


def test_bad_models_and_batches(new_llama, batches):
    with pytest.raises(ValueError, match="model must have parameters to train. Found none"):
        finetune(new_llama().requires_grad_(False), batches, steps=1, lr=0.1)
    empty = [{**batches[0], "labels": torch.full_like(batches[0]["labels"], -100)}]
    adapted = with_lora(new_llama(), rank=1)
    with pytest.raises(ValueError, match="batches must have target tokens.* in batch 0"):
        finetune(adapted, empty, steps=1, lr=0.1)
    with pytest.raises(ValueError, match="must hold at least one target token. Found none"):
        finetune(adapted, iter(empty), steps=1, lr=0.1)
    adapted = with_adalora(new_llama(), steps=10, target_rank=1)
    with pytest.raises(ValueError, match="that AdaLoRA was made for: 10. Found steps=9"):
        finetune(adapted, batches, steps=9, lr=0.1)
    with pytest.raises(ValueError, match="model must have no adapters"):
        with_lora(adapted)
    with pytest.raises(ValueError, match="model must have no adapters"):
        with_all_weights(adapted)
    with pytest.raises(ValueError, match="model must be loaded in 4 bits"):
        with_qlora(new_llama())
    with pytest.raises(ValueError, match="model must have AdaLoRA"):
        active_ranks(new_llama())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda m: with_lora(m, rank=0), "rank must be at least 1. Found rank=0"),
        (lambda m: with_lora(m, layers=[]), "layers must name at least one layer. Found none"),
        (lambda m: with_lora(m, layers=["c_attn"]), r"of linear layers .*Found \['c_attn'\]"),
        (lambda m: with_lora(m, layers="atention"), "attention, down_proj, feed_forward"),
        (
            lambda m: with_adalora(m, steps=10, target_rank=4, initial_rank=4),
            "initial_rank must be larger than target_rank=4. Found initial_rank=4",
        ),
        (lambda m: with_adalora(m, steps=10, shrink=(0.7, 0.1)), "shrink must be two rising"),
        (
            lambda m: with_adalora(m, steps=2, target_rank=1),
            "Found steps=2 with shrink",
        ),
        (
            lambda m: with_adalora(m, steps=2, target_rank=1, shrink=(0.1, 0.2)),
            "steps must leave at least one step",
        ),
    ],
)
def test_bad_adapters_leave_the_model_alone(new_llama, make, message):
    model = new_llama()
    before = list(model.state_dict())
    with pytest.raises(ValueError, match=message):
        make(model)
    assert list(model.state_dict()) == before
    assert all(p.requires_grad for p in model.parameters())


def test_components_need_layers_of_these_names(new_llama):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2))
    with pytest.raises(ValueError, match=r"layers='qkv' needs a model .*Found \['0'\]"):
        layer_names(model, "qkv")


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_qlora_trains_adapters_on_four_bits(new_llama, new_batches, tmp_path):
    pytest.importorskip("bitsandbytes")
    new_llama(hidden_size=64, intermediate_size=64).save_pretrained(tmp_path)
    bits = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )
    base = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=bits, device_map={"": 0}
    )
    model = with_qlora(base, rank=2)
    training = finetune(model, new_batches(device="cuda"), steps=6, lr=0.01)
    assert training.losses[3] < training.losses[0]
    with pytest.raises(ValueError, match="model must be in full precision"):
        with_all_weights(model.unload())
