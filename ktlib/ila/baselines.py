"""Cheap scores of layers, against which the learned ones of ILA are measured.

Each gives a :class:`~ktlib.ila.ranking.LayerRanking` in which higher is more important. The first
three of these numbers agree where the loss is linear in the gates: the loss that removing a layer's
update costs (:func:`ablation_scores`), and minus the derivative of the loss by the layer's gate
(:func:`first_order_scores`). The size of the update (:func:`update_norms`) looks at no data at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from tqdm import tqdm

from ktlib.device import PrecisionName
from ktlib.ila.checks import Batch, Loss, batches_for, compute_loss, require_finite
from ktlib.ila.gates import gates_of
from ktlib.ila.layers import (
    active_adapter,
    norms_of_updates,
    plain_lora_layers,
    some_of,
    without_update,
)
from ktlib.ila.ranking import LayerRanking
from ktlib.ila.search import provenance_of


def first_order_scores(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    base_state: Mapping[str, Tensor] | None = None,
    precision: PrecisionName = "auto",
    loss: Loss | None = None,
    data: str = "",
    skip_unsupported: bool = False,
) -> LayerRanking:
    """Minus ``<grad_i L, Dtheta_i>``, the inner product of a layer's gradient and its update.

    It equals minus d loss / d gamma_i at gamma = 1: to first order, by how much the loss rises when
    the update is removed. One forward and one backward pass per batch; the mean over the batches,
    and its standard error.

    Args:
        model: a model with LoRA adapters; or, with ``base_state``, one fine-tuned as a whole.
        batches: as in :func:`~ktlib.ila.search.rank_layers`.
        base_state: state dict before fine-tuning, for a model without adapters.
        precision: as in :func:`ktlib.device.autocast`.
        loss: as in :func:`~ktlib.ila.search.rank_layers`.
        data: a note on the batches, for the provenance.
        skip_unsupported: as in :func:`~ktlib.ila.layers.base_weights`.

    Raises:
        ValueError, FloatingPointError: as :func:`~ktlib.ila.search.rank_layers`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> loss = lambda model, batch: model(batch).mean().square()  # 49; its slope in gamma: 98
        >>> ones, base_state = [torch.ones(5, 2)], {"0.weight": torch.zeros(1, 2)}
        >>> first_order_scores(model, ones, base_state=base_state, loss=loss).scores
        {'0': -98.0}
    """
    found = batches_for(model, batches, loss)
    norms = norms_of_updates(model, base_state, skip_unsupported=skip_unsupported)
    rows = []
    with gates_of(model, base_state, 1.0, _identity, skip_unsupported=skip_unsupported) as gates:
        for number, batch in enumerate(tqdm(found, desc="first-order scores", leave=False)):
            value = compute_loss(loss, model, batch, precision)
            require_finite(value, f"batch {number}")
            gammas = [gate.score for gate in gates.values()]
            gradients = torch.autograd.grad(value, gammas, allow_unused=True)
            reached = [gradient.to(value.device) for gradient in gradients if gradient is not None]
            values = iter(torch.stack(reached).tolist() if reached else [])  # one transfer for all
            rows.append([0.0 if g is None else -next(values) for g in gradients])
        names = list(gates)
    _require_finite_scores(rows, names)
    return _ranking(model, norms, rows, base_state, "first_order", data)


class FirstOrderScores:
    """First-order scores from a training of LoRA itself, for next to nothing.

    A loss knows ``B`` through the update ``beta B A`` alone, which is linear in ``B``. So
    ``<grad_i L, beta B A> = <grad_B L, B>``: a training computes all that it takes::

        scores = FirstOrderScores(model)
        for batch in batches:
            model(**batch).loss.backward()
            scores.step()                 # then clip, update, zero_grad
            ...
        scores.ranking().top(0.3)

    Equal to :func:`first_order_scores` where weights and loss are. But the mean is over the steps
    of a training, each with the adapters, the batch and the dropout of its own; so are the standard
    errors, which count the drift of the adapters as noise.

    Args:
        model: with plain LoRA adapters of peft, each ``B`` trained and whole on this process.

    Raises:
        ValueError: a ``B`` is frozen or sharded; as :func:`~ktlib.ila.layers.plain_lora_layers`.

    Example:
        >>> import peft
        >>> config = peft.LoraConfig(r=1, lora_alpha=1, target_modules=["0"])
        >>> model = peft.get_peft_model(nn.Sequential(nn.Linear(2, 1, bias=False)), config)
        >>> for name, weight in model.named_parameters():
        ...     _ = weight.data.fill_(0.0 if "base_layer" in name else 1.0)
        >>> model(torch.ones(5, 2)).mean().square().backward()  # (2 gamma)^2; its slope at 1: 8
        >>> scores = FirstOrderScores(model)
        >>> scores.step()
        >>> scores.ranking().scores
        {'0': -8.0}
    """

    def __init__(self, model: nn.Module) -> None:
        layers = plain_lora_layers(model)
        adapter = active_adapter(layers)
        self._model = model
        self._trained = {n: [*layer.lora_B[adapter].parameters()] for n, layer in layers.items()}
        self._steps: list[Tensor] = []  # one (layers,) a step, where the model is
        self._require_trained()

    def step(self, scale: float = 1.0) -> None:
        """Note the gradients of a step: once, when they are complete, before they are clipped.

        With accumulated gradients that is before the update, not after every backward pass. Nothing
        is waited for: values stay on the device.

        Args:
            scale: factor that the loss was multiplied by, such as ``GradScaler.get_scale()``.

        Raises:
            ValueError: there are no gradients; a ``B`` was frozen since; ``scale`` is not positive.
        """
        if not 0 < scale < math.inf:
            raise ValueError(f"scale must be positive. Found scale={scale!r}.")
        self._require_trained()
        layers = list(self._trained.values())
        if all(weight.grad is None for weight, *_ in layers):
            raise ValueError(
                "model must have gradients: call step() after loss.backward(), before zero_grad()."
            )
        device = layers[0][0].device
        found = [torch.stack([_product(p) for p in parts]).sum().to(device) for parts in layers]
        self._steps.append(torch.stack(found) / -scale)

    def ranking(self, data: str = "") -> LayerRanking:
        """The mean over the steps so far. Steps without finite gradients are left out and counted.

        Args:
            data: a note on the batches, for the provenance.

        Raises:
            FloatingPointError: no step had finite gradients.
            ValueError: there was no step; the update of every layer is zero.
        """
        if not self._steps:
            raise ValueError("step() must be called before ranking(). Found no step.")
        steps = torch.stack(self._steps)
        rows = steps[steps.isfinite().all(dim=1)].tolist()
        if not rows:
            raise FloatingPointError("gradients must be finite. Found no step in which all are.")
        norms = norms_of_updates(self._model, None)
        found = _ranking(self._model, norms, rows, None, "first_order_training", data)
        left_out = {"left_out": len(steps) - len(rows)}
        return found.model_copy(update={"settings": {**found.settings, **left_out}})

    def _require_trained(self) -> None:
        bad = [
            name
            for name, (weight, *_) in self._trained.items()
            if not weight.requires_grad or weight.ndim < 2 or hasattr(weight, "device_mesh")
        ]
        if bad:
            raise ValueError(
                f"model must train every B, each whole. Found frozen or sharded: {some_of(bad)}."
            )


def _product(parameter: Tensor) -> Tensor:
    """``<parameter, gradient>`` in float32 at least; 0 where no gradient came, as to an expert."""
    if parameter.grad is None:
        return torch.zeros((), device=parameter.device)
    wide = torch.promote_types(parameter.dtype, torch.float32)
    return torch.dot(parameter.detach().flatten().to(wide), parameter.grad.flatten().to(wide))


@torch.no_grad()
def ablation_scores(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    base_state: Mapping[str, Tensor] | None = None,
    precision: PrecisionName = "auto",
    loss: Loss | None = None,
    data: str = "",
    skip_unsupported: bool = False,
) -> LayerRanking:
    """How much the loss rises when the update of one layer alone is removed.

    Per batch one forward pass for each layer and one with all updates; the mean over the batches,
    and the standard error of the paired differences. Arguments and errors are those of
    :func:`first_order_scores`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> loss = lambda model, batch: model(batch).mean().square()
        >>> ones, base_state = [torch.ones(5, 2)], {"0.weight": torch.zeros(1, 2)}
        >>> ablation_scores(model, ones, base_state=base_state, loss=loss).scores  # 0 - 49
        {'0': -49.0}
    """
    found = batches_for(model, batches, loss)

    def losses(note: str = "") -> list[float]:
        values = (compute_loss(loss, model, batch, precision) for batch in found)
        return [require_finite(value, f"batch {n}{note}") for n, value in enumerate(values)]

    norms = norms_of_updates(model, base_state, skip_unsupported=skip_unsupported)
    without: dict[str, list[float]] = {}
    with gates_of(model, base_state, 1.0, _identity, skip_unsupported=skip_unsupported) as gates:
        whole = losses()
        for name, gate in tqdm(
            gates.items(), desc="ablation of layers", total=len(gates), leave=False
        ):
            gate.score.fill_(0.0)
            without[name] = losses(f" without {name}")
            gate.score.fill_(1.0)
    rows = [[without[n][batch] - whole[batch] for n in without] for batch in range(len(found))]
    return _ranking(model, norms, rows, base_state, "ablation", data)


@torch.no_grad()
def update_norms(
    model: nn.Module,
    *,
    base_state: Mapping[str, Tensor] | None = None,
    skip_unsupported: bool = False,
) -> LayerRanking:
    """Frobenius norm of each layer's update: ``||beta B A||``, or ``||theta_t - theta_0||``.

    Biases count. There are no standard errors, as there is no data.

    Args:
        model: a model with LoRA adapters; or, with ``base_state``, one fine-tuned as a whole.
        base_state: state dict before fine-tuning, for a model without adapters.
        skip_unsupported: as in :func:`~ktlib.ila.layers.base_weights`.

    Raises:
        ValueError: as :func:`~ktlib.ila.search.rank_layers`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> update_norms(model, base_state={"0.weight": torch.zeros(1, 2)}).scores
        {'0': 5.0}
    """
    norms = norms_of_updates(model, base_state, skip_unsupported=skip_unsupported)
    return _ranking(model, norms, [list(norms.values())], base_state, "update_norm", "")


def _identity(score: Tensor) -> Tensor:
    return score


def _require_finite_scores(rows: list[list[float]], names: list[str]) -> None:
    for number, row in enumerate(rows):
        bad = [name for name, value in zip(names, row, strict=True) if not math.isfinite(value)]
        if bad:
            raise FloatingPointError(
                f"gradients must be finite. Found others in batch {number}, layer {bad[0]}."
            )


def _ranking(
    model: nn.Module,
    norms: Mapping[str, float],
    rows: list[list[float]],
    base_state: Mapping[str, Tensor] | None,
    method: str,
    data: str,
) -> LayerRanking:
    """Mean over batches, and its standard error where there are at least two."""
    names, still = list(norms), without_update(norms)
    values = torch.tensor(rows, dtype=torch.float64)
    errors = {}
    if len(rows) > 1:
        spread = values.std(dim=0) / math.sqrt(len(rows))
        errors = dict(zip(names, spread.tolist(), strict=True))
    settings: dict[str, JsonValue] = {"method": method}
    if method != "update_norm":
        settings["batches"] = len(rows)
    return LayerRanking(
        scores=dict(zip(names, values.mean(dim=0).tolist(), strict=True)),
        standard_errors=errors,
        without_update=still,
        settings=settings,
        provenance=provenance_of(model, names, "full" if base_state else "lora", data),
    )
