"""What a step costs, of a training or of the ranking: peak memory and time (thesis, table 5.11).

Why fewer trained layers cost less. A weight that is not trained needs no gradient and no averages
of AdamW: three times its size is saved. Activations are a different matter. The backward pass goes
from the loss down to the lowest trained layer, through all that lies above: so what nonlinear parts
keep for it (norms, attention, the product in the feed-forward part) is saved only below that layer.
A linear layer keeps its input only if its own weight, or the ``A`` of its LoRA, is trained. Thirty
percent of the layers, spread over all blocks, thus save the inputs of the others; the same number
in the last blocks saves more, and time too.
"""

from __future__ import annotations

import copy
import gc
import os
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from experiments.ila.evaluation import device_of
from experiments.ila.finetuning import (
    DEFAULT_OPTIONS,
    TrainingOptions,
    finetune,
    restore,
    snapshot,
)
from ktlib.device import PrecisionName
from ktlib.ila.checks import model_loss
from ktlib.ila.gates import gated_updates

AfterStep = Callable[[int, float], object]
"""Called with the number of a step, from 1, and its loss."""

# The profiler writes to the terminal when it starts and stops; it reads this at its first start.
QUIET = ("KINETO_LOG_LEVEL", "6")


@dataclass(frozen=True)
class TrainingCost:
    """What steps of a training cost.

    Attributes:
        peak_bytes: most memory that tensors held at a time, the model included.
        model_bytes: that of the model alone.
        seconds_per_step: median over the steps.
    """

    peak_bytes: int
    model_bytes: int
    seconds_per_step: float


def training_cost(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    steps: int = 5,
    warmup: int = 2,
    options: TrainingOptions = DEFAULT_OPTIONS,
) -> TrainingCost:
    """Measure :func:`~experiments.ila.finetuning.finetune` on a batch; the model is put back.

    Memory is what tensors hold, as counted by the allocator of PyTorch: on a GPU
    ``torch.cuda.max_memory_allocated``, on a CPU the same from the record of
    :mod:`torch.profiler`, equal from run to run. Resident memory of the process would count
    libraries too, and what ``malloc`` keeps for later. Time is measured without the profiler. Of a
    model on another accelerator, whose peaks cannot be counted, a copy on the CPU is measured.

    Args:
        model: with adapters or without; what is trained is decided before. Not with AdaLoRA, whose
            state a measurement would change.
        batch: of ``input_ids``, ``attention_mask`` and ``labels``, each ``(batch, length)``.
        steps: number of timed steps; they follow the two that memory is counted in.
        warmup: number of steps before all of these that do not count.
        options: of ``finetune``, such as the precision.

    Raises:
        ValueError: ``steps`` or ``warmup`` is below 1; the model has no values; as ``finetune``.
    """
    model, device = _measurable(model, steps, warmup)

    def run(count: int, after: AfterStep) -> list[float]:
        training = finetune(model, [batch], steps=count, lr=1e-5, options=options, after_step=after)
        return training.seconds

    before = snapshot(model)
    try:
        return _cost_of(run, model, device, steps, warmup)
    finally:
        restore(model, before)


def ranking_cost(
    model: nn.Module,
    batch: Mapping[str, Tensor],
    *,
    steps: int = 5,
    warmup: int = 2,
    precision: PrecisionName = "auto",
) -> TrainingCost:
    """Measure stage 2 as :func:`training_cost` does stage 1: steps that train the scores alone.

    The forward pass is that of stage 1, and so are the gradients of all that lies between layers.
    What stage 2 does without are the gradients of ``A`` and ``B`` and their optimizer.

    Args:
        model: with LoRA adapters, as for :func:`ktlib.ila.rank_layers`; it is left as it was.
        batch: of ``input_ids``, ``attention_mask`` and ``labels``, each ``(batch, length)``.
        steps: number of timed steps; they follow the two that memory is counted in.
        warmup: number of steps before all of these that do not count.
        precision: as in :func:`ktlib.device.autocast`.

    Raises:
        ValueError: as :func:`training_cost` and :func:`ktlib.ila.gates.gated_updates`.
    """
    model, device = _measurable(model, steps, warmup)

    def run(count: int, after: AfterStep) -> list[float]:
        scores = [gate.score for gate in gates.values()]
        optimizer = torch.optim.AdamW(scores, lr=0.05, weight_decay=0.0)
        seconds = []
        for step in range(1, count + 1):
            started = time.perf_counter()
            loss = model_loss(model, batch, precision)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            value = loss.item()  # as in the training: the device has to be done
            seconds.append(time.perf_counter() - started)
            after(step, value)
        return seconds

    with gated_updates(model) as gates:
        return _cost_of(run, model, device, steps, warmup)


def _measurable(model: nn.Module, steps: int, warmup: int) -> tuple[nn.Module, torch.device]:
    for name, value in (("steps", steps), ("warmup", warmup)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1. Found {name}={value!r}.")
    device = device_of(model)
    if device.type == "meta":
        raise ValueError("model must hold values. Found its parameters on the meta device.")
    if device.type in {"cpu", "cuda"}:
        return model, device
    return copy.deepcopy(model).cpu(), torch.device("cpu")


def _cost_of(
    run: Callable[[int, AfterStep], list[float]],
    model: nn.Module,
    device: torch.device,
    steps: int,
    warmup: int,
) -> TrainingCost:
    """Cost of steps; ``run`` takes their number and what to call after each; returns seconds."""
    own = model_bytes(model)
    run(warmup, lambda *_: None)  # what libraries set up once
    with ExitStack() as watch:
        growth = watch.enter_context(_growth(device))

        def after(step: int, _: float) -> None:
            if step == 2:  # the averages of AdamW are there from the end of the first step on
                watch.close()

        seconds = run(2 + steps, after)[2:]
    return TrainingCost(own + growth[0], own, statistics.median(seconds))


def cost_row(method: str, layers: str, cost: TrainingCost) -> dict[str, str | int | float]:
    """A row of the table ``cost`` of a record: method, layers, peak_bytes, seconds_per_step.

    Args:
        method: such as ``"LoRA"``.
        layers: which were trained, such as ``"all"`` or ``"top 30 %"``.
        cost: what was measured.
    """
    return {
        "method": method,
        "layers": layers,
        "peak_bytes": cost.peak_bytes,
        "seconds_per_step": cost.seconds_per_step,
    }


def model_bytes(model: nn.Module) -> int:
    """Memory of parameters and buffers; what is shared, such as tied weights, counts once."""
    storages = {}
    for tensor in chain(model.parameters(), model.buffers()):
        storage = tensor.untyped_storage()
        storages[storage.data_ptr()] = storage.nbytes()
    return sum(storages.values())


def peak_growth(work: Callable[[], object], device: torch.device | str) -> int:
    """Largest growth, in bytes, of what tensors hold while some work is done."""
    with _growth(device) as found:
        work()
    return found[0]


@contextmanager
def _growth(device: torch.device | str) -> Iterator[list[int]]:
    """A list that holds, after the block, the largest growth inside it."""
    found: list[int] = []
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        start = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        yield found
        torch.cuda.synchronize(device)
        found.append(torch.cuda.max_memory_allocated(device) - start)
        return
    with _quiet(), _memory_profile() as profile:
        yield found
        # What is freed later would be missed: the record would end with tensors that are gone.
        gc.collect()
    events = profile.profiler.kineto_results.events()
    changes = [(e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]"]
    held = peak = 0
    for _, change in sorted(changes, key=lambda found: found[0]):
        held += change
        peak = max(peak, held)
    found.append(peak)


def _memory_profile() -> Any:
    cpu = torch.profiler.ProfilerActivity.CPU
    return torch.profiler.profile(activities=[cpu], profile_memory=True)


@contextmanager
def _quiet() -> Iterator[None]:
    name, level = QUIET
    before = os.environ.get(name)
    os.environ[name] = level if before is None else before
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
