"""Choices of layers: how many, which, in which order, and what is refused."""

import pytest

from experiments.ila.selection import choose_layers, unimportant_everywhere
from ktlib.seeding import generator

LAYERS = [f"model.layers.{block}.{kind}" for block in range(5) for kind in ("q_proj", "up_proj")]
RANKED = [LAYERS[i] for i in (7, 0, 3, 9, 1, 2, 4, 5, 6, 8)]


def test_top_takes_the_best_in_the_order_of_the_model():
    assert choose_layers("top", LAYERS, 0.3, ranking=RANKED) == (LAYERS[0], LAYERS[3], LAYERS[7])
    scores = {name: -place for place, name in enumerate(RANKED)}
    assert choose_layers("top", LAYERS, 0.3, ranking=scores) == (LAYERS[0], LAYERS[3], LAYERS[7])


def test_first_and_last_follow_the_model():
    assert choose_layers("first", LAYERS, 0.2) == tuple(LAYERS[:2])
    assert choose_layers("last", LAYERS, 0.2) == tuple(LAYERS[8:])
    for choice in ("first", "last"):
        assert choose_layers(choice, LAYERS, 1.0) == tuple(LAYERS)


def test_random_is_as_many_and_follows_the_generator():
    def draw(seed):
        return choose_layers("random", LAYERS, 0.5, rng=generator(seed, "test"))

    assert draw(0) == draw(0)
    assert len({draw(seed) for seed in range(8)}) > 4
    assert all(len(draw(seed)) == 5 for seed in range(8))
    assert list(draw(3)) == sorted(draw(3), key=LAYERS.index)
    drawn = [name for seed in range(40) for name in draw(seed)]
    assert set(drawn) == set(LAYERS)


def test_the_last_layers_of_all_rankings():
    other = [*RANKED[5:8], *RANKED[:5], *RANKED[8:]]
    assert unimportant_everywhere([RANKED], 0.3) == tuple(RANKED[7:])
    assert unimportant_everywhere({"a": RANKED, "b": other}, 0.3) == (LAYERS[6], LAYERS[8])
    assert unimportant_everywhere([RANKED, RANKED[::-1]], 0.5) == ()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"choice": "middle"}, r"choice must be one of .* Found 'middle'"),
        ({"choice": "random"}, "choice='random' needs rng"),
        ({"choice": "top"}, "choice='top' needs a ranking"),
        (
            {"choice": "first", "fraction": 0.0},
            r"fraction must lie in \(0, 1\]. Found fraction=0.0",
        ),
        ({"choice": "top", "ranking": RANKED[1:]}, "ranking must be of the same layers"),
    ],
)
def test_bad_choices_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        choose_layers(**{"layers": LAYERS, "fraction": 0.5, **arguments})


def test_no_rankings_are_refused():
    with pytest.raises(ValueError, match="rankings must hold at least one"):
        unimportant_everywhere([], 0.5)
