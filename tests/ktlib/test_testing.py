"""The gradient-flow check finds the faults it is there for."""

import pytest
import torch
from torch import nn

from ktlib.testing import assert_gradient_flow, assert_step_updates, gradient_flow


@pytest.fixture
def network():
    torch.manual_seed(0)
    return nn.ModuleDict({"body": nn.Linear(3, 4), "head": nn.Linear(4, 2)})


def terms(network, *, drift=lambda tensor: tensor.square().mean()):
    features = network["body"](torch.ones(5, 3))
    return {"fit": network["head"](features).square().mean(), "drift": drift(features)}


def split(network):
    """Trainable: the body; frozen: the head, which requires no gradient."""
    network["head"].requires_grad_(False)
    return part(network, "body"), part(network, "head")


def part(network, name):
    return {f"{name}.{key}": value for key, value in network[name].named_parameters()}


def test_a_sound_method_passes(network):
    assert_gradient_flow(lambda: terms(network), *split(network))


def test_no_gradient_is_left_behind(network):
    assert_gradient_flow(lambda: terms(network), *split(network))
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_term_taken_by_item_is_found(network):
    broken = lambda: terms(network, drift=lambda t: t.square().mean().item())  # noqa: E731
    with pytest.raises(
        AssertionError, match="`drift` changes the gradient of no trainable"
    ) as error:
        assert_gradient_flow(broken, *split(network))
    assert "`fit`" not in str(error.value)


def test_a_detached_branch_is_found(network):
    broken = lambda: terms(network, drift=lambda t: t.detach().square().mean())  # noqa: E731
    with pytest.raises(AssertionError, match="loss term `drift` changes the gradient of no"):
        assert_gradient_flow(broken, *split(network))


def test_a_term_times_zero_is_found(network):
    broken = lambda: terms(network, drift=lambda t: 0 * t.square().mean())  # noqa: E731
    with pytest.raises(AssertionError, match="loss term `drift` changes the gradient of no"):
        assert_gradient_flow(broken, *split(network))


def test_a_trainable_parameter_outside_the_loss_is_found(network):
    trainable, frozen = split(network)
    trainable["unused"] = nn.Parameter(torch.ones(2))
    with pytest.raises(AssertionError, match="trainable parameter `unused` receives no gradient"):
        assert_gradient_flow(lambda: terms(network), trainable, frozen)


def test_terms_that_cancel_each_other_are_found():
    weight = nn.Parameter(torch.ones(2))
    with pytest.raises(AssertionError, match="trainable parameter `weight` receives no gradient"):
        assert_gradient_flow(
            lambda: {"up": weight.sum(), "down": -weight.sum()}, {"weight": weight}
        )


def test_a_frozen_parameter_with_gradient_is_found(network):
    trainable, frozen = split(network)
    network["head"].requires_grad_(True)
    with pytest.raises(
        AssertionError, match="frozen parameter `head.bias` receives a gradient from `fit`"
    ):
        assert_gradient_flow(lambda: terms(network), trainable, frozen)


@pytest.mark.parametrize("check", [assert_gradient_flow, assert_step_updates])
def test_a_name_that_is_both_trainable_and_frozen_is_refused(network, check):
    trainable, _ = split(network)
    with pytest.raises(
        ValueError, match=r"must not share names. Found \['body.bias', 'body.weight'\]"
    ):
        check(dict, trainable, trainable)


def test_an_infinite_gradient_is_found():
    weight = nn.Parameter(torch.zeros(2))
    with pytest.raises(AssertionError, match="loss term `root` gives `weight` a NaN or infinite"):
        assert_gradient_flow(lambda: {"root": weight.sqrt().sum()}, {"weight": weight})


def test_norms_are_those_of_the_gradients():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    flow = gradient_flow(lambda: {"half": weight.square().sum() / 2}, {"weight": weight})
    assert flow.norms["half"]["weight"] == pytest.approx(5.0)
    assert flow.total["weight"] == pytest.approx(5.0)


@pytest.mark.parametrize("terms_given", [True, False])
def test_nothing_to_check_is_an_error(terms_given):
    weight = nn.Parameter(torch.ones(1))
    given = ({"a": weight.sum()}, {}) if terms_given else ({}, {"weight": weight})
    with pytest.raises(ValueError, match="at least one entry each"):
        gradient_flow(lambda: given[0], given[1])


def step(network, *, parameters, decay=0.0):
    optimiser = torch.optim.SGD(parameters, lr=0.1, weight_decay=decay)
    sum(terms(network).values()).backward()
    optimiser.step()


def test_a_sound_step_passes(network):
    trainable, frozen = split(network)
    assert_step_updates(lambda: step(network, parameters=trainable.values()), trainable, frozen)


def test_a_parameter_missing_from_the_optimiser_is_found(network):
    trainable, frozen = split(network)
    with pytest.raises(AssertionError, match="trainable parameter `body.bias` did not change"):
        assert_step_updates(
            lambda: step(network, parameters=[trainable["body.weight"]]), trainable, frozen
        )


def test_a_frozen_tensor_that_moves_is_found(network):
    with pytest.raises(AssertionError, match="frozen tensor `head.weight` changed"):
        assert_step_updates(
            lambda: step(network, parameters=network.parameters()),
            part(network, "body"),
            part(network, "head"),
        )


def test_a_step_to_infinity_is_found():
    weight = nn.Parameter(torch.ones(1))
    with pytest.raises(AssertionError, match="trainable parameter `weight` became NaN or infinite"):
        assert_step_updates(lambda: weight.data.fill_(float("nan")), {"weight": weight})
