"""Agreement of rankings: known chance levels, exact p-values against permutations."""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from ktlib.ila.agreement import (
    agreement_table,
    chance_level,
    jaccard,
    projection,
)

ABCD = ["a", "b", "c", "d"]
LAYERS = [
    f"model.layers.{block}.self_attn.{kind}" for block in range(15) for kind in ("q_proj", "v_proj")
]


class Holder:
    """What a ranking of layers looks like from here."""

    def __init__(self, names):
        self.names = tuple(names)


def shuffled(names, seed):
    return [str(name) for name in np.random.default_rng(seed).permutation(names)]


def test_two_of_four_by_hand():
    found = jaccard(ABCD, ["a", "c", "b", "d"], 0.5)
    assert (found.size, found.common, found.value) == (2, 1, 1 / 3)
    # 0, 1, 2 common layers in 1, 4, 1 of 6 cases: (4 * 1/3 + 1 * 1) / 6
    assert found.chance == pytest.approx(7 / 18)
    assert found.p_value == pytest.approx(5 / 6)
    assert found.corrected == pytest.approx((1 / 3 - 7 / 18) / (11 / 18))
    assert found.rank_correlation == pytest.approx(0.8)  # 1 - 6 * 2 / (4 * 15)


def test_chance_and_p_value_are_those_of_all_permutations():
    names = list("abcdef")
    one, other = set("ab"), ["a", "c", "b", "d", "e", "f"]
    values = [len(one & set(p[:2])) / len(one | set(p[:2])) for p in itertools.permutations(names)]
    found = jaccard(names, other, 1 / 3)
    assert found.chance == pytest.approx(np.mean(values))
    assert found.p_value == pytest.approx(np.mean(np.array(values) >= found.value - 1e-12))


def test_chance_within_kinds_is_that_of_all_permutations_within_them():
    kinds = {"a": "x", "b": "x", "c": "x", "d": "y", "e": "y", "f": "y"}
    one, other = ["a", "b", "d", "c", "e", "f"], ["b", "a", "e", "d", "c", "f"]
    values = []
    for x in itertools.permutations("abc"):
        for y in itertools.permutations("def"):
            renamed = dict(zip("abcdef", [*x, *y], strict=True))
            drawn = {renamed[name] for name in other[:3]}
            values.append(len(drawn & set(one[:3])) / len(drawn | set(one[:3])))
    found = jaccard(one, other, 0.5, kind=kinds.__getitem__)
    assert found.chance_within_kinds == pytest.approx(np.mean(values))
    assert found.p_value_within_kinds == pytest.approx(
        np.mean(np.array(values) >= found.value - 1e-12)
    )
    assert found.chance_within_kinds > found.chance


def test_rankings_that_agree_on_the_kind_alone():
    """All value projections above all query projections, in random order among themselves."""
    queries, values = ([n for n in LAYERS if n.endswith(k)] for k in ("q_proj", "v_proj"))
    one, other = ([*shuffled(values, seed), *shuffled(queries, seed)] for seed in (0, 1))
    found = jaccard(one, other, 0.3)
    assert found.p_value < 0.05
    assert found.p_value_within_kinds > 0.05
    # With one kind of layer there is nothing else to agree on.
    same = jaccard(one, other, 0.3, kind=lambda name: "layer")
    assert same.p_value_within_kinds == pytest.approx(same.p_value)
    assert same.chance_within_kinds == pytest.approx(same.chance)


BLOCKS = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
STACKS = ("encoder.layer.0.q", "encoder.layer.1.o", "decoder.layer.0.q", "decoder.layer.1.o")


@pytest.mark.parametrize("parts", [BLOCKS, STACKS])
def test_a_test_within_kinds_rejects_agreement_on_kinds_as_often_as_it_says(parts):
    """Kinds share last names (GPT-2, T5); rankings agree on the order of the kinds alone."""
    groups = [[f"{p.partition('.')[0]}.{b}.{p}" for b in range(12)] for p in parts]
    assert len({projection(name) for group in groups for name in group}) == 4
    rejected = 0
    for seed in range(300):
        one, other = ([n for g in groups for n in shuffled(g, s)] for s in (seed, 1000 + seed))
        rejected += jaccard(one, other, 0.375).p_value_within_kinds <= 0.05
    assert rejected / 300 <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize(("top", "limit"), [(0.75, 0.6), (0.3, 0.3 / 1.7)])
def test_chance_level_tends_to_the_formula_of_many_layers(top, limit):
    errors = [abs(chance_level(layers, top) - limit) for layers in (20, 200, 20_000)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-4
    assert errors[0] > 1e-3  # the exact one differs from it for few layers


def test_p_values_of_random_rankings_are_no_smaller_than_they_should_be():
    p = np.array([jaccard(LAYERS, shuffled(LAYERS, seed), 0.5).p_value for seed in range(400)])
    for level in (0.05, 0.2, 0.5):
        assert np.mean(p <= level) <= level + 3 * math.sqrt(level / 400)
    assert p.min() < 0.1


def test_equal_and_opposite_rankings():
    same = jaccard(LAYERS, LAYERS, 0.3)
    assert (same.value, same.corrected) == (1.0, 1.0)
    assert same.rank_correlation == pytest.approx(1.0)
    assert same.p_value == pytest.approx(1 / math.comb(30, 9))
    opposite = jaccard(LAYERS, LAYERS[::-1], 0.3)
    assert opposite.value == 0.0
    assert opposite.p_value == pytest.approx(1.0)
    assert opposite.corrected < 0
    assert opposite.rank_correlation == pytest.approx(-1.0)


def test_symmetric_and_blind_to_names_and_to_their_order():
    one, other = shuffled(LAYERS, 0), shuffled(LAYERS, 1)
    there, back = jaccard(one, other, 0.3), jaccard(other, one, 0.3)
    renamed = {name: f"{i}.{projection(name)}" for i, name in enumerate(shuffled(LAYERS, 2))}
    new = jaccard([renamed[n] for n in one], [renamed[n] for n in other], 0.3)
    for found in (back, new):
        assert vars(found) == pytest.approx(vars(there))


def test_all_layers_agree_by_definition():
    found = jaccard(ABCD, ABCD[::-1], 1.0)
    assert (found.value, found.chance, found.p_value) == (1.0, 1.0, 1.0)
    assert math.isnan(found.corrected)


@pytest.mark.parametrize(("top", "size"), [(0.75, 3), (0.3, 1), (0.5, 2), (0.01, 1), (1.0, 4)])
def test_size_of_the_top(top, size):
    assert jaccard(ABCD, ABCD, top).size == size


def test_scores_names_and_objects_are_the_same_ranking():
    scores = {"b": 2.0, "a": 3.0, "d": -1.0, "c": 0.5}
    other = ["d", "a", "b", "c"]
    found = [jaccard(form, other, 0.5) for form in (ABCD, tuple(ABCD), scores, Holder(ABCD))]
    assert found == [found[0]] * 4


def test_equal_scores_share_a_rank():
    one = {"a": 1.0, "b": 1.0, "c": 0.0, "d": -2.0}
    turned = dict(reversed(one.items()))  # b stands before a
    other = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2}
    expected = stats.spearmanr([1, 1, 0, -2], [0.1, 0.4, 0.3, 0.2]).statistic
    for scores in (one, turned):
        assert jaccard(scores, other, 0.5).rank_correlation == pytest.approx(expected)
    # In the set the first of the equal ones comes first, as in a LayerRanking.
    assert (jaccard(one, other, 0.25).common, jaccard(turned, other, 0.25).common) == (0, 1)
    assert math.isnan(jaccard(dict.fromkeys("abcd", 4.0), other, 0.5).rank_correlation)


def test_rows_for_the_record():
    found = jaccard(ABCD, ABCD, 0.5)
    assert found.row("seed 0", "seed 1") == {
        "a": "seed 0",
        "b": "seed 1",
        "top": 0.5,
        "value": 1.0,
        "chance": found.chance,
        "p_value": found.p_value,
    }


def test_table_of_all_pairs():
    rows = agreement_table({"x": ABCD, "y": ABCD[::-1], "z": ["b", "a", "c", "d"]}, (0.5, 0.25))
    assert [(row["top"], row["a"], row["b"]) for row in rows] == [
        (top, a, b) for top in (0.5, 0.25) for a, b in (("x", "y"), ("x", "z"), ("y", "z"))
    ]
    assert [row["value"] for row in rows] == [0.0, 1.0, 0.0, 0.0, 0.0, 0.0]
    assert all(row["p_value"] <= 1 and "rank_correlation" in row for row in rows)


@pytest.mark.parametrize("top", [0, -0.1, 1.5, math.nan])
def test_top_outside_of_its_range(top):
    with pytest.raises(ValueError, match=rf"Found top_fraction={top}."):
        jaccard(ABCD, ABCD, top)


@pytest.mark.parametrize(
    ("one", "other", "message"),
    [
        (ABCD, ["a", "b", "c", "x", "y"], "in the first: x, y; in the second: d."),
        (ABCD, ABCD[:2], "Missing in the first: none; in the second: c, d."),
        (LAYERS, LAYERS[:20], "and 5 more."),
        (["a"], ["a"], r"must have at least 2 layers. Found \['a'\]."),
        (["a", "a"], ABCD, r"hold each layer once. Found twice: \['a'\]."),
        ("abcd", ABCD, "names of layers, best first"),
        ([1, 2], ABCD, "names of layers, best first"),
        ({"a": 1.0, "b": math.nan}, ["a", "b"], r"scores must be finite. Found {'b': nan}."),
    ],
)
def test_rankings_that_cannot_be_compared(one, other, message):
    with pytest.raises(ValueError, match=message):
        jaccard(one, other, 0.5)


def test_other_bad_arguments():
    with pytest.raises(ValueError, match=r"rankings must be at least two. Found \['x'\]."):
        agreement_table({"x": ABCD})
    with pytest.raises(ValueError, match="layers must be at least 2. Found layers=1."):
        chance_level(1, 0.5)
