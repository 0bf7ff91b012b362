import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ktlib.fcl import class_means, few_shot_loss, nearest_class_mean, normalise_prototypes

EMBEDDINGS = torch.tensor([[0.0, 0.0], [2.0, 4.0], [5.0, 5.0]])
LABELS = torch.tensor([7, 7, 3])


def test_means_by_hand():
    assert class_means(EMBEDDINGS, LABELS).tolist() == [[5, 5], [1, 2]]
    assert class_means(EMBEDDINGS, LABELS, torch.tensor([7, 3])).tolist() == [[1, 2], [5, 5]]


def test_a_class_without_embedding():
    with pytest.raises(ValueError, match=r"Found none of \[4\]"):
        class_means(EMBEDDINGS, LABELS, torch.tensor([3, 4]))


def test_normalisation_makes_all_norms_equal():
    norms = normalise_prototypes(torch.randn(20, 8) * torch.rand(20, 1) * 100).norm(dim=1)
    torch.testing.assert_close(norms, torch.ones(20))


@given(seed=st.integers(0, 10_000), scale=st.floats(0.1, 50))
def test_equal_norms_make_nearest_the_largest_inner_product(seed, scale):
    torch.manual_seed(seed)
    prototypes = normalise_prototypes(torch.randn(6, 4, dtype=torch.float64)) * scale
    embeddings = torch.randn(10, 4, dtype=torch.float64) * 3
    by_product = (embeddings @ prototypes.T).argmax(dim=1)
    assert torch.equal(nearest_class_mean(embeddings, prototypes), by_product)


def test_normalisation_can_change_the_answer():
    prototypes = torch.tensor([[3.0, 0.0], [0.6, 0.8]])
    point = torch.tensor([[1.2, 0.5]])
    assert nearest_class_mean(point, prototypes).tolist() == [1]
    assert nearest_class_mean(point, normalise_prototypes(prototypes)).tolist() == [0]


def test_few_shot_loss_uses_distances_that_are_not_squared():
    embeddings, prototypes = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    expected = -math.log(math.exp(-5) / (math.exp(-5) + math.exp(-1)))
    assert few_shot_loss(embeddings, torch.tensor([0]), prototypes).item() == pytest.approx(
        expected
    )


def test_few_shot_loss_with_squared_distances():
    embeddings, prototypes = torch.tensor([[0.0, 0.0]]), torch.tensor([[3.0, 4.0], [0.0, 1.0]])
    expected = -math.log(math.exp(-25) / (math.exp(-25) + math.exp(-1)))
    found = few_shot_loss(embeddings, torch.tensor([0]), prototypes, squared=True)
    assert found.item() == pytest.approx(expected)


def test_squared_few_shot_loss_on_a_prototype_has_a_gradient():
    """A class of one shot: the distance to its own prototype is 0."""
    embeddings = torch.tensor([[1.0, 2.0]], requires_grad=True)
    prototypes = torch.tensor([[1.0, 2.0], [0.0, 2.0]])
    few_shot_loss(embeddings, torch.tensor([0]), prototypes, squared=True).backward()
    share = math.exp(-1) / (1 + math.exp(-1))  # of the other class, at distance 1
    torch.testing.assert_close(embeddings.grad, torch.tensor([[-2 * share, 0.0]]))


@given(seed=st.integers(0, 10_000))
def test_nearest_is_nearest_by_squared_distances_too(seed):
    torch.manual_seed(seed)
    embeddings, prototypes = torch.randn(10, 4).double(), torch.randn(6, 4).double()
    squares = (embeddings[:, None] - prototypes).square().sum(dim=2)
    assert torch.equal(nearest_class_mean(embeddings, prototypes), squares.argmin(dim=1))


def test_few_shot_loss_pulls_towards_the_own_prototype():
    embeddings = torch.tensor([[1.0, 1.0]], requires_grad=True)
    loss = few_shot_loss(embeddings, torch.tensor([0]), torch.tensor([[2.0, 1.0], [0.0, 1.0]]))
    loss.backward()
    assert embeddings.grad[0, 0] < 0
