"""How far two rankings of layers agree, beside what chance alone would give (thesis, 5.2 to 5.4).

The thesis compares the sets of the best layers by their Jaccard index, the share of the layers in
either set that lie in both. Two random sets of three quarters of many layers already have 0.60, so
the number says little without its chance level.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from ktlib.ila.layers import some_of
from ktlib.ila.ranking import layers_in

TOP_FRACTIONS = (0.75, 0.3)
"""What the thesis looks at, and a set small enough for chance to be low."""
Kind: TypeAlias = Callable[[str], str]
Pmf: TypeAlias = NDArray[np.float64]  # probability of 0, 1, 2, ... common layers


@runtime_checkable
class Ranked(Protocol):
    """Anything that has the names of its layers, best first, such as a ``LayerRanking``."""

    @property
    def names(self) -> Sequence[str]:
        """Layers, best first."""


Ranking: TypeAlias = Ranked | Sequence[str] | Mapping[str, float]


@dataclass(frozen=True)
class Agreement:
    """Two sets of top layers, and what they would have in common by chance.

    Attributes:
        top_fraction: share of the layers in each set.
        layers: number ``N`` of ranked layers.
        size: number ``k`` of layers in each set.
        common: number of layers in both.
        value: Jaccard index, ``common / (2 k - common)``.
        chance: its exact mean for two independent random sets of ``k`` of the ``N`` layers.
        p_value: exact probability of at least this index for such sets.
        corrected: ``(value - chance) / (1 - chance)``: 0 by chance, 1 for equal sets; NaN where the
            sets hold all layers.
        rank_correlation: Spearman's, of all layers; NaN where all scores of a ranking are equal.
        chance_within_kinds: as ``chance``, for sets that are random *within* each kind of layer and
            have as many layers of every kind as the two sets have.
        p_value_within_kinds: as ``p_value``, for such sets: small only where the rankings agree on
            more than on which kinds are good.
    """

    top_fraction: float
    layers: int
    size: int
    common: int
    value: float
    chance: float
    p_value: float
    corrected: float
    rank_correlation: float
    chance_within_kinds: float
    p_value_within_kinds: float

    def row(self, a: str, b: str) -> dict[str, Any]:
        """A row of the record table ``jaccard``; ``a`` and ``b`` say what was compared."""
        return {
            "a": a,
            "b": b,
            "top": self.top_fraction,
            "value": self.value,
            "chance": self.chance,
            "p_value": self.p_value,
        }

    def long_row(self, a: str, b: str) -> dict[str, Any]:
        """:meth:`row` with the other measures as well; None, which JSON has, for NaN."""
        return self.row(a, b) | {
            "corrected": _or_none(self.corrected),
            "rank_correlation": _or_none(self.rank_correlation),
            "chance_within_kinds": self.chance_within_kinds,
            "p_value_within_kinds": self.p_value_within_kinds,
        }


def projection(name: str) -> str:
    """The kind of a layer: its name without numbers, such as ``model.layers.self_attn.q_proj``."""
    return ".".join(part for part in name.split(".") if not part.isdigit())


def jaccard(
    one: Ranking,
    other: Ranking,
    top_fraction: float,
    *,
    kind: Kind = projection,
) -> Agreement:
    """Agreement of the top layers of two rankings.

    The null hypothesis is that one ranking is a random permutation of the layers. The number of
    common layers is then hypergeometric, which gives the chance level and the p-value exactly.
    Where kinds of layers differ in importance, rankings agree on the kinds alone, and not by
    chance: the second null hypothesis permutes the layers of each kind among themselves.

    Args:
        one: names of the layers, best first, or an object that has such ``names``; or name ->
            score, best is highest, of equal ones the earlier.
        other: as ``one``, of the same layers.
        top_fraction: share of the layers in each set; :func:`ktlib.ila.ranking.layers_in` says how
            many that is.
        kind: name of a layer -> its kind.

    Raises:
        ValueError: ``top_fraction`` lies outside (0, 1], the rankings are of different layers or of
            fewer than two, a layer is ranked twice, or a score is not finite.
    """
    first, second = ranked_names(one), ranked_names(other)
    _check_same(first, second)
    size = layers_in(top_fraction, len(first))
    sets = set(first[:size]), set(second[:size])
    common = len(sets[0] & sets[1])
    pmf = _random_overlap(len(first), size, size)
    within = _overlap_within(sets, Counter(map(kind, first)), kind)
    value, chance = _index(common, size), _mean_index(pmf, size)
    return Agreement(
        top_fraction=float(top_fraction),
        layers=len(first),
        size=size,
        common=common,
        value=value,
        chance=chance,
        p_value=_tail(pmf, common),
        corrected=(value - chance) / (1 - chance) if size < len(first) else math.nan,
        rank_correlation=_rank_correlation(one, other, first, second),
        chance_within_kinds=_mean_index(within, size),
        p_value_within_kinds=_tail(within, common),
    )


def agreement_table(
    rankings: Mapping[str, Ranking],
    top_fractions: Sequence[float] = TOP_FRACTIONS,
    *,
    kind: Kind = projection,
) -> list[dict[str, Any]]:
    """Agreement of all pairs of some rankings.

    The pairs share rankings, so their p-values are not independent of each other.

    Args:
        rankings: what it is -> ranking; all of the same layers.
        top_fractions: shares of the layers.
        kind: as in :func:`jaccard`.

    Returns:
        One :meth:`Agreement.long_row` per pair and share: columns ``a``, ``b``, ``top``, ``value``,
        ``chance``, ``p_value`` and more.

    Raises:
        ValueError: as :func:`jaccard`, or there are fewer than two rankings.
    """
    if len(rankings) < 2:
        raise ValueError(f"rankings must be at least two. Found {list(rankings)}.")
    return [
        jaccard(rankings[a], rankings[b], top_fraction, kind=kind).long_row(a, b)
        for top_fraction in top_fractions
        for a, b in itertools.combinations(rankings, 2)
    ]


def chance_level(layers: int, top_fraction: float) -> float:
    """Mean Jaccard index of two random sets of this share of the layers: exact.

    For many layers it tends to ``f / (2 - f)``: 0.60 for f = 0.75, 0.176 for f = 0.3.

    Raises:
        ValueError: ``top_fraction`` lies outside (0, 1], or there are fewer than two layers.
    """
    if layers < 2:
        raise ValueError(f"layers must be at least 2. Found layers={layers}.")
    size = layers_in(top_fraction, layers)
    return _mean_index(_random_overlap(layers, size, size), size)


def _random_overlap(layers: int, one: int, other: int) -> Pmf:
    """Probability of 0, 1, ... common layers of two random sets of these sizes."""
    counts = np.arange(min(one, other) + 1)
    return np.asarray(stats.hypergeom.pmf(counts, layers, one, other), dtype=np.float64)


def _overlap_within(sets: tuple[set[str], set[str]], kinds: Mapping[str, int], kind: Kind) -> Pmf:
    """As :func:`_random_overlap`, where the sets are random within each kind only."""
    one, other = (Counter(map(kind, members)) for members in sets)
    pmf = np.ones(1)
    for name, layers in kinds.items():  # numbers of independent kinds add up
        pmf = np.convolve(pmf, _random_overlap(layers, one[name], other[name]))
    return pmf


def _or_none(value: float) -> float | None:
    return None if math.isnan(value) else value


def _index(common: int, size: int) -> float:
    return common / (2 * size - common)


def _mean_index(pmf: Pmf, size: int) -> float:
    counts = np.arange(len(pmf))
    # Rounding may leave the sum of the probabilities a little off one.
    return float(pmf @ (counts / (2 * size - counts)) / pmf.sum())


def _tail(pmf: Pmf, common: int) -> float:
    """Probability of at least this many."""
    return min(1.0, float(pmf[common:].sum() / pmf.sum()))


def _rank_correlation(
    one: Ranking, other: Ranking, first: Sequence[str], second: Sequence[str]
) -> float:
    """Spearman's: of the scores where there are any, so that equal ones share a rank."""
    values = [_rank_values(one, first), _rank_values(other, second)]
    columns = [np.array([value[name] for name in first]) for value in values]
    ranks = [stats.rankdata(column) for column in columns]
    if any(rank.min() == rank.max() for rank in ranks):
        return math.nan
    return float(np.corrcoef(np.stack(ranks))[0, 1])


def _rank_values(ranking: Ranking, names: Sequence[str]) -> Mapping[str, float]:
    if isinstance(ranking, Mapping):
        return ranking
    return {name: -float(place) for place, name in enumerate(names)}


def ranked_names(ranking: Ranking) -> list[str]:
    """Layers, best first."""
    if isinstance(ranking, Mapping):
        bad = {name: score for name, score in ranking.items() if not math.isfinite(score)}
        if bad:
            raise ValueError(f"scores must be finite. Found {bad}.")
        return sorted(ranking, key=lambda name: -ranking[name])
    listed = ranking.names if isinstance(ranking, Ranked) else ranking
    if isinstance(listed, str) or not all(isinstance(name, str) for name in listed):
        raise ValueError(
            "a ranking must be names of layers, best first, a mapping from names to scores, or an "
            f"object with `names`. Found {listed!r}."
        )
    names = list(listed)
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ValueError(f"a ranking must hold each layer once. Found twice: {twice}.")
    return names


def _check_same(first: Sequence[str], second: Sequence[str]) -> None:
    lacking = [sorted(set(second) - set(first)), sorted(set(first) - set(second))]
    if any(lacking):
        first_lacks, second_lacks = (some_of(names) or "none" for names in lacking)
        raise ValueError(
            "rankings must be of the same layers. "
            f"Missing in the first: {first_lacks}; in the second: {second_lacks}."
        )
    if len(first) < 2:
        raise ValueError(f"rankings must have at least 2 layers. Found {list(first)}.")
