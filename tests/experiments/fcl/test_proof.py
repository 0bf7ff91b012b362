"""The numbers behind the convergence proof: known constants, the split of a variance."""

import copy

import pytest
import torch
from pydantic import ValidationError

from experiments.fcl.proof import (
    FclProofParameters,
    GradientVariance,
    NoisyQuadratic,
    Surroundings,
    gradient_variance,
    halvings,
    measured_variance,
    network_gradient,
    rises_and_falls,
    smoothed_slope,
    surroundings,
    train_under_noise,
)
from ktlib.fcl import noise_variance
from ktlib.seeding import generator

STEPS = [0.5 / (1 + k / 10) for k in range(60)]


@pytest.fixture
def quadratic():
    """Two curvatures, one noisy coordinate, both kinds of batch noise."""
    return NoisyQuadratic(
        curvatures=torch.tensor([2.0, 0.5], dtype=torch.float64),
        optimum=torch.tensor([1.0, -1.0], dtype=torch.float64),
        perturbed=1,
        bound=0.9,
        batch_std=0.3,
        batch_scale=0.5,
    )


START = torch.tensor([2.0, 1.0], dtype=torch.float64)


def test_constants_by_hand(quadratic):
    # noise part: (1 + 0.25) * 0.81/3 * 2^2 = 1.35; batch part: 2 * 0.09 = 0.18
    assert quadratic.constants(1) == pytest.approx((0.18 + 1.35, 0.25))
    assert quadratic.constants(3) == pytest.approx((0.18 + 0.45, 0.25))
    assert quadratic.printed_constants(3) == pytest.approx((0.51, 0.25 / 3))
    assert (quadratic.smoothness, quadratic.gradient_smoothness) == (2.0, 8.0)
    assert quadratic.lowest_risk == pytest.approx(0.81 / 6 * 2)
    assert quadratic.gradient(START).tolist() == [2.0, 1.0]
    assert float(quadratic.risk(START)) == pytest.approx(0.27 + 1 + 1)


@pytest.mark.parametrize("draws", [1, 4])
def test_monte_carlo_agrees_with_the_constants(quadratic, draws):
    count, stream = 200_000, generator(0, "check", draws)
    batch = quadratic.draw_batch(count, stream)
    gradients = quadratic.batch_gradient(START, batch, draws, stream)
    true = quadratic.gradient(START)
    m1, m2 = quadratic.constants(draws)
    assert torch.allclose(gradients.mean(dim=0), true, atol=0.02)
    variance = float((gradients - true).square().sum(dim=1).mean())
    assert variance == pytest.approx(m1 + m2 * float(true.square().sum()), rel=0.02)


def test_autograd_of_the_loss_is_the_stochastic_gradient(quadratic):
    """The gradient is taken at theta + eps and applied at theta, for one batch and one draw."""
    batch = quadratic.draw_batch(1, generator(0, "batch"))
    found = quadratic.batch_gradient(START, batch, 1, generator(0, "noise"))[0]
    value = torch.rand((1, 1, 1), generator=generator(0, "noise"), dtype=torch.float64)
    eps = torch.tensor([0.9 * (2 * float(value) - 1), 0.0], dtype=torch.float64)
    theta = START.clone().requires_grad_()
    away = theta + eps - quadratic.optimum
    loss = (1 + batch[0][0]) / 2 * (quadratic.curvatures * away.square()).sum()
    loss = loss + (batch[1][0] * away).sum()
    assert torch.allclose(torch.autograd.grad(loss.sum(), theta)[0], found)


def test_exact_expectation_is_what_simulations_average_to(quadratic):
    _, exact = quadratic.expected(START, STEPS, 2)
    paths, _ = quadratic.simulate(START, STEPS, 2, 20_000, generator(1, "paths"))
    assert paths.shape == (len(STEPS) + 1, 20_000)
    error = paths.std(dim=1) / 20_000**0.5
    assert bool(((paths.mean(dim=1) - exact).abs() <= 5 * error + 1e-12).all())


def test_no_noise_is_gradient_descent(quadratic):
    h, t = quadratic.curvatures, quadratic.optimum
    calm = NoisyQuadratic(h, t, perturbed=0, bound=0.0, batch_std=0.0, batch_scale=0.0)
    risk, norm = calm.expected(START, STEPS, 1)
    theta = START.clone()
    for k, step in enumerate(STEPS):
        assert float(norm[k]) == pytest.approx(float(calm.gradient(theta).square().sum()))
        assert float(risk[k]) == pytest.approx(float(calm.risk(theta)))
        theta = theta - step * calm.gradient(theta)
    path, ahead = calm.simulate(START, STEPS, 1, 1, generator(0, "x"))
    assert torch.allclose(path[:, 0], norm)
    assert torch.allclose(ahead[:, 0], norm[1:])  # without noise the mean is what happens


def test_mean_of_the_next_value_by_hand(quadratic):
    """E F = sum h^2 (((1 - a h)^2 + a^2 h^2 tau^2) s + a^2 v), with s = 1 and 4."""
    _, ahead = quadratic.simulate(START, [0.5], 3, 2, generator(0, "one step"))
    first = 4 * ((0**2 + 0.25) * 1 + 0.25 * (0.09 + 0.45))
    second = 0.25 * ((0.75**2 + 0.0625 * 0.25) * 4 + 0.25 * 0.09)
    assert ahead.tolist() == [[pytest.approx(first + second)] * 2]


def test_runs_split_into_rises_falls_and_a_martingale(quadratic):
    """Erratum E7: without the martingale the equation is false, in the mean it is true."""
    paths, ahead = quadratic.simulate(START, STEPS, 2, 20_000, generator(2, "paths"))
    rise, fall = (total[-1] for total in rises_and_falls(ahead - paths[:-1]))
    gap = paths[-1] - (paths[0] + rise - fall)
    assert torch.allclose(gap, (paths[1:] - ahead).sum(dim=0))
    assert float(gap.std()) > 10 * float(paths[-1].mean())
    assert abs(float(gap.mean())) < 4 * float(gap.std()) / 20_000**0.5
    assert float((paths[-1] - gap < 0).double().mean()) > 0.1  # no square is negative


def test_each_surprise_of_a_run_has_the_mean_zero(quadratic):
    paths, ahead = quadratic.simulate(START, STEPS, 2, 20_000, generator(3, "paths"))
    surprise = paths[1:] - ahead
    error = surprise.std(dim=1) / 20_000**0.5
    assert bool((surprise.mean(dim=1).abs() <= 5 * error + 1e-12).all())


def test_rises_and_falls_by_hand():
    rise, fall = rises_and_falls(torch.tensor([[1.0, -1.0], [-3.0, 0.0], [2.0, -0.5]]))
    assert rise.tolist() == [[1, 0], [1, 0], [3, 0]]
    assert fall.tolist() == [[0, 1], [3, 1], [3, 1.5]]


def test_falls_are_bounded_by_the_start_and_the_rises_of_a_positive_sequence(quadratic):
    """Erratum E8, on exact means; and both stay below the bound b_k of the page."""
    _, square = quadratic.expected(START, STEPS, 2)
    rise, fall = rises_and_falls(square.diff())
    assert bool((fall <= square[0] + rise).all())
    m1, m2 = quadratic.constants(2)
    step = torch.tensor(STEPS, dtype=torch.float64)
    bound = 2 * quadratic.smoothness * step * square[:-1]
    bound += quadratic.gradient_smoothness / 2 * step**2 * (m1 + (1 + m2) * square[:-1])
    assert bool((square.diff().abs() <= bound).all())


def test_halvings_tell_a_limit_of_zero_from_a_floor():
    k = torch.arange(6401, dtype=torch.float64)
    assert halvings(1 / (1 + k)) == (4, 4)  # 6400, 1600, 400, 100, 25
    assert halvings(1 + 1 / (1 + k)) == (0, 4)
    assert halvings((1 + k) ** -0.4) == (0, 4)
    assert halvings(0.01 + 1 / (1 + k)) == (1, 4)  # from 25 to 100, then the floor
    with pytest.raises(ValueError, match=r"must be at least 80. Found len\(curve\) - 1=79."):
        halvings(k[:80])


def test_the_limit_is_claimed_for_the_step_sizes_of_the_theorem_only(quadratic):
    """The rule behind the verdict on Theorem 3.1: constant steps must not pass it."""
    steps = [0.4 / (1 + k / 10) for k in range(4000)]
    hits, total = halvings(quadratic.expected(START, steps, 2)[1])
    assert hits == total == 3
    assert halvings(quadratic.expected(START, [0.1] * 4000, 2)[1])[0] < total


def test_noise_is_added_for_the_slope_and_taken_off_again():
    """One step on w^2/2 by hand: w - a (w + eps)."""
    w = train_under_noise(lambda x: x**2 / 2, 2.0, 0.5, [0.1], 3, generator(0, "w"))
    eps = torch.rand(3, generator=generator(0, "w"), dtype=torch.float64) - 0.5
    assert torch.allclose(w, 2 - 0.1 * (2 + eps))
    assert len(set(w.tolist())) == 3


def test_training_under_noise_ends_where_the_smoothed_loss_is_flat(ripple):
    steps = [1 / (step + 5) for step in range(1000)]
    ends = train_under_noise(ripple, 2.0, 0.5, steps, 200, generator(0, "ripple"))
    assert float(smoothed_slope(ripple, ends, 0.5).square().mean()) < 5e-3
    # the ripple vanishes in the average, which is a parabola
    assert torch.allclose(smoothed_slope(ripple, ends, 0.5), ends)
    at = ends.requires_grad_()
    (slope,) = torch.autograd.grad(ripple(at).sum(), at)
    (curvature,) = torch.autograd.grad(ripple_slope(at).sum(), at)
    assert torch.allclose(slope, ripple_slope(at))
    assert bool((curvature < 0).all())  # E4: every run ends on a hill of the loss


def test_smoothed_slope_is_that_of_the_average():
    noise = torch.linspace(-0.3, 0.3, 200_001, dtype=torch.float64)

    def average(w):
        return float(torch.sin(w + noise).mean())

    found = float(smoothed_slope(torch.sin, torch.tensor(1.0, dtype=torch.float64), 0.3))
    assert found == pytest.approx((average(1.0001) - average(0.9999)) / 2e-4, rel=1e-4)


def ripple_slope(x):
    return x - 0.6 * torch.pi * torch.sin(2 * torch.pi * x)


@pytest.fixture
def ripple():
    """w^2/2 + 0.3 cos(pi w / b) for b = 0.5."""
    return lambda x: x**2 / 2 + 0.3 * torch.cos(2 * torch.pi * x)


def test_surroundings_of_a_bowl_by_hand():
    assert surroundings(lambda x: x**2, 0.5) == Surroundings(0.25, 1.0, *[True] * 4)
    falls = surroundings(lambda x: -(x**2), 0.5)
    assert falls == Surroundings(0.25, 1.0, *[False] * 4)


@pytest.mark.parametrize(
    ("loss", "everywhere", "next_to", "from_edge", "at_last"),
    [
        (lambda x: (x**2 - 1) ** 2 - 1.5 * x**2, False, False, False, True),  # lower nearby
        (lambda x: x**2 * torch.exp(-(x**2)) - 1e-9 * x**4, False, True, True, False),
        (lambda x: x, False, False, False, False),  # higher on the right alone
        (lambda x: (x - 0.6) ** 2, False, False, False, True),  # falls at the right edge alone
        (lambda x: (x + 0.6) ** 2, False, False, False, True),  # and at the left one
        (lambda x: torch.cos(2.9 * torch.pi * x), False, False, True, False),  # rises, stays lower
        (lambda x: 1 + x**2 - 1.2 * torch.exp(-((x - 3) ** 2) * 50) * 9, False, True, True, True),
    ],
)
def test_four_readings_of_the_second_condition(loss, everywhere, next_to, from_edge, at_last):
    found = surroundings(loss, 0.5)
    assert (found.everywhere, found.next_to) == (everywhere, next_to)
    assert (found.from_edge, found.at_last) == (from_edge, at_last)


def test_no_reading_of_the_second_condition_follows_from_a_stationary_point(ripple):
    """Erratum E9: four smoothed losses with slope 0 at 0, and what rises beyond the box."""

    def gap(x):
        return (x.abs() - 0.5).clamp(min=0)

    losses = {
        "ripple": ripple,
        "slanted": lambda x: x**2 / 2 + 0.3 * torch.sin(2 * torch.pi * x),
        "crater": lambda x: (1 + 4 * x**2) * torch.exp(-(x**2)),
        "hilltop": lambda x: 1 / (1 + gap(x) ** 2),
    }
    zero = torch.zeros(1, dtype=torch.float64)
    found = {name: surroundings(loss, 0.5) for name, loss in losses.items()}
    assert all(float(smoothed_slope(loss, zero, 0.5)) < 1e-12 for loss in losses.values())
    assert not any(one.everywhere for one in found.values())
    assert [name for name, one in found.items() if not one.next_to] == ["ripple", "hilltop"]
    assert [name for name, one in found.items() if not one.from_edge] == ["slanted", "hilltop"]
    assert [name for name, one in found.items() if not one.at_last] == ["crater", "hilltop"]
    assert (found["hilltop"].variation, found["hilltop"].slope) == (0, 0)
    # a small multiple meets the first condition, and the second one as badly as before
    small = surroundings(lambda x: 1e-3 * ripple(x), 0.5)
    assert small.variation == pytest.approx(1e-3 * found["ripple"].variation)
    assert small.slope == pytest.approx(1e-3 * found["ripple"].slope)
    assert (small.everywhere, small.next_to) == (False, False)


def test_descent_inequality_holds_with_the_repaired_constants_only():
    """Equal curvatures make (3.14) tight: with the printed variance it is false."""
    equal = torch.ones(10, dtype=torch.float64)
    problem = NoisyQuadratic(equal, 0 * equal, 5, bound=0.5, batch_std=1.0, batch_scale=0.5)
    steps, draws = [0.4] * 200, 32
    risk, norm = problem.expected(3 * equal, steps, draws)
    slack = {}
    for name, (m1, m2) in {
        "repaired": problem.constants(draws),
        "printed": problem.printed_constants(draws),
    }.items():
        step = torch.tensor(steps, dtype=torch.float64)
        right = -step * norm[:-1] + step**2 / 2 * (m1 + (1 + m2) * norm[:-1])
        slack[name] = float((right - risk.diff()).min())
    assert slack["repaired"] >= -1e-12
    assert slack["printed"] < -0.1


@pytest.mark.parametrize("draws", [1, 8])
def test_floor_is_where_constant_steps_end(quadratic, draws):
    _, norm = quadratic.expected(START, [0.2] * 400, draws)
    assert quadratic.floor(0.2, draws) == pytest.approx(float(norm[-1]))
    with pytest.raises(ValueError, match="step must be above 0 and below 0.8. Found step=0.8."):
        quadratic.floor(0.8, draws)


def test_split_by_hand():
    """Two batches with two draws each, one parameter."""
    values = {"a": iter([1.0, 3.0]), "b": iter([6.0, 6.0])}
    found = gradient_variance(lambda z: torch.tensor([next(values[z])]), ["a", "b"], 2)
    # within: 2 and 0, mean 1; means 2 and 6: variance 8, mean 4
    assert found == GradientVariance(batch=8 - 0.5, noise=1.0, squared_gradient=16 - 4.0)
    assert (found.repaired(4), found.printed(4)) == (7.75, 2.125)


def test_split_of_a_toy_with_both_parts_known():
    """g = z + s(z) eps in three dimensions, z = +-2, eps uniform on [-1, 1], s = 1 or 3."""
    stream = generator(0, "toy")
    sign = torch.randint(2, (3000,), generator=stream) * 2 - 1

    def gradient(z):
        eps = 2 * torch.rand(3, generator=stream) - 1
        return 2.0 * z + (2 + z) * eps

    found = gradient_variance(gradient, list(sign), draws=3)
    assert found.batch == pytest.approx(3 * 4, rel=0.05)
    assert found.noise == pytest.approx(3 * (1 + 9) / 2 * noise_variance(1.0), rel=0.05)
    assert found.squared_gradient == pytest.approx(0, abs=0.1)

    def mean_of_8(z):
        return torch.stack([gradient(z) for _ in range(8)]).mean(dim=0)

    direct = measured_variance(mean_of_8, list(sign))
    assert direct == pytest.approx(found.repaired(8), rel=0.05)
    assert direct > 5 * found.printed(8)


def test_split_of_the_quadratic_is_its_constants(quadratic):
    stream = generator(0, "split")
    batches = [quadratic.draw_batch(1, stream) for _ in range(4000)]
    found = gradient_variance(
        lambda z: quadratic.batch_gradient(START, z, 1, stream)[0], batches, draws=2
    )
    f = float(quadratic.gradient(START).square().sum())
    assert found.batch == pytest.approx(0.18 + 0.25 * f, rel=0.1)
    assert found.noise == pytest.approx(1.35, rel=0.1)


def test_network_gradient_of_m_draws_is_the_mean_of_single_ones(split, classifier, batch):
    settings = {"bound": 0.05, "prototype_weight": 0.1}
    split.network.train()
    stream = generator(0, "noise")
    singles = [
        network_gradient(split, classifier, *batch, draws=1, generator=stream, **settings)
        for _ in range(3)
    ]
    stream = generator(0, "noise")
    mean = network_gradient(split, classifier, *batch, draws=3, generator=stream, **settings)
    assert not torch.equal(singles[0], singles[1])
    assert torch.allclose(torch.stack(singles).mean(dim=0), mean, atol=1e-5)


def test_network_gradient_leaves_weights_and_grads_alone(split, classifier, batch):
    before = copy.deepcopy([*split.network.parameters(), *classifier.parameters()])
    stream = generator(0, "noise")
    found = network_gradient(
        split, classifier, *batch, bound=0.1, draws=2, prototype_weight=0.0, generator=stream
    )
    after = [*split.network.parameters(), *classifier.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(p.grad is None for p in after)
    assert len(found) == sum(p.numel() for p in after)


def test_wrong_values_are_refused(quadratic):
    with pytest.raises(ValueError, match="draws must be at least 2. Found draws=1."):
        gradient_variance(lambda z: z, [START, START], 1)
    with pytest.raises(ValueError, match="must be at least 2. Found len"):
        measured_variance(lambda z: z, [START])
    with pytest.raises(ValueError, match="reach must be at least 2. Found reach=1."):
        surroundings(lambda x: x, 0.5, reach=1)
    h = quadratic.curvatures
    with pytest.raises(ValueError, match="curvatures must be above 0. Found -2.0."):
        NoisyQuadratic(-h, h, 1, 0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match="vectors of one length"):
        NoisyQuadratic(h, h[:1], 1, 0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match="perturbed must be between 0 and 2. Found 3."):
        NoisyQuadratic(h, h, 3, 0.1, 0.1, 0.1)
    with pytest.raises(ValueError, match="batch_std must be a finite number >= 0"):
        NoisyQuadratic(h, h, 1, 0.1, -1, 0.1)


VALUES = {
    "seeds": [0], "device": "cpu", "precision": "float32", "profile": "cpu", "run_dir": "",
    "dataset": "digits", "classes": 10, "images": 4, "width": 4, "stem_stride": 1,
    "tuned_convolutions": 4, "epochs": 1, "batch_size": 8, "lr": 0.1, "noise_bound": 0.01,
    "prototype_weight": 0.1, "variance_batches": 2, "variance_draws": 2, "averaged_draws": [1, 2],
    "dimension": 5, "steps": 100, "repetitions": 2,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"classes": 11}, "classes must be at most 10.* classes=11"),
        ({"images": 135}, "images must be at most 134.* images=135"),
        ({"batch_size": 41}, "batch_size must be at most 40.* batch_size=41"),
        ({"averaged_draws": [0, 1]}, "averaged_draws"),
        ({"averaged_draws": [2, 2]}, "averaged_draws"),
        ({"averaged_draws": [2]}, "averaged_draws"),
        ({"noise_bound": 0.0}, "noise_bound"),
        ({"seeds": [2**32]}, "seeds"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(change, message):
    assert FclProofParameters(**VALUES).classes == 10
    with pytest.raises(ValidationError, match=message):
        FclProofParameters(**VALUES | change)
