"""Held-out loss, perplexity and forgetting."""

import math
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from experiments.ila.adapters import (
    merged_adapters,
    trained_parameters,
    with_adalora,
    with_lora,
)
from experiments.ila.evaluation import (
    forgetting,
    held_out_loss,
    held_out_losses,
    in_mode,
    perplexity,
    target_tokens,
)
from ktlib.ila.gates import gated_updates


class Certain(nn.Module):
    """Predicts token 1 with the odds given, whatever it reads; two tokens in all."""

    def __init__(self, odds):
        super().__init__()
        self.logit = nn.Parameter(torch.tensor(math.log(odds)))
        self.modes = []

    def forward(self, input_ids, attention_mask=None, use_cache=True):
        self.modes.append(self.training)
        assert not use_cache, "a cache is of no use here"
        logits = torch.stack([torch.zeros(()), self.logit]).expand(*input_ids.shape, 2)
        return SimpleNamespace(logits=logits)


def batch_of(*labels):
    labels = torch.tensor(labels)
    return {
        "input_ids": labels.clamp(min=0),
        "attention_mask": torch.ones_like(labels),
        "labels": labels,
    }


def test_by_hand_each_token_counts_the_same():
    """Odds 3: token 1 costs ln(4/3), token 0 costs ln 4. The first label is never a target."""
    first = batch_of([0, 1, 1, 1], [0, 0, -100, -100])  # three 1, one 0
    second = batch_of([1, -100, -100, 0])  # one 0
    expected = (3 * math.log(4 / 3) + 2 * math.log(4)) / 5
    assert held_out_loss(Certain(3.0), [first, second]) == pytest.approx(expected)
    of_means = ((3 * math.log(4 / 3) + math.log(4)) / 4 + math.log(4)) / 2
    assert abs(expected - of_means) > 0.1, "the example tells the two means apart"
    assert (target_tokens(first), target_tokens(second)) == (4, 1)


def test_of_one_batch_it_is_the_loss_of_the_model(llama, batches):
    llama.eval()
    with torch.no_grad():
        expected = llama(**batches[0]).loss
    assert held_out_loss(llama, batches[:1]) == pytest.approx(float(expected), rel=1e-6)


def test_does_not_depend_on_how_text_is_batched(llama, batches):
    halves = [{k: v[i : i + 1] for k, v in batch.items()} for batch in batches for i in range(2)]
    assert held_out_loss(llama, halves) == pytest.approx(held_out_loss(llama, batches), rel=1e-5)
    assert held_out_loss(llama, iter(batches)) == held_out_loss(llama, batches)


def filled(model):
    """The model with trained parameters drawn at random."""
    for parameter in trained_parameters(model).values():
        torch.nn.init.normal_(parameter, std=0.3)
    return model


def test_merged_adapters_give_the_same_loss_and_come_apart_bit_for_bit(llama, batches):
    model = filled(with_lora(llama, rank=2))
    weights = {name: (p, p.data_ptr(), p.detach().clone()) for name, p in model.named_parameters()}
    apart = held_out_loss(model, batches)
    with merged_adapters(model):
        assert held_out_loss(model, batches) == pytest.approx(apart, rel=1e-5)
        changed = [n for n, (p, _, value) in weights.items() if not torch.equal(p, value)]
        assert len(changed) == 14
    for name, parameter in model.named_parameters():
        same, place, value = weights[name]
        assert parameter is same
        assert parameter.data_ptr() == place
        assert torch.equal(parameter, value)
    assert held_out_loss(model, batches) == apart


@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
@pytest.mark.parametrize(
    ("kind", "merged"),
    [("tied", ["q_proj"]), ("half", []), ("adalora", []), ("dora", []), ("off", []), ("gated", [])],
)
def test_adapters_are_merged_where_that_is_exact(kind, merged, new_llama, new_lora):
    targets = ["q_proj"]
    if kind == "adalora":
        model = with_adalora(new_llama(blocks=1), steps=9, target_rank=1, layers=targets)
    else:
        targets += ["lm_head"] * (kind == "tied")  # the head has the weight of the embedding
        model = new_lora(new_llama(blocks=1), targets=targets, use_dora=kind == "dora")
    model = filled(model).to(torch.bfloat16 if kind == "half" else torch.float32)
    if kind == "off":
        model.disable_adapter_layers()
    with gated_updates(model) if kind == "gated" else nullcontext(), merged_adapters(model):
        found = [name for name, module in model.named_modules() if getattr(module, "merged", False)]
    assert [name.rpartition(".")[2] for name in found] == merged


def test_adapters_off_is_the_base(llama, batches):
    base = held_out_loss(llama, batches)
    adapted = with_lora(llama, rank=2)
    for name, parameter in trained_parameters(adapted).items():
        if ".lora_B." in name:
            torch.nn.init.constant_(parameter, 0.1)
    assert held_out_loss(adapted, batches) != base
    with adapted.disable_adapter():
        assert held_out_loss(adapted, batches) == base


def test_regulariser_of_adalora_is_no_part_of_it(llama, batches):
    base = held_out_loss(llama, batches)
    adapted = with_adalora(llama, steps=10, target_rank=1)  # as the base until it is trained
    assert held_out_loss(adapted, batches) == base
    with torch.no_grad():
        assert float(adapted(**batches[0]).loss) > float(llama(**batches[0]).loss) + 0.1


def test_every_module_gets_its_mode_back(batches):
    model = nn.Sequential(Certain(2.0), nn.Dropout())
    model[1].eval()
    with in_mode(model, training=False):
        assert not any(module.training for module in model.modules())
    assert [model.training, model[0].training, model[1].training] == [True, True, False]
    scorer = Certain(2.0)
    held_out_loss(scorer, [batch_of([0, 1])])
    assert scorer.modes == [False]
    assert scorer.training
    assert scorer.logit.grad is None


def test_perplexity():
    assert perplexity(math.log(7)) == pytest.approx(7)
    assert perplexity(0.0) == 1
    assert perplexity(1e4) == math.inf


def test_forgetting_is_the_rise_of_the_loss():
    risen = forgetting({"code": 1.0, "talk": 2.0}, {"talk": 1.5, "code": 1.25})
    assert risen == {"code": 0.25, "talk": -0.5}
    with pytest.raises(ValueError, match=r"same texts. Found \['code'\] and \['talk'\]"):
        forgetting({"code": 1.0}, {"talk": 1.0})


def test_several_sets_by_name():
    sets = {"ones": [batch_of([0, 1])], "zeros": [batch_of([0, 0])]}
    assert held_out_losses(Certain(1.0), sets) == pytest.approx(
        {"ones": math.log(2), "zeros": math.log(2)}
    )


def test_nothing_to_predict():
    with pytest.raises(ValueError, match="batches must hold at least one target token"):
        held_out_loss(Certain(1.0), [batch_of([1, -100, -100])])
    with pytest.raises(ValueError, match="batches must hold at least one target token"):
        held_out_loss(Certain(1.0), [])


def test_loss_that_is_not_finite_names_the_batch():
    model, good = Certain(1.0), batch_of([0, 1])
    with pytest.raises(FloatingPointError, match="loss of batch 1 is not finite"):
        held_out_loss(model, _then_broken(model, good))


def _then_broken(model, batch):
    yield batch
    with torch.no_grad():
        model.logit.fill_(math.nan)
    yield batch
