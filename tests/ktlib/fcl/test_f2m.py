import copy

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ktlib.fcl import (
    BaseTraining,
    FlatRegion,
    class_means,
    draw_noise,
    f2m_loss,
    learn_session,
    split_network,
    train_base,
)
from ktlib.testing import assert_gradient_flow, assert_step_updates

OPTIONS = {"bound": 0.05, "draws": 3, "prototype_weight": 0.7}


def gradients(loss, *modules):
    return torch.autograd.grad(loss, [p for module in modules for p in module.parameters()])


def test_without_noise_it_is_plain_training_bit_for_bit(split, classifier, batch, noise):
    images, labels = batch
    plain, head = copy.deepcopy(split), copy.deepcopy(classifier)
    settings = BaseTraining(epochs=3, batch_size=5, lr=0.1, padding=1)
    train_base(
        plain.network, head, images, labels,
        lambda x, y: F.cross_entropy(head(plain.network(x)), y),
        settings, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    train_base(
        split.network, classifier, images, labels,
        lambda x, y: f2m_loss(
            split, classifier, x, y, bound=0.0, draws=1, prototype_weight=0.0, generator=noise
        ).total,
        settings, generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    state, expected = split.network.state_dict(), plain.network.state_dict()
    assert all(torch.equal(state[name], value) for name, value in expected.items())
    assert torch.equal(classifier.weight, head.weight)


@pytest.mark.parametrize("draws", [1, 2, 4])
@pytest.mark.parametrize("prototype_weight", [0.0, 0.7])
def test_shared_prefix_has_the_gradient_of_full_passes(
    split, classifier, batch, device, draws, prototype_weight
):
    """Naive: add the noise to the weights, run everything, read the gradients there.

    In float64, where the order of summation does not matter; in float32 the two differ by rounding.
    """
    split.network.double(), classifier.double()
    images, labels = batch[0].double(), batch[1]
    rng = torch.Generator(device=device).manual_seed(5)
    options = {"bound": 0.05, "draws": draws, "prototype_weight": prototype_weight}
    loss = f2m_loss(split, classifier, images, labels, generator=rng, **options)
    found = gradients(loss.total, split.network, classifier)

    rng = torch.Generator(device=device).manual_seed(5)
    still = split.network(images)
    total = 0.0
    for _ in range(draws):
        eps = draw_noise(split.tuned, 0.05, rng)
        weights = dict(split.network.named_parameters())
        noisy = weights | {name: weights[name] + value for name, value in eps.items()}
        embeddings = torch.func.functional_call(split.network, noisy, (images,))
        shift = (
            (class_means(still, labels) - class_means(embeddings, labels)).square().sum(1).mean()
        )
        total = total + F.cross_entropy(classifier(embeddings), labels) + prototype_weight * shift
    expected = gradients(total / draws, split.network, classifier)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11)


def test_gradient_is_taken_at_the_noisy_point_by_hand():
    """f(x) = wx, cross-entropy of (0, wx): the slope at w + eps is -x sigmoid(-(w + eps) x)."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    split = split_network(network, ["0"])
    x, label = torch.tensor([[2.0]]), torch.tensor([1])
    eps = draw_noise(split.tuned, 0.5, torch.Generator().manual_seed(9))["0.weight"]
    loss = f2m_loss(
        split, lambda e: torch.cat([torch.zeros_like(e), e], dim=1), x, label,
        bound=0.5, draws=1, prototype_weight=0.0, generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    loss.total.backward()
    w = network[0].weight.detach()
    expected = -2.0 * torch.sigmoid(-2.0 * (w + eps))
    torch.testing.assert_close(network[0].weight.grad, expected)
    assert eps.abs() > 1e-3


def test_prototype_shift_by_hand():
    """With f(x) = w x and one image x per class the prototypes move by eps x."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    split = split_network(network, ["0"])
    images, labels = torch.tensor([[1.0], [3.0]]), torch.tensor([0, 1])
    eps = draw_noise(split.tuned, 0.5, torch.Generator().manual_seed(9))["0.weight"].item()
    loss = f2m_loss(
        split, nn.Linear(1, 2), images, labels,
        bound=0.5, draws=1, prototype_weight=2.0, generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    assert loss.prototype_shift.item() == pytest.approx(eps**2 * (1 + 9) / 2, rel=1e-5)
    expected = loss.cross_entropy.item() + 2.0 * loss.prototype_shift.item()
    assert loss.total.item() == pytest.approx(expected)


def test_total_is_the_mean_over_draws(split, classifier, batch, noise):
    loss = f2m_loss(split, classifier, *batch, generator=noise, **OPTIONS)
    assert loss.cross_entropy.shape == loss.prototype_shift.shape == (3,)
    assert loss.cross_entropy.unique().numel() == 3
    expected = loss.cross_entropy.mean() + 0.7 * loss.prototype_shift.mean()
    torch.testing.assert_close(loss.total, expected)


def test_parameters_are_as_before_after_the_draws(split, classifier, batch, noise):
    before = {name: p.detach().clone() for name, p in split.network.named_parameters()}
    f2m_loss(split, classifier, *batch, generator=noise, **OPTIONS).total.backward()
    after = dict(split.network.named_parameters())
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_every_term_and_every_parameter_takes_part(split, classifier, batch, noise):
    def terms():
        loss = f2m_loss(split, classifier, *batch, generator=noise, **OPTIONS)
        return {
            "cross-entropy": loss.cross_entropy.mean(),
            "prototypes": loss.prototype_shift.mean(),
        }

    trainable = dict(split.network.named_parameters()) | {"classifier": classifier.weight}
    assert_gradient_flow(terms, trainable)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"draws": 0}, "draws must be at least 1. Found draws=0"),
        ({"bound": -0.1}, "bound must be a finite number >= 0. Found bound=-0.1"),
        ({"prototype_weight": -1.0}, "prototype_weight must be at least 0"),
        ({"labels": torch.zeros(12)}, r"labels must be \(n,\) integers.*float32"),
        ({"images": torch.zeros(12, 1, 12, 12).byte()}, "floating-point numbers for this network"),
    ],
)
def test_wrong_arguments(split, classifier, batch, noise, wrong, message):
    given = {"images": batch[0], "labels": batch[1], "generator": noise}
    with pytest.raises(ValueError, match=message):
        f2m_loss(split, classifier, **(OPTIONS | given | wrong))


CLOTHES = [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.int, torch.Tensor.byte]


@pytest.mark.parametrize("turn", CLOTHES)
def test_images_and_labels_in_other_clothes(split, classifier, batch, turn):
    totals = []
    for images, labels in (batch, (batch[0].double().numpy(), turn(batch[1]))):
        rng = torch.Generator().manual_seed(0)
        loss = f2m_loss(split.network.eval() and split, classifier, images, labels,
                        generator=rng, **OPTIONS)  # fmt: skip
        totals.append(loss.total.item())
    assert totals[0] == totals[1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_about_right(split, classifier, batch, base, shots, dtype):
    split.network.eval()
    half, head = copy.deepcopy(split), copy.deepcopy(classifier).to(dtype)
    half.network.to(dtype)
    losses = [
        f2m_loss(s, c, *batch, generator=torch.Generator().manual_seed(0), **OPTIONS)
        for s, c in ((split, classifier), (half, head))
    ]
    assert losses[1].total.dtype == torch.float32
    torch.testing.assert_close(losses[1].total, losses[0].total, rtol=0.03, atol=0)
    losses[1].total.backward()
    region = FlatRegion(half.tuned, 0.01)
    history = [
        learn_session(s, r, *shots, *base, epochs=3, lr=0.1)
        for s, r in ((split, None), (half, region))
    ]
    assert history[1][0] == pytest.approx(history[0][0], rel=0.03)
    assert region.contains()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_noise_of_half_precision_stays_in_the_box_too(dtype):
    weights = {"w": torch.zeros(20_000, dtype=dtype)}
    for levels in (0, 5):
        eps = draw_noise(weights, 0.001, torch.Generator().manual_seed(0), levels)["w"]
        assert eps.dtype == dtype
        assert 0.00099 < float(eps.double().abs().max()) <= 0.001


def test_means_of_many_in_half_precision():
    """In bfloat16 a count of 1001 images would be 1000."""
    values = torch.ones(1001, 1, dtype=torch.bfloat16)
    assert class_means(values, [0] * 1001).tolist() == [[1.0]]
    with pytest.raises(ValueError, match=r"every one of the classes. Found none of \[7\]"):
        class_means(values, np.zeros(1001, "int32"), [0, 7])


# Few-shot sessions


@pytest.fixture
def shots(device):
    torch.manual_seed(4)
    return torch.randn(10, 1, 12, 12).to(device), 10 + torch.arange(10).to(device) % 2


@pytest.fixture
def base(split, batch):
    split.network.eval()
    with torch.no_grad():
        return class_means(split.network(batch[0]), batch[1]), torch.arange(3).to(batch[1])


def test_session_moves_the_tuned_weights_alone(split, shots, base):
    region = FlatRegion(split.tuned, 0.01)
    others = {n: p for n, p in split.network.named_parameters() if n not in split.tuned}
    others |= dict(split.network.named_buffers())
    assert_step_updates(
        lambda: learn_session(split, region, *shots, *base, epochs=2, lr=0.1), split.tuned, others
    )


def test_session_stays_in_the_box_and_without_it_does_not(split, shots, base):
    free = copy.deepcopy(split)
    region = FlatRegion(split.tuned, 0.001)
    learn_session(split, region, *shots, *base, epochs=5, lr=1.0)
    assert region.contains()
    unheld = FlatRegion(free.tuned, 0.001)
    learn_session(free, None, *shots, *base, epochs=5, lr=1.0)
    assert not unheld.contains()


def test_session_learns(split, shots, base):
    losses = learn_session(split, None, *shots, *base, epochs=20, lr=0.05)
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.1


def test_session_leaves_no_gradient_behind(split, shots, base):
    learn_session(split, None, *shots, *base, epochs=1, lr=0.05)
    assert all(p.grad is None for p in split.network.parameters())


def test_session_refuses_base_images(split, shots, base):
    images, labels = shots
    labels = labels.clone()
    labels[0] = 1
    with pytest.raises(ValueError, match=r"base data is not kept.*\[1\]"):
        learn_session(split, None, images, labels, *base, epochs=1, lr=0.1)


def test_penalty_adds_its_value_and_its_gradient(split, shots, base):
    """With 3 times the sum of one weight tensor, every entry of it moves by 3 lr more."""
    plain = copy.deepcopy(split)
    name, weight = next(iter(split.tuned.items()))
    value = 3 * weight.sum().item() + 100
    first = learn_session(plain, None, *shots, *base, epochs=1, lr=0.1)
    second = learn_session(
        split, None, *shots, *base, epochs=1, lr=0.1, penalty=lambda: 3 * weight.sum() + 100
    )
    assert second[0] - first[0] == pytest.approx(value, rel=1e-5)
    moved = plain.tuned[name] - split.tuned[name]
    torch.testing.assert_close(moved, torch.full_like(moved, 0.3), rtol=0, atol=1e-6)
    for other in list(split.tuned)[1:]:
        assert torch.equal(plain.tuned[other], split.tuned[other])


def test_a_penalty_of_0_changes_nothing(split, shots, base):
    plain = copy.deepcopy(split)
    weight = next(iter(split.tuned.values()))
    first = learn_session(plain, None, *shots, *base, epochs=3, lr=0.1)
    second = learn_session(
        split, None, *shots, *base, epochs=3, lr=0.1, penalty=lambda: 0 * weight.square().sum()
    )
    assert first == second
    assert all(torch.equal(plain.tuned[name], split.tuned[name]) for name in split.tuned)


@pytest.mark.parametrize("turn", CLOTHES)
def test_session_takes_labels_in_other_clothes(split, shots, base, turn):
    plain = copy.deepcopy(split)
    first = learn_session(plain, None, *shots, *base, epochs=2, lr=0.1)
    means, classes = base
    given = shots[0].double().numpy(), turn(shots[1]), means.double(), turn(classes)
    assert learn_session(split, None, *given, epochs=2, lr=0.1) == first


def test_session_refuses_what_does_not_fit(split, shots, base):
    (images, labels), (means, classes) = shots, base
    for given, message in (
        ((images[:0], labels[:0], means, classes), "number of images must be at least 1"),
        ((images, labels, means, classes[:2]), "base_classes must be 3, one for each.*Found 2"),
        ((images, labels + 0.5, means, classes), "labels must be"),
        ((images.byte(), labels, means, classes), "floating-point numbers for this network"),
    ):
        with pytest.raises(ValueError, match=message):
            learn_session(split, None, *given, epochs=1, lr=0.1)
    name, weight = next(iter(split.tuned.items()))
    weight.requires_grad_(False)
    with pytest.raises(ValueError, match=rf"tuned weights must need gradients.*'{name}'"):
        learn_session(split, None, *shots, *base, epochs=1, lr=0.1)


@pytest.mark.parametrize(("epochs", "lr"), [(0, 0.1), (1, 0.0), (1, -1.0), (1, float("nan"))])
def test_session_refuses_wrong_numbers(split, shots, base, epochs, lr):
    with pytest.raises(ValueError, match=r"epochs must be at least 1|lr must be above 0"):
        learn_session(split, None, *shots, *base, epochs=epochs, lr=lr)


def test_proximal_step_comes_after_the_step_and_before_the_clamp(split, shots, base):
    plain = copy.deepcopy(split)
    learn_session(plain, None, *shots, *base, epochs=1, lr=0.1)
    start = {name: weight.detach().clone() for name, weight in split.tuned.items()}
    region, seen = FlatRegion(split.tuned, 0.01), []

    def proximal():
        seen.append([weight.detach().clone() for weight in split.tuned.values()])
        for weight in split.tuned.values():
            weight.add_(1)

    learn_session(split, region, *shots, *base, epochs=1, lr=0.1, proximal=proximal)
    for after, expected in zip(seen[0], plain.tuned.values(), strict=True):
        assert torch.equal(after, expected)
    assert region.share_clamped() == 1.0
    for name, weight in split.tuned.items():
        torch.testing.assert_close(weight.detach(), start[name] + 0.01)
    learn_session(split, region, *shots, *base, epochs=3, lr=0.1, proximal=proximal)
    assert len(seen) == 4


def test_facts_of_the_first_step(split, shots, base):
    """The step is lr times the gradient; the penalty pulls each entry of one tensor by 3."""
    plain, told = copy.deepcopy(split), copy.deepcopy(split)
    start = [weight.detach().clone() for weight in split.tuned.values()]
    learn_session(plain, None, *shots, *base, epochs=1, lr=0.1)
    moved = [a - b for a, b in zip(plain.tuned.values(), start, strict=True)]
    facts = {"other": 1.0}
    first = next(iter(told.tuned.values()))

    def shrink():
        first.sub_(0.5)

    options = {"epochs": 2, "lr": 0.1, "penalty": lambda: 3 * first.sum(), "proximal": shrink}
    losses = learn_session(told, None, *shots, *base, **options, facts=facts)
    count = first.numel() ** 0.5
    step = torch.cat([change.flatten() for change in moved]).norm().item()
    expected = {"data": step / 0.1, "penalty": 3 * count, "proximal": 5 * count}
    assert facts == pytest.approx({"other": 1.0} | expected, rel=1e-4)
    # To ask changes nothing.
    first = next(iter(split.tuned.values()))
    options["penalty"] = lambda: 3 * first.sum()
    assert learn_session(split, None, *shots, *base, **options) == losses
    assert all(torch.equal(told.tuned[name], split.tuned[name]) for name in split.tuned)


@pytest.mark.parametrize("penalty", [None, lambda: torch.tensor(2.0)])
def test_facts_of_what_there_is_not(split, shots, base, penalty):
    facts = {}
    learn_session(split, None, *shots, *base, epochs=1, lr=0.1, penalty=penalty, facts=facts)
    assert facts["data"] > 0
    assert facts["penalty"] == facts["proximal"] == 0.0
