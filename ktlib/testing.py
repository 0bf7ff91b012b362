"""Check that a method trains what it says it trains.

Published code has lost terms of its loss without anyone noticing: a ``.item()`` or a detached
branch gives the right value and no gradient. The checks here find that for any method.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

LossTerms = Callable[[], Mapping[str, Tensor]]


@dataclass(frozen=True)
class GradientFlow:
    """Norms of gradients: ``norms[term][parameter]``, and of the terms together; None for none."""

    norms: Mapping[str, Mapping[str, float | None]]
    total: Mapping[str, float | None]

    def problems(self, trainable: Mapping[str, Tensor], frozen: Mapping[str, Tensor]) -> list[str]:
        """What is wrong, one line each; see :func:`assert_gradient_flow`."""
        lines = []
        for term, norms in self.norms.items():
            if not any(norms[name] for name in trainable):
                lines.append(f"loss term `{term}` changes the gradient of no trainable parameter")
            bad = [n for n in trainable if (v := norms[n]) is not None and not math.isfinite(v)]
            lines += [
                f"loss term `{term}` gives `{name}` a NaN or infinite gradient" for name in bad
            ]
        for name in trainable:
            if not self.total[name]:
                lines.append(f"trainable parameter `{name}` receives no gradient")
        for name in frozen:
            terms = [term for term, norms in self.norms.items() if norms[name] is not None]
            lines += [f"frozen parameter `{name}` receives a gradient from `{t}`" for t in terms]
        return lines


def gradient_flow(loss_terms: LossTerms, parameters: Mapping[str, Tensor]) -> GradientFlow:
    """Measure which loss term reaches which parameter; no ``.grad`` is touched.

    Args:
        loss_terms: computes the terms of the loss, by name, each a scalar tensor.
        parameters: leaf tensors by name, such as ``dict(model.named_parameters())``.

    Raises:
        ValueError: there is no term or no parameter.
    """
    terms = dict(loss_terms())
    if not terms or not parameters:
        raise ValueError(
            "Parameters `loss_terms` and `parameters` must give at least one entry each. "
            f"Found {len(terms)} terms and {len(parameters)} parameters."
        )
    gradients = {name: _gradients(term, parameters) for name, term in terms.items()}
    norms = {
        term: {name: _norm([gradient]) for name, gradient in by_name.items()}
        for term, by_name in gradients.items()
    }
    total = {name: _norm([by_name[name] for by_name in gradients.values()]) for name in parameters}
    return GradientFlow(norms, total)


def assert_gradient_flow(
    loss_terms: LossTerms,
    trainable: Mapping[str, Tensor],
    frozen: Mapping[str, Tensor] | None = None,
) -> None:
    """Check that each loss term, each trainable and each frozen parameter does its part.

    Each term changes the gradient of at least one trainable parameter; each trainable parameter
    receives a finite gradient other than zero from the sum of the terms; no frozen parameter
    receives one.

    Args:
        loss_terms: computes the terms of the loss, by name, each a scalar tensor.
        trainable: parameters that the method trains, by name.
        frozen: parameters that it must leave alone, by name.

    Raises:
        AssertionError: names each term and parameter that fails.
        ValueError: a name is both trainable and frozen, or there is nothing to check.
    """
    kept = _distinct(trainable, frozen)
    flow = gradient_flow(loss_terms, {**trainable, **kept})
    _raise_if_any(flow.problems(trainable, kept), "Gradient flow")


def assert_step_updates(
    step: Callable[[], object],
    trainable: Mapping[str, Tensor],
    frozen: Mapping[str, Tensor] | None = None,
) -> None:
    """Check that a training step changes all trainable tensors and no bit of the frozen ones.

    Catches what gradients do not show: a parameter missing from the optimiser, weight decay on a
    frozen one, running statistics that move (pass buffers in ``frozen``).

    Raises:
        AssertionError: names each tensor that fails.
        ValueError: a name is both trainable and frozen.
    """
    kept = _distinct(trainable, frozen)
    before = {name: tensor.detach().clone() for name, tensor in {**trainable, **kept}.items()}
    step()
    lines = []
    for name, tensor in trainable.items():
        if not bool(torch.isfinite(tensor).all()):
            lines.append(f"trainable parameter `{name}` became NaN or infinite")
        elif torch.equal(tensor, before[name]):
            lines.append(f"trainable parameter `{name}` did not change")
    for name, tensor in kept.items():
        if not torch.equal(tensor, before[name]):
            lines.append(f"frozen tensor `{name}` changed")
    _raise_if_any(lines, "Training step")


def _distinct(
    trainable: Mapping[str, Tensor], frozen: Mapping[str, Tensor] | None
) -> dict[str, Tensor]:
    """The frozen tensors; one of two tensors with the same name would not be checked."""
    both = sorted(set(trainable) & set(frozen or {}))
    if both:
        raise ValueError(f"Parameters `trainable` and `frozen` must not share names. Found {both}.")
    return dict(frozen or {})


def _gradients(term: object, parameters: Mapping[str, Tensor]) -> dict[str, Tensor | None]:
    """Gradient of one term by parameter; a plain number or a detached tensor has none."""
    wanted = {name: p for name, p in parameters.items() if p.requires_grad}
    if not isinstance(term, Tensor) or not term.requires_grad or not wanted:
        return dict.fromkeys(parameters)
    found = torch.autograd.grad(term, list(wanted.values()), retain_graph=True, allow_unused=True)
    by_name = dict(zip(wanted, found, strict=True))
    return {name: by_name.get(name) for name in parameters}


def _norm(gradients: list[Tensor | None]) -> float | None:
    """Euclidean norm of the sum, in double precision; None where there is no gradient."""
    present = [gradient.detach().double() for gradient in gradients if gradient is not None]
    if not present:
        return None
    return float(torch.stack(present).sum(dim=0).norm())


def _raise_if_any(problems: list[str], what: str) -> None:
    if problems:
        raise AssertionError("\n".join([f"{what}:", *(f"- {line}" for line in problems)]))
