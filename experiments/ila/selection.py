"""Which layers to tune: the best of a ranking, or a choice without one (thesis, 5.4 and 5.5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ktlib.ila.agreement import Ranking, ranked_names
from ktlib.ila.ranking import layers_in

CHOICES = ("top", "random", "first", "last")


def choose_layers(
    choice: str,
    layers: Sequence[str],
    fraction: float,
    *,
    ranking: Ranking | None = None,
    rng: torch.Generator | None = None,
) -> tuple[str, ...]:
    """A share of the layers of a model.

    Args:
        choice: ``top`` of a ranking; ``random``; ``first`` or ``last`` in the order of the model,
            thus the blocks next to its input or output.
        layers: all layers, in the order of the model.
        fraction: of them, in (0, 1]; how many that is, :func:`ktlib.ila.ranking.layers_in` says.
        ranking: for ``top``: names, best first, or an object that has them as ``names``.
        rng: for ``random``.

    Returns:
        Names in the order of the model.

    Raises:
        ValueError: an unknown choice, one that lacks its ranking or generator, a fraction outside
            (0, 1], or a ranking of other layers.
    """
    if choice not in CHOICES:
        raise ValueError(f"choice must be one of {CHOICES}. Found {choice!r}.")
    count = layers_in(fraction, len(layers), "fraction")
    if choice == "first":
        return tuple(layers[:count])
    if choice == "last":
        return tuple(layers[len(layers) - count :])
    if choice == "random":
        if rng is None:
            raise ValueError("choice='random' needs rng, a generator. Found rng=None.")
        drawn = torch.randperm(len(layers), generator=rng)[:count].tolist()
        return tuple(layers[i] for i in sorted(drawn))
    if ranking is None:
        raise ValueError("choice='top' needs a ranking. Found ranking=None.")
    names = ranked_names(ranking)
    if set(names) != set(layers):
        apart = sorted(set(names) ^ set(layers))
        raise ValueError(f"ranking must be of the same layers. Found {apart[:5]} in one only.")
    taken = set(names[:count])
    return tuple(name for name in layers if name in taken)


def unimportant_everywhere(
    rankings: Mapping[str, Ranking] | Sequence[Ranking], fraction: float
) -> tuple[str, ...]:
    """The layers that lie among the last ones in every ranking (table 5.14), in their order there.

    Args:
        rankings: of the same layers.
        fraction: share of the layers that counts as the last ones.

    Raises:
        ValueError: there is no ranking, or ``fraction`` lies outside (0, 1].
    """
    listed: list[Any] = list(rankings.values() if isinstance(rankings, Mapping) else rankings)
    if not listed:
        raise ValueError("rankings must hold at least one. Found none.")
    lasts = []
    for ranking in listed:
        names = ranked_names(ranking)
        lasts.append(names[len(names) - layers_in(fraction, len(names), "fraction") :])
    return tuple(name for name in lasts[0] if all(name in last for last in lasts))
