"""How much the loss changes inside the box: the flatness indicator (thesis, table 3.5)."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from ktlib.checks import as_labels, images_for, require_at_least, widened
from ktlib.fcl.evaluation import evaluating
from ktlib.fcl.noise import draw_noise, warn_if_lost
from ktlib.fcl.split import SplitNetwork

Case = tuple[SplitNetwork, Callable[[Tensor], Tensor], Tensor, Tensor]
"""A split network, its classifier, images and labels, as :func:`flatness` takes them."""

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True)
class Flatness:
    """Losses at random points of the box around a minimum.

    Attributes:
        indicator: ``mean_i (L_i - L*)^2``; 0 for a loss that is constant in the box.
        variance: ``mean_i (L_i - mean L)^2``. It misses a rise that all draws share, so the
            indicator is never below it.
        loss_at_minimum: ``L*``, the loss without noise.
        losses: ``(draws,)`` the losses ``L_i``, in float64.

    Example:
        >>> Flatness(0.04, 0.01, loss_at_minimum=1.5, losses=torch.tensor([1.6, 1.8])).indicator
        0.04
    """

    indicator: float
    variance: float
    loss_at_minimum: float
    losses: Tensor


def flatness(
    split: SplitNetwork,
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    bound: float,
    generator: torch.Generator,
    draws: int = 1000,
    batch_size: int = 512,
) -> Flatness:
    """Flatness indicator and variance of the cross-entropy around the present parameters.

    The noise is uniform. The features in front of the first tuned layer are computed once and kept
    for all draws. The network is run in ``eval`` mode and left in the mode it had.

    Args:
        split: the network, from :func:`ktlib.fcl.split_network`; its tuned weights receive noise.
        classifier: embeddings ``(batch, dim)`` -> scores ``(batch, classes)``; never perturbed.
        images: ``(n, ...)``.
        labels: ``(n,)`` integers.
        bound: half-width ``b`` of the box, in units of the weights.
        generator: draws the noise. The same seed gives the same draws for two networks of
            one shape: compare methods that way.
        draws: number of points; the thesis uses 1000.
        batch_size: images per pass; changes memory, not the result beyond rounding.

    Raises:
        ValueError: if ``draws < 1``, ``bound`` is negative, or there are no images.
        FloatingPointError: a loss is NaN, for images or weights that are not finite.

    Example:
        >>> from ktlib.fcl import split_network
        >>> split = split_network(torch.nn.Sequential(torch.nn.Linear(4, 2)), ["0"])
        >>> found = flatness(split, lambda embeddings: 0 * embeddings, torch.ones(3, 4),
        ...                  torch.tensor([0, 1, 1]), bound=0.1, draws=5,
        ...                  generator=torch.Generator())
        >>> found.indicator, found.losses.shape  # these scores do not depend on the weights
        (0.0, torch.Size([5]))
    """
    warn_if_lost(split.tuned, bound)
    case = split, classifier, images, labels
    return _flatness([case], bound, generator, draws, batch_size)[0]


def flatness_together(
    cases: Mapping[Name, Case],
    *,
    bound: float,
    generator: torch.Generator,
    draws: int = 1000,
    batch_size: int = 512,
) -> dict[Name, Flatness]:
    """Flatness of several networks, or of one on several sets of images, with one set of draws.

    Each point of the box is drawn once and used for all cases. The results are bit for bit those of
    :func:`flatness`, called for each case with a generator of the same seed. No noise is kept; the
    features in front of the tuned layers are, of all cases at once.

    Args:
        cases: name -> network, classifier, images and labels. The tuned weights must have the same
            names, shapes, dtypes and devices in all cases.
        bound: as in :func:`flatness`, as what follows.
        generator: draws the noise.
        draws: number of points.
        batch_size: images per pass.

    Returns:
        Name -> flatness, in the order of ``cases``.

    Raises:
        ValueError: as :func:`flatness`; or there are no cases, or their tuned weights differ.
        FloatingPointError: as :func:`flatness`.
    """
    require_at_least("number of cases", len(cases), 1)
    kinds = {
        name: {key: (w.shape, w.dtype, w.device) for key, w in split.tuned.items()}
        for name, (split, *_) in cases.items()
    }
    first, *others = kinds
    different = [name for name in others if kinds[name] != kinds[first]]
    if different:
        raise ValueError(
            "cases must have tuned weights of the same names, shapes, dtypes and devices. Those of "
            f"{different[0]!r} differ from those of {first!r}."
        )
    for split, *_ in cases.values():
        warn_if_lost(split.tuned, bound)
    found = _flatness([*cases.values()], bound, generator, draws, batch_size)
    return dict(zip(cases, found, strict=True))


def _flatness(
    cases: Sequence[Case], bound: float, generator: torch.Generator, draws: int, batch_size: int
) -> list[Flatness]:
    require_at_least("draws", draws, 1)
    noise = (draw_noise(cases[0][0].tuned, bound, generator) for _ in range(draws))
    results = []
    for found in _losses_around(cases, itertools.chain([None], noise), batch_size):
        if bool(found.isnan().any()):
            raise FloatingPointError("the loss is NaN: images and weights must be finite numbers.")
        minimum, losses = found[0], found[1:]
        results.append(
            Flatness(
                indicator=float((losses - minimum).square().mean()),
                variance=float(losses.var(unbiased=False)),
                loss_at_minimum=float(minimum),
                losses=losses,
            )
        )
    return results


def losses_around(
    split: SplitNetwork,
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    shifts: Iterable[Mapping[str, Tensor] | None],
    *,
    batch_size: int = 512,
) -> Tensor:
    """Mean cross-entropy with the tuned weights moved by each of some shifts.

    The features in front of the first tuned layer are computed once and kept for all shifts. The
    weights themselves are never written to; the network is run in ``eval`` mode, and each layer is
    left in the mode it had.

    Args:
        split: the network.
        classifier: embeddings ``(batch, dim)`` -> scores ``(batch, classes)``; never moved.
        images: ``(n, ...)``.
        labels: ``(n,)`` integers.
        shifts: name -> tensor of the tuned parameter's shape; ``None`` moves nothing.
        batch_size: images per pass; changes memory, not the result beyond rounding.

    Returns:
        One loss a shift, in float64 on the CPU.

    Raises:
        ValueError: if there are no images.
    """
    return _losses_around([(split, classifier, images, labels)], shifts, batch_size)[0]


@torch.no_grad()
def _losses_around(
    cases: Sequence[Case], shifts: Iterable[Mapping[str, Tensor] | None], batch_size: int
) -> list[Tensor]:
    """:func:`losses_around` for each case; every shift is made once."""
    with ExitStack() as stack:
        losses = [stack.enter_context(_mean_loss(*case, batch_size)) for case in cases]
        found = [[loss(shift) for loss in losses] for shift in shifts]
    return [torch.stack(column).cpu() for column in zip(*found, strict=True)]


@contextmanager
def _mean_loss(
    split: SplitNetwork,
    classifier: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    batch_size: int,
) -> Iterator[Callable[[Mapping[str, Tensor] | None], Tensor]]:
    """The loss as a function of a shift, while the network is in ``eval`` mode."""
    require_at_least("number of images", len(images), 1)
    with evaluating(split.network), images_for(split.network, images) as given:
        features = [split.prefix(batch) for batch in given.split(batch_size)]
        targets = as_labels(labels, given.device).split(batch_size)

        def total(x: Tensor, y: Tensor, shift: Mapping[str, Tensor] | None) -> Tensor:
            scores = widened(classifier(split.tail_forward(x, shift)))
            return F.cross_entropy(scores, y, reduction="sum").double()

        def mean_loss(shift: Mapping[str, Tensor] | None) -> Tensor:
            totals = [total(x, y, shift) for x, y in zip(features, targets, strict=True)]
            return torch.as_tensor(sum(totals)) / len(images)

        yield mean_loss
