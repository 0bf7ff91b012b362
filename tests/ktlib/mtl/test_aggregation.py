import copy
import importlib.util
import math
import os

import pytest
import torch

from ktlib.mtl.aggregation import TABLE_IDS, SumScale, aggregator, aggregators

DEVICE = torch.device(os.environ.get("KTLIB_TEST_DEVICE", "cpu"))

# What a class must be told, for two tasks.
NEEDED = {
    "Constant": {"weights": torch.ones(2, dtype=torch.float64, device=DEVICE)},
    "Krum": {"n_byzantine": 0, "n_selected": 2},
    "NashMTL": {"n_tasks": 2},
    "TrimmedMean": {"trim_number": 0},
}
# Those that set the length of the update themselves, or look at one task first.
OWN_LENGTH = {"CAGrad", "ExcessMTL", "NashMTL", "PCD", "Random"}
CLASSES = [name for name in aggregators() if name not in TABLE_IDS]


def made(name, **options):
    """The aggregator; the test is skipped where a solver that is an extra of torchjd is missing."""
    try:
        return aggregator(name, **NEEDED.get(TABLE_IDS.get(name, name), {}) | options)
    except ImportError as error:
        pytest.skip(str(error))


def matrix(*rows):
    return torch.tensor(rows, dtype=torch.float64, device=DEVICE)


def close(found, expected, tolerance=1e-6):
    expected = torch.as_tensor(expected, dtype=torch.float64, device=DEVICE)
    torch.testing.assert_close(found, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", [name for name in CLASSES if name not in OWN_LENGTH])
def test_orthogonal_gradients_of_equal_length_add_up(name):
    """The scale that all have in common; each class of torchjd is held to it, also a new one."""
    if name == "Krum":
        rows = torch.eye(3, 5, dtype=torch.float64, device=DEVICE)
        combine = aggregator(name, n_byzantine=0, n_selected=3)
    else:
        rows, combine = torch.eye(2, 5, dtype=torch.float64, device=DEVICE), made(name)
    # UPGrad and DualProj add a 10,000th to the diagonal of the Gramian.
    close(combine(rows), rows.sum(dim=0), 1e-3)


def test_the_exceptions_for_orthogonal_gradients():
    rows = torch.eye(2, 3, dtype=torch.float64, device=DEVICE)
    close(aggregator("PCD")(rows).norm(), 1.0)  # the length of the first task's gradient
    random = aggregator("Random", seed=3)(rows)
    close(random.sum(), 2.0)
    assert random[0] != random[1]


@pytest.mark.parametrize(("c", "times"), [(0.0, 1.0), (0.2, 1.2), (0.5, 1.5)])
def test_cagrad_of_orthogonal_gradients(c, times):
    """g_0 and g_w point the same way: g_0 + c |g_0| g_w / |g_w| = (1 + c) g_0, and T g_0 = sum."""
    rows = torch.eye(2, 3, dtype=torch.float64, device=DEVICE)
    close(made("cagrad", c=c)(rows), [times, times, 0.0], 1e-4)
    close(made("cagrad", c=c, scale=1 / (1 + c**2))(rows), [times / (1 + c**2)] * 2 + [0.0], 1e-4)


# cvxpy says that the problem as torchjd poses it is slow.
@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning")
def test_nashmtl_of_orthogonal_gradients_has_the_length_it_is_clipped_to():
    rows = torch.eye(2, 3, dtype=torch.float64, device=DEVICE)
    combine = made("nashmtl", max_norm=1.0)
    close(combine(rows), [1 / math.sqrt(2)] * 2 + [0.0], 1e-3)


def test_joint_training_is_the_sum():
    close(aggregator("joint")(matrix([1, 2, 3], [-4, 5, 6])), [-3.0, 7.0, 9.0])


# Two gradients in conflict, cos = -0.71; what each method makes of them is worked out by hand.
CONFLICT = ([2.0, 0.0], [-1.0, 1.0])


def test_mgda_of_two_tasks_in_closed_form():
    """gamma = <g2 - g1, g2> / |g1 - g2|^2 = 4 / 10, so 0.4 g1 + 0.6 g2 = (0.2, 0.6), twice."""
    close(aggregator("mgda")(matrix(*CONFLICT)), [0.4, 1.2])


def test_mgda_takes_the_shorter_gradient_where_it_is_the_nearest_point():
    close(aggregator("mgda")(matrix([1.0, 0.0], [3.0, 1.0])), [2.0, 0.0])


def test_pcgrad_of_two_tasks_in_closed_form():
    """g1 - (<g1, g2> / |g2|^2) g2 = (1, 1); g2 - (<g1, g2> / |g1|^2) g1 = (0, 1)."""
    close(aggregator("pcgrad")(matrix(*CONFLICT)), [1.0, 2.0])


def test_upgrad_of_two_tasks_is_pcgrad():
    """Each gradient is projected on what does not hurt the other: with two tasks the same."""
    close(aggregator("upgrad")(matrix(*CONFLICT)), [1.0, 2.0], 1e-3)


def test_dualproj_of_two_tasks_in_closed_form():
    """A sum that hurts neither task stays; one that hurts a task loses its part along it."""
    close(aggregator("dualproj")(matrix(*CONFLICT)), [1.0, 1.0], 1e-3)
    one, other = matrix([1.0, 0.0], [-3.0, 1.0])
    # The sum (-2, 1) would hurt the first task: without its part along g1, (0, 1) is left. The
    # ten thousandth of the squared lengths that torchjd adds to the Gramian shows here.
    close(aggregator("dualproj")(torch.stack([one, other])), [0.0, 1.0], 5e-3)


def test_imtl_g_has_equal_projections():
    rows = matrix([2.0, 0.0], [0.0, 1.0])
    found = aggregator("imtl_g")(rows)
    lengths = rows.norm(dim=1)
    close((rows @ found / lengths)[0], (rows @ found / lengths)[1])
    # w1 2 = w2 1 and w1 + w2 = 1: (2/3, 2/3), twice.
    close(found, [4 / 3, 4 / 3])


def test_cagrad_between_mean_and_mgda_of_two_tasks():
    """Brute force over the one weight: min over w of <g_w, g_0> + c |g_0| |g_w|."""
    rows, c = matrix(*CONFLICT), 0.4
    mean = rows.mean(dim=0)
    grid = torch.linspace(0, 1, 100001, dtype=torch.float64, device=DEVICE)[:, None]
    mixed = grid * rows[0] + (1 - grid) * rows[1]
    worst = mixed[(mixed @ mean + c * mean.norm() * mixed.norm(dim=1)).argmin()]
    expected = 2 * (mean + c * mean.norm() * worst / worst.norm())
    close(made("cagrad", c=c)(rows), expected, 1e-3)


def hard_pairs(kind, source):
    """``(2, 2)`` Gramians of trace 1 on which a solver may stumble."""
    for _ in range(200):
        one, noise = torch.randn(2, 12, generator=source, dtype=torch.float64)
        small, length = 10.0 ** (torch.rand(2, generator=source, dtype=torch.float64) * 6 - 7)
        other = {
            "any": noise,
            "short": length * noise,
            "parallel": 3 * one + small * noise,
            "opposite": -3 * one + small * noise,
            "equal and opposite": -one + small * noise,
            "the same": one,
        }[kind]
        rows = torch.stack([one, other])
        yield rows @ rows.T / rows.square().sum()


@pytest.mark.parametrize("c", [0.05, 0.4, 0.95, 1.0, 2.0])
@pytest.mark.parametrize(
    "kind", ["any", "short", "parallel", "opposite", "equal and opposite", "the same"]
)
def test_cagrad_of_two_tasks_is_the_optimum(kind, c):
    """The problem's value and its dual's agree at a point of the ball, which proves both."""
    combine, mean = made("cagrad", c=c), torch.full((2,), 0.5, dtype=torch.float64)
    scales = 10.0 ** torch.linspace(-10, 10, 200, dtype=torch.float64)
    moved = 0
    for products, scale in zip(
        hard_pairs(kind, torch.Generator().manual_seed(0)), scales, strict=True
    ):
        found = combine.weights(scale * products) / 2
        extra = found - mean
        if extra.sum() <= 0:  # g_w is 0: the mean, or nothing for c >= 1
            continue
        moved += 1
        mixture = extra / extra.sum()
        assert (mixture > -1e-9).all()
        radius = c * (mean @ products @ mean).sqrt()
        assert extra @ products @ extra <= radius**2 * (1 + 1e-7) + 1e-15
        value = (products @ found).min()  # of the task that improves least
        dual = mixture @ products @ mean + radius * (mixture @ products @ mixture).sqrt()
        assert dual - value == pytest.approx(0, abs=1e-9)
    assert moved > (0 if kind == "equal and opposite" else 50)


def test_cagrad_of_two_tasks_is_that_of_its_solver():
    """torchjd's, which stops 1e-4 before the optimum."""
    combine = made("cagrad", c=0.4)
    for seed in range(20):
        rows = spread(2, seed, 12)
        torch.testing.assert_close(combine(rows), 2 * combine.inner(rows), rtol=1e-3, atol=1e-3)


def test_cagrad_of_two_tasks_asks_no_solver(monkeypatch):
    """Also where a third has no gradient; a NaN stays one, which a solver would refuse."""
    monkeypatch.delattr("torchjd.aggregation._cagrad.cp")
    combine = made("cagrad")
    assert combine(matrix([1.0, 2.0], [0.0, 0.0], [0.5, -1.0])).isfinite().all()
    assert combine(matrix([1.0, 2.0], [math.nan, 1.0])).isnan().all()
    assert made("cagrad", c=0.0)(matrix(*CONFLICT)).tolist() == [1.0, 1.0]
    with pytest.raises(NameError, match="cp"):
        combine(torch.eye(3))


def test_fairgrad_of_two_tasks_solves_its_equation():
    """Equation 4 of its paper: Gramian times weights = weights to the power -1 / alpha."""
    rows = matrix([2.0, 0.0], [-1.0, 2.0])
    combine = aggregator("fairgrad", alpha=1.0)
    weights = combine.weights(rows @ rows.T)
    close((rows @ rows.T).cpu() @ weights, (1 / weights).tolist(), 1e-4)


def test_graddrop_keeps_one_sign_per_entry():
    """Where signs agree the sum; else the positive part with probability P, or the negative."""
    rows = matrix([3.0, 1.0, 0.0], [-1.0, 2.0, 0.0])
    combine = aggregator("graddrop", seed=0)
    found = torch.stack([combine(rows) for _ in range(400)])
    assert set(found[:, 0].tolist()) == {3.0, -1.0}
    close(found[:, 1].unique(), [3.0])
    close(found[:, 2].unique(), [0.0])
    share = (found[:, 0] > 0).double().mean()
    assert share == pytest.approx(0.75, abs=0.08)  # P = (1 + 2 / 4) / 2


def spread(tasks, seed, dimensions=500):
    """Gradients with lengths of log-normal spread, as the tasks of a large set have them."""
    source = torch.Generator().manual_seed(seed)
    rows = torch.randn(tasks, dimensions, generator=source, dtype=torch.float64)
    return (rows * torch.randn(tasks, 1, generator=source, dtype=torch.float64).exp()).to(DEVICE)


def test_mgda_is_near_the_least_norm_at_forty_tasks():
    """Against a bound from below: for any point w, |min|^2 >= 2 min_i <g_i, g_w> - |g_w|^2."""
    ratios, as_shipped = [], []
    for seed in range(3):
        rows = spread(40, seed)
        for combine, found in ((aggregator("mgda"), ratios), (shipped_mgda(), as_shipped)):
            point = combine(rows) / 40
            square = float(point @ point)
            least = 2 * float((rows @ point).min()) - square
            found.append(square / least if least > 0 else math.inf)
    assert max(ratios) < 1.05
    assert max(as_shipped) > 1.2


def shipped_mgda():
    return aggregator("mgda", epsilon=1e-3, max_iters=100)


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "cagrad", "upgrad", "dualproj", "imtl_g"])
@pytest.mark.parametrize("size", [1e-12, 1e8])
def test_update_scales_with_the_gradients(name, size):
    """torchjd takes gradients of a Frobenius norm below 0.01 for zero: here none is too short."""
    rows = spread(4, 0, 20)
    whole, scaled = made(name)(rows), made(name)(size * rows)
    torch.testing.assert_close(scaled / size, whole, rtol=1e-5, atol=1e-6)


# These are told or remember something of each task, so they get all.
PER_TASK = {"Constant", "ExcessMTL"}


@pytest.mark.filterwarnings("ignore:You are solving a parameterized problem:UserWarning")
@pytest.mark.parametrize("name", CLASSES)
def test_a_task_without_gradient_is_left_out(name):
    """The update of the other tasks, wherever the row of zeros is; with 0 of all it is 0."""
    rows, zero = spread(3, 0, 20), torch.zeros(1, 20, dtype=torch.float64, device=DEVICE)
    told = {
        "Constant": {"weights": torch.ones(4, dtype=torch.float64, device=DEVICE)},
        "NashMTL": {"n_tasks": 4},
        "Krum": {"n_byzantine": 0, "n_selected": 2},
    }.get(name, {})
    if name not in PER_TASK:
        expected = made(name, **told | ({"n_tasks": 3} if name == "NashMTL" else {}))(rows)
    for place in (0, 2, 3):
        with_zero = torch.cat([rows[:place], zero, rows[place:]])
        found = made(name, **told)(with_zero)
        assert found.isfinite().all()
        assert found.norm() > 0
        if name not in PER_TASK:
            torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-8)
    assert torch.equal(made(name, **told)(torch.zeros_like(with_zero)), zero[0])


@pytest.mark.parametrize("name", CLASSES)
@pytest.mark.parametrize("zeros", [0, 2])
def test_one_task_makes_a_plain_step(name, zeros):
    told = {"NashMTL": {"n_tasks": 1 + zeros}}.get(name, {})
    if name == "Constant":
        told = {"weights": torch.ones(1 + zeros, dtype=torch.float64, device=DEVICE)}
    rows = matrix(*([[0.0, 0.0]] * zeros), [3.0, -4.0])
    if name == "ExcessMTL" and zeros:
        assert torch.equal(made(name, **told)(rows).sign(), rows[-1].sign())
    else:
        assert made(name, **told)(rows).tolist() == [3.0, -4.0]


def test_options_by_task_keep_their_places():
    """Preferences are by row: a task without gradient keeps its own."""
    weights = torch.tensor([5.0, 2.0, 7.0], dtype=torch.float64, device=DEVICE)
    rows = matrix([1.0, 0.0], [0.0, 0.0], [0.0, 1.0])
    close(made("upgrad", pref_vector=weights)(rows), 3 * torch.tensor([5.0, 7.0]), 5e-3)
    assert made("Constant", weights=weights)(rows).tolist() == [5.0, 7.0]
    assert made("Constant", weights=weights[:1])(rows[:1]).tolist() == [5.0, 0.0]


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-5])
def test_cagrad_stays_within_its_distance_of_the_mean(size):
    """|d - g_0| <= c |g_0|, so that c below 1 always moves; a nearly saturated loss is no stop."""
    rows = torch.cat([spread(2, 0, 20), size * spread(1, 1, 20)])
    mean = rows.mean(dim=0) if size else rows[:2].mean(dim=0)
    found = made("cagrad", c=0.4)(rows) / (3 if size else 2)
    assert (found - mean).norm() <= 0.4 * mean.norm() * (1 + 1e-6)
    opposite = matrix([1.0, 0.0], [-3.0, 0.0])
    assert made("cagrad", c=0.4)(opposite)[0] < 0


def test_a_gradient_that_is_no_number_is_not_taken_for_zero():
    rows = matrix([math.nan, 0.0], [1.0, 2.0])
    assert made("joint")(rows).isnan().any()
    assert made("pcgrad")(rows).isnan().any()


@pytest.mark.parametrize("name", ["pcgrad", "graddrop", "GradVac", "Random"])
def test_random_methods_repeat_with_their_seed_and_leave_the_global_stream(name):
    rows = spread(5, 1, 30)
    first, second, third = (aggregator(name, seed=seed) for seed in (0, 0, 1))
    before = torch.random.get_rng_state()
    one = [first(rows) for _ in range(3)]
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(99)
    assert all(torch.equal(a, second(rows)) for a in one)
    assert not torch.equal(one[0], one[1])
    assert not torch.equal(one[0], third(rows))


def test_random_stream_goes_on_from_a_state_dict():
    rows = spread(5, 1, 30)
    first, second = aggregator("graddrop", seed=0), aggregator("graddrop", seed=7)
    first(rows)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    assert torch.equal(first(rows), second(rows))


def test_single_precision_gradients_get_weights_in_double():
    rows = spread(40, 0)
    found = aggregator("mgda")(rows.float())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), aggregator("mgda")(rows), rtol=1e-3, atol=1e-3)


def test_every_name_of_the_tables_is_a_class_of_torchjd():
    assert set(TABLE_IDS.values()) <= set(CLASSES)
    assert {"joint", "mgda", "pcgrad", "graddrop", "cagrad"} <= set(aggregators())
    assert "Aggregator" not in aggregators()
    assert "MGDAWeighting" not in aggregators()


@pytest.mark.parametrize(
    ("name", "package", "extra"),
    [
        ("cagrad", "cvxpy", "cagrad"),
        ("nashmtl", "ecos", "nash_mtl"),
        ("upgrad", "quadprog", "quadprog_projector"),
        ("dualproj", "qpsolvers", "quadprog_projector"),
        ("fairgrad", "scipy", "fairgrad"),
    ],
)
def test_a_missing_solver_is_told_by_the_method_that_needs_it(name, package, extra, monkeypatch):
    """As if the package were not installed; all other methods work without it."""
    there = importlib.util.find_spec
    monkeypatch.setattr(
        "torchjd._mixins.find_spec", lambda asked: None if asked == package else there(asked)
    )
    needed = {"n_tasks": 2} if name == "nashmtl" else {}
    with pytest.raises(
        ImportError,
        match=rf"{name} needs.*lib\[solvers\].*'{package}'.*torchjd\[{extra}\]",
    ):
        aggregator(name, **needed)
    assert isinstance(aggregator("mgda"), SumScale)


def test_unknown_methods_and_options_are_refused():
    with pytest.raises(ValueError, match="name must be one of joint, mgda, .*Found name='moco'"):
        aggregator("moco")
    with pytest.raises(ValueError, match=r"mgda takes the options \(epsilon.* Found .*'d': 1"):
        aggregator("mgda", d=1)
    with pytest.raises(ValueError, match="Krum takes the options .*n_byzantine"):
        aggregator("Krum")
    with pytest.raises(ValueError, match="scale must be above 0. Found scale=0"):
        aggregator("mgda", scale=0)
    with pytest.raises(ValueError, match=r"matrix must have 2 dimensions. Found shape \(3,\)"):
        aggregator("mgda")(torch.ones(3))
    with pytest.raises(ValueError, match="GradDrop needs the gradients"):
        aggregator("graddrop").weights(torch.eye(2))
