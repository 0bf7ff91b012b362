"""Both stages of ILA in several processes: fine-tune with LoRA, then rank the layers.

On two or more GPUs, in one line::

    accelerate launch --config_file experiments/ila/cluster/ddp.yaml --num_processes 4
        -m experiments.ila.launch --model mistralai/Mistral-7B-v0.1 --data no_robots
        --steps 1000 --out runs/no_robots

``fsdp.yaml`` beside it shards a model that is too large for one GPU. Without ``accelerate launch``
it is one process. On CPUs set ``ACCELERATE_USE_CPU=true``. The folder ``--out`` then holds
``adapter/`` (of peft), ``ranking.json``, ``training.json`` and, with ``--top-fraction``, the
configuration of a LoRA on the chosen layers in ``top/``.

Every process holds all scores and the same random numbers. What they share is the work on a batch:
each takes part of its rows.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from experiments.ila.evaluation import on_device
from experiments.ila.finetuning import (
    TrainingOptions,
    finetune,
    own_rows,
    restore,
    snapshot,
    with_lora,
)
from experiments.run.atomic import write_text
from ktlib.ila.ranking import LayerRanking
from ktlib.ila.search import rank_layers

if TYPE_CHECKING:
    from accelerate import Accelerator
    from peft import PeftModel

Batch = Mapping[str, Tensor]


def run(
    model: PeftModel,
    training_batches: Sequence[Batch],
    ranking_batches: Sequence[Batch],
    folder: Path,
    *,
    accelerator: Accelerator,
    training: Mapping[str, Any],
    ranking: Mapping[str, Any],
    top_fraction: float | None = None,
) -> LayerRanking:
    """Stage 1, stage 2 and the files of both; called by all processes together.

    Args:
        model: with LoRA, the same in all processes.
        training_batches: of stage 1; whole batches, in every process the same.
        ranking_batches: of stage 2, likewise.
        folder: for the files.
        accelerator: of this process.
        training: arguments of :func:`experiments.ila.finetuning.finetune`. Of every share in
            ``milestones`` the ranking is computed too and written as ``ranking-<share>.json``.
        ranking: arguments of :func:`ktlib.ila.rank_layers`.
        top_fraction: write the configuration of a LoRA on this share of the layers.

    Raises:
        RuntimeError: adapters or scores of two processes differ.
        ValueError, FloatingPointError: as the two functions.
    """
    done = finetune(model, training_batches, accelerator=accelerator, **training)
    trained = snapshot(model)
    require_same(accelerator, trained, "adapters")
    if accelerator.is_main_process:
        # The embeddings are not adapted: peft would look them up on the hub.
        model.save_pretrained(
            str(folder / "adapter"), state_dict=dict(trained), save_embedding_layers=False
        )
        facts = {
            "processes": accelerator.num_processes,
            "losses": done.losses,
            "seconds": done.seconds,
        }
        write_text(folder / "training.json", json.dumps(facts, indent=1) + "\n")
    for share, values in done.snapshots.items():
        restore(model, values)
        _rank(model, ranking_batches, folder / f"ranking-{share}.json", accelerator, ranking)
    restore(model, trained)
    found = _rank(model, ranking_batches, folder / "ranking.json", accelerator, ranking)
    if top_fraction is not None and accelerator.is_main_process:
        config = found.lora_config(top_fraction, task_type="CAUSAL_LM")
        config.save_pretrained(str(folder / "top"))
    accelerator.wait_for_everyone()
    return found


@contextmanager
def shared_batches(model: nn.Module, accelerator: Accelerator) -> Iterator[None]:
    """Let processes share the work on each batch that the model is given in the block.

    Every call gets a whole batch, in all processes the same. Each computes its part of the rows;
    the loss that comes out is that of the whole batch, and so are the gradients of parameters that
    are trained when the model is first called. In one process nothing happens.

    Args:
        model: a causal language model, not wrapped for several processes.
        accelerator: of this process.
    """
    if accelerator.num_processes == 1:
        yield
        return
    handles: list[Any] = []
    hooked: set[nn.Parameter] = set()
    weights: list[float] = []

    def mean(gradient: Tensor) -> Tensor:
        averaged: Tensor = accelerator.reduce(gradient, reduction="mean")
        return averaged

    def take_part(
        module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        for parameter in module.parameters():
            if parameter.requires_grad and parameter not in hooked:
                hooked.add(parameter)
                handles.append(parameter.register_hook(mean))
        shared = {"logits_to_keep"}  # positions: all rows have them in common
        tensors = {key: value for key, value in kwargs.items() if isinstance(value, Tensor)}
        batch = {key: value for key, value in tensors.items() if key not in shared}
        rows, weight = own_rows(batch, accelerator.process_index, accelerator.num_processes)
        weights.append(weight)
        return args, {**kwargs, **rows}

    def whole_loss(_module: nn.Module, _args: tuple[Any, ...], output: Any) -> Any:
        weight = weights.pop()
        own = output.loss * weight if weight else (output.logits * 0).sum()
        whole = accelerator.reduce(own.detach(), reduction="mean")
        # The value is that of all, the gradient our part of it; where one has NaN, all have.
        output.loss = own + (whole - own.detach())
        return output

    handles.append(model.register_forward_pre_hook(take_part, with_kwargs=True))
    handles.append(model.register_forward_hook(whole_loss))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def require_same(accelerator: Accelerator, values: Mapping[str, Tensor], what: str) -> None:
    """Compare tensors of all processes, bit for bit.

    Raises:
        RuntimeError: they differ.
    """
    digest = hashlib.sha256()
    for name, value in values.items():
        digest.update(name.encode())
        digest.update(value.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    own = torch.tensor([int.from_bytes(digest.digest()[:7], "big")], device=accelerator.device)
    if len(set(accelerator.gather(own).tolist())) > 1:
        raise RuntimeError(f"The {what} of the processes differ: they should be the same.")


def main(arguments: Sequence[str] | None = None) -> LayerRanking:
    """What ``python -m experiments.ila.launch`` does.

    Args:
        arguments: of the command line; by default those of this process.
    """
    from accelerate import Accelerator

    from data_prep import load_conversations
    from experiments.ila.chat import batches, context_length, encode_conversations
    from experiments.models.language import load_language_model

    options = _parser().parse_args(arguments)
    accelerator = Accelerator()
    if not accelerator.is_main_process:
        os.environ["TQDM_DISABLE"] = "1"
    base, tokenizer = load_language_model(
        options.model,
        # Sharding places weights by itself.
        device="cpu" if not options.quantized else accelerator.device.type,
        quantized=options.quantized,
        seed=options.seed,
    )
    encoded = encode_conversations(
        load_conversations(options.data, "train", size=options.size, seed=options.seed),
        tokenizer,
        context=context_length(base),
        max_tokens=min(options.max_tokens, context_length(base)),
    )
    size, seed = options.batch_size, options.seed
    training_batches = batches(encoded.examples, size, tokenizer, seed=seed, steps=options.steps)
    ranking_batches = batches(
        encoded.examples, size, tokenizer, seed=seed + 1, steps=options.ranking_batches
    )
    layers = options.layers[0] if len(options.layers) == 1 else options.layers
    model = with_lora(base, rank=options.rank, alpha=options.alpha, layers=layers, seed=seed)
    return run(
        model,
        training_batches,
        ranking_batches,
        options.out,
        accelerator=accelerator,
        training={
            "steps": options.steps,
            "lr": options.lr,
            "options": TrainingOptions(
                clip=options.clip, rows_at_once=options.rows_at_once, precision=options.precision
            ),
            "milestones": options.milestones,
        },
        ranking={
            "initial_score": options.initial_score,
            "lr": options.score_lr,
            "penalty": options.penalty,
            "seed": options.seed,
            "precision": options.precision,
            "data": options.data,
        },
        top_fraction=options.top_fraction,
    )


def _rank(
    model: nn.Module,
    batches: Sequence[Batch],
    path: Path,
    accelerator: Accelerator,
    settings: Mapping[str, Any],
) -> LayerRanking:
    here = [on_device(batch, accelerator.device) for batch in batches]
    with shared_batches(model, accelerator):
        found = rank_layers(model, here, **settings)
    scores = torch.tensor(list(found.scores.values()), dtype=torch.float64)
    require_same(accelerator, {"scores": scores}, "scores")
    if accelerator.is_main_process:
        found.save(path)
    return found


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="experiments.ila.launch", description=__doc__.split("\n")[0]
    )
    add = parser.add_argument
    add("--model", default="smollm2", help="name, folder or id of the Hugging Face hub")
    add("--data", required=True, help="name of a data set, or a .json or .jsonl file")
    add("--out", required=True, type=Path, help="folder for the results")
    add("--size", type=int, help="conversations to take; all by default")
    add("--max-tokens", type=int, default=1024, help="longer conversations lose their end")
    add("--batch-size", type=int, default=16, help="conversations in a batch, over all processes")
    add("--rows-at-once", type=int, help="rows at a time in a process, for less memory")
    add("--steps", type=int, required=True, help="steps of stage 1")
    add("--lr", type=float, default=2e-4, help="highest learning rate of stage 1")
    add("--clip", type=float, help="bound on the norm of the gradient")
    add("--rank", type=int, default=32, help="of LoRA")
    add("--alpha", type=float, help="of LoRA; its rank by default")
    add("--layers", nargs="+", default=["all"], help="a component or names of layers")
    add("--milestones", nargs="*", type=float, default=[], help="shares at which to rank too")
    add("--ranking-batches", type=int, default=128, help="batches and steps of stage 2")
    add("--initial-score", type=float, default=4.0, help="s_0")
    add("--score-lr", type=float, default=0.05, help="learning rate of the scores")
    add("--penalty", type=float, default=0.0, help="on the sum of gamma")
    add(
        "--top-fraction", type=float, help="write a LoRA configuration for this share of the layers"
    )
    add("--precision", default="auto", choices=["auto", "float32", "bfloat16"])
    add("--quantized", action="store_true", help="keep the weights in 4 bits (QLoRA)")
    add("--seed", type=int, default=0)
    return parser


if __name__ == "__main__":
    main()
