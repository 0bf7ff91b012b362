import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import manifold
from sklearn.manifold import TSNE

from experiments.fcl.embedding_map import project


def embeddings(n=12, dim=5, seed=0):
    rng = np.random.default_rng(seed)
    before = rng.normal(size=(n, dim))
    return before, before + 0.3 * rng.normal(size=(n, dim))


def test_by_hand():
    """Four points of a cross in three dimensions: the long arm is the first axis."""
    before = np.array([[0.0, -3.0, 7.0], [1.0, 0.0, 7.0]])
    after = np.array([[0.0, 3.0, 7.0], [-1.0, 0.0, 7.0]])
    found = project(before, after)
    np.testing.assert_allclose(found.before, [(-3, 0), (0, 1)], atol=1e-12)
    np.testing.assert_allclose(found.after, [(3, 0), (0, -1)], atol=1e-12)
    assert found.explained == pytest.approx((0.9, 0.1))  # 2 * 3^2 and 2 * 1^2 of 20


def clusters():
    """Two far clusters of 30; after learning, the images of the second have joined the first."""
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(2, 30, 10)) + np.array([0.0, 50.0])[:, None, None]
    shift = 0.3 * rng.normal(size=(60, 10))
    return np.concatenate([near, far]), np.concatenate([near, near[::-1]]) + shift


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 30), st.integers(2, 40))
def test_pca_is_one_linear_map_that_stretches_nothing(seed, n, dim):
    before, after = embeddings(n, dim, seed)
    found = project(before, after)
    assert found.before.shape == found.after.shape == (n, 2)
    lengths = np.linalg.norm(found.after - found.before, axis=1)
    assert (lengths <= np.linalg.norm(after - before, axis=1) * (1 + 1e-9)).all()
    # The variance kept is the one named; the axes are sorted by it.
    kept = np.concatenate([found.before, found.after]).var(axis=0)
    total = np.concatenate([before, after]).var(axis=0).sum()
    np.testing.assert_allclose(kept / total, found.explained, rtol=1e-6, atol=1e-12)
    assert found.explained[0] >= found.explained[1] >= 0
    assert sum(found.explained) <= 1 + 1e-12


def test_equal_to_the_singular_vectors_of_both_sets_together():
    before, after = embeddings()
    found = project(before, after)
    rows = np.concatenate([before, after])
    axes = np.linalg.svd(rows - rows.mean(axis=0), full_matrices=False)[2][:2]
    axes *= np.sign(axes[range(2), np.abs(axes).argmax(axis=1)])[:, None]  # the documented sign
    np.testing.assert_allclose(found.before, (before - rows.mean(axis=0)) @ axes.T, atol=1e-10)
    np.testing.assert_allclose(found.after, (after - rows.mean(axis=0)) @ axes.T, atol=1e-10)


def test_two_dimensions_are_only_turned():
    before, after = embeddings(dim=2)
    found = project(before, after)
    np.testing.assert_allclose(
        np.linalg.norm(found.after - found.before, axis=1),
        np.linalg.norm(after - before, axis=1),
    )
    assert sum(found.explained) == pytest.approx(1.0)


def test_turning_the_data_round_turns_the_map_round():
    """The sign comes from the axes, not from the points."""
    before, after = embeddings()
    np.testing.assert_allclose(
        project(-before, -after).before, -project(before, after).before, atol=1e-10
    )


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_same_result_again_and_the_arguments_are_as_before(method):
    before, after = embeddings()
    kept = before.copy(), after.copy()
    first, again = (project(before, after, method=method, perplexity=5) for _ in range(2))
    np.testing.assert_array_equal(first.before, again.before)
    np.testing.assert_array_equal(first.after, again.after)
    np.testing.assert_array_equal(before, kept[0])
    np.testing.assert_array_equal(after, kept[1])


def test_nothing_moved_nothing_moves():
    before, _ = embeddings()
    found = project(before, before.copy())
    np.testing.assert_allclose(found.before, found.after, atol=1e-12)


def test_tsne_of_a_frozen_network_is_that_of_its_rows_alone():
    """Twins, left in, would change the map: scikit-learn leaves out the push between them."""
    before, _ = clusters()
    before = before[np.lexsort(before.T[::-1])]
    found = project(before, before.copy(), method="tsne", perplexity=8)
    np.testing.assert_array_equal(found.before, found.after)
    alone = TSNE(perplexity=8, random_state=0).fit_transform(before)
    np.testing.assert_array_equal(found.before, alone.astype(np.float64))


def test_tsne_shows_that_images_have_joined_another_cluster():
    before, after = clusters()
    found = project(before, after, method="tsne", perplexity=8)
    assert found.explained is None
    assert found.before.shape == found.after.shape == (60, 2)
    assert found.before.dtype == found.after.dtype == np.float64
    here, there = found.before[:30], found.before[30:]
    gap = np.linalg.norm(here.mean(axis=0) - there.mean(axis=0))
    for joined in (here, found.after):  # all images are in the first cluster afterwards
        assert np.linalg.norm(joined - here.mean(axis=0), axis=1).max() < gap / 2
    assert np.linalg.norm(there - there.mean(axis=0), axis=1).max() < gap / 2


def test_tsne_gets_the_settings_it_was_given(monkeypatch):
    settings = {}

    def recorded(**given):
        settings.update(given)
        return TSNE(**given)

    monkeypatch.setattr(manifold, "TSNE", recorded)
    project(*embeddings(), method="tsne", perplexity=5, random_state=9)
    assert settings == {"n_components": 2, "perplexity": 5, "random_state": 9}


def test_tensors_and_arrays_give_one_map():
    before, after = embeddings()
    tensors = project(torch.tensor(before, requires_grad=True), torch.tensor(after))
    np.testing.assert_array_equal(tensors.before, project(before, after).before)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "umap"}, "method must be 'pca' or 'tsne'. Found method='umap'"),
        ({"method": "tsne"}, "perplexity must be above 0 and below 24, .* Found perplexity=30.0"),
        ({"method": "tsne", "perplexity": 24}, "below 24"),
        ({"method": "tsne", "perplexity": 0}, "above 0"),
        ({"method": "tsne", "perplexity": float("nan")}, "above 0"),
        ({"embeddings_after": np.ones((11, 5))}, r"one shape .* Found \(12, 5\) and \(11, 5\)"),
        ({"embeddings_after": np.full((12, 5), np.nan)}, "embeddings must be finite numbers"),
    ],
)
def test_wrong_arguments(change, message):
    before, after = embeddings()
    with pytest.raises(ValueError, match=message):
        project(**({"embeddings_before": before, "embeddings_after": after} | change))


@pytest.mark.parametrize("shape", [(12,), (12, 1), (0, 5), (3, 4, 5)])
def test_wrong_shapes(shape):
    with pytest.raises(ValueError, match="embeddings must have the shape"):
        project(np.ones(shape), np.ones(shape))


def test_rows_that_are_all_alike():
    with pytest.raises(ValueError, match="embeddings must differ somewhere"):
        project(np.ones((4, 5)), np.ones((4, 5)))
