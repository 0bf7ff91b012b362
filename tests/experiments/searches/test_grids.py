"""Grids of a search, and where they go on."""

import pytest

from experiments.searches.grids import continued, grid_of, setting_text, settings, tried

LADDER = {"lr": (0.01, 0.02, 0.05)}


@pytest.mark.parametrize(
    ("grid", "best", "known", "further"),
    [
        (LADDER, {"lr": 0.05}, [], {"lr": 0.13}),  # 0.05 ** 2 / 0.02, two digits
        (LADDER, {"lr": 0.01}, [], {"lr": 0.005}),
        (LADDER, {"lr": 0.02}, [], None),
        (LADDER, {"lr": 0.05}, [{"lr": 0.13}], None),
        ({"epochs": (1, 2)}, {"epochs": 2}, [], {"epochs": 4}),
        ({"epochs": (1, 2)}, {"epochs": 1}, [{"epochs": 1}], None),  # no half epoch
        ({"shift": (0.5, 0.75)}, {"shift": 0.75}, [], None),  # 1.125 is no share
        ({"shift": (0.5, 0.75), "temperature": (4, 16)}, {"shift": 0.75, "temperature": 16}, [],
         {"shift": 0.75, "temperature": 64.0}),
        ({"bound": (0.16,), "lr": (0.1, 0.2)}, {"bound": 0.16, "lr": 0.2}, [],
         {"bound": 0.16, "lr": 0.4}),
        ({}, {}, [], None),
    ],
)  # fmt: skip
def test_a_grid_is_continued_where_its_last_value_is_best(grid, best, known, further):
    tried = [*settings(grid), *known]
    assert continued(best, tried, {"shift": 1.0}) == further


def test_values_that_were_tried_are_in_order():
    known = [{"lr": 0.1, "bound": 1.0}, {"lr": 0.02, "bound": 1.0}]
    assert grid_of(known) == {"lr": (0.02, 0.1), "bound": (1.0,)}


def test_settings_are_every_combination_and_come_back_from_their_cells():
    known = [*settings({"lr": (0.1, 0.2), "c": (0.2,)})]
    assert known == [{"lr": 0.1, "c": 0.2}, {"lr": 0.2, "c": 0.2}]
    assert tried([*map(setting_text, known), setting_text(known[0])]) == known
