"""The parts of the authors' released code that the printed text does not have."""

import copy

import pytest
import torch

from ktlib.fcl import F2MVariant, FlatRegion, class_means, f2m_loss, learn_session
from ktlib.testing import assert_gradient_flow

OPTIONS = {"bound": 0.05, "draws": 3, "prototype_weight": 0.7}


def loss_of(split, classifier, batch, variant=None, **options):
    noise, options = torch.Generator().manual_seed(1), OPTIONS | options
    variant = F2MVariant(**variant or {})
    return f2m_loss(split, classifier, *batch, generator=noise, variant=variant, **options)


def test_spread_is_added_to_the_mean(split, classifier, batch):
    split.network.eval()
    printed, released = (
        loss_of(split, classifier, batch, {"spread_weight": weight}) for weight in (0.0, 2.0)
    )
    assert torch.equal(printed.cross_entropy, released.cross_entropy)
    expected = printed.total + 2 * released.cross_entropy.std(correction=1)
    torch.testing.assert_close(released.total, expected)
    assert bool(released.total > printed.total)


def test_spread_has_a_gradient(split, classifier, batch):
    def terms():
        found = loss_of(split, classifier, batch, {"spread_weight": 2.0})
        return {"spread": found.cross_entropy.std(), "total": found.total}

    trainable = dict(split.network.named_parameters())
    assert_gradient_flow(terms, trainable, {})


def test_prototype_term_without_gradient_counts_in_the_value_alone(split, classifier, batch):
    split.network.eval()
    with_gradient = loss_of(split, classifier, batch)
    without = loss_of(split, classifier, batch, {"prototype_gradient": False})
    none = loss_of(split, classifier, batch, prototype_weight=0.0)
    assert torch.equal(with_gradient.total, without.total)
    weights = [*split.tuned.values()]
    first, second, third = (
        torch.autograd.grad(loss.total, weights) for loss in (with_gradient, without, none)
    )
    for a, b, c in zip(first, second, third, strict=True):
        torch.testing.assert_close(b, c)
        assert not torch.allclose(a, b)


def test_spread_needs_two_draws(split, classifier, batch):
    with pytest.raises(ValueError, match="needs draws >= 2. Found draws=1"):
        loss_of(split, classifier, batch, {"spread_weight": 2.0}, draws=1)
    with pytest.raises(ValueError, match="spread_weight must be at least 0"):
        F2MVariant(spread_weight=-1.0)


def session(split, batch, region, **options):
    images, labels = batch
    classes = torch.tensor([7, 8], device=images.device)
    saved = class_means(split.network.eval()(images[:4]).detach(), torch.tensor([7, 7, 8, 8]))
    return learn_session(split, region, images, labels, saved, classes, epochs=3, **options)


def test_updates_lie_on_the_grid_and_in_the_box(split, batch):
    region = FlatRegion(split.tuned, 0.01, grid_step=0.0025)
    session(split, batch, region, lr=1.0)
    assert region.contains()
    steps = torch.cat(
        [((p - region.center[n]) / 0.0025).flatten() for n, p in split.tuned.items()]
    ).detach()
    assert set(steps.round().unique().tolist()) <= {-4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0}
    assert float((steps - steps.round()).abs().max()) < 0.01
    assert torch.count_nonzero(steps.round()) > 0


def test_small_steps_are_lost_on_the_grid(split, batch):
    region = FlatRegion(split.tuned, 0.01, grid_step=0.0025)
    before = copy.deepcopy(split.network.state_dict())
    session(split, batch, region, lr=1e-5)
    assert all(torch.equal(before[n], v) for n, v in split.network.state_dict().items())


def test_a_negative_grid_step_is_refused(split):
    with pytest.raises(ValueError, match=r"grid_step.*-0\.1"):
        FlatRegion(split.tuned, 0.01, grid_step=-0.1)


def test_a_loss_that_is_not_finite_is_named_with_its_step(split, batch):
    next(iter(split.tuned.values())).data[0] = float("nan")
    with pytest.raises(FloatingPointError, match=r"the loss is nan at step 1: lower the lr"):
        session(split, batch, None, lr=0.1)


def test_box_around_a_saved_centre(split):
    saved = {name: p.detach() + 0.5 for name, p in split.tuned.items()}
    region = FlatRegion(split.tuned, 0.1, center=saved)
    assert not region.contains()
    region.clamp_()
    assert region.contains()
    for name, parameter in split.tuned.items():
        torch.testing.assert_close(parameter.detach(), saved[name] - 0.1)


def test_box_of_another_architecture_is_refused(split):
    name = next(iter(split.tuned))
    saved = {n: p.detach() for n, p in split.tuned.items()}
    with pytest.raises(ValueError, match=rf"'{name}' has .* Found \(2, 3\): is it from another"):
        FlatRegion(split.tuned, 0.1, center=saved | {name: torch.zeros(2, 3)})
    with pytest.raises(ValueError, match="center must name the parameters"):
        FlatRegion(split.tuned, 0.1, center={name: saved[name]})
