import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ktlib.fcl import draw_noise, flatness, split_network
from ktlib.fcl.flatness import flatness_together


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_cached_prefix_gives_the_losses_of_full_passes(split, classifier, batch):
    images, labels = batch
    found = flatness(
        split, classifier, images, labels, bound=0.05, draws=4, generator=generator(), batch_size=5
    )
    split.network.eval()
    naive, rng = copy.deepcopy(split), generator()
    center = {name: p.detach().clone() for name, p in naive.tuned.items()}
    losses = []
    with torch.no_grad():
        for _ in range(4):
            for name, value in draw_noise(naive.tuned, 0.05, rng).items():
                naive.tuned[name].copy_(center[name] + value)
            losses.append(F.cross_entropy(classifier(naive.network(images)), labels))
            for name, p in naive.tuned.items():
                p.copy_(center[name])
        minimum = F.cross_entropy(classifier(split.network(images)), labels)
    torch.testing.assert_close(found.losses.float(), torch.stack(losses), rtol=1e-5, atol=1e-6)
    assert found.loss_at_minimum == pytest.approx(minimum.item(), rel=1e-5)


def test_indicator_and_variance_are_those_of_the_losses(split, classifier, batch):
    found = flatness(split, classifier, *batch, bound=0.1, draws=50, generator=generator())
    gap = found.losses - found.loss_at_minimum
    assert found.indicator == pytest.approx(float((gap**2).mean()))
    assert found.indicator == pytest.approx(found.variance + float(gap.mean()) ** 2)
    assert found.variance > 0


def test_by_hand_for_a_linear_loss():
    """Loss w with one weight: losses are w + eps, so I is the mean of eps^2, about b^2 / 3."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    split = split_network(network, ["0"])

    def two_scores(e):  # cross-entropy of (0, -K + e) for class 0 is exp(e - K): linear for small e
        return torch.cat([torch.zeros_like(e), e - 8.0], dim=1)

    found = flatness(
        split, two_scores, torch.ones(1, 1, dtype=torch.float32), torch.tensor([0]),
        bound=0.05, draws=4000, generator=generator(),
    )  # fmt: skip
    slope = found.loss_at_minimum
    assert found.indicator == pytest.approx(slope**2 * 0.05**2 / 3, rel=0.1)


def test_zero_where_the_loss_is_constant(split, batch):
    constant = nn.Linear(32, 3)
    nn.init.zeros_(constant.weight)
    found = flatness(split, constant, *batch, bound=0.5, draws=5, generator=generator())
    assert found.indicator == found.variance == 0.0


def test_bound_zero_is_flat(split, classifier, batch):
    found = flatness(split, classifier, *batch, bound=0.0, draws=3, generator=generator())
    assert found.indicator == pytest.approx(0.0, abs=1e-12)


def test_same_seed_same_result_and_the_network_is_as_before(split, classifier, batch):
    split.network.train()
    before = {name: value.clone() for name, value in split.network.state_dict().items()}
    first, second = (
        flatness(split, classifier, *batch, bound=0.1, draws=5, generator=generator())
        for _ in range(2)
    )
    assert torch.equal(first.losses, second.losses)
    assert split.network.training
    after = split.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"draws": 0}, "draws must be at least 1"),
        ({"bound": -1.0}, "bound must be a finite number"),
        ({"labels": torch.zeros(12)}, r"labels must be \(n,\) integers.*float32"),
        ({"images": torch.zeros(12, 1, 12, 12).byte()}, "floating-point numbers for this network"),
        ({"images": torch.full((12, 1, 12, 12), float("nan"))}, "the loss is NaN: images"),
    ],
)
def test_wrong_arguments(split, classifier, batch, wrong, message):
    given = {"images": batch[0], "labels": batch[1], "bound": 0.1, "generator": generator()}
    with pytest.raises((ValueError, FloatingPointError), match=message):
        flatness(split, classifier, **(given | wrong))


def test_together_is_apart_with_the_same_draws(split, classifier, batch):
    other = copy.deepcopy(split)
    with torch.no_grad():
        next(iter(other.tuned.values())).mul_(2)
    other.network.train()
    half = [part[:5] for part in batch]
    cases = {("a", 0): (split, classifier, *batch), "b": (split, classifier, *half),
             "c": (other, classifier, *half)}  # fmt: skip
    options = {"bound": 0.1, "draws": 4, "batch_size": 3}
    apart = {name: flatness(*case, generator=generator(1), **options)
             for name, case in cases.items()}  # fmt: skip
    rng = generator(1)
    together = flatness_together(cases, generator=rng, **options)
    assert list(together) == list(apart)
    for name, found in together.items():
        assert torch.equal(found.losses, apart[name].losses)
        assert vars(found) == {**vars(apart[name]), "losses": found.losses}
    assert len({found.indicator for found in together.values()}) == 3
    assert other.network.training
    # As much is drawn as for one of them.
    flatness(*cases["b"], generator=(once := generator(1)), **options)
    assert torch.equal(rng.get_state(), once.get_state())


def test_cases_that_cannot_share_their_draws(split, classifier, batch):
    options = {"bound": 0.1, "draws": 1, "generator": generator()}
    wide = copy.deepcopy(split)
    wide.network.double()
    with pytest.raises(ValueError, match="same names, shapes.* Those of 'wide' differ from .*'a'"):
        flatness_together(dict.fromkeys("ab", (split, classifier, *batch))
                          | {"wide": (wide, classifier, *batch)}, **options)  # fmt: skip
    with pytest.raises(ValueError, match="number of cases must be at least 1"):
        flatness_together({}, **options)


@pytest.mark.parametrize("turn", [torch.Tensor.numpy, torch.Tensor.tolist, torch.Tensor.int])
def test_labels_in_other_clothes(split, classifier, batch, turn):
    options = {"bound": 0.1, "draws": 3}
    found = [
        flatness(split, classifier, batch[0].double(), labels, generator=generator(), **options)
        for labels in (batch[1], turn(batch[1]))
    ]
    assert torch.equal(found[0].losses, found[1].losses)


def test_half_precision_is_about_right_and_lost_noise_is_told(split, classifier, batch):
    plain = flatness(split, classifier, *batch, bound=0.1, draws=20, generator=generator())
    split.network.bfloat16()
    scores = lambda embeddings: classifier(embeddings.float())  # noqa: E731
    found = flatness(split, scores, *batch, bound=0.1, draws=20, generator=generator())
    assert found.indicator == pytest.approx(plain.indicator, rel=0.3)
    with pytest.warns(UserWarning, match="below the rounding of torch.bfloat16"):
        flatness(split, scores, *batch, bound=1e-6, draws=1, generator=generator())


def test_no_images(split, classifier):
    with pytest.raises(ValueError, match="number of images must be at least 1"):
        flatness(
            split, classifier, torch.zeros(0, 1, 8, 8), torch.zeros(0, dtype=torch.long),
            bound=0.1, generator=generator(),
        )  # fmt: skip
