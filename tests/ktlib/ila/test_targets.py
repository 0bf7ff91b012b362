"""Scores of the vocabulary at target positions only: the same loss, gradients and held-out loss."""

import pytest
import torch
from torch.nn import functional as F

from experiments.ila.evaluation import held_out_loss
from ktlib.ila.checks import model_loss
from ktlib.ila.targets import keep_target_logits
from tests.ktlib.ila.conftest import VOCABULARY, add_lora, make_llama


def batch_of(rows=3, length=9, targets=((5, 6), (7,), ())):
    """Random tokens; ``targets`` are the positions of each row that are to be predicted."""
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=torch.Generator().manual_seed(0))
    labels = torch.full_like(ids, -100)
    for row, places in enumerate(targets):
        for place in places:
            labels[row, place] = ids[row, place]
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def test_positions_and_labels_by_hand():
    batch = batch_of()
    found = keep_target_logits(make_llama(), batch)
    # The token at 5 is predicted at position 4, and so on.
    assert found["logits_to_keep"].tolist() == [4, 5, 6]
    ids = batch["input_ids"]
    none = -100
    wanted = [[ids[0, 5], ids[0, 6], none], [none, none, ids[1, 7]], [none] * 3]
    assert found["shift_labels"].tolist() == torch.tensor(wanted).tolist()
    assert all(found[key] is value for key, value in batch.items())


@pytest.mark.parametrize("adapted", [False, True])
def test_loss_and_gradients_are_those_of_all_positions(adapted):
    model = make_llama()
    model = add_lora(model) if adapted else model
    model.eval()
    batch = batch_of()
    trained = [p for p in model.parameters() if p.requires_grad]
    whole = model(**batch).loss
    wanted = torch.autograd.grad(whole, trained)
    output = model(**keep_target_logits(model, batch))
    found = torch.autograd.grad(output.loss, trained)
    assert output.logits.shape == (3, 3, VOCABULARY)
    torch.testing.assert_close(output.loss, whole)
    for one, other in zip(found, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


def test_the_losses_of_the_package_are_those_of_all_positions():
    model = add_lora(make_llama()).eval()
    batch = batch_of()
    logits = model(batch["input_ids"]).logits
    by_hand = F.cross_entropy(logits[:, :-1].flatten(0, 1), batch["labels"][:, 1:].flatten())
    torch.testing.assert_close(model_loss(model, batch), by_hand)
    assert held_out_loss(model, [batch]) == pytest.approx(float(by_hand.detach()), rel=1e-5)


def test_the_first_token_is_no_target():
    batch = batch_of(targets=((0, 3), (0,), (0,)))
    assert keep_target_logits(make_llama(), batch)["logits_to_keep"].tolist() == [2]


@pytest.mark.parametrize("length", [9, 1])
def test_a_batch_without_targets_stays_as_it_is(length):
    batch = batch_of(length=length, targets=())
    assert keep_target_logits(make_llama(), batch).keys() == batch.keys()


def test_other_models_get_the_batch_as_it_is():
    class Own(torch.nn.Module):
        def forward(self, input_ids, attention_mask, labels):
            return None

    class OwnLossForCausalLM(type(make_llama())):
        def forward(self, input_ids=None, logits_to_keep=0, **kwargs):
            return None

    class LlamaOfAnotherKind(type(make_llama())):
        """The same forward pass; but what is no causal model may read its labels otherwise."""

    assert keep_target_logits(LlamaOfAnotherKind(make_llama().config), batch_of()).keys() == set(
        batch_of()
    )
    assert keep_target_logits(Own(), batch_of()).keys() == batch_of().keys()
    # It would not read shift_labels: the labels would no longer fit the logits.
    assert (
        keep_target_logits(OwnLossForCausalLM(make_llama().config), batch_of()).keys()
        == batch_of().keys()
    )


def test_wrappers_are_looked_through():
    wrapped = torch.nn.DataParallel(add_lora(make_llama()))
    assert "logits_to_keep" in keep_target_logits(wrapped, batch_of())
