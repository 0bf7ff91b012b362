"""Cheap scores of layers, against which the learned ones of ILA are measured.

Each gives a :class:`~ktlib.ila.ranking.LayerRanking` in which higher is more important. The first
three of these numbers agree where the loss is linear in the gates: the loss that removing a layer's
update costs (:func:`ablation_scores`), and minus the derivative of the loss by the layer's gate
(:func:`first_order_scores`). The size of the update (:func:`update_norms`) looks at no data at all.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from tqdm import tqdm

from ktlib.device import PrecisionName
from ktlib.ila.checks import Batch, Loss, batches_for, compute_loss, require_finite
from ktlib.ila.gates import LayerGate, gated_updates, gated_weights
from ktlib.ila.layers import active_adapter, base_weights, linear_layers, plain_lora_layers
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
    rows = []
    with _gates(model, base_state) as gates:
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
    return _ranking(model, names, rows, base_state, "first_order", data)


@torch.no_grad()
def ablation_scores(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    base_state: Mapping[str, Tensor] | None = None,
    precision: PrecisionName = "auto",
    loss: Loss | None = None,
    data: str = "",
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

    without: dict[str, list[float]] = {}
    with _gates(model, base_state) as gates:
        whole = losses()
        for name, gate in tqdm(
            gates.items(), desc="ablation of layers", total=len(gates), leave=False
        ):
            gate.score.fill_(0.0)
            without[name] = losses(f" without {name}")
            gate.score.fill_(1.0)
    rows = [[without[n][batch] - whole[batch] for n in without] for batch in range(len(found))]
    return _ranking(model, list(without), rows, base_state, "ablation", data)


@torch.no_grad()
def update_norms(
    model: nn.Module, *, base_state: Mapping[str, Tensor] | None = None
) -> LayerRanking:
    """Frobenius norm of each layer's update: ``||beta B A||``, or ``||theta_t - theta_0||``.

    B A is never formed: ``||B A||^2`` is the sum of all products of entries of ``B^T B`` and
    ``A A^T``, both (rank, rank). Biases count. There are no standard errors, as there is no data.

    Args:
        model: a model with LoRA adapters; or, with ``base_state``, one fine-tuned as a whole.
        base_state: state dict before fine-tuning, for a model without adapters.

    Raises:
        ValueError: as :func:`~ktlib.ila.search.rank_layers`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> update_norms(model, base_state={"0.weight": torch.zeros(1, 2)}).scores
        {'0': 5.0}
    """
    norms = _lora_norms(model) if base_state is None else _weight_norms(model, base_state)
    return _ranking(model, list(norms), [list(norms.values())], base_state, "update_norm", "")


def _lora_norms(model: nn.Module) -> dict[str, float]:
    layers = plain_lora_layers(model)
    adapter = active_adapter(layers)
    norms = {}
    for name, layer in layers.items():
        # Convolutions: A has (rank, in, height, width), B (out, rank, 1, 1).
        first = layer.lora_A[adapter].weight.double().flatten(1)  # (rank, in)
        second = layer.lora_B[adapter].weight.double().flatten(1)  # (out, rank)
        square = ((second.T @ second) * (first @ first.T)).sum()
        bias = getattr(layer.lora_B[adapter], "bias", None)
        if bias is not None:
            square = square + bias.double().square().sum()
        norms[name] = abs(float(layer.scaling[adapter])) * math.sqrt(max(0.0, float(square)))
    return norms


def _weight_norms(model: nn.Module, base_state: Mapping[str, Tensor]) -> dict[str, float]:
    before, norms = base_weights(model, base_state), {}
    for name, layer in linear_layers(model).items():
        parts = [
            (layer.get_parameter(key).double() - value.double()).square().sum()
            for key, value in before[name].items()
        ]
        norms[name] = math.sqrt(sum(map(float, parts)))
    return norms


def _gates(
    model: nn.Module, base_state: Mapping[str, Tensor] | None
) -> AbstractContextManager[dict[str, LayerGate]]:
    """Open gates whose scores are the gammas themselves."""
    if base_state is None:
        return gated_updates(model, 1.0, _identity)
    return gated_weights(model, base_state, 1.0, _identity)


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
    names: list[str],
    rows: list[list[float]],
    base_state: Mapping[str, Tensor] | None,
    method: str,
    data: str,
) -> LayerRanking:
    """Mean over batches, and its standard error where there are at least two."""
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
        settings=settings,
        provenance=provenance_of(model, names, "full" if base_state else "lora", data),
    )
