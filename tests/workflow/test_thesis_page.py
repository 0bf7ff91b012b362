"""Contradictions in the printed tables: the known ones, and none that rounding explains."""

import shutil

import pytest

from workflow import thesis_page
from workflow.thesis_page import (
    CELLS,
    SENTENCES,
    Printed,
    differ,
    equal_pairs,
    half,
    resnet18_layers,
)


@pytest.fixture
def copy(tmp_path):
    """The printed tables, to be changed: ``copy(number, old, new)``."""
    folder = tmp_path / "thesis"
    shutil.copytree(thesis_page.TABLES, folder)

    def changed(number, old, new):
        file = folder / f"table_{number}.csv"
        text = file.read_text(encoding="utf-8")
        assert text.count(old) == 1, (number, old, text.count(old))
        file.write_text(text.replace(old, new), encoding="utf-8")
        return Printed(folder)

    return changed


def found(printed, checks=(*CELLS, *SENTENCES)):
    return [finding for check in checks for finding in check(printed)]


@pytest.mark.parametrize(
    ("text", "unit"), [("0.02", 0.005), ("0.020", 0.0005), ("5", 0.5), ("-1.0", 0.05)]
)
def test_rounding_hides_half_of_the_last_digit(text, unit):
    assert half(text) == pytest.approx(unit)
    assert not differ(text, float(text) + 0.99 * unit, 0)
    assert differ(text, float(text) + 1.01 * unit, 0)
    assert not differ(text, float(text) + 1.5 * unit, unit)


# What a reader with a pencil found
@pytest.mark.parametrize(
    ("where", "printed", "follows"),
    [
        ("Table 3.1, FSLL, run again, gap to cRT", "-3.08", "42.22 - 45.28 = -3.06"),
        ("Table 3.10, F2M, gap to cRT", "-0.43", "= -0.47"),
        ("Table 3.11, TOPIC, gap to cRT", "-34.80", "it fits the cRT of table 3.3"),
        ("Table 4.9, CAGrad, mean gain", "5.60", "5.30"),
        ("Table 4.5, 11 of 11 rows, among them Cross-Stitch", "4.16", "4.54"),
        ("Table 4.11, Joint-train, as it is, all cosines", "100", "100.37"),
        ("Table 4.14, Joint-train, RSL, all cosines", "100", "95.79"),
        ("Table 4.16, FSK with PCGrad, task 2, drop", "0.13", "it fits CAGrad"),
        ("Table 3.6, F2M, session 2", "61.99", "62.05 in table 3.1"),
        ("Table 5.14, ranking from No Robots, MT-Bench", "5.34", "4.69 in table 5.7"),
        ("Section 3.4, bound", "b = 0.01", "b = 0.02"),
        ("Section 3.5.2, Baseline", "beats every published", "FSLL+SS 43.92 against 43.88"),
        ("Section 3.5.3, Baseline", "lead", "session 11: FSLL+SS 55.82 against 55.07"),
        ("Section 3.5.2, cRT", "upper bound", "session 8: F2M 51.57 against 51.38"),
        ("Section 3.5.1", "higher than published", "session 7: 41.37 against 41.52"),
        ("Section 4.5.2, CityScapes", "12.77", "13.63"),
        ("Tables 4.11 to 4.14", "grow", "shrink: 46.41 percent in table 4.14"),
        ("Table 4.16, LSK", "first 25", "a network with the last 25"),
        ("Table 4.10, single-task row", "seg miou 73.74", "74.36, 93.22, 29.98 in table 4.3"),
        ("Table 4.9, CAGrad, with Recon, seg miou", "40.68, 66.12", "as Joint-train, with Recon"),
        ("Random parameters (RSP), table 4.15", "about as many", "add 4.69 to 9.44 MB to 42.81 MB"),
        ("Section 3.5.1, CIFAR-100", "more exemplars", "session 8 on: 200 against 200"),
        ("Section 3.5.1, CUB-200-2011", "more exemplars", "session 7 on: 400 against 500"),
        ("Section 5.5.3", "worse than ILA", "59.71 against 59.65"),
        ("Section 5.5.4", "keeps or improves", "5.17 against 5.31"),
    ],
)
def test_known_contradictions_are_found(where, printed, follows):
    fits = [f for f in found(Printed()) if f.where.startswith(where)]
    assert [f for f in fits if printed in f.printed and follows in f.follows], fits


def test_rounding_is_no_contradiction():
    """Differences of 0.01 in tables 3.8 and 4.15, and errors printed with two decimals in 4.3."""
    places = " ".join(finding.where for finding in found(Printed()))
    for place in (
        "Table 3.8,",
        "Table 4.15,",
        "Table 4.1,",
        "Table 4.3,",
        "Table 4.4,",
        "Table 4.7,",
    ):
        assert place not in places


@pytest.mark.parametrize(
    ("number", "old", "new", "gone"),
    [
        ("3_1", "-3.08", "-3.06", "Table 3.1,"),
        ("4_9", "27.50,54.41,67.10,5.60", "27.50,54.41,67.10,5.30", "Table 4.9, CAGrad, mean"),
        ("4_11", "56.56", "56.19", "Table 4.11,"),
        ("4_8", "1.90", "1.89", "Section 4.5.2 "),
        (
            "4_10",
            "base,73.74,93.05,0.0129,27.71",
            "base,74.36,93.22,0.0128,29.98",
            "4.10, single-task",
        ),
        ("4_10", "27.71,,190.58", "27.71,,157.19", "4.10, single-task"),  # another network
        ("4_5", "24.87,18.99", "24.97,18.99", "4.10, single-task"),  # now no table shares its row
        ("4_9", "CAGrad,recon,40.68", "CAGrad,recon,40.69", "Table 4.9, CAGrad, with Recon"),
        (
            "4_15",
            "rsp,2,PCGrad,88.71,9.59,84.51,5.27,47.50",
            "rsp,2,PCGrad,88.71,9.59,84.51,5.27,43.52",
            "(RSP)",
        ),
        ("5_10", "5.17", "5.32", "Section 5.5.4"),
    ],
)
def test_a_table_that_is_mended_is_not_listed(copy, number, old, new, gone):
    mended = " | ".join(f"{finding.where} " for finding in found(copy(number, old, new)))
    before = " | ".join(f"{finding.where} " for finding in found(Printed()))
    assert gone in before
    assert gone not in mended.replace("Section 4.5.2, CityScapes", "")


@pytest.mark.parametrize(
    ("number", "old", "new", "where"),
    [
        ("3_2", "-4.56\nBaseline", "-4.65\nBaseline", "Table 3.2, Joint-training, gap"),
        ("4_12", "-24.82", "-20.82", "Table 4.12, Joint-train, RSL, fewer conflicts"),
        ("3_8", "9,all,100,0.04,43.75", "9,all,100,0.04,44.75", "Table 3.8, all classes, b = 0.04"),
        (
            "4_5",
            "MGDA,recon,32.82,61.26",
            "MGDA,recon,29.28,60.30",
            "Table 4.5, MGDA, with Recon, seg",
        ),
    ],
)
def test_an_error_that_is_put_in_is_listed(copy, number, old, new, where):
    assert [f for f in found(copy(number, old, new)) if f.where.startswith(where)]


def test_one_equal_number_is_chance(copy):
    """Saliency has one metric; a pair counts where a task has several."""
    listed = [f.where for f in equal_pairs(copy("4_4", "92.44,66.17", "92.44,66.14"))]
    assert not [where for where in listed if where.startswith("Table 4.4")]


def test_layers_of_resnet18_are_those_of_torchvision():
    from torchvision.models import resnet18

    layers = resnet18_layers(channels=3, features=1000)
    assert len(layers) == 41
    assert sum(layers) == sum(p.numel() for p in resnet18().parameters())


def test_a_row_that_is_not_the_only_one_is_refused():
    with pytest.raises(
        ValueError, match=r"Table 3.1 has 2 rows with \{'method': 'iCaRL'\}, not 1."
    ):
        Printed().row("3_1", method="iCaRL")


def test_page_has_both_lists(tmp_path):
    thesis_page.write_thesis(tmp_path)
    text = (tmp_path / "thesis.md").read_text(encoding="utf-8")
    assert text.count("\n| Where |") == 2
    for place in thesis_page.PLACES:
        assert f"({place})=\n## " in text
    assert text.count("\n| Table 3.11, ") == 5
