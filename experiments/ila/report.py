"""Tables over rankings of layers and over fine-tuned models, for chapters and records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from experiments.run.paired import PairedDifference
from experiments.run.tables import format_mean_std, mean_and_spread
from ktlib.ila.agreement import Ranking, jaccard
from ktlib.ila.ranking import LayerRanking

Rows = Iterable[Mapping[str, Any]]

_NATS = 3  # digits of losses


def score_rows(
    ranking: LayerRanking, dataset: str, seed: int, milestone: float = 1.0
) -> list[dict[str, Any]]:
    """Rows of the record table ``layer_scores``; ``milestone`` is a share of the training."""
    known = {"dataset": dataset, "seed": seed, "milestone": milestone}
    return [
        known
        | {"layer": layer, "score": score, "standard_error": ranking.standard_errors.get(layer)}
        for layer, score in ranking.scores.items()
    ]


def agreement_rows(
    one: Ranking, other: Ranking, top_fractions: Sequence[float], a: str, b: str, **known: Any
) -> list[dict[str, Any]]:
    """Rows of the record table ``jaccard`` for two rankings, one per share of the layers.

    Args:
        one: names, best first, an object that has them as ``names``, or scores.
        other: as ``one``, of the same layers.
        top_fractions: shares of the layers.
        a: what ``one`` is.
        b: what ``other`` is.
        **known: more columns.
    """
    return [jaccard(one, other, part).long_row(a, b) | known for part in top_fractions]


def score_correlation(one: Mapping[str, float], other: Mapping[str, float]) -> float | None:
    """Spearman's rank correlation of two scores of layers; None where all scores of one are equal.

    They are where nothing was learned, or where no layer makes a difference.
    """
    both = pd.DataFrame({"one": one, "other": other})
    equal = (both.nunique() < 2).any()
    return None if equal else float(both.corr("spearman").to_numpy()[0, 1])


def agreement_matrix(rows: Rows, top_fraction: float) -> pd.DataFrame:
    """Jaccard indices of one share of the layers, those of several pairs of seeds averaged.

    Args:
        rows: of the record table ``jaccard``; ``a`` and ``b`` are what is compared.
        top_fraction: which share of the layers.

    Returns:
        One row per pair in the order of the rows: mean index and its spread, the chance level, the
        chance-corrected index, the largest p-value, and Spearman's rank correlation.

    Raises:
        ValueError: there is no row of this share.
    """
    table = pd.DataFrame(list(rows))
    known = sorted(set(table["top"])) if len(table) else []
    if top_fraction not in known:
        raise ValueError(
            f"top_fraction must be one of {known}. Found top_fraction={top_fraction!r}."
        )
    out: dict[str, dict[str, str]] = {}
    for (a, b), part in table[table["top"] == top_fraction].groupby(["a", "b"], sort=False):
        cells = {"Jaccard": format_mean_std(part["value"].mean(), part["value"].std())}
        cells["by chance"] = f"{part['chance'].mean():.2f}"
        if "corrected" in part:
            cells["corrected"] = f"{part['corrected'].mean():.2f}"
        cells["largest p"] = _p_value(part["p_value"].max())
        if "p_value_within_kinds" in part:
            cells["largest p within kinds"] = _p_value(part["p_value_within_kinds"].max())
        if "rank_correlation" in part:
            cells["rank correlation"] = f"{part['rank_correlation'].mean():.2f}"
        cells["pairs"] = str(len(part))
        out[f"{a} and {b}"] = cells
    return pd.DataFrame(out).T.rename_axis(f"top {100 * top_fraction:.0f} %")


def printed_matrix(printed: pd.DataFrame, **chosen: str) -> pd.DataFrame:
    """A printed table of Jaccard indices with one row per pair.

    Args:
        printed: with ``row``, ``column`` and ``value``.
        **chosen: values that other columns must have, such as ``model="Llama 2-7B"``.
    """
    table = printed
    for column, value in chosen.items():
        table = table[table[column] == value]
    names = [f"{a} and {b}" for a, b in zip(table["row"], table["column"], strict=True)]
    return pd.DataFrame({"Jaccard, thesis": table["value"].to_numpy()}, index=names)


def printed_range(values: Iterable[float], digits: int = 2) -> str:
    """Printed numbers as a claim quotes them: ``"0.90 to 0.91"``, or one where all are equal.

    Args:
        values: at least one.
        digits: as many as are printed.
    """
    found = sorted(values)
    low, high = f"{found[0]:.{digits}f}", f"{found[-1]:.{digits}f}"
    return low if low == high else f"{low} to {high}"


def loss_rows(losses: Mapping[str, float], **known: Any) -> list[dict[str, Any]]:
    """Rows of the record table ``finetune``: one per held-out set; the metric is ``loss``."""
    return [known | {"dataset": name, "metric": "loss", "value": v} for name, v in losses.items()]


def finetune_table(rows: Rows, trained: Mapping[str, int] | None = None) -> pd.DataFrame:
    """One row per method and choice of layers, one column per held-out set; mean ± deviation.

    Args:
        rows: of the record table ``finetune``.
        trained: ``"method, layers"`` -> number of trained weights, for a column of its own.

    Returns:
        The heading of its rows says what the columns hold that are named by a set alone: losses. A
        column of another metric bears its name.
    """
    table = pd.DataFrame(list(rows))
    spread = mean_and_spread(table, ["method", "layers", "dataset", "metric"], "value")
    out: dict[str, dict[str, str]] = {}
    for _, row in spread.iterrows():
        name = run_name(row["method"], row["layers"])
        if trained and name in trained:
            out.setdefault(name, {})["trained weights"] = f"{trained[name] / 1e6:.2f} M"
        loss = row["metric"] == "loss"
        column = row["dataset"] if loss else f"{row['dataset']}, {row['metric']}"
        digits = _NATS if loss else 1
        out.setdefault(name, {})[column] = format_mean_std(row["mean"], row["std"], digits)
    losses = (table["metric"] == "loss").any()
    heading = "held-out loss (nats per token)" if losses else "fine-tuned"
    return pd.DataFrame(out).T.fillna("").rename_axis(heading)


def run_name(method: str, layers: str) -> str:
    """How tables call a way of fine-tuning on a choice of layers."""
    labels = {"lora": "LoRA", "adalora": "AdaLoRA", "full": "full", "qlora": "QLoRA"}
    name = labels.get(method, method.replace("_", " "))
    return name if layers in ("", "none") else f"{name}, {layers.replace('_', ' ')}"


def finetune_difference(
    rows: Rows,
    one: tuple[str, str],
    other: tuple[str, str],
    dataset: str,
    metric: str = "loss",
) -> PairedDifference:
    """A result of one way of fine-tuning minus that of another, within pairs of one seed.

    Args:
        rows: of the record table ``finetune``.
        one: method and choice of layers.
        other: the same of what is subtracted.
        dataset: held-out set.
        metric: ``loss`` or another of the table.

    Raises:
        ValueError: there is no such way of fine-tuning in the rows.
    """
    table = pd.DataFrame(list(rows))
    table = table[(table["dataset"] == dataset) & (table["metric"] == metric)]
    wide = table.pivot_table(index="seed", columns=["method", "layers"], values="value")
    for pair in (one, other):
        if pair not in wide.columns:
            raise ValueError(f"one and other must be of {list(wide.columns)}. Found {pair}.")
    return PairedDifference.of(wide[one] - wide[other])


def in_nats(difference: PairedDifference) -> str:
    """A difference of losses: ``"-0.031 nats (95 % interval -0.052 to -0.010, 3 seeds)"``."""
    if not difference.seeds:
        return "no pair was finished"
    mean = f"{difference.mean:+.{_NATS}f} nats"
    if difference.seeds < 2:
        return f"{mean} (one {difference.pairs}, no interval)"
    interval = f"{difference.low:+.{_NATS}f} to {difference.high:+.{_NATS}f}"
    return f"{mean} (95 % interval {interval}, {difference.seeds} {difference.pairs}s)"


def share_by_kind(ranking: LayerRanking, top_fraction: float) -> pd.DataFrame:
    """How many layers of each kind of projection are among the top ones, and how many there are."""
    cells = ranking.heat_map(top_fraction)
    return pd.DataFrame({"chosen": cells.sum(), "of": cells.notna().sum()}).astype(int)


def cheap_agreement(
    learned: Mapping[Any, LayerRanking],
    cheap: Mapping[Any, Mapping[str, LayerRanking]],
    top_fractions: Sequence[float],
) -> list[dict[str, Any]]:
    """Agreement of learned scores with cheap ones, for each case.

    Args:
        learned: case -> ranking.
        cheap: case -> name of the cheap score -> its ranking.
        top_fractions: shares of the layers.
    """
    return [
        row
        for case, ranking in learned.items()
        for name, other in cheap[case].items()
        for row in agreement_rows(ranking, other, top_fractions, "learned", name)
    ]


def _p_value(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"{value:.3f}"
