"""The settings of the few-shot methods, chosen by one rule from the record of their search."""

from __future__ import annotations

import json
from collections.abc import Mapping

import pandas as pd

Setting = dict[str, float]
Settings = dict[tuple[str, str], Setting]
"""Split of the classes and method -> values of its knobs."""

FLATTER = 3.0
"""How many times flatter than plain training, in its own box, ``f2m_flat`` must be."""


def chosen_settings(trials: pd.DataFrame) -> Settings:
    """The best trial of each method on held-out images.

    Best is the highest accuracy averaged over all sessions and seeds. ``f2m_flat`` is chosen among
    the trials at least :data:`FLATTER` times flatter than plain training.

    Args:
        trials: the table ``trials`` of the search: ``classes``, ``method``, ``setting`` (JSON),
            ``seed``, ``mean_accuracy`` and ``flatness_gain`` (None where it was not measured).
    """
    keys = ["classes", "method", "setting"]
    mean = trials.astype({"flatness_gain": float}).groupby(keys, sort=False)
    table = mean[["mean_accuracy", "flatness_gain"]].mean().reset_index()
    sharp = (table["method"] == "f2m_flat") & ~(table["flatness_gain"] >= FLATTER)
    allowed = table[~sharp]
    best = allowed.loc[allowed.groupby(["classes", "method"], sort=False)["mean_accuracy"].idxmax()]
    rows = best[keys].astype(str).to_numpy().tolist()
    return {(classes, method): json.loads(setting) for classes, method, setting in rows}


def setting_text(setting: Mapping[str, float]) -> str:
    """A setting for a cell of a table."""
    return json.dumps(dict(setting))
