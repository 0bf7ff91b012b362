"""Cells of tables and parts of figures, by hand."""

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from experiments.run import charts

VALUES = pd.Series([1.0, 3.0, None])


@pytest.fixture(autouse=True)
def _closed():
    mpl.use("agg")
    yield
    plt.close("all")


def test_cells_by_hand():
    assert charts.spread(VALUES) == "2.0 ± 1.4"
    assert charts.extent(VALUES) == "2.00 (1.00 to 3.00)"
    assert charts.interval(VALUES) == "+2.0 (-10.7 to +14.7)"  # 12.71 standard errors of 1


@pytest.mark.parametrize("cell", [charts.spread, charts.extent, charts.interval])
def test_a_cell_of_one_seed_has_its_value_and_of_none_a_dash(cell):
    assert cell(pd.Series([2.0]), 0).lstrip("+") == "2"
    assert cell(pd.Series([None, None], dtype=object)) == "-"
    assert cell(pd.Series(dtype=float)) == "-"


def test_forest_has_a_row_each_and_one_entry_in_the_key():
    fig, ax = plt.subplots()
    charts.forest(ax, [("a", VALUES), ("b", pd.Series(dtype=float))], 0.1, label="own")
    charts.key(fig, ax)
    assert [text.get_text() for text in ax.get_yticklabels()] == ["a", "b"]
    mean = ax.containers[0].lines[0]
    assert (mean.get_xdata()[0], mean.get_ydata()[0]) == (2.0, 0.1)
    assert [text.get_text() for text in fig.legends[0].get_texts()] == ["own"]
    assert ax.lines[0].get_ydata().tolist() == [0.1, 0.1, 0.1]  # a point a seed


def test_a_line_has_intervals_where_there_are_two_seeds():
    _, ax = plt.subplots()
    charts.line(ax, [0, 1], [VALUES, pd.Series([4.0])])
    line, _, (bars,) = ax.containers[0].lines
    assert line.get_ydata().tolist() == [2.0, 4.0]
    several, one = bars.get_segments()
    assert several[:, 1] == pytest.approx([-10.7, 14.7], abs=0.01)
    assert len(one) == 0


def test_no_key_without_entries():
    fig, ax = plt.subplots()
    charts.key(fig, ax)
    assert fig.legends == []


def test_names_at_the_ends_of_lines_keep_their_order_and_distance():
    _, ax = plt.subplots()
    ends = {"b": 100.0, "a": 99.0, "c": 101.0, "d": 10.0, "e": 10.1}
    ax.set(xscale="log", yscale="log", ylim=(10, 110))
    charts.end_labels(ax, 40, ends, dict.fromkeys(ends, "black"))
    low, high = np.log10(ax.get_ylim())
    places = {text.get_text(): np.log10(text.xyann[1]) for text in ax.texts}
    assert [*places] == ["d", "e", "a", "b", "c"]
    assert min(np.diff([*places.values()])) >= 0.06 * (high - low) - 1e-9
    assert places["d"] == pytest.approx(1)
    assert max(places.values()) <= high
    assert {text.get_text(): text.xy[1] for text in ax.texts} == ends
