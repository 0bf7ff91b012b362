"""The parts of the authors' released code that the printed text does not have."""

import copy
import gc
import weakref
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ktlib.fcl import (
    RELEASED,
    RELEASED_SESSION,
    F2MVariant,
    FlatRegion,
    SessionVariant,
    class_means,
    draw_noise,
    f2m_loss,
    learn_session,
    random_crop,
    split_network,
)
from ktlib.testing import assert_gradient_flow

OPTIONS = {"bound": 0.05, "draws": 3, "prototype_weight": 0.7}


def loss_of(split, classifier, batch, variant=None, seed=1, **options):
    noise, options = torch.Generator().manual_seed(seed), OPTIONS | options
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


def test_spread_of_the_whole_loss(split, classifier, batch):
    options = {"spread_weight": 2.0, "spread_of_total": True}
    for gradient in (True, False):
        found = loss_of(split, classifier, batch, options | {"prototype_gradient": gradient})
        losses = found.cross_entropy + 0.7 * found.prototype_shift
        torch.testing.assert_close(found.total, losses.mean() + 2 * losses.std(correction=1))
    # The numbers of the prototypes count in the spread, and the slopes are those of the losses.
    weight = next(iter(split.tuned.values()))
    slopes = [torch.autograd.grad(one, weight, retain_graph=True)[0] for one in found.cross_entropy]
    share = (losses - losses.mean()) / (2 * losses.std(correction=1)) * 2 + 1 / 3
    expected = sum(s * slope for s, slope in zip(share, slopes, strict=True))
    torch.testing.assert_close(torch.autograd.grad(found.total, weight)[0], expected)


def test_of_two_draws_the_prototypes_count_in_the_spread_by_their_order_alone(
    split, classifier, batch
):
    """It is the difference of the two losses over the root of 2: a number has no slope."""
    split.network.eval()
    weights, found = [*split.tuned.values()], []
    for weight in (0.1, 1e4):  # 1e4: the order is that of the prototypes
        for together in (False, True):
            variant = {"spread_weight": 2.0, "spread_of_total": together}
            loss = loss_of(split, classifier, batch, variant | {"prototype_gradient": False},
                           seed=2, draws=2, prototype_weight=weight)  # fmt: skip
            found.append(torch.autograd.grad(loss.total, weights)[0])
    order = torch.stack([loss.cross_entropy, loss.prototype_shift]).diff(dim=1).sign()
    assert order[0] != order[1]
    torch.testing.assert_close(found[0], found[1])
    assert not torch.allclose(found[2], found[3])


def test_noise_removed_before_backward_by_hand():
    """f = v w x: the slope in w is passed on by v, not by v + eps; that in v is as ever."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False))
    split = split_network(network, ["0", "1"])
    noise = {"0.weight": torch.tensor([[0.5]]), "1.weight": torch.tensor([[-0.25]])}
    w, v = (parameter.item() for parameter in network.parameters())
    x = torch.tensor([[2.0]])
    for clean, passed_on in ((False, v - 0.25), (True, v)):
        found = split.tail_forward(split.prefix(x), noise, clean_backward=clean)
        assert found.item() == pytest.approx((v - 0.25) * (w + 0.5) * 2)
        slopes = torch.autograd.grad(found.sum(), [*network.parameters()])
        assert [slope.item() for slope in slopes] == pytest.approx([passed_on * 2, (w + 0.5) * 2])


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_noise_removed_before_backward(split, classifier, batch, form):
    """Without noise it changes nothing; with noise, the layers in front of the last noisy one."""
    split.network.eval().to(memory_format=form)
    weights = [*split.tuned.values()]
    for bound, same in ((0.0, [True] * 4), (0.05, [False] * 3 + [True])):
        found = [
            torch.autograd.grad(
                loss_of(split, classifier, batch, {"clean_backward": clean}, bound=bound,
                        prototype_weight=0.0).total, weights)
            for clean in (False, True)
        ]  # fmt: skip
        assert [torch.allclose(a, b) for a, b in zip(*found, strict=True)] == same


def test_a_clean_backward_pass_that_is_not_made_leaves_nothing():
    split = split_network(nn.Sequential(nn.Linear(2, 2), nn.ReLU()), ["0"])
    found = split.tail_forward(
        torch.ones(1, 2), {"0.weight": torch.ones(2, 2)}, clean_backward=True
    )
    kept = weakref.ref(found)
    gc.disable()
    try:
        del found
        assert kept() is None
    finally:
        gc.enable()


def test_noise_cannot_be_removed_from_copies(split, classifier, batch):
    with torch.autocast("cpu", torch.bfloat16), pytest.raises(ValueError, match="under autocast"):
        loss_of(split, classifier, batch, {"clean_backward": True})


def base_step_as_released(split, classifier, batch, *, bound, lr):
    """One step of SGD, written anew: noise in ``.data``, and out of it before ``backward``."""
    images, labels = batch
    parameters = [*split.network.parameters(), *classifier.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=lr)
    order = labels.argsort(stable=True)  # the released code has the images of a class in a row
    images, labels = images[order], labels[order]

    def means(embeddings):
        return embeddings.reshape(3, 4, -1).mean(dim=1)

    noise, clean = torch.Generator().manual_seed(1), means(split.network(images)).detach()
    losses, total = [], 0.0
    for _ in range(3):
        before = {name: weight.data for name, weight in split.tuned.items()}
        eps = draw_noise(split.tuned, bound, noise, RELEASED.noise_levels, RELEASED.noise_shapes)
        for name, weight in split.tuned.items():
            weight.data = weight.data + eps[name]
        embeddings = split.network(images)
        loss = F.cross_entropy(classifier(embeddings), labels)
        shift = (clean - means(embeddings)).square().sum(dim=1).mean().item()
        losses.append(loss + shift)
        total = total + losses[-1]
        for name, weight in split.tuned.items():
            weight.data = before[name]
    (total / 3 + 2.0 * torch.stack(losses).std()).backward()
    optimizer.step()


@pytest.mark.parametrize("form", [torch.contiguous_format, torch.channels_last])
def test_base_step_is_that_of_the_released_code(split, classifier, batch, form):
    split.network.double().to(memory_format=form), classifier.double()
    batch, start = (batch[0].double(), batch[1]), copy.deepcopy(split.network.state_dict())
    other, head = copy.deepcopy(split), copy.deepcopy(classifier)
    base_step_as_released(other, head, batch, bound=0.05, lr=0.1)
    parameters = [*split.network.parameters(), *classifier.parameters()]
    options = {"bound": 0.05, "draws": 3, "prototype_weight": 1.0}
    switches = ("noise_shapes", "spread_weight", "spread_of_total", "prototype_gradient")
    printed = F2MVariant(noise_levels=5)
    variants = [replace(RELEASED, **{name: getattr(printed, name)})
                for name in (*switches, "clean_backward")]  # fmt: skip
    for variant in (*variants, RELEASED):  # with one switch as printed the step is another one
        split.network.load_state_dict(start)
        noise = torch.Generator().manual_seed(1)
        loss = f2m_loss(split, classifier, *batch, generator=noise, variant=variant, **options)
        slopes = torch.autograd.grad(loss.total, parameters)
        expected = [*other.network.parameters(), *head.parameters()]
        same = [torch.allclose(p - 0.1 * slope, after, rtol=1e-9, atol=1e-12)
                for p, slope, after in zip(parameters, slopes, expected, strict=True)]  # fmt: skip
        assert all(same) == (variant is RELEASED)


def test_spread_needs_two_draws(split, classifier, batch):
    with pytest.raises(ValueError, match="needs draws >= 2. Found draws=1"):
        loss_of(split, classifier, batch, {"spread_weight": 2.0}, draws=1)
    with pytest.raises(ValueError, match="spread_weight must be at least 0"):
        F2MVariant(spread_weight=-1.0)


# Few-shot sessions


def session(split, batch, region, **options):
    images, labels = batch
    classes = torch.tensor([7, 8], device=images.device)
    saved = class_means(split.network.eval()(images[:4]).detach(), torch.tensor([7, 7, 8, 8]))
    options = {"epochs": 3} | options
    return learn_session(split, region, images, labels, saved, classes, **options)


def session_as_released(split, images, saved, *, half, lr, epochs, augment):
    """Some steps of a session of three classes with four shots each in a row, written anew."""
    weights = [*split.tuned.values()]
    center = [weight.detach().clone() for weight in weights]
    optimizer = torch.optim.SGD(weights, lr=lr, momentum=0.9, weight_decay=5e-4)
    grid = 2 * half / 4  # a quarter of the width of the box
    again = 0
    for _ in range(epochs):
        optimizer.zero_grad()
        output = split.network(augment(images))
        novel = output.reshape(3, 4, -1).mean(dim=1)
        known = torch.cat([novel, saved])
        scores = -((output[:, None] - known[None]) ** 2).sum(dim=2)
        F.cross_entropy(scores, torch.arange(3).repeat_interleave(4)).backward()
        for weight in weights:
            steps = torch.round(weight.grad * lr / grid)
            if (steps == 0).all():
                again += 1
                steps = torch.round(weight.grad * lr * 2 / grid)
            weight.grad = steps * grid / lr
        optimizer.step()
        with torch.no_grad():
            for weight, start in zip(weights, center, strict=True):
                high, low = weight > start + half, weight < start - half
                weight[high], weight[low] = (start + half)[high], (start - half)[low]
    return again


def few_shots(split, batch):
    """Shots of three classes in a row, and two saved prototypes at about the distance of theirs."""
    split.network.eval().double()
    images, labels = batch[0].double(), 10 + torch.arange(12) // 4
    embeddings = split.network(images).detach()
    saved = torch.stack([embeddings[:6].mean(dim=0) + 0.1, embeddings[6:].mean(dim=0) - 0.1])
    return images, labels, saved, torch.tensor([0, 1])


def crops(seed):
    return partial(random_crop, padding=2, generator=torch.Generator().manual_seed(seed), flip=True)


@pytest.mark.parametrize("half", [0.005, 0.02])
def test_session_is_that_of_the_released_code(split, batch, half):
    given, steps = few_shots(split, batch), {"epochs": 6, "lr": 0.05}
    other, start = copy.deepcopy(split), copy.deepcopy(split.network.state_dict())
    again = session_as_released(other, given[0], given[2], half=half, augment=crops(0), **steps)
    assert again > 0
    expected = [*other.tuned.values()]
    switches = ("squared", "momentum", "weight_decay", "round_step")
    variants = [replace(RELEASED_SESSION, **{name: getattr(SessionVariant(), name)})
                for name in switches]  # fmt: skip
    for variant in (*variants, RELEASED_SESSION):
        for name, other_images in (("same", crops(0)), ("other", crops(1))):
            split.network.load_state_dict(start)
            region = FlatRegion(split.tuned, half)
            learn_session(split, region, *given, **steps,
                          variant=replace(variant, augment=other_images))  # fmt: skip
            same = [torch.allclose(a, b, rtol=0, atol=1e-9)
                    for a, b in zip(split.tuned.values(), expected, strict=True)]  # fmt: skip
            assert all(same) == (variant is RELEASED_SESSION and name == "same")
    assert region.share_clamped() > 0


def test_augmentation_of_the_released_session_draws_from_the_global_stream(split, batch):
    given = few_shots(split, batch)
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        twin = copy.deepcopy(split)
        region = FlatRegion(twin.tuned, 0.02)
        found.append(
            learn_session(twin, region, *given, epochs=2, lr=0.1, variant=RELEASED_SESSION)
        )
    assert found[0] == found[1] != found[2]


def test_each_step_of_a_session_sees_other_augmented_images(split, batch):
    given, seen = few_shots(split, batch), []

    def note(images):
        seen.append(images)
        return images + len(seen)

    learn_session(split, None, *given, epochs=3, lr=0.1, variant=SessionVariant(augment=note))
    assert len(seen) == 3
    assert all(torch.equal(images, given[0]) for images in seen)


def test_steps_are_on_the_grid_before_momentum(split, batch):
    """Of one step and no weight decay: multiples of half of the half-width."""
    region = FlatRegion(split.tuned, 1.0)
    session(split, batch, region, lr=1.0, epochs=1, variant=SessionVariant(round_step=0.01))
    moved = torch.cat([(p - region.center[n]).flatten() for n, p in split.tuned.items()]).detach()
    steps = moved / 0.01
    torch.testing.assert_close(steps, steps.round(), rtol=0, atol=1e-3)
    assert torch.count_nonzero(steps.round()) > 0


def test_steps_that_all_round_to_0_are_tried_once_more_at_twice_the_length():
    """Slopes of 0.2 and 0.3 grid steps: the first try gives 0, 0, the second 0, 1."""
    network = nn.Sequential(nn.Linear(2, 1, bias=False))
    split = split_network(network, ["0"])
    start = network[0].weight.detach().clone()
    options = {"epochs": 1, "lr": 1.0, "variant": SessionVariant(round_step=0.5)}
    given = torch.zeros(2, 2), [5, 5], torch.zeros(1, 1), [0]  # no slope of the few-shot loss
    for slopes, moved in (([0.1, 0.15], [0, 0.5]), ([0.1, 0.3], [0, 0.5]), ([0.1, 0.1], [0, 0])):
        with torch.no_grad():
            network[0].weight.copy_(start)
        pull = torch.tensor([slopes])
        learn_session(split, FlatRegion(split.tuned, 1.0), *given, **options,
                      penalty=lambda pull=pull: (pull * network[0].weight).sum())  # fmt: skip
        torch.testing.assert_close(start - network[0].weight, torch.tensor([moved]).float())


def test_rounding_needs_a_box_and_a_frozen_one_stays(split, batch):
    variant = SessionVariant(round_step=0.5)
    with pytest.raises(ValueError, match=r"round_step=0\.5 needs a region. Found none"):
        session(split, batch, None, lr=1.0, variant=variant)
    before = copy.deepcopy(split.network.state_dict())
    session(split, batch, FlatRegion(split.tuned, 0.0), lr=1.0, variant=RELEASED_SESSION)
    assert all(torch.equal(before[n], v) for n, v in split.network.state_dict().items())


@pytest.mark.parametrize("name", ["momentum", "weight_decay", "round_step"])
@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_wrong_numbers_of_a_session(name, value):
    with pytest.raises(ValueError, match=f"{name} must be a finite number >= 0"):
        SessionVariant(**{name: value})
