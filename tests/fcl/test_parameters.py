from pathlib import Path

import pytest

from ktlib.chapter_source import parameters_cell
from ktlib.fcl import FclParameters
from ktlib.parameters import ParameterError, check_parameters

CHAPTER = Path(__file__).resolve().parents[2] / "chapters" / "fcl.py"


def check(**changes):
    values = {line.name: line.value for line in parameters_cell(CHAPTER)}
    return check_parameters(values | changes, FclParameters)


def test_the_parameters_cell_is_accepted():
    assert check().base_classes == 60


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sessions": 9}, ["60 + 9 x 5 = 105", "'pairs' has 100 classes"]),
        ({"dataset": "digits"}, ["'digits' has 10 classes"]),
        ({"dataset": "imagenet"}, ["dataset", "imagenet", "pairs", "cifar100", "digits"]),
        ({"noise_draws": 0}, ["noise_draws", "0", "1"]),
        ({"noise_bound": -0.01}, ["noise_bound", "-0.01", "0"]),
        ({"noise_bound": "1e-3"}, ["noise_bound", "1e-3", "1.0e-3"]),
        ({"noise_levels": 1}, ["noise_levels must be 0 (uniform) or at least 2"]),
        ({"flatness_bounds": [0.1, 0.0]}, ["flatness_bounds must be above 0"]),
        ({"shots": 5.0}, ["shots", "5.0"]),
        ({"nois_bound": 0.1}, ["nois_bound", "noise_bound"]),
        ({"stem_stride": 9}, ["stem_stride", "9"]),
    ],
)
def test_wrong_values_are_named_with_what_is_allowed(changes, words):
    with pytest.raises(ParameterError) as caught:
        check(**changes)
    for word in words:
        assert word in str(caught.value)
