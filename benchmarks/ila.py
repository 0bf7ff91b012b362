"""Cost of ILA, both sides in one process: ``python -m benchmarks.ila``.

1. A step of stage 2 (scores only) against one of stage 1 (LoRA on all layers), same batch. Beside
   it a forward and a backward pass without adapters and scores: what no stage 2 can be faster than.
2. Peak memory and time of a step on the best 30 % of the layers against all, for LoRA and for full
   fine-tuning, in the form of table 5.11 of the thesis.
3. A step of stage 1 with logits at target positions only, against logits at all positions.

Which layers are chosen decides how far the backward pass has to go, so the choice is made as the
chapter makes it: by a ranking, here a short one. As many of the last layers stand beside it.
"""

from __future__ import annotations

import argparse
import copy
import functools
import statistics
import time

import torch

from experiments.ila.adapters import layer_names, with_all_weights, with_lora
from experiments.ila.memory import TrainingCost, peak_growth, training_cost
from experiments.ila.selection import choose_layers
from experiments.models.language import load_language_model
from ktlib.ila import gated_updates, rank_layers
from ktlib.ila.targets import keep_target_logits

TOP = 0.3
THESIS = {"lora": (0.87, 0.89), "full": (0.41, 0.77)}  # memory and time, table 5.11


def batch_of(vocabulary: int, rows: int, length: int) -> dict[str, torch.Tensor]:
    """A batch of random tokens; half of each row is to be predicted."""
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(10, vocabulary, (rows, length), generator=rng)
    labels = ids.clone()
    labels[:, : length // 2] = -100
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def stages(name: str, rank: int, rows: int, length: int, rounds: int) -> tuple[float, float]:
    """Times of a step of stage 2, and of one without adapters, in units of one of stage 1."""
    base, _ = load_language_model(name)
    batch = batch_of(base.config.vocab_size, rows, length)
    batch = keep_target_logits(base, batch)
    bare = copy.deepcopy(base).requires_grad_(False)
    bare.enable_input_require_grads()  # so that the backward pass goes through all layers
    model = with_lora(base, rank=rank)
    trained = [p for p in model.parameters() if p.requires_grad]
    first = torch.optim.AdamW(trained, lr=1e-5)
    with torch.no_grad():
        for parameter in trained:
            parameter.add_(1e-3 * torch.randn_like(parameter))

    def stage_1() -> None:
        model.train()
        model(**batch, use_cache=False).loss.backward()
        first.step()
        first.zero_grad()

    found: dict[str, list[float]] = {"stage 1": [], "stage 2": [], "without adapters": []}
    for number in range(rounds + 1):
        started = time.perf_counter()
        stage_1()
        middle = time.perf_counter()
        with gated_updates(model) as gates:
            scores = torch.optim.AdamW([gate.score for gate in gates.values()], lr=0.05)
            begun = time.perf_counter()
            model(**batch, use_cache=False).loss.backward()
            scores.step()
            scores.zero_grad()
            ended = time.perf_counter()
        bare(**batch, use_cache=False).loss.backward()
        after = time.perf_counter()
        if number:
            found["without adapters"].append(after - ended)
            found["stage 1"].append(middle - started)
            found["stage 2"].append(ended - begun)
    medians = {stage: statistics.median(values) for stage, values in found.items()}
    print({stage: f"{1000 * value:.0f} ms" for stage, value in medians.items()})
    first_stage = medians["stage 1"]
    return medians["stage 2"] / first_stage, medians["without adapters"] / first_stage


def target_positions(name: str, rank: int, rows: int, length: int, rounds: int) -> None:
    """Time and memory of a step with logits at an eighth of the positions."""
    base, _ = load_language_model(name)
    batch = batch_of(base.config.vocab_size, rows, length)
    batch["labels"][:, : length - length // 8] = -100
    model = with_lora(base, rank=rank).train()
    found: dict[str, list[float]] = {"all": [], "targets": []}
    memory: dict[str, int] = {}

    def step(inputs: dict[str, torch.Tensor]) -> None:
        model(**inputs, use_cache=False).loss.backward()
        model.zero_grad()

    sides = {"all": batch, "targets": keep_target_logits(model, batch)}
    for number in range(rounds + 1):
        for side, inputs in sides.items():
            started = time.perf_counter()
            step(inputs)
            if number:
                found[side].append(time.perf_counter() - started)
    for side, inputs in sides.items():
        memory[side] = peak_growth(functools.partial(step, inputs), "cpu")
    medians = {side: statistics.median(values) for side, values in found.items()}
    print(
        f"logits at target positions / at all: {medians['targets'] / medians['all']:.2f}x time, "
        f"{memory['targets'] / memory['all']:.2f}x memory besides the model"
    )


def costs(name: str, rank: int, rows: int, length: int, rounds: int) -> None:
    """Memory and time of all layers and of chosen ones, LoRA and full fine-tuning."""
    base, _ = load_language_model(name)
    names = layer_names(base)
    batch = batch_of(base.config.vocab_size, rows, length)
    adapted = with_lora(base, rank=rank)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(1e-3 * torch.randn_like(parameter))
    ranking = rank_layers(adapted, [batch], steps=2)
    choices = {
        "all": names,
        "top 30 %": choose_layers("top", names, TOP, ranking=ranking),
        "last 30 %": choose_layers("last", names, TOP),
    }
    del adapted, base
    for method in ("lora", "full"):
        found: dict[str, TrainingCost] = {}
        for label, layers in choices.items():
            model, _ = load_language_model(name)
            if method == "lora":
                prepared = with_lora(model, rank=rank, layers=layers)
            else:
                prepared = with_all_weights(model, None if label == "all" else layers)
            found[label] = training_cost(prepared, batch, steps=rounds)
        whole = found["all"]
        for label, cost in found.items():
            memory = cost.peak_bytes / whole.peak_bytes
            seconds = cost.seconds_per_step / whole.seconds_per_step
            print(
                f"{method}, {label}: {cost.peak_bytes / 2**20:.0f} MiB ({memory:.2f}x), "
                f"{1000 * cost.seconds_per_step:.0f} ms ({seconds:.2f}x); "
                f"thesis, best 30 %: {THESIS[method][0]}x, {THESIS[method][1]}x"
            )


def main() -> None:
    """Run all three, and print ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    sizes = (given.model, given.rank, given.rows, given.length, given.rounds)
    second, bare = stages(*sizes)
    print(f"stage 2 / stage 1: {second:.2f}x (goal 0.8x); without adapters: {bare:.2f}x")
    target_positions(*sizes)
    costs(*sizes)


if __name__ == "__main__":
    main()
