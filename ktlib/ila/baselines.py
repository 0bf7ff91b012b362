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
from ktlib.ila.layers import norms_of_updates, without_update
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
