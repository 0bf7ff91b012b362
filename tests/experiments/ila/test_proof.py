"""The numbers behind the theorem on ILA: gradients by hand, bounds that hold and are attained."""

import copy
import itertools
import math

import pytest
import torch
from pydantic import ValidationError

from experiments.ila.proof import (
    SIGMOID_CURVATURE,
    SIGMOID_SLOPE,
    Constants,
    GatedLoss,
    IlaProofParameters,
    LogisticRegression,
    difference,
    distance,
    inner_products,
    layer_norms,
)
from experiments.ila.proof_model import fine_tune
from ktlib.seeding import generator


def numbers(*values):
    return torch.tensor(values, dtype=torch.float64)


def random_case(seed, layers=4, size=3, examples=12, move=0.3):
    """A logistic regression, a base, and two updates of which the second is moved a little."""
    stream = generator(seed, "case")
    draw = lambda *shape: torch.randn(shape, generator=stream, dtype=torch.float64)  # noqa: E731
    task = LogisticRegression(draw(examples, layers * size), draw(examples).sign(), layers)
    base, update = (
        task.split_into_layers(draw(layers * size)),
        task.split_into_layers(draw(layers * size)),
    )
    moved = {name: v + move * draw(size) for name, v in update.items()}
    return task, GatedLoss(task, base), update, moved


def constants_of(task, update):
    return Constants(task.lipschitz, task.smoothness, float(layer_norms(update).max()))


def test_two_layers_by_hand():
    # loss a^2 + a b at a = 1 + 0.5 * 2 = 2 and b = 3 + 1 * (-1) = 2
    gated = GatedLoss(
        lambda v: (v["a"] ** 2 + v["a"] * v["b"]).sum(), {"a": numbers(1.0), "b": numbers(3.0)}
    )
    gates, update = numbers(0.5, 1.0), {"a": numbers(2.0), "b": numbers(-1.0)}
    assert gated.value(gates, update) == 8.0
    slopes = gated.layer_gradients(gates, update)
    assert (slopes["a"].item(), slopes["b"].item()) == (6.0, 2.0)  # 2 a + b, a
    assert gated.gate_gradient(gates, update).tolist() == [12.0, -2.0]
    # gates 1/2 and 3/4 are the sigmoids of 0 and log 3, with slopes 1/4 and 3/16
    scores = numbers(0.0, math.log(3))
    at = gated.gate_gradient(numbers(0.5, 0.75), update)
    assert gated.score_gradient(scores, update).tolist() == pytest.approx(
        (at * numbers(1 / 4, 3 / 16)).tolist()
    )


def test_gradients_are_those_of_autograd_through_gates_and_scores():
    _, gated, update, _ = random_case(0)
    scores = torch.linspace(-2, 3, 4, dtype=torch.float64).requires_grad_()
    gates = scores.sigmoid()
    gates.retain_grad()
    gated.loss(gated.weights(gates, update)).backward()
    with torch.no_grad():
        found = gated.gate_gradient(gates, update), gated.score_gradient(scores, update)
    assert torch.allclose(found[0], gates.grad)
    assert torch.allclose(found[1], scores.grad)


def test_gates_one_and_zero_are_the_tuned_and_the_base_weights():
    _, gated, update, _ = random_case(1)
    ones = torch.ones(4, dtype=torch.float64)
    tuned = {name: base + update[name] for name, base in gated.base.items()}
    assert distance(gated.weights(ones, update), tuned) == 0
    assert distance(gated.weights(0 * ones, update), gated.base) == 0


def test_descent_step_by_step():
    _, gated, update, _ = random_case(2)
    start = torch.full((4,), 0.9, dtype=torch.float64)
    path = gated.descend_gates(update, start, 0.1, 3, project=False)
    assert path.shape == (4, 4)
    assert torch.equal(path[0], start)
    assert torch.allclose(path[2], path[1] - 0.1 * gated.gate_gradient(path[1], update))
    path = gated.descend_scores(update, start, 0.1, 3)
    assert torch.allclose(path[3], path[2] - 0.1 * gated.score_gradient(path[2], update))


def test_projection_keeps_gates_in_the_unit_interval():
    _, gated, update, _ = random_case(2)
    start = torch.full((4,), 0.9, dtype=torch.float64)
    free = gated.descend_gates(update, start, 50.0, 3, project=False)
    kept = gated.descend_gates(update, start, 50.0, 3)
    assert free.min() < 0 or free.max() > 1
    assert (kept >= 0).all()
    assert (kept <= 1).all()


def test_constants_by_hand():
    known = Constants(lipschitz=3.0, smoothness=2.0, size=4.0)
    assert (known.gate_curvature, known.sensitivity) == (32.0, 11.0)
    assert known.score_curvature == pytest.approx(2 + 12 / (6 * math.sqrt(3)))
    # one step: beta (Q L2 + L1) R epsilon; two steps: (2 + q) times that, with q = 32 beta
    assert known.gate_bound(0.1, rate=0.5) == pytest.approx(0.5 * 11 * 0.1)
    assert known.gate_bound(0.1, rate=0.5, steps=2) == pytest.approx((2 + 16) * 0.5 * 11 * 0.1)
    assert known.score_bound(0.1, rate=0.5) == pytest.approx(0.5 * 11 * 0.1 / 4)
    assert known.convex_bound(0.1, rate=0.05, steps=7) == pytest.approx(7 * 0.05 * 11 * 0.1)


def test_bounds_at_their_limits():
    flat = Constants(lipschitz=3.0, smoothness=0.0, size=4.0)
    assert flat.gate_bound(0.1, 0.5, 10) == pytest.approx(10 * 0.5 * 3 * 0.1)
    nearly = Constants(lipschitz=3.0, smoothness=1e-12, size=4.0)
    assert nearly.gate_bound(0.1, 0.5, 10) == pytest.approx(10 * 0.5 * 3 * 0.1)
    assert Constants(1, 1, 1).gate_bound(1, 1.0, 10_000) == math.inf
    assert Constants(1, 1, 1).gate_bound(0, 1.0, 5) == 0


def test_sigmoid_constants():
    s = torch.linspace(-6, 6, 100_001, dtype=torch.float64)
    slope = s.sigmoid() * (1 - s.sigmoid())
    assert slope.max().item() == pytest.approx(SIGMOID_SLOPE)
    assert (slope * (1 - 2 * s.sigmoid())).abs().max().item() == pytest.approx(SIGMOID_CURVATURE)


@pytest.mark.parametrize("seed", range(5))
def test_constants_of_logistic_regression(seed):
    task, _, update, moved = random_case(seed)
    far = {name: 10 * v for name, v in moved.items()}
    zero = GatedLoss(task, {name: torch.zeros_like(v) for name, v in update.items()})
    ones = torch.ones(4, dtype=torch.float64)
    for one, other in ((update, moved), (update, far)):
        slopes = [zero.layer_gradients(ones, at) for at in (one, other)]
        assert max(float(layer_norms(s).norm()) for s in slopes) <= task.lipschitz
        assert distance(*slopes) <= task.smoothness * distance(one, other)


def test_constants_of_logistic_regression_are_attained():
    """One example (3, 4) of label 1: slopes up to 5, curvature 25 / 4 at 0."""
    task = LogisticRegression(numbers([3.0, 4.0]), numbers(1.0), 2)
    assert (task.lipschitz, task.smoothness) == pytest.approx((5.0, 6.25))
    plain = GatedLoss(task, task.split_into_layers(numbers(0.0, 0.0)))
    ones = numbers(1.0, 1.0)
    steep = plain.layer_gradients(ones, task.split_into_layers(numbers(-30.0, -40.0)))
    assert float(layer_norms(steep).norm()) == pytest.approx(5.0)
    ends = [task.split_into_layers(sign * 1e-4 * numbers(3.0, 4.0)) for sign in (-1, 1)]
    change = distance(*(plain.layer_gradients(ones, end) for end in ends))
    assert change / distance(*ends) == pytest.approx(6.25)


@pytest.mark.parametrize("seed", range(20))
def test_bounds_hold(seed):
    task, gated, update, moved = random_case(seed, move=0.3 if seed % 2 else 1e-4)
    known, apart = constants_of(task, update), distance(update, moved)
    gates = torch.rand(4, generator=generator(seed, "gates"), dtype=torch.float64)
    for rate in (0.1, 1 / known.gate_curvature):
        runs = [gated.descend_gates(u, gates, rate, 20) for u in (update, moved)]
        for n, gap in enumerate((runs[0] - runs[1]).norm(dim=1).tolist()):
            assert gap <= known.gate_bound(apart, rate, n) + 1e-12
            assert gap <= known.convex_bound(apart, rate, n) + 1e-12
    scores = gates.logit()
    runs = [gated.descend_scores(u, scores, 2.0, 20) for u in (update, moved)]
    for n, gap in enumerate((runs[0] - runs[1]).norm(dim=1).tolist()):
        assert gap <= known.score_bound(apart, 2.0, n) + 1e-12


@pytest.mark.parametrize("layers", [1, 4, 25])
def test_bound_of_one_step_is_attained_and_that_of_the_sum_needs_the_root(layers):
    """Huber loss just below its kink, in the sum of all weights over the root of their number."""
    size, move = 2.0, 0.01
    x = lambda v: torch.cat(list(v.values())).sum() / layers**0.5  # noqa: E731
    start = (1 - move) / layers**0.5 - size
    base = {str(i): numbers(start) for i in range(layers)}
    gated = GatedLoss(lambda v: torch.nn.functional.huber_loss(x(v), torch.zeros_like(x(v))), base)
    updates = [{n: numbers(size + m / layers**0.5) for n in base} for m in (0.0, move)]
    assert distance(*updates) == pytest.approx(move)
    ones = torch.ones(layers, dtype=torch.float64)
    before, after = (gated.gate_gradient(ones, u) for u in updates)
    gap = after - before
    assert gap.abs().sum().item() == pytest.approx(move * (layers**0.5 * 2 + 1))
    bound = Constants(1, 1, size).gate_bound(move, rate=1)
    assert float(gap.norm()) <= bound + 1e-12
    if layers == 1:
        assert float(gap.norm()) == pytest.approx(bound)


def test_bound_is_false_for_the_printed_size():
    """log cosh with the weights at 0: what counts is the length of the update, 10."""
    gated = GatedLoss(lambda v: torch.cosh(v["w"]).log().sum(), {"w": numbers(-10.0)})
    updates = [{"w": numbers(10.0 + move)} for move in (0.0, 0.01)]
    before, after = (gated.gate_gradient(numbers(1.0), u) for u in updates)
    gap = float((after - before).norm())
    assert Constants(1, 1, 0.01).gate_bound(0.01, 1) < gap / 5
    assert gap <= Constants(1, 1, 10.0).gate_bound(0.01, 1)


def test_curvature_of_the_gates():
    """The Hessian of the gates is D^T H D, and its norm at most Q^2 L2."""
    task, gated, update, _ = random_case(3)
    gates = torch.full((4,), 0.3, dtype=torch.float64)
    hessian = torch.autograd.functional.hessian(lambda g: task(gated.weights(g, update)), gates)
    known = constants_of(task, update)
    assert float(torch.linalg.matrix_norm(hessian, 2)) <= known.gate_curvature
    apart = gated.gate_gradient(gates + 1e-4, update) - gated.gate_gradient(gates - 1e-4, update)
    assert torch.allclose(apart / 2e-4, hessian.sum(dim=1), rtol=1e-5)


def test_fine_tuning_of_the_bench_is_gradient_descent():
    task, gated, _, _ = random_case(4)
    before = copy.deepcopy(gated.base)
    path = task.fine_tune(gated.base, 5)
    losses = [float(task(weights)) for weights in path]
    assert losses == sorted(losses, reverse=True)
    flat = torch.cat(list(path[1].values())).requires_grad_()
    task(task.split_into_layers(flat)).backward()
    expected = flat.detach() - flat.grad / task.smoothness
    assert torch.allclose(torch.cat(list(path[2].values())), expected)
    assert distance(before, gated.base) == 0
    for one, other in itertools.pairwise(path):  # moves of at most the root
        epsilon = float(task(one) - task(other))
        assert distance(one, other) <= math.sqrt(2 * epsilon / task.smoothness) + 1e-9


def test_measures_of_updates():
    one = {"a": numbers(3.0, 4.0), "b": numbers(1.0)}
    other = {"a": numbers(3.0, 0.0), "b": numbers(4.0)}
    assert layer_norms(one).tolist() == [5.0, 1.0]
    assert inner_products(one, other).tolist() == [9.0, 4.0]
    assert layer_norms(difference(one, other)).tolist() == [4.0, 3.0]
    assert distance(one, other) == 5.0


@pytest.fixture(scope="module")
def tuning():
    values = {"tuning_steps": 4, "measured_at": [2], "tuning_lr": 0.01}
    return fine_tune(IlaProofParameters(**VALUES | values), seed=0)


def test_fine_tuning_of_a_language_model(tuning):
    assert [row["iteration"] for row in tuning.trace] == [1, 2, 3]
    assert sorted(tuning.factors) == [2, 3]
    assert all(name.startswith("model.layers.") for name in tuning.gated.base)
    assert len(tuning.gated.base) == 28
    one, other = tuning.update(2), tuning.update(3)
    assert distance(one, other) == pytest.approx(tuning.trace[1]["length"])
    # The loss with all gates open is that of the tuned model, and the one of the next iteration.
    ones = torch.ones(28, dtype=torch.float64)
    assert tuning.gated.value(ones, one) == pytest.approx(tuning.trace[1]["loss"], rel=1e-9)
    change = tuning.gated.value(ones, other) - tuning.gated.value(ones, one)
    assert abs(change) == pytest.approx(tuning.trace[1]["change"], rel=1e-6)
    assert tuning.other.value(ones, one) != tuning.gated.value(ones, one)


def test_gate_gradient_of_a_language_model(tuning):
    update = tuning.update(2)
    gates = torch.full((28,), 0.8, dtype=torch.float64)
    found = tuning.gated.gate_gradient(gates, update)
    for layer in (0, 17):
        step = torch.zeros_like(gates)
        step[layer] = 0.02  # the norms of transformers compute in float32
        ahead, back = (tuning.gated.value(gates + sign * step, update) for sign in (1, -1))
        assert found[layer].item() == pytest.approx((ahead - back) / 0.04, rel=5e-3)


def test_fine_tuning_leaves_the_generators_alone_and_repeats():
    values = {"tuning_steps": 2, "measured_at": [1], "batch_size": 1, "sequence_length": 4}
    parameters = IlaProofParameters(**VALUES | values)
    state = torch.get_rng_state()
    one, again = (fine_tune(parameters, seed=3) for _ in range(2))
    assert torch.equal(state, torch.get_rng_state())
    assert one.trace == again.trace
    assert distance(one.update(2), again.update(2)) == 0


def test_wrong_arguments_are_refused(tuning):
    _, gated, update, _ = random_case(0)
    with pytest.raises(ValueError, match=r"of the 4 layers of the base, in their order. Found g"):
        gated.weights(torch.ones(3), update)
    with pytest.raises(ValueError, match="an update of"):
        gated.weights(torch.ones(4), dict(reversed(update.items())))
    with pytest.raises(ValueError, match="size must be finite and not negative. Found size=-1"):
        Constants(1, 1, -1)
    with pytest.raises(ValueError, match=r"rate must be at most 2 / \(Q\^2 L2\) = 2. Found rate=3"):
        Constants(1, 1, 1).convex_bound(0.1, rate=3)
    with pytest.raises(ValueError, match="layers must divide the number of features. Found lay"):
        LogisticRegression(torch.ones(2, 5), torch.ones(2), 2)


VALUES = {
    "seeds": [0], "device": "cpu", "precision": "float32", "profile": "cpu", "run_dir": "",
    "layers": 4, "layer_size": 2, "examples": 20, "iterations": 5, "gate_steps": 5, "trials": 100,
    "model": "tiny", "pretraining_steps": 2, "lora_rank": 2, "tuning_steps": 10,
    "measured_at": [2, 9], "tuning_lr": 0.1, "batch_size": 2, "sequence_length": 8,
    "initial_score": 4.0, "score_steps": 2, "score_move": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"measured_at": [0]}, "between 0 and tuning_steps = 10, both excluded. Found"),
        ({"measured_at": [2, 10]}, r"both excluded. Found \[10\]"),
        ({"measured_at": [3, 2]}, "measured_at must rise, each once"),
        ({"measured_at": [2, 2]}, "measured_at must rise, each once"),
        ({"sequence_length": 513}, "sequence_length must be at most 512"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(change, message):
    assert IlaProofParameters(**VALUES).layers == 4
    with pytest.raises(ValidationError, match=message):
        IlaProofParameters(**VALUES | change)
