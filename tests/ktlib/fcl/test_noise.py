import pytest
import torch
from scipy import stats

from ktlib.fcl import draw_noise, noise_mean, noise_variance
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


def numbered_in_place(values, levels):
    """The loop of the released code, written anew: numbers of bins overwrite what is binned."""
    values = values.clone()
    for number in range(levels):
        low, high = number / levels, (number + 1) / levels
        values[(values >= low) & (values <= high)] = number
    return values.long()


@pytest.mark.parametrize("levels", [2, 3, 5, 9])
@pytest.mark.parametrize(("a", "b"), [(2.0, 2.0), (0.3, 0.5), (5.0, 1.0)])
def test_level_probabilities_are_those_of_the_loop(levels, a, b):
    values = torch.from_numpy(stats.beta(a, b).rvs(200_000, random_state=0))
    counts = numbered_in_place(values, levels).bincount(minlength=levels)
    found = level_probabilities(levels, a, b)
    torch.testing.assert_close(counts / len(values), torch.tensor(found), rtol=0, atol=0.005)
    assert sum(found) == pytest.approx(1.0)


def test_beta_law_of_the_released_code():
    """One layer has one pair of shapes; its entries follow the probabilities of that pair."""
    eps = draw(bound=0.005, levels=5, shapes=[2.0])
    values, counts = eps.unique(return_counts=True)
    torch.testing.assert_close(values, torch.tensor([-0.005, 0.0, 0.0025, 0.005]))
    low, never, *rest = level_probabilities(5, 2.0, 2.0)
    assert never == 0.0
    expected = torch.tensor([low, *rest]) * eps.numel()
    assert stats.chisquare(counts.numpy(), expected.numpy()).pvalue > 0.01
    assert float(eps.mean()) == pytest.approx(noise_mean(0.005, 5, [2.0]), rel=0.05)
    assert float(eps.var()) == pytest.approx(noise_variance(0.005, 5, [2.0]), rel=0.03)


def test_level_probabilities_by_hand():
    """Beta(1, 1) is uniform: five bins of a fifth, and the last one has the second one's."""
    assert level_probabilities(5, 1.0, 1.0) == pytest.approx([0.2, 0.0, 0.2, 0.2, 0.4])
    assert level_probabilities(2, 1.0, 1.0) == pytest.approx([0.5, 0.5])


def test_mean_and_variance_over_all_shapes():
    """In units of the width of the box, the setting of the released code, the mean is 0.12."""
    one = {str(i): torch.zeros(100) for i in range(4000)}
    eps = draw_noise(one, 1.0, torch.Generator().manual_seed(0), 5, RELEASED_SHAPES)
    drawn = torch.stack([*eps.values()]).double()
    mean, variance = (f(1.0, 5, RELEASED_SHAPES) for f in (noise_mean, noise_variance))
    assert float(drawn.mean()) == pytest.approx(mean, abs=0.03)
    assert float(drawn.var()) == pytest.approx(variance, rel=0.03)
    assert round(mean / 2, 2) == 0.12


def test_moments_by_hand():
    """The law of Beta(1, 1) on -1, -1/2, 0, 1/2, 1: 0.2, 0, 0.2, 0.2, 0.4."""
    assert noise_mean(1.0, 5, [1.0]) == pytest.approx(0.3)
    assert noise_mean(0.5, 5, [1.0]) == pytest.approx(0.15)
    assert noise_variance(1.0, 5, [1.0]) == pytest.approx(0.65 - 0.09)
    assert noise_variance(0.5, 5, [1.0]) == pytest.approx((0.65 - 0.09) / 4)
    assert noise_mean(1.0) == noise_mean(1.0, 5) == 0.0


def test_layers_have_shapes_of_their_own():
    tuned = {str(i): torch.zeros(60, 60) for i in range(6)}
    eps = draw_noise(tuned, 0.1, torch.Generator().manual_seed(0), 5, RELEASED_SHAPES)
    means = [round(float(value.mean()), 3) for value in eps.values()]
    assert len(set(means)) > 2


@pytest.mark.parametrize("wrong", [{"levels": 0}, {"levels": 5, "shapes": [0.0, 1.0]}])
def test_wrong_shapes(wrong):
    for use in (draw, noise_mean, noise_variance):
        with pytest.raises(ValueError, match="shapes must be above 0 and come with levels"):
            use(**({"bound": 0.1, "shapes": [1.0]} | wrong))
