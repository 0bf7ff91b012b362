"""Gaussian statistics of classes, and heads that are aligned with them."""

import numpy as np
import pytest
import torch
from sklearn.covariance import ledoit_wolf as scikit_learns

from ktlib.cpeft.heads import JoinedHead
from ktlib.cpeft.statistics import ClassStatistics, align_head, ledoit_wolf

MEANS = torch.tensor([[2.0, 0.0, 0.0], [-2.0, 0.0, 1.0], [0.0, 3.0, 0.0]])
ROOT = torch.tensor([[0.6, 0.3, 0.0], [0.3, 0.5, 0.1], [0.0, 0.1, 0.4]])


def draw(per_class, seed=0):
    """Features of the classes 7, 3 and 5."""
    noise = torch.randn(3, per_class, 3, generator=torch.Generator().manual_seed(seed))
    labels = torch.tensor([7, 3, 5]).repeat_interleave(per_class)
    return (MEANS[:, None] + noise @ ROOT).flatten(0, 1), labels


@pytest.fixture
def statistics():
    noted = ClassStatistics(3)
    noted.add(*draw(4000))
    return noted


def test_mean_and_covariance_are_those_of_the_features(statistics):
    assert statistics.classes.tolist() == [3, 5, 7]
    torch.testing.assert_close(statistics.means, MEANS[[1, 2, 0]], atol=0.05, rtol=0)
    for covariance in statistics.covariances:
        torch.testing.assert_close(covariance, ROOT @ ROOT, atol=0.03, rtol=0)
    features, labels = draw(4000)
    exact = torch.cov(features[labels == 5].T)
    torch.testing.assert_close(statistics.covariances[1], exact, atol=2e-3, rtol=0)


def test_samples_have_the_moments_that_were_noted(statistics):
    features, labels = statistics.sample(20_000, torch.Generator().manual_seed(1))
    assert labels.tolist() == [3] * 20_000 + [5] * 20_000 + [7] * 20_000
    for row, label in enumerate((3, 5, 7)):
        own = features[labels == label]
        torch.testing.assert_close(own.mean(dim=0), statistics.means[row], atol=0.02, rtol=0)
        torch.testing.assert_close(torch.cov(own.T), statistics.covariances[row], atol=0.02, rtol=0)
    again, _ = statistics.sample(20_000, torch.Generator().manual_seed(1))
    assert torch.equal(again, features)


def test_few_images_leave_no_flat_covariance():
    """Ten images in 20 dimensions span nine: the other eleven get their share of the spread."""
    features = torch.randn(10, 20, generator=torch.Generator().manual_seed(0))
    noted = ClassStatistics(20)
    noted.add(features, torch.zeros(10, dtype=torch.int64))
    values = torch.linalg.eigvalsh(noted.covariances[0])
    assert float(values.min()) > 0.3
    assert float(values.max()) < float(torch.linalg.eigvalsh(torch.cov(features.T)).max())
    assert float(values.sum()) == pytest.approx(float(torch.cov(features.T).trace()), rel=1e-4)


def test_classes_come_one_task_after_the_other():
    features, labels = draw(50)
    parallel_map, one_by_one = ClassStatistics(3), ClassStatistics(3)
    parallel_map.add(features, labels)
    for label in (3, 5, 7):
        one_by_one.add(features[labels == label], labels[labels == label])
    assert torch.equal(parallel_map.means, one_by_one.means)
    assert torch.equal(parallel_map.roots, one_by_one.roots)


def test_images_that_are_all_the_same_have_no_spread():
    noted = ClassStatistics(3)
    noted.add(torch.ones(4, 3), torch.zeros(4, dtype=torch.int64))
    features, _ = noted.sample(5, torch.Generator().manual_seed(0))
    assert torch.equal(features, torch.ones(5, 3))


def test_what_is_no_statistics_is_refused(statistics):
    with pytest.raises(ValueError, match=r"features must be \(n, 3\). Found shape \(4, 2\)"):
        statistics.add(torch.zeros(4, 2), torch.zeros(4, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be \(4,\)"):
        statistics.add(torch.zeros(4, 3), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ValueError, match=r"labels must be of new classes. Found \[3\] again"):
        statistics.add(torch.zeros(4, 3), torch.tensor([3, 3, 9, 9]))
    with pytest.raises(ValueError, match=r"at least two images.*Found one of \[9\]"):
        statistics.add(torch.zeros(3, 3), torch.tensor([8, 8, 9]))
    with pytest.raises(ValueError, match="features must be finite"):
        statistics.add(torch.full((2, 3), torch.nan), torch.tensor([8, 8]))
    assert len(statistics.classes) == 3
    with pytest.raises(ValueError, match="at least one class. Found none"):
        ClassStatistics(3).sample(2, torch.Generator())
    with pytest.raises(ValueError, match="dim must be at least 1"):
        ClassStatistics(0)


# Alignment -------------------------------------------------------------------------------------


def biased_head():
    """Two heads that were never compared: the second one shouts."""
    head = JoinedHead(3)
    head.add(torch.tensor([7, 3]), seed=0)
    head.add(torch.tensor([5]), seed=1)
    with torch.no_grad():
        head.head(2).bias.fill_(20.0)
    return head


def accuracy(head, features, labels):
    best = head.classes[head(features).argmax(dim=1)]
    return float((best == labels).double().mean())


def test_alignment_repairs_a_biased_head(statistics):
    head = biased_head()
    features, labels = draw(200, seed=5)
    assert accuracy(head, features, labels) == pytest.approx(1 / 3, abs=0.01)  # all taken for 5
    losses = align_head(head, statistics, steps=150, lr=0.5, per_class=16, seed=0)
    assert len(losses) == 150
    assert losses[-1] < 0.1 < losses[0]
    assert accuracy(head, features, labels) > 0.97


def test_the_seed_decides_the_alignment(statistics):
    heads = []
    for seed in (0, 0, 1):
        head = biased_head()
        align_head(head, statistics, steps=3, lr=0.1, per_class=2, seed=seed)
        heads.append(head.head(1).weight.detach())
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])


def test_every_column_is_trained_and_no_step_leaves_the_head(statistics):
    before, head = biased_head(), biased_head()
    assert align_head(head, statistics, steps=0, lr=0.1, per_class=2, seed=0) == []
    for own, old in zip(head.parameters(), before.parameters(), strict=True):
        assert torch.equal(own, old)
    align_head(head, statistics, steps=1, lr=0.1, per_class=2, seed=0)
    for own, old in zip(head.parameters(), before.parameters(), strict=True):
        assert not bool((own == old).any())


def test_heads_without_statistics_and_bad_settings_are_refused(statistics):
    head = biased_head()
    settings = {"steps": 2, "lr": 0.1, "per_class": 2, "seed": 0}
    head.add(torch.tensor([9]), seed=2)
    with pytest.raises(ValueError, match=r"same classes. Found \[7, 3, 5, 9\] and \[3, 5, 7\]"):
        align_head(head, statistics, **settings)
    for name, value in (("steps", -1), ("lr", 0.0), ("per_class", 0)):
        with pytest.raises(ValueError, match=f"{name} must be"):
            align_head(biased_head(), statistics, **(settings | {name: value}))
    broken = biased_head()
    with torch.no_grad():
        broken.head(1).weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match="at step 1: lower the lr"):
        align_head(broken, statistics, **settings)


@pytest.mark.parametrize(("images", "dim"), [(2, 3), (5, 96), (40, 16), (4, 1)])
def test_the_shrinkage_is_that_of_scikit_learn_bit_by_bit(images, dim):
    rng = np.random.RandomState(0)
    features = rng.randn(images, dim) @ rng.randn(dim, dim) + rng.randn(dim)
    assert np.array_equal(ledoit_wolf(features), scikit_learns(features)[0])
