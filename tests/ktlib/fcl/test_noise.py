import pytest
import torch
from scipy import stats

from ktlib.fcl import draw_noise, noise_variance
from ktlib.fcl.noise import RELEASED_SHAPES, level_probabilities

TUNED = {"weight": torch.zeros(100, 50)}


def draw(**options):
    return draw_noise(TUNED, generator=torch.Generator().manual_seed(0), **options)["weight"]


def test_uniform_law():
    eps = draw(bound=0.3)
    assert eps.abs().max() <= 0.3
    assert stats.kstest(eps.flatten().numpy(), stats.uniform(-0.3, 0.6).cdf).pvalue > 0.01
    assert float(eps.var()) == pytest.approx(noise_variance(0.3), rel=0.03)


@pytest.mark.parametrize("levels", [2, 3, 5])
def test_discrete_law(levels):
    eps = draw(bound=0.3, levels=levels)
    values, counts = eps.unique(return_counts=True)
    torch.testing.assert_close(values, torch.linspace(-0.3, 0.3, levels))
    assert stats.chisquare(counts.numpy()).pvalue > 0.01
    assert float(eps.var()) == pytest.approx(noise_variance(0.3, levels), rel=0.05)


def test_no_noise_at_bound_zero():
    assert torch.count_nonzero(draw(bound=0.0)) == 0


def test_same_seed_same_draw_and_next_draw_differs():
    generator = torch.Generator().manual_seed(0)
    first, second = (draw_noise(TUNED, 0.1, generator)["weight"] for _ in range(2))
    assert torch.equal(first, draw(bound=0.1))
    assert not torch.equal(first, second)


@pytest.mark.parametrize("bound", [-0.1, float("nan"), float("inf")])
def test_wrong_bound(bound):
    with pytest.raises(ValueError, match="bound must be a finite number >= 0"):
        draw(bound=bound)


@pytest.mark.parametrize("levels", [1, -2])
def test_wrong_levels(levels):
    with pytest.raises(ValueError, match=f"levels must be 0 .* Found levels={levels}"):
        draw(bound=0.1, levels=levels)


def test_rounded_beta_law_of_the_released_code():
    """One layer has one pair of shapes; its entries follow the probabilities of that pair."""
    eps = draw(bound=0.005, levels=5, shapes=[2.0])
    values, counts = eps.unique(return_counts=True)
    torch.testing.assert_close(values, torch.linspace(-0.005, 0.005, 5))
    expected = torch.tensor(level_probabilities(5, 2.0, 2.0)) * eps.numel()
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01


def test_level_probabilities_by_hand():
    """Beta(1, 1) is uniform: the outer levels catch half as much as the inner ones."""
    assert level_probabilities(5, 1.0, 1.0) == pytest.approx([1 / 8, 1 / 4, 1 / 4, 1 / 4, 1 / 8])
    leaning = level_probabilities(5, 5.0, 1.0)
    assert sum(leaning) == pytest.approx(1.0)
    assert leaning == sorted(leaning)


def test_layers_have_shapes_of_their_own():
    tuned = {str(i): torch.zeros(60, 60) for i in range(6)}
    eps = draw_noise(tuned, 0.1, torch.Generator().manual_seed(0), 5, RELEASED_SHAPES)
    means = [round(float(value.mean()), 3) for value in eps.values()]
    assert len(set(means)) > 2


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"levels": 5, "shapes": [0.0, 1.0]}])
def test_wrong_shapes(wrong):
    with pytest.raises(ValueError, match="shapes must be above 0 and come with levels"):
        draw(**({"bound": 0.1, "shapes": [1.0]} | wrong))
