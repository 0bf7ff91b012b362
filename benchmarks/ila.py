"""What the ranking of layers costs, against a training step of peft and the floor.

The model has random weights: which they are changes no time.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks.compare import Growth, Row, Side, compare, peaks
from experiments.ila.adapters import with_lora
from ktlib.ila import first_order_scores, gated_updates
from ktlib.ila.targets import keep_target_logits


@dataclass(frozen=True)
class Sizes:
    """Of model, batch and measurements."""

    width: int
    blocks: int
    tokens: int  # that there are
    rank: int
    rows: int
    length: int
    repeats: int


FULL = Sizes(576, 30, 49_152, 32, 2, 64, 7)  # SmolLM2-135M
QUICK = Sizes(32, 2, 259, 4, 2, 16, 2)


def models(sizes: Sizes) -> tuple[nn.Module, nn.Module, nn.Module]:
    """One without adapters and two with LoRA on all layers; all share their frozen weights."""
    config = LlamaConfig(
        vocab_size=sizes.tokens,
        hidden_size=sizes.width,
        intermediate_size=8 * sizes.width // 3,
        num_hidden_layers=sizes.blocks,
        num_attention_heads=sizes.width // 64 or 1,
        num_key_value_heads=sizes.width // 192 or 1,
        tie_word_embeddings=True,
    )
    base = LlamaForCausalLM(config).requires_grad_(False)
    kept = {id(parameter): parameter for parameter in base.parameters()}
    bare = copy.deepcopy(base, dict(kept))
    bare.enable_input_require_grads()  # so that the backward pass goes through all layers
    trained = with_lora(base, rank=sizes.rank).train()
    with torch.no_grad():
        for parameter in trained.parameters():
            if parameter.requires_grad:  # a B of zeros has no gradient to pass on to its A
                parameter.add_(1e-3 * torch.randn_like(parameter))
    return bare, trained, copy.deepcopy(trained, dict(kept))


def batch_of(sizes: Sizes, predicted: float) -> dict[str, Tensor]:
    """A batch of random tokens, of which a share at the end is to be predicted."""
    ids = torch.randint(10, sizes.tokens, (sizes.rows, sizes.length))
    labels = ids.clone()
    labels[:, : sizes.length - int(predicted * sizes.length)] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def step(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    trained: Sequence[nn.Parameter] = (),
    shown: Sequence[nn.Parameter] = (),
) -> Callable[[], list[Tensor]]:
    """A step of AdamW that changes nothing, as its rate is 0; without parameters the passes.

    Its result is the loss, and the gradients of some parameters to be shown.
    """
    optimizer = torch.optim.AdamW(trained, lr=0.0) if trained else None

    def run() -> list[Tensor]:
        loss: Tensor = model(**batch, use_cache=False).loss
        loss.backward()
        gradients = [parameter.grad for parameter in shown if parameter.grad is not None]
        if optimizer is not None:
            optimizer.step()
            optimizer.zero_grad()
        return [loss, *gradients]

    return run


def lora(model: nn.Module) -> list[nn.Parameter]:
    """What is trained."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def stages(sizes: Sizes, bare: nn.Module, trained: nn.Module, gated: nn.Module) -> Row:
    """A step of stage 2, scores alone, against one of stage 1, LoRA on all layers."""
    batch = keep_target_logits(bare, batch_of(sizes, 0.5))
    # Gates of plus infinity are open: the loss must be that of the model without gates.
    with gated_updates(gated, initial_score=torch.inf) as gates:
        scores = [gate.score for gate in gates.values()]
        sides = [
            Side("a training step of peft", "peer", step(trained, batch, lora(trained))),
            Side("stage 2 of ILA", "project", step(gated, batch, scores)),
            Side("both passes without adapters", "floor", step(bare, batch), checked=False),
        ]
        return compare("step of ILA", at(sizes), sides, sizes.repeats)


def target_logits(sizes: Sizes, trained: nn.Module) -> Iterator[Row]:
    """Logits at the positions of targets, an eighth of all, against logits everywhere."""
    batch = batch_of(sizes, 0.125)
    some, parameters = keep_target_logits(trained, batch), lora(trained)
    first = parameters[:2]  # the last that the backward pass comes to
    sides = [
        Side("logits everywhere", "naive", step(trained, batch, parameters, first)),
        Side("keep_target_logits", "project", step(trained, some, parameters, first)),
    ]
    size = f"{at(sizes)}, targets at an eighth"
    yield compare("training step with LoRA", size, sides, sizes.repeats)
    work = "memory of a training step with LoRA beyond the model"
    yield compare(work, size, sides, 1, measure=peaks)


def cheap_scores(sizes: Sizes, trained: nn.Module) -> Row:
    """First-order scores against a backward pass, whose gradients hold them.

    Of a layer with the update ``W = beta B A`` the score is minus the inner product of ``W`` and
    its gradient, which is that of ``B`` and the gradient of ``B``.
    """
    batch = keep_target_logits(trained, batch_of(sizes, 0.5))
    pairs = {n: p for n, p in trained.named_parameters() if p.requires_grad and "lora_B" in n}

    def backward() -> Sequence[Tensor]:
        trained.zero_grad()
        trained(**batch, use_cache=False).loss.backward()
        values = [-(b * b.grad).sum() for b in pairs.values() if b.grad is not None]
        return [torch.stack(values)]

    def ours() -> Sequence[Tensor]:
        return [torch.tensor(list(first_order_scores(trained, [batch]).scores.values()))]

    sides = [
        Side("a backward pass of a training", "naive", backward),
        Side("first_order_scores", "project", ours),
    ]
    return compare(f"first-order scores of {len(pairs)} layers", at(sizes), sides, sizes.repeats)


def at(sizes: Sizes) -> str:
    """The size in words."""
    return f"{sizes.blocks} blocks of width {sizes.width}, {sizes.rows} x {sizes.length} tokens"


def measure(quick: bool) -> Iterator[Row | Growth]:
    """All comparisons of the part on language models."""
    sizes = QUICK if quick else FULL
    bare, trained, gated = models(sizes)
    yield stages(sizes, bare, trained, gated)
    del bare, gated
    yield from target_logits(sizes, trained)
    yield cheap_scores(sizes, trained)
