"""Fine-tuning in a plain loop: stage 1 of ILA, and the training of what was chosen.

accelerate handles several processes, GPUs and sharded models. Optimizer and schedule are those of
the thesis: AdamW with betas 0.9 and 0.99 and weight decay 0.1; a cosine after 1 % of warm-up.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from tqdm import tqdm

from experiments.ila.adapters import (
    active_ranks,
    layer_names,
    trained_parameters,
    with_adalora,
    with_all_weights,
    with_lora,
    with_qlora,
)
from experiments.ila.evaluation import device_of, in_mode, on_device, target_tokens
from experiments.ila.snapshots import Snapshot, restore, snapshot
from ktlib.checks import require_at_least, require_positive
from ktlib.device import PrecisionName, autocast
from ktlib.ila.checks import checked_batches
from ktlib.ila.targets import keep_target_logits

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = [
    "DEFAULT_OPTIONS",
    "MILESTONES",
    "Training",
    "TrainingOptions",
    "active_ranks",
    "finetune",
    "layer_names",
    "own_rows",
    "restore",
    "snapshot",
    "trained_parameters",
    "with_adalora",
    "with_all_weights",
    "with_lora",
    "with_qlora",
]

MILESTONES = (0.01, 0.25, 0.5, 0.75, 1.0)
"""Shares of the training at which the thesis looks at the ranking (table 5.4)."""

Batch = Mapping[str, Tensor]


@dataclass(frozen=True)
class TrainingOptions:
    """Settings of :func:`finetune` besides steps and learning rate.

    Attributes:
        betas: of AdamW.
        weight_decay: of AdamW. As usual it acts on matrices and not on norms and biases.
        warmup: share of the steps in which the learning rate rises; the first of them has rate 0.
        clip: bound on the norm of the gradient; ``None`` for none.
        rows_at_once: how many rows of a batch go through the model at the same time, in each
            process; for less memory. ``None`` for all.
        precision: as in :func:`ktlib.device.autocast`. It must be ``"auto"`` where the accelerator
            has a precision of its own.

    Raises:
        ValueError: a value outside its range.
    """

    betas: tuple[float, float] = (0.9, 0.99)
    weight_decay: float = 0.1
    warmup: float = 0.01
    clip: float | None = None
    rows_at_once: int | None = None
    precision: PrecisionName = "auto"

    def __post_init__(self) -> None:
        if not 0 <= self.warmup < 1:
            raise ValueError(f"warmup must lie in [0, 1). Found warmup={self.warmup!r}.")
        if self.clip is not None:
            require_positive("clip", self.clip)
        if self.rows_at_once is not None:
            require_at_least("rows_at_once", self.rows_at_once, 1)


DEFAULT_OPTIONS = TrainingOptions()


@dataclass(frozen=True)
class Training:
    """What a training leaves besides the trained model.

    Attributes:
        losses: training loss of every step, in nats per target token, before its update; with
            AdaLoRA including its regulariser.
        seconds: duration of every step.
        snapshots: share of the training -> the trained parameters after it, see
            :func:`experiments.ila.snapshots.restore`.
    """

    losses: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    snapshots: dict[float, Snapshot] = field(default_factory=dict)


def finetune(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    steps: int,
    lr: float,
    options: TrainingOptions = DEFAULT_OPTIONS,
    milestones: Sequence[float] = (),
    after_step: Callable[[int, float], object] | None = None,
    after_backward: Callable[[float], object] | None = None,
    accelerator: Accelerator | None = None,
) -> Training:
    """Train the parameters that have ``requires_grad``, in place; the others stay bit for bit.

    The loss of a step is the mean over all target tokens of its batch. Where several processes
    train together, each takes its part of the rows and the update is the same as in one process;
    the same holds for ``rows_at_once``.

    Args:
        model: a causal language model of transformers, with adapters of peft or without.
        batches: dicts of ``input_ids``, ``attention_mask`` and ``labels``, each
            ``(batch, length)``; one for each step, over and over if there are fewer. In every
            process the same.
        steps: number of updates, at least 1.
        lr: highest learning rate.
        options: of the optimizer, and what saves memory.
        milestones: shares in (0, 1] of the training at which the trained parameters are kept.
        after_step: called with the number of every step, from 1, and its loss. If it returns
            ``True`` the training ends there.
        after_backward: called in every step while its gradients are there, before they are clipped,
            with the factor that they bear; such as ``step`` of
            :class:`~ktlib.ila.FirstOrderScores`.
        accelerator: of accelerate; by default a new one, which leaves the model where it is
            unless several processes were launched.

    Raises:
        ValueError: an argument outside its range, nothing to train, too few batches, a batch of
            the wrong form, without target tokens or longer than the model's context.
        FloatingPointError: the loss or, with ``options.clip``, the gradient of a step is not
            finite. The step is named; the parameters are as the step before left them.
        RuntimeError: ``after_step`` changed what is trained: the optimizer would not know.
    """
    keep = _checked(steps, lr, milestones)
    if not trained_parameters(model):
        raise ValueError(
            "model must have parameters to train. Found none: see with_lora, with_all_weights."
        )
    _check_adalora(model, steps)
    if isinstance(batches, Sequence):  # before anything is trained
        batches = checked_batches(model, batches)
    accelerator = accelerator or _new_accelerator()
    own_precision = accelerator.mixed_precision != "no"
    if own_precision and options.precision != "auto":
        raise ValueError(
            f"precision must be 'auto' with an accelerator that computes in "
            f"{accelerator.mixed_precision!r}. Found precision={options.precision!r}."
        )
    inner = torch.optim.AdamW(_groups(model, options.weight_decay), lr=lr, betas=options.betas)
    schedule = _cosine(inner, round(options.warmup * steps), steps)
    # The schedule stays ours: accelerate would advance it once for every process.
    wrapped, optimizer = accelerator.prepare(model, inner)
    device = device_of(wrapped)
    trained = trained_parameters(model)
    training = Training()

    def context() -> AbstractContextManager[object]:
        return nullcontext() if own_precision else autocast(device, options.precision)

    try:
        with in_mode(wrapped, training=True):
            for step, batch in zip(
                tqdm(range(1, steps + 1), desc="training", leave=False),
                _repeated(batches, steps),
                strict=False,
            ):
                started = time.perf_counter()
                pieces = _pieces(on_device(batch, device), accelerator, options.rows_at_once)
                loss = _backward(wrapped, pieces, accelerator, context, step)
                if after_backward is not None:
                    scaler = accelerator.scaler  # that of float16
                    after_backward(1.0 if scaler is None else scaler.get_scale())
                if options.clip is not None:
                    norm = float(accelerator.clip_grad_norm_(list(trained.values()), options.clip))
                    _check_finite("gradient", norm, step)
                optimizer.step()
                schedule.step()
                if _is_adalora(model):
                    # It reads the gradients of this step: before they are dropped.
                    model.base_model.update_and_allocate(step)  # type: ignore[union-attr,operator]
                optimizer.zero_grad()
                training.losses.append(loss)
                training.seconds.append(time.perf_counter() - started)
                for share in keep.get(step, ()):
                    training.snapshots[share] = snapshot(model)
                if after_step is not None:
                    done = after_step(step, loss)
                    if trained_parameters(model).keys() != trained.keys():
                        raise RuntimeError(
                            f"What is trained was changed after step {step}: freeze before the "
                            f"training, the optimizer does not follow."
                        )
                    if done is True:
                        break
            else:
                step_count = len(training.losses)
                if step_count < steps:
                    raise ValueError(
                        f"batches must be enough for steps={steps}, or a sequence to go through "
                        f"again. Found {step_count}."
                    )
    finally:
        optimizer.zero_grad()
        if own_precision:
            accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
    return training


def _checked(steps: int, lr: float, milestones: Sequence[float]) -> dict[int, list[float]]:
    """Check arguments; the steps after which parameters are kept: step -> shares."""
    require_at_least("steps", steps, 1)
    if not (lr > 0 and math.isfinite(lr)):
        raise ValueError(f"lr must be a number above 0. Found lr={lr!r}.")
    keep: dict[int, list[float]] = {}
    for share in milestones:
        if not 0 < share <= 1:
            raise ValueError(f"milestones must lie in (0, 1]. Found {share!r}.")
        keep.setdefault(max(1, round(share * steps)), []).append(share)
    return keep


def _new_accelerator() -> Accelerator:
    from accelerate import Accelerator, PartialState

    return Accelerator(device_placement=PartialState().num_processes > 1)


def _groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Groups for the optimizer: matrices with weight decay, vectors without."""
    trained = list(trained_parameters(model).values())
    matrices = [p for p in trained if p.ndim > 1]
    vectors = [p for p in trained if p.ndim <= 1]
    groups = [(matrices, weight_decay), (vectors, 0.0)]
    return [{"params": params, "weight_decay": decay} for params, decay in groups if params]


def _cosine(
    optimizer: torch.optim.Optimizer, warmup_steps: int, steps: int
) -> torch.optim.lr_scheduler.LambdaLR:
    from transformers import get_cosine_schedule_with_warmup

    schedule: torch.optim.lr_scheduler.LambdaLR = get_cosine_schedule_with_warmup(
        optimizer, warmup_steps, steps
    )
    return schedule


def _repeated(batches: Iterable[Batch], steps: int) -> Iterator[Batch]:
    """Batches for all steps, as far as they go."""
    given = 0
    while given < steps:
        before = given
        for batch in batches:
            yield batch
            given += 1
        if given == before:  # an iterator that is used up
            return


def own_rows(batch: Batch, process: int, processes: int) -> tuple[Batch, float]:
    """The rows of a batch that are one process's part, and their weight in the loss.

    Gradients are averaged over the processes. Rows whose targets are a share ``q`` of those of the
    whole batch weigh ``q`` times the number of processes: so every target token counts the same.

    Raises:
        ValueError: fewer rows than processes, or no target token.
    """
    rows, targets = len(batch["input_ids"]), target_tokens(batch)
    if rows < processes:
        raise ValueError(
            f"A batch must hold a row for every process. Found {rows} for {processes} processes."
        )
    if targets == 0:
        raise ValueError("A batch must hold at least one target token. Found none.")
    mine = {key: value.tensor_split(processes)[process] for key, value in batch.items()}
    return mine, target_tokens(mine) * processes / targets


def _pieces(
    batch: Batch, accelerator: Accelerator, rows_at_once: int | None
) -> list[tuple[Batch, float]]:
    """The rows of this process in pieces, each with its weight in the loss."""
    mine, weight = own_rows(batch, accelerator.process_index, accelerator.num_processes)
    rows, targets = len(mine["input_ids"]), target_tokens(mine)
    if rows_at_once is None or rows_at_once >= rows:
        return [(mine, weight)]
    parts: list[Batch] = [
        {key: value[start : start + rows_at_once] for key, value in mine.items()}
        for start in range(0, rows, rows_at_once)
    ]
    return [(part, weight * target_tokens(part) / max(1, targets)) for part in parts]


def _backward(
    model: nn.Module,
    pieces: Sequence[tuple[Batch, float]],
    accelerator: Accelerator,
    context: Callable[[], AbstractContextManager[object]],
    step: int,
) -> float:
    """Gradients of the loss of a batch, and the loss itself, in every process the same."""
    total: float | Tensor = 0.0
    for number, (piece, weight) in enumerate(pieces, start=1):
        # Processes exchange gradients in the last backward pass of a step only.
        last = number == len(pieces)
        with nullcontext() if last else accelerator.no_sync(model):
            with context():
                output = model(**keep_target_logits(model, piece), use_cache=False)
                # The mean over no targets is 0/0. The pass is still needed: the others wait.
                loss = output.loss * weight if weight else (output.logits * 0).sum()
            accelerator.backward(loss)
        total = total + loss.detach().float()
    value = float(accelerator.reduce(total, reduction="mean"))
    _check_finite("loss", value, step)
    return value


def _check_finite(what: str, value: float, step: int) -> None:
    if not math.isfinite(value):
        raise FloatingPointError(
            f"The {what} of step {step} is not finite: {value}. No parameter was changed by it. "
            f"A lower learning rate, clip=1.0 or precision='float32' may help."
        )


def _is_adalora(model: nn.Module) -> bool:
    return hasattr(getattr(model, "base_model", None), "update_and_allocate")


def _check_adalora(model: nn.Module, steps: int) -> None:
    if not _is_adalora(model):
        return
    planned = model.peft_config[model.active_adapter].total_step  # type: ignore[index,union-attr]
    if planned != steps:
        raise ValueError(
            f"steps must be the number that AdaLoRA was made for: {planned}. Found steps={steps!r}."
        )
