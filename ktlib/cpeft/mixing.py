"""Mixtures of experts, as L2C uses them: of their probabilities, and of their adapters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

Adapters = Mapping[str, Tensor]

_START = 1 / math.sqrt(3)  # about the length of a row of A as LoRA draws it


def log_task_weights(
    task_logits: Tensor, *, top_k: int | None = None, temperature: float = 1.0
) -> Tensor:
    """Logarithm of the weights of the experts: a softmax over the K most probable tasks.

    L2C leaves the weights of the K experts as they are; here they are scaled to sum to 1, which
    changes no prediction and makes the aggregated answer a distribution.

    Args:
        task_logits: ``(n, tasks)`` the largest logit among the classes of each task.
        top_k: K, by default all. Of tasks that tie, the earlier ones count.
        temperature: divides the logits. 0 and infinity stand for the limits: the most probable task
            alone, and equal weights.

    Returns:
        ``(n, tasks)``; minus infinity outside the K.

    Raises:
        ValueError: ``top_k`` does not lie in 1 to ``tasks``, or ``temperature`` is below 0.
    """
    tasks = task_logits.shape[1]
    top_k = tasks if top_k is None else top_k
    if isinstance(top_k, bool) or not isinstance(top_k, int) or not 1 <= top_k <= tasks:
        raise ValueError(f"top_k must be an integer from 1 to {tasks}, the tasks. Found {top_k!r}.")
    require_temperature(temperature)
    order = task_logits.argsort(dim=1, descending=True, stable=True)  # (n, tasks)
    chosen = torch.zeros_like(task_logits, dtype=torch.bool).scatter(1, order[:, :top_k], True)
    below = task_logits - task_logits.amax(dim=1, keepdim=True)  # (n, tasks)
    # A gap of 0 stays 0 at any temperature, 0 included.
    scaled = torch.where(below == 0, 0.0, below / temperature)
    return scaled.masked_fill(~chosen, -math.inf).log_softmax(dim=1)


def log_mixture(log_weights: Tensor, log_probabilities: Tensor) -> Tensor:
    """Logarithm of ``sum_k g_k f_k``.

    Args:
        log_weights: ``(n, tasks)``, as :func:`log_task_weights` gives them.
        log_probabilities: ``(n, tasks, classes)`` of the experts; minus infinity where an expert
            does not know a class.

    Returns:
        ``(n, classes)``.
    """
    joint = log_weights[:, :, None] + log_probabilities  # (n, tasks, classes)
    return torch.logsumexp(joint, dim=1)


def require_temperature(temperature: float) -> None:
    """Refuse a temperature below 0 or NaN; 0 and infinity are allowed."""
    if math.isnan(temperature) or temperature < 0:
        raise ValueError(
            f"temperature must be at least 0, infinity included. Found {temperature!r}."
        )


def mixed_adapters(experts: Sequence[Adapters], weights: Tensor) -> dict[str, Tensor]:
    """Adapters whose update is the weighted mean of those of experts, as nearly as the rank allows.

    What an expert adds to a layer is the product ``B_k A_k``, so it is products that are mixed: to
    mix ``B`` and ``A`` each for itself would bring in ``B_j A_k``, which belongs to no expert, and
    differs between adapters that do the same. The mean of products has a higher rank; the nearest
    matrix of the given rank is its truncated singular value decomposition ``U S V^T`` (Eckart and
    Young). It is split as ``A = V^T / sqrt(3)`` and ``B = sqrt(3) U S``: rows of ``A`` then are
    about as long as LoRA draws them, also where the singular value is 0 and the direction is free.

    Args:
        experts: adapters as :meth:`~ktlib.cpeft.adapters.LoraBackbone.adapters` gives them.
        weights: ``(experts,)``, not negative.

    Returns:
        Adapters of the same names and shapes.

    Raises:
        ValueError: no experts, a number of weights other than that of experts, a negative weight,
            or a rank larger than a layer.
    """
    if not experts or weights.shape != (len(experts),) or bool((weights < 0).any()):
        raise ValueError(
            f"weights must be {len(experts)} numbers >= 0, one for each expert, and "
            "there must be at least one expert. Found "
            f"{weights.tolist()}."
        )
    shares = weights.tolist()
    mixed: dict[str, Tensor] = {}
    for name in experts[0]:
        if not name.endswith(".down"):
            continue
        layer = name.removesuffix(".down")
        # In double precision, which Apple's GPU lacks.
        down = torch.cat([one[name].cpu().double() for one in experts])  # (experts x r, d_in)
        ups = [adapters[f"{layer}.up"].cpu().double() for adapters in experts]
        up = torch.cat([w * one for w, one in zip(shares, ups, strict=True)], dim=1)  # (d_out, ...)
        rank = len(experts[0][name])
        if rank > min(len(up), down.shape[1]):
            raise ValueError(
                f"rank must be at most {min(len(up), down.shape[1])}, the size of "
                f"{layer}, to mix adapters. Found rank={rank}."
            )
        # up @ down has the same singular values as the small matrix between the orthogonal factors.
        left, between = torch.linalg.qr(up)  # (d_out, p), (p, experts x r)
        right, other = torch.linalg.qr(down.T)  # (d_in, q), (q, experts x r)
        u, s, vt = torch.linalg.svd(between @ other.T)  # of (p, q)
        mixed[name] = (_START * (vt @ right.T)[:rank]).to(experts[0][name])
        mixed[f"{layer}.up"] = ((left @ u)[:, :rank] * s[:rank] / _START).to(experts[0][name])
    return mixed
