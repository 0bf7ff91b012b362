"""The look of charts: stable, distinct, repeatable."""

import itertools
import math

import matplotlib as mpl
import matplotlib.pyplot as plt
import pytest

from experiments.run import plotting


@pytest.fixture(autouse=True)
def _own_style():
    with mpl.rc_context():
        mpl.use("agg")
        yield
        plt.close("all")


def contrast_with_white(colour):
    """WCAG 2 contrast ratio."""
    channels = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4
        for c in mpl.colors.to_rgb(colour)
    ]
    luminance = 0.2126 * channels[0] + 0.7152 * channels[1] + 0.0722 * channels[2]
    return 1.05 / (luminance + 0.05)


def test_no_colour_vanishes_on_white():
    # Marks need less contrast than text; the palette's yellow, left out, has 1.3.
    assert min(map(contrast_with_white, plotting.PALETTE)) > 2.1


def test_methods_of_the_book_differ_in_colour_as_far_as_there_are_colours():
    colours = [plotting.style_for(name)["color"] for name in plotting.FIXED]
    first = colours[: len(plotting.PALETTE)]
    assert len(set(first)) == len(plotting.PALETTE)


def test_methods_that_share_a_colour_differ_in_marker_and_line():
    styles = [plotting.style_for(name) for name in plotting.FIXED]
    for one, other in itertools.combinations(styles, 2):
        if one["color"] == other["color"]:
            assert one["marker"] != other["marker"]
            assert one["linestyle"] != other["linestyle"]


def test_a_method_keeps_its_style():
    assert plotting.style_for("F2M") == plotting.style_for("f2m")
    assert plotting.style_for("some new method") == plotting.style_for("some new method")


@pytest.mark.parametrize("variant", ["frozen", "unclamped", "without noise", *"abcdefghij"])
def test_a_variant_shares_the_colour_and_differs_otherwise(variant):
    method, other = plotting.style_for("F2M"), plotting.style_for(f"F2M {variant}")
    assert method["color"] == other["color"]
    assert method["marker"] != other["marker"]
    assert method["linestyle"] != other["linestyle"]


def test_band_draws_mean_and_spread():
    ax = plt.figure().subplots()
    plotting.band(ax, [1, 2], [10.0, 20.0], [1.0, 2.0], "F2M")
    assert ax.lines[0].get_ydata().tolist() == [10.0, 20.0]
    assert ax.get_legend_handles_labels()[1] == ["F2M"]
    heights = ax.collections[0].get_paths()[0].vertices[:, 1]
    assert (heights.min(), heights.max()) == (9.0, 22.0)


def test_band_of_one_seed_is_a_line():
    figure = plt.figure()
    plotting.band(figure.subplots(), [1, 2], [10.0, 20.0], [math.nan, math.nan], "F2M")
    figure.canvas.draw()


def test_band_needs_equal_lengths():
    with pytest.raises(ValueError, match="must have the same length. Found 2, 2 and 1"):
        plotting.band(plt.figure().subplots(), [1, 2], [1.0, 2.0], [0.1], "F2M")


def test_the_same_figure_is_the_same_file(tmp_path):
    def draw(name):
        plotting.use_style()
        figure, ax = plt.subplots()
        plotting.band(ax, [1, 2], [1.0, 2.0], [0.1, 0.1], "F2M")
        plotting.save_figure(figure, tmp_path, name)
        return (tmp_path / "figures" / f"{name}.svg").read_bytes()

    assert draw("one") == draw("two")
    assert b"<dc:date>" not in draw("one")


def test_no_folder_no_figure(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plotting.save_figure(plt.figure(), "", "one")
    assert list(tmp_path.iterdir()) == []


def test_notebooks_show_figures_without_a_date(monkeypatch):
    seen = []
    monkeypatch.setattr("IPython.get_ipython", object)
    monkeypatch.setattr(
        "matplotlib_inline.backend_inline.set_matplotlib_formats",
        lambda *formats, **options: seen.append((formats, options)),
    )
    plotting.use_style()
    assert seen == [(("svg",), {"metadata": {"Date": None}})]
