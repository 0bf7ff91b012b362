"""Task gradients and the one update that is written from them."""

import os

import pytest
import torch
from torch import nn

from ktlib.mtl.aggregation import aggregator
from ktlib.mtl.conflict import ConflictMeter
from ktlib.mtl.gradients import (
    TaskGradients,
    apply_gradients,
    apply_gramians,
    gramian,
    task_gradients,
)

DEVICE = torch.device(os.environ.get("KTLIB_TEST_DEVICE", "cpu"))


def made(name):
    """The aggregator; the test is skipped where a solver that is an extra of torchjd is missing."""
    try:
        return aggregator(name)
    except ImportError as error:
        pytest.skip(str(error))


def test_inner_products_of_many_columns():
    rows = torch.randn(3, 2**18 + 5, generator=torch.Generator().manual_seed(0)).to(DEVICE)
    expected = rows.double() @ rows.double().T
    found = gramian(rows)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-3)
    assert gramian(rows[:, :0]).tolist() == [[0.0] * 3] * 3


def model(dtype=torch.float64):
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 5)).to(DEVICE, dtype)
    heads = {task: nn.Linear(5, 1).to(DEVICE, dtype) for task in "abc"}
    x = torch.randn(7, 4).to(DEVICE, dtype)

    def losses():
        features = trunk(x)
        return {
            task: (head(features) - place).square().mean()
            for place, (task, head) in enumerate(heads.items())
        }

    return trunk, heads, losses, {task: list(head.parameters()) for task, head in heads.items()}


def all_gradients(trunk, heads):
    modules = [trunk, *heads.values()]
    found = [p.grad for module in modules for p in module.parameters()]
    for module in modules:
        module.zero_grad()
    return found


def test_joint_training_is_backward_of_the_sum_of_losses():
    trunk, heads, losses, own = model()
    torch.stack(list(losses().values())).sum().backward()
    expected = all_gradients(trunk, heads)
    gradients = task_gradients(losses(), trunk.parameters(), task_parameters=own)
    apply_gradients(trunk, gradients, aggregator("joint"))
    torch.testing.assert_close(all_gradients(trunk, heads), expected)
    meter = ConflictMeter(trunk)
    found = losses()
    gramians = meter.observe_gramians(found, task_parameters=own, retain_graph=True)
    apply_gramians(trunk, found, gramians, aggregator("joint"))
    torch.testing.assert_close(all_gradients(trunk, heads), expected)


@pytest.mark.parametrize("name", ["mgda", "pcgrad", "upgrad", "imtl_g", "cagrad"])
def test_update_from_gramians_is_that_from_gradients(name):
    trunk, heads, losses, own = model()
    meter = ConflictMeter(trunk)
    apply_gradients(trunk, meter.observe(losses(), task_parameters=own), made(name))
    expected = all_gradients(trunk, heads)
    found = losses()
    gramians = meter.observe_gramians(found, task_parameters=own, retain_graph=True)
    apply_gramians(trunk, found, gramians, made(name))
    torch.testing.assert_close(all_gradients(trunk, heads), expected, rtol=1e-5, atol=1e-8)


def test_heads_are_not_touched_by_the_weights_of_the_trunk():
    """A head's gradient is that of its own loss, whatever the aggregation makes of the trunk's."""
    trunk, heads, losses, own = model()
    torch.stack(list(losses().values())).sum().backward()
    expected = [p.grad.clone() for head in heads.values() for p in head.parameters()]
    apply_gradients(
        trunk, task_gradients(losses(), trunk.parameters(), task_parameters=own), aggregator("mgda")
    )
    found = [p.grad for head in heads.values() for p in head.parameters()]
    torch.testing.assert_close(found, expected)


def test_frozen_parameters_of_a_head_get_no_gradient():
    trunk, heads, losses, own = model()
    heads["a"].weight.requires_grad_(False)
    gradients = task_gradients(losses(), trunk.parameters(), task_parameters=own)
    apply_gradients(trunk, gradients, aggregator("joint"))
    assert heads["a"].weight.grad is None
    assert all(p.grad is not None for task in "bc" for p in own[task])
    assert heads["a"].bias.grad is not None


def test_tasks_with_one_head_add_up_on_it():
    trunk, heads, *_ = model()
    shared = list(heads["a"].parameters())
    features = trunk(torch.ones(1, 4, dtype=torch.float64, device=DEVICE))
    found = {"a": heads["a"](features).sum(), "b": 3 * heads["a"](features).sum()}
    gradients = task_gradients(
        found, trunk.parameters(), task_parameters=dict.fromkeys("ab", shared)
    )
    bias = {id(parameter): value for parameter, value in gradients.own}[id(shared[1])]
    assert bias.tolist() == [4.0]


def test_gradients_replace_those_of_the_step_before():
    trunk, _, losses, own = model()
    combine, found = aggregator("joint"), []
    for _ in range(2):
        apply_gradients(
            trunk, task_gradients(losses(), trunk.parameters(), task_parameters=own), combine
        )
        found.append([p.grad.clone() for p in (*trunk.parameters(), *own["a"])])
    for _ in range(2):
        now = losses()
        gramians = ConflictMeter(trunk).observe_gramians(
            now, task_parameters=own, retain_graph=True
        )
        apply_gramians(trunk, now, gramians, combine)
        found.append([p.grad.clone() for p in (*trunk.parameters(), *own["a"])])
    for again in found[1:]:
        torch.testing.assert_close(again, found[0])
    first = found[0][: len(list(trunk.parameters()))]
    optimiser = torch.optim.SGD(trunk.parameters(), lr=0.1)
    before = [p.detach().clone() for p in trunk.parameters()]
    optimiser.step()
    moved = [a - b for a, b in zip(before, trunk.parameters(), strict=True)]
    torch.testing.assert_close(moved, [0.1 * gradient for gradient in first])


def test_small_batches_add_up():
    """As backward() on each adds up; own parameters of a task that one batch lacks are kept."""
    trunk, heads, losses, own = model()
    for tasks in ("abc", "ab"):
        torch.stack([loss / 2 for t, loss in losses().items() if t in tasks]).sum().backward()
    expected, meter = all_gradients(trunk, heads), ConflictMeter(trunk)
    for tasks in ("abc", "ab"):
        part = {t: loss / 2 for t, loss in losses().items() if t in tasks}
        gradients = meter.observe(part, task_parameters={t: own[t] for t in tasks})
        apply_gradients(trunk, gradients, aggregator("joint"), accumulate=True)
    torch.testing.assert_close(all_gradients(trunk, heads), expected)


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("search", ["observe", "observe_gramians"])
def test_the_head_of_an_absent_task_does_not_move(kind, search):
    """Without zero_grad: the meter knows whose gradients are those of an earlier batch."""
    trunk, heads, losses, own = model()
    heads["b"].bias = heads["c"].bias  # of an absent and of a present task
    own = {task: list(head.parameters()) for task, head in heads.items()}
    optimizer = kind([*trunk.parameters(), *{p for ps in own.values() for p in ps}], lr=0.1)
    meter = ConflictMeter(trunk)
    for tasks in ("abc", "ab"):
        before = heads["c"].weight.clone(), heads["c"].bias.clone(), heads["a"].weight.clone()
        found = {task: loss for task, loss in losses().items() if task in tasks}
        mine = {task: own[task] for task in tasks}
        step = getattr(meter, search)(found, task_parameters=mine, retain_graph=True)
        if search == "observe":
            apply_gradients(trunk, step, aggregator("pcgrad"))
        else:
            apply_gramians(trunk, found, step, aggregator("pcgrad"))
        optimizer.step()
    after = heads["c"].weight, heads["c"].bias, heads["a"].weight
    assert [torch.equal(a, b) for a, b in zip(before, after, strict=True)] == [True, False, False]


def test_parameters_that_nothing_would_train_are_told():
    trunk, _, losses, own = model()
    raw = torch.ones((), device=DEVICE, requires_grad=True)  # an input may want a gradient
    for given, message in [
        (None, r"6 parameters are neither .* \(and shape\) 'a' .*, 'b' \(1, 5\)"),
        ({"a": own["a"], "b": own["b"][:1]}, r"3 parameters .* 'b' \(1,\)"),
        ({**own, "c": []}, r"2 parameters .* 'c' \(1, 5\)"),  # as a used-up generator
    ]:
        found = {task: raw * loss for task, loss in losses().items()}
        meter = ConflictMeter(trunk)
        gramians = meter.observe_gramians(found, task_parameters=given, retain_graph=True)
        with pytest.warns(UserWarning, match=message):
            apply_gramians(trunk, found, gramians, aggregator("joint"))
        found = {task: raw * loss for task, loss in losses().items()}
        gradients = meter.observe(found, task_parameters=given)  # counting alone needs no heads
        with pytest.warns(UserWarning, match=message):
            apply_gradients(trunk, gradients, aggregator("joint"))


@pytest.mark.parametrize("name", ["joint", "cagrad", "graddrop", "nashmtl"])
def test_a_batch_of_one_task_alone_gives_a_plain_step(name):
    trunk, heads, losses, own = model()
    meter, options = ConflictMeter(trunk, task_pairs=True), {"n_tasks": 3}
    method = aggregator(name, **options) if name == "nashmtl" else made(name)
    losses()["b"].backward()
    expected = all_gradients(trunk, heads)
    given = {"b": losses()["b"]}, {"b": own["b"]}
    apply_gradients(trunk, meter.observe(given[0], task_parameters=given[1]), method)
    assert str(all_gradients(trunk, heads)) == str(expected)
    if method.from_gramian:
        given[0]["b"] = losses()["b"]
        seen = meter.observe_gramians(given[0], task_parameters=given[1], retain_graph=True)
        apply_gramians(trunk, given[0], seen, method)
        assert str(all_gradients(trunk, heads)) == str(expected)
    assert not any(meter.pairs.values())
    assert meter.pair_rows(0.0) == []


def test_gradients_have_the_dtype_of_their_parameters():
    trunk, _, losses, own = model(torch.bfloat16)
    gradients = task_gradients(losses(), trunk.parameters(), task_parameters=own)
    assert gradients.matrix.dtype == torch.float32
    apply_gradients(trunk, gradients, aggregator("mgda"))
    assert {p.grad.dtype for p in trunk.parameters()} == {torch.bfloat16}


def test_gradients_of_another_trunk_are_refused():
    trunk, heads, losses, _ = model()
    gradients = task_gradients(losses(), trunk.parameters())
    assert isinstance(gradients, TaskGradients)
    with pytest.raises(ValueError, match="gradients must belong to the trunk's parameters"):
        apply_gradients(heads["a"], gradients, aggregator("joint"))
    found = losses()
    gramians = ConflictMeter(trunk).observe_gramians(found, retain_graph=True)
    with pytest.raises(ValueError, match=r"losses must be of \('a', 'b', 'c'\)"):
        apply_gramians(trunk, {"a": found["a"], "b": found["b"]}, gramians, aggregator("joint"))
