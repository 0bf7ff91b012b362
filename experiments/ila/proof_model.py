"""A language model while it is fine-tuned, for the last part of ``chapters/proofs/ila.py``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call

from experiments.ila.adapters import trained_parameters, with_lora
from experiments.ila.proof import GatedLoss, IlaProofParameters, Weights, distance
from experiments.models.language import TINY, load_language_model
from ktlib.ila.layers import adapted_layers
from ktlib.seeding import generator

Batch: TypeAlias = Mapping[str, Tensor]
Draw: TypeAlias = Callable[..., Batch]
WORDS = 64  # tokens that occur in the sequences of the tiny model


@dataclass(frozen=True, eq=False)
class FineTuning:
    """A language model in the course of fine-tuning with LoRA.

    Attributes:
        gated: loss of the measured sequences, as a function of gates and an update.
        other: the same for other sequences.
        trace: a row per iteration: ``iteration`` ``t``, from 1; ``loss`` of the measured sequences
            after it; ``change``, by how much the next iteration changes this loss; ``length``, by
            how much it moves the update.
        factors: iteration -> layer -> ``A (rank, in)`` and ``B (out, rank)`` after it.
        scale: factor of ``B A``.
    """

    gated: GatedLoss
    other: GatedLoss
    trace: list[dict[str, float]]
    factors: Mapping[int, Mapping[str, tuple[Tensor, Tensor]]]
    scale: float

    def update(self, iteration: int) -> dict[str, Tensor]:
        """The update of each layer after an iteration that was asked for, or the one after it."""
        return {name: self.scale * (b @ a) for name, (a, b) in self.factors[iteration].items()}


def fine_tune(parameters: IlaProofParameters, seed: int, device: str = "cpu") -> FineTuning:
    """Fine-tune all linear layers of a language model, and keep what the theorem is about.

    The optimiser is the thesis's, AdamW with betas 0.9 and 0.99 and weight decay 0.1, at a constant
    rate: one that falls to 0 would make everything stable. The tiny model first learns one rule of
    successive tokens and is then fine-tuned on another, in float64; others are fine-tuned on sums,
    in float32.

    Args:
        parameters: of the chapter. ``lora_alpha`` is twice the rank. The updates after the
            iterations ``measured_at`` are kept, together with those of the next ones.
        seed: of weights, adapters and batches.
        device: "cpu" or "cuda".

    Raises:
        DataError: the model is not prepared; more in ``load_language_model``.
    """
    p = parameters
    make = partial(_tiny, p.pretraining_steps) if p.model == TINY else partial(_pretrained, p.model)
    network, draw = make(seed, p.batch_size, p.sequence_length, device)
    rank = p.lora_rank
    tuned: Any = with_lora(network, rank=rank, alpha=2 * rank, seed=seed).to(network.dtype)
    measured, other = draw("measured"), draw("other")
    layers = adapted_layers(tuned)
    trained = trained_parameters(tuned).values()
    optimizer = torch.optim.AdamW(trained, p.tuning_lr, betas=(0.9, 0.99), weight_decay=0.1)
    factors, losses, lengths = {}, [], []
    before: dict[str, Tensor] = {}
    for t in range(1, p.tuning_steps + 1):
        optimizer.zero_grad()
        tuned(**draw("training", t)).loss.backward()
        optimizer.step()
        update = {n: layer.get_delta_weight("default").detach() for n, layer in layers.items()}
        with torch.no_grad():
            losses.append(float(_loss(tuned(**measured).logits, measured)))
        lengths.append(distance(update, before) if before else 0.0)
        if t in p.measured_at or t - 1 in p.measured_at:
            factors[t] = {n: _factors(layer) for n, layer in layers.items()}
        before = update
    base = {n: layer.base_layer.weight.detach() for n, layer in layers.items()}
    network = tuned.unload()
    return FineTuning(
        gated=GatedLoss(partial(_language_loss, network, measured), base),
        other=GatedLoss(partial(_language_loss, network, other), base),
        trace=[
            {"iteration": t, "loss": loss, "change": abs(after - loss), "length": moved}
            for t, (loss, after, moved) in enumerate(
                zip(losses, losses[1:], lengths[1:], strict=False), start=1
            )
        ],
        factors=factors,
        scale=2.0,
    )


def _factors(layer: Any) -> tuple[Tensor, Tensor]:
    return (
        layer.lora_A["default"].weight.detach().clone(),
        layer.lora_B["default"].weight.detach().clone(),
    )


def _language_loss(network: nn.Module, batch: Batch, weights: Weights) -> Tensor:
    named = {f"{name}.weight": value for name, value in weights.items()}
    return _loss(functional_call(network, named, args=(), kwargs=dict(batch)).logits, batch)


def _loss(logits: Tensor, batch: Batch) -> Tensor:
    """Cross-entropy of the next token; the model's own loss is in float32 whatever the model is."""
    following = batch["labels"][:, 1:].flatten()
    return nn.functional.cross_entropy(logits[:, :-1].flatten(end_dim=1), following)


def _batch(ids: Tensor) -> Batch:
    """Whole sequences of tokens, ``(batch, length)``, each token to be predicted."""
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


def _tiny(
    pretraining: int, seed: int, batch_size: int, length: int, device: str
) -> tuple[Any, Draw]:
    """The tiny Llama after learning ``5 x + 7`` modulo 64, and sequences of ``11 x + 30``."""
    network: Any = load_language_model(TINY, dtype=torch.float64, device=device, seed=seed)[0]

    def sequences(factor: int, shift: int, *purpose: str | int) -> Batch:
        rng = generator(seed, "proof", *purpose)
        noise = torch.randint(WORDS, (length, batch_size), generator=rng)
        surprise = torch.rand((length, batch_size), generator=rng) < 0.1  # no certainty
        ids = [noise[0]]
        for t in range(1, length):
            ids.append(torch.where(surprise[t], noise[t], (factor * ids[-1] + shift) % WORDS))
        return _batch(torch.stack(ids, dim=1).to(device))

    optimizer = torch.optim.AdamW(network.parameters(), 3e-3)
    for t in range(pretraining):
        optimizer.zero_grad()
        network(**sequences(5, 7, "pretraining", t)).loss.backward()
        optimizer.step()
    return network.requires_grad_(False), partial(sequences, 11, 30)


def _pretrained(
    model: str, seed: int, batch_size: int, length: int, device: str
) -> tuple[Any, Draw]:
    """A pre-trained model, and texts of sums that it can be fine-tuned on."""
    loaded = load_language_model(model, device=device)
    network: Any = loaded[0].requires_grad_(False)
    tokenizer: Any = loaded[1]

    def sums(*purpose: str | int) -> Batch:
        rng = generator(seed, "proof", *purpose)
        numbers = torch.randint(1, 100, (batch_size * length, 2), generator=rng).tolist()
        text = " ".join(f"{a} plus {b} is {a + b}." for a, b in numbers)
        ids = torch.tensor(tokenizer(text, verbose=False).input_ids[: batch_size * length])
        return _batch(ids.reshape(batch_size, length).to(device))

    return network, sums
