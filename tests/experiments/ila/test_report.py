"""Tables over rankings and fine-tuned models, by hand."""

import math

import pandas as pd
import pytest

from experiments.ila.report import (
    agreement_matrix,
    cheap_agreement,
    finetune_difference,
    finetune_table,
    in_nats,
    loss_rows,
    printed_matrix,
    printed_range,
    run_name,
    score_correlation,
    score_rows,
    share_by_kind,
)
from ktlib.ila import LayerRanking
from ktlib.ila.agreement import jaccard

NAMES = [f"model.layers.{block}.{kind}_proj" for block in range(2) for kind in ("q", "up")]
RANKING = LayerRanking(
    scores=dict(zip(NAMES, (3.0, 4.0, 1.0, 2.0), strict=True)),
    standard_errors=dict.fromkeys(NAMES, 0.5),
)


def results():
    losses = {"lora": {0: 2.0, 1: 2.4}, "full": {0: 1.5, 1: 2.1}}
    return [
        row
        for method, by_seed in losses.items()
        for seed, loss in by_seed.items()
        for row in loss_rows({"a": loss, "b": 1.0}, method=method, layers="all", seed=seed)
    ]


@pytest.mark.parametrize(
    ("other", "expected"),
    [((6.0, 9.0, 1.0, 2.0), 1.0), ((-3.0, -4.0, -1.0, -2.0), -1.0), ((4.0,) * 4, None)],
)
def test_scores_that_are_all_equal_have_no_correlation(other, expected):
    scores = dict(zip(NAMES, other, strict=True))
    for pair in ((RANKING.scores, scores), (scores, RANKING.scores)):
        assert score_correlation(*pair) == (expected and pytest.approx(expected))


def test_rows_of_scores_hold_every_layer():
    rows = score_rows(RANKING, "chat", 3, 0.25)
    assert [row["layer"] for row in rows] == NAMES
    assert rows[1] == {
        "dataset": "chat", "seed": 3, "milestone": 0.25,
        "layer": NAMES[1], "score": 4.0, "standard_error": 0.5,
    }  # fmt: skip
    bare = LayerRanking(scores=RANKING.scores)
    assert score_rows(bare, "chat", 0)[0]["standard_error"] is None


def test_agreement_is_averaged_over_pairs_of_seeds():
    order = list(RANKING.names)
    same, other = jaccard(order, order, 0.5), jaccard(order, order[::-1], 0.5)
    rows = [same.long_row("x", "y"), other.long_row("x", "y"), same.long_row("x", "z")]
    table = agreement_matrix(rows, 0.5)
    assert list(table.index) == ["x and y", "x and z"]
    assert table.index.name == "top 50 %"
    assert table.loc["x and y", "Jaccard"] == "0.50 ± 0.71"
    assert table.loc["x and z", "Jaccard"] == "1.00"
    assert table.loc["x and y", "largest p"] == "1.000"
    assert table.loc["x and y", "pairs"] == "2"
    # Two of four layers twice: none, one or two in common with probability 1/6, 4/6, 1/6.
    assert table.loc["x and z", "by chance"] == f"{4 / 6 / 3 + 1 / 6:.2f}"
    with pytest.raises(ValueError, match="top_fraction=0.3"):
        agreement_matrix(rows, 0.3)
    with pytest.raises(ValueError, match=r"top_fraction must be one of \[\]"):
        agreement_matrix([], 0.3)


def test_printed_tables_have_one_row_per_pair():
    printed = pd.DataFrame(
        {"model": ["L", "M"], "row": ["a", "a"], "column": ["b", "c"], "value": [0.9, 0.8]}
    )
    table = printed_matrix(printed, model="M")
    assert table.to_dict() == {"Jaccard, thesis": {"a and c": 0.8}}


def test_printed_numbers_as_a_claim_quotes_them():
    assert printed_range([0.915, 0.9, 0.912]) == "0.90 to 0.92"
    assert printed_range([0.71, 0.705], digits=1) == "0.7", "equal as printed"
    with pytest.raises(IndexError):
        printed_range([])


def test_losses_stand_beside_their_method():
    table = finetune_table(results(), {"LoRA, all": 1_500_000})
    assert table.loc["LoRA, all", "a"] == "2.200 ± 0.283"
    assert table.loc["LoRA, all", "trained weights"] == "1.50 M"
    assert table.loc["full, all", "trained weights"] == ""
    assert table.loc["full, all", "b"] == "1.000 ± 0.000"
    accuracy = [{**results()[0], "metric": "accuracy (%)", "value": 12.34}]
    assert finetune_table(accuracy).loc["LoRA, all", "a, accuracy (%)"] == "12.3"


def test_the_heading_speaks_of_losses_only_where_there_are_some():
    accuracy = {**results()[0], "metric": "accuracy (%)"}
    assert finetune_table([accuracy]).index.name == "fine-tuned"
    assert finetune_table([*results(), accuracy]).index.name == "held-out loss (nats per token)"


@pytest.mark.parametrize(
    ("method", "layers", "shown"),
    [
        ("lora", "random_top", "LoRA, random top"),
        ("not tuned", "", "not tuned"),
        ("adalora", "all", "AdaLoRA, all"),
    ],
)
def test_names_of_runs(method, layers, shown):
    assert run_name(method, layers) == shown


def test_differences_are_within_seeds():
    change = finetune_difference(results(), ("full", "all"), ("lora", "all"), "a")
    assert change.mean == pytest.approx(-0.4)
    assert change.seeds == 2
    assert change.high - change.mean == pytest.approx(12.706 * 0.1, rel=1e-3)
    assert in_nats(change).startswith("-0.400 nats (95 % interval -1.671 to +0.871, 2 seeds)")
    one = finetune_difference(results()[:2] + results()[4:6], ("full", "all"), ("lora", "all"), "a")
    assert in_nats(one) == "-0.500 nats (one seed, no interval)"
    assert math.isnan(one.low)
    with pytest.raises(ValueError, match=r"one and other must be of .* Found \('lora', 'top'\)"):
        finetune_difference(results(), ("full", "all"), ("lora", "top"), "a")


def test_kinds_are_counted():
    table = share_by_kind(RANKING, 0.5)
    assert table.to_dict() == {
        "chosen": {"q_proj": 1, "up_proj": 1},
        "of": {"q_proj": 2, "up_proj": 2},
    }


def test_cheap_scores_are_compared_case_by_case():
    cheap = LayerRanking(scores=dict(zip(NAMES, (4.0, 3.0, 1.0, 2.0), strict=True)))
    rows = cheap_agreement({0: RANKING}, {0: {"norm": cheap}}, (0.5, 0.25))
    assert [(row["top"], row["value"]) for row in rows] == [(0.5, 1.0), (0.25, 0.0)]
    assert {(row["a"], row["b"]) for row in rows} == {("learned", "norm")}
