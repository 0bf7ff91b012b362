"""Tables and comparisons over the records of the few-shot chapter."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import pandas as pd

from experiments.run.paired import PairedDifference
from experiments.run.results import format_mean_std, mean_and_spread

Rows = Iterable[Mapping[str, Any]]


def mean_std_texts(spread: pd.DataFrame, digits: int = 2) -> list[str]:
    """``mean ± std`` of each row; a row without a mean comes from runs that all diverged."""
    pairs = zip(spread["mean"], spread["std"], strict=True)
    return ["diverged" if math.isnan(m) else format_mean_std(m, s, digits) for m, s in pairs]


def session_table(rows: Rows, value: str = "accuracy") -> pd.DataFrame:
    """Mean ± standard deviation over seeds, one row a method and one column a session.

    Args:
        rows: the table ``session_accuracy`` of a record.
        value: ``accuracy``, ``base_accuracy`` or ``new_accuracy``, in percent.
    """
    spread = session_spread(rows, value)
    methods = list(spread["method"].unique())
    spread["text"] = mean_std_texts(spread, 1)
    table = spread.set_index(["method", "session"])["text"].unstack("session")  # noqa: PD010
    return table.loc[methods]


def session_spread(rows: Rows, value: str = "accuracy") -> pd.DataFrame:
    """Columns ``method``, ``session``, ``mean``, ``std`` and ``n`` over seeds; for figures."""
    table = pd.DataFrame(list(rows)).dropna(subset=[value])
    return mean_and_spread(table, ["method", "session"], value)


def at_session(rows: Rows, method: str, session: int) -> str:
    """Accuracy of one method after one session, as mean ± standard deviation over seeds."""
    table = pd.DataFrame(list(rows))
    values = table[(table["method"] == method) & (table["session"] == session)]["accuracy"]
    return format_mean_std(float(values.mean()), float(values.std()), 1)


def comparison_summary(rows: Rows, upper_bound: str = "crt") -> pd.DataFrame:
    """One row a method: accuracies after the last session, the drop, the gap to the upper bound.

    Args:
        rows: with ``method``, ``seed``, ``session``, ``accuracy``, ``base_accuracy`` and
            ``new_accuracy``, in percent.
        upper_bound: the method that the gap is measured to, seed by seed.

    Returns:
        Columns ``first session``, ``all classes``, ``base classes``, ``new classes``, ``drop``
        (first minus last session) and ``behind <upper_bound>``, mean ± standard deviation over
        seeds, the mean alone for one seed; ``diverged`` where no run reached the last session.

    Raises:
        ValueError: if ``upper_bound`` has no rows.
    """
    table = pd.DataFrame(list(rows))
    if upper_bound not in set(table["method"]):
        found = list(table["method"].unique())
        raise ValueError(f"upper_bound must be one of {found}. Found {upper_bound!r}.")
    keys = ["method", "seed"]
    last = table[table["session"] == table["session"].max()].set_index(keys)
    first = table[table["session"] == table["session"].min()].set_index(keys)
    # No row of a run that diverged before the last session.
    bound = last["accuracy"][last.index.get_level_values("method") == upper_bound]
    bound = bound.droplevel("method").reindex(last.index.get_level_values("seed"))
    columns = {
        "first session": first["accuracy"],
        "all classes": last["accuracy"],
        "base classes": last["base_accuracy"],
        "new classes": last["new_accuracy"],
        "drop": first["accuracy"] - last["accuracy"],
        f"behind {upper_bound}": bound.to_numpy() - last["accuracy"],
    }
    texts = {}
    for name, values in columns.items():
        spread = mean_and_spread(values.rename("value").reset_index(), ["method"], "value")
        texts[name] = pd.Series(mean_std_texts(spread, 1), index=spread["method"])
    return pd.DataFrame(texts).loc[list(table["method"].unique())].fillna("diverged")


def paired_difference(
    rows: Rows,
    method: str,
    reference: str,
    *,
    value: str = "accuracy",
    pairs: str = "seed",
    session: int | None = None,
) -> PairedDifference:
    """Compare two methods seed by seed, at the last session unless another is named.

    A seed whose run with one of the two ended early has no difference.

    Args:
        rows: with ``method``, ``session`` and the columns named by ``value`` and ``pairs``.
        method: what is compared.
        reference: what it is compared with.
        value: ``accuracy``, ``base_accuracy`` or ``new_accuracy``, in percent.
        pairs: the column whose equal values make a pair.
        session: which one; by default the last one of any row.

    Raises:
        ValueError: if a method has no rows, naming those that have.
    """
    table = pd.DataFrame(list(rows))
    last = table[table["session"] == (session or table["session"].max())]
    known = sorted(table["method"].unique())
    for name in (method, reference):
        if name not in known:
            raise ValueError(f"method must be one of {known}. Found {name!r}.")
    wide = last.pivot_table(index=pairs, columns="method", values=value)
    wide = wide.reindex(columns=known)  # a method none of whose runs reached the last session
    return PairedDifference.of(wide[method] - wide[reference], pairs.replace("_", " "))


def flatness_ratios(
    table: pd.DataFrame, method: str = "f2m", reference: str = "ncm"
) -> pd.DataFrame:
    """How many times smaller the indicator of ``method`` is than that of ``reference``.

    Args:
        table: the table ``flatness`` of a record.
        method: the flatter one, if all is well.
        reference: what it is compared with.

    Returns:
        Columns ``split``, ``bound``, ``seed`` and ``ratio``.
    """
    keys = ["split", "bound", "seed"]
    wide = table.pivot_table(index=keys, columns="method", values="indicator")
    return (wide[reference] / wide[method]).rename("ratio").reset_index()


def flatness_summary(table: pd.DataFrame) -> pd.DataFrame:
    """Mean indicator over seeds of each method, and mean ± standard deviation of their ratio."""
    keys = ["split", "bound"]
    mean = table.pivot_table(index=keys, columns="method", values="indicator")
    texts = mean.map("{:.1e}".format).add_prefix("indicator, ")
    ratio = mean_and_spread(flatness_ratios(table), keys, "ratio").set_index(keys)
    texts["ncm / f2m"] = mean_std_texts(ratio, 1)
    return texts


# Studies: one setting changed at a time -----------------------------------------------------------

PARTS = ("fm", "pf", "pc", "pn")
"""The four parts of F2M that table 3.6 switches: noise, prototype fixing, clamping, norms."""

GROUPS = {"accuracy": "all classes", "base_accuracy": "base classes", "new_accuracy": "new classes"}
"""Columns of a record's rows, and their names in tables and figures."""


def last_spread(
    rows: Rows, by: str | list[str], value: str = "accuracy", session: int | None = None
) -> pd.DataFrame:
    """Mean and spread at the last session; runs that ended early are counted, not averaged.

    Args:
        rows: one a session; a run whose base training diverged has session 1 without accuracies.
        by: the columns that tell settings apart.
        value: ``accuracy``, ``base_accuracy`` or ``new_accuracy``, in percent.
        session: which one; by default the last one of any row.

    Returns:
        The columns of ``by``, then ``mean``, ``std`` and ``n`` over the runs that reached the
        session, and ``runs``, how many there were, in the order of the rows.
    """
    table = pd.DataFrame(list(rows)).astype({value: float})
    keys = [by] if isinstance(by, str) else by
    started = table[table["session"] == 1]
    runs = started.groupby(keys, sort=False).size().rename("runs")
    last = table[table["session"] == (session or table["session"].max())].dropna(subset=[value])
    found = pd.DataFrame(runs).join(mean_and_spread(last, keys, value).set_index(keys))
    found["n"] = found["n"].fillna(0).astype(int)
    return found.reset_index()[[*keys, "mean", "std", "n", "runs"]]


def study_rows(rows: Rows, study: str) -> list[dict[str, Any]]:
    """The rows of one study, as a record's table ``studies`` holds them."""
    return [dict(row) for row in rows if row["study"] == study]


def study_table(rows: Rows, study: str) -> pd.DataFrame:
    """One row a setting: session 1, then all, base and new classes after the last session.

    Mean ± standard deviation over runs. Where runs ended early, as their loss was no longer finite,
    it says how many are averaged.

    Args:
        rows: the table ``studies`` of a record: ``study``, ``value``, ``method``, ``session`` and
            the accuracies, in percent.
        study: which one.

    Raises:
        ValueError: if the study has no rows.
    """
    chosen = study_rows(rows, study)
    if not chosen:
        known = sorted({str(row["study"]) for row in rows})
        raise ValueError(f"study must be one of {known}. Found {study!r}.")
    return accuracy_table(chosen, ["value", "method"]).rename_axis([study, "method"])


def accuracy_table(rows: Rows, keys: list[str]) -> pd.DataFrame:
    """As :func:`study_table`, for rows that other columns tell apart."""
    columns = {"session 1": _formatted(last_spread(rows, keys, session=1))}
    for value, name in GROUPS.items():
        columns[f"{name}, last session"] = _formatted(last_spread(rows, keys, value))
    index = last_spread(rows, keys)[keys]
    return pd.DataFrame(columns).set_axis(pd.MultiIndex.from_frame(index), axis="index")


def _formatted(spread: pd.DataFrame) -> list[str]:
    texts = []
    for mean, std, n, runs in spread[["mean", "std", "n", "runs"]].itertuples(index=False):
        text = format_mean_std(mean, std, 1) if n else "diverged"
        texts.append(f"{text} ({n} of {runs} runs, others diverged)" if 0 < n < runs else text)
    return texts


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [{str(name): value for name, value in row.items()} for row in table.to_dict("records")]


def ablation_label(row: Mapping[str, Any]) -> str:
    """Name of a combination of the parts, such as ``"FM + PC"``; ``"none"`` without any."""
    return " + ".join(part.upper() for part in PARTS if row[part]) or "none"


def ablation_rows(rows: Rows) -> list[dict[str, Any]]:
    """The table ``ablation`` of a record with a column ``method``: the name of the combination."""
    return [{**row, "method": ablation_label(row)} for row in rows]


def thesis_ablation(printed: pd.DataFrame) -> pd.DataFrame:
    """Table 3.6 of the thesis with short names for the parts, indexed by the combination.

    Args:
        printed: what :func:`experiments.run.results.thesis_table` gives for ``"3_6"``.
    """
    names = ("flat_minima", "prototype_fixing", "parameter_clamping", "prototype_normalization")
    short = printed.rename(columns=dict(zip(names, PARTS, strict=True)))
    labels = [
        ablation_label({part: short[part].iloc[place] for part in PARTS})
        for place in range(len(short))
    ]
    return short.set_axis(pd.Index(labels), axis="index")


def ablation_table(rows: Rows, printed: pd.DataFrame) -> pd.DataFrame:
    """Thesis and this run side by side: first and last session and the drop between them (PD).

    Args:
        rows: the table ``ablation`` of a record.
        printed: what :func:`experiments.run.results.thesis_table` gives for ``"3_6"``.

    Returns:
        One row a combination in the order of the thesis; two columns each, ``thesis`` and
        ``this run``, mean ± standard deviation over seeds.
    """
    named = ablation_rows(rows)
    thesis = thesis_ablation(printed)
    table = pd.DataFrame(named).astype({"accuracy": float})
    final = int(table["session"].max())
    wide = table.pivot_table(index=["method", "seed"], columns="session", values="accuracy")
    drop = (wide[1] - wide[final]).rename("drop").reset_index()
    texts = {}
    for name, column, session in (
        ("session 1", "session_1", 1),
        ("last session", "session_9", final),
    ):
        spread = last_spread(named, "method", session=session).set_index("method")
        texts[name, "thesis"] = thesis[column].map("{:.2f}".format)
        texts[name, "this run"] = pd.Series(_formatted(spread), index=spread.index)
    spread = last_spread(_records(drop.assign(session=1)), "method", "drop")
    texts["PD", "thesis"] = thesis["pd"].map("{:.2f}".format)
    texts["PD", "this run"] = pd.Series(_formatted(spread), index=spread["method"])
    return pd.DataFrame(texts).loc[thesis.index].rename_axis("parts")


def study_flatness_table(rows: Rows, study: str) -> pd.DataFrame:
    """Flatness indicator of each setting at each half-width it was measured at.

    Args:
        rows: the table ``study_flatness`` of a record: ``study``, ``value``, ``seed``, ``split``,
            ``bound``, ``indicator`` and ``loss_at_minimum``.
        study: which one.

    Returns:
        Index ``value`` and ``bound``; columns ``indicator`` and ``loss at the minimum``, mean ±
        standard deviation over seeds.
    """
    measured = ["indicator", "loss_at_minimum"]  # None where it is not finite
    table = pd.DataFrame(study_rows(rows, study)).astype(dict.fromkeys(measured, float))
    keys = ["value", "bound"]
    texts = {}
    for column, form in (("indicator", "{:.1e}"), ("loss_at_minimum", "{:.2f}")):
        spread = mean_and_spread(table, keys, column).set_index(keys)
        texts[column.replace("_at_", " at the ")] = [
            "diverged"
            if math.isnan(mean)
            else form.format(mean) + ("" if math.isnan(std) else " ± " + form.format(std))
            for mean, std in zip(spread["mean"], spread["std"], strict=True)
        ]
    return pd.DataFrame(texts, index=spread.index).rename_axis([study, "b measured at"])


def shift_table(rows: Rows, study: str) -> pd.DataFrame:
    """Largest shift of a tuned weight in units of b, one row a value and one column a method.

    Args:
        rows: the table ``study_shift`` of a record: ``study``, ``value``, ``method``, ``seed`` and
            ``shift_in_b``; ``None`` is a run that diverged.
        study: which one.
    """
    table = pd.DataFrame(study_rows(rows, study)).astype({"shift_in_b": float})
    spread = mean_and_spread(table, ["value", "method"], "shift_in_b")
    spread["text"] = mean_std_texts(spread)
    wide = spread.set_index(["value", "method"])["text"].unstack("method")  # noqa: PD010
    return wide[list(spread["method"].unique())].rename_axis(index=study)


def norm_table(rows: Rows, printed: pd.DataFrame | None = None) -> pd.DataFrame:
    """Norms of base and new prototypes: mean and spread over classes, each ± over seeds.

    Args:
        rows: the table ``prototype_norms`` of a record: ``method``, ``seed``, ``group``, ``mean``
            and ``std`` over the classes of the group.
        printed: table 3.7 of the thesis, to be put in front.
    """
    table = pd.DataFrame(list(rows))
    texts = {}
    for column, name in (("mean", "mean over classes"), ("std", "std over classes")):
        spread = mean_and_spread(
            table[["method", "group", column]].rename(columns={column: "norm"}),
            ["method", "group"],
            "norm",
        ).set_index(["method", "group"])
        texts[name] = mean_std_texts(spread)
    found = pd.DataFrame(texts, index=spread.index)
    if printed is None:
        return found
    thesis = pd.DataFrame(
        {
            "mean over classes": printed["mean_prototype_norm"].map("{:.2f}".format),
            "std over classes": printed["std_prototype_norm"].map("{:.2f}".format),
        }
    ).set_index(pd.MultiIndex.from_product([["thesis"], printed["class_group"]]))
    return pd.concat([thesis, found]).rename_axis(["method", "group"])


def best_values(rows: Rows, study: str, session: int, value: str = "accuracy") -> pd.Series:
    """For each seed, the setting of a study with the highest accuracy after a session."""
    table = pd.DataFrame(study_rows(rows, study)).dropna(subset=[value])
    after = table[table["session"] == session].set_index("value")
    best: pd.Series = after.groupby("seed")[value].idxmax()
    return best
