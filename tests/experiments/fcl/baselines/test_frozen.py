import copy

import numpy as np
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.linear_model import Ridge as ScikitRidge

from experiments.fcl.baselines import Lda, NearestMean, Ridge, Teen, run_learner
from experiments.fcl.baselines.frozen import calibrated
from ktlib.fcl import class_means, embed


@pytest.fixture
def embeddings_of(problem, split):
    """Embeddings and labels, in float64, of all training images of sessions up to a number."""
    sessions, images, labels, *_ = problem

    def found(number, first=1):
        rows = torch.cat([session.train for session in sessions[first - 1 : number]])
        values = embed(split.network, images[rows]).double().cpu().numpy()
        return values, labels[rows].cpu().numpy()

    return found


@pytest.fixture
def test_embeddings(problem, split):
    return embed(split.network, problem[3]).double().cpu().numpy()


def run_until(learner, problem, number):
    """Start and learn the sessions up to a number."""
    sessions, images, labels, *_ = problem
    for session in sessions[:number]:
        step = learner.start if session.number == 1 else learner.learn
        step(images[session.train], labels[session.train])
    return learner


def test_calibration_by_hand():
    """New (0, 2); base along the axes: cosines 0 and 1, times log 3: weights 1/4 and 3/4.

    Their mean (1, 3) / 4 has the direction (1, 3) / sqrt 10.
    """
    new, base = torch.tensor([[0.0, 2.0]]), torch.tensor([[5.0, 0.0], [0.0, 7.0]])
    temperature = float(np.log(3))
    direction = np.array([1, 3]) / np.sqrt(10)
    assert np.allclose(calibrated(new, base, temperature, 1.0), [direction])
    assert np.allclose(calibrated(new, base, temperature, 0.0), [[0, 1]])
    halfway = (direction + np.array([0, 1])) / 2
    assert np.allclose(calibrated(new, base, temperature, 0.5), [halfway])


def test_without_a_shift_prototypes_stay(problem, split):
    frozen = run_learner(NearestMean(copy.deepcopy(split)), *problem)
    assert run_learner(Teen(copy.deepcopy(split), shift=0.0), *problem) == frozen
    moved = run_learner(Teen(split, shift=0.9), *problem)
    assert moved.rows[0] == frozen.rows[0]  # nothing is new in session 1
    assert moved != frozen


def test_teen_is_the_formula_written_out(problem, split, embeddings_of, test_embeddings):
    learner = run_until(Teen(split, temperature=8.0, shift=0.3), problem, 3)
    base, base_labels = embeddings_of(1)
    new, new_labels = embeddings_of(3, first=2)

    def directions(values):
        return values / np.linalg.norm(values, axis=1, keepdims=True)

    def means(values, labels):
        return directions(np.stack([values[labels == c].mean(axis=0) for c in np.unique(labels)]))

    old, fresh = means(base, base_labels), means(new, new_labels)
    weights = np.exp(8.0 * fresh @ old.T)
    pulled = directions(weights / weights.sum(axis=1, keepdims=True) @ old)
    prototypes = directions(np.concatenate([old, 0.7 * fresh + 0.3 * pulled]))
    classes = np.concatenate([np.unique(base_labels), np.unique(new_labels)])
    expected = classes[(test_embeddings @ prototypes.T).argmax(axis=1)]
    assert learner.predict(problem[3]).tolist() == expected.tolist()


@pytest.mark.parametrize("shrinkage", [0.01, 0.3, 1.0])
def test_lda_of_the_base_session_is_that_of_scikit_learn(
    shrinkage, problem, split, embeddings_of, test_embeddings
):
    learner = run_until(Lda(split, shrinkage=shrinkage), problem, 1)
    other = LinearDiscriminantAnalysis(solver="lsqr", shrinkage=shrinkage)
    other.fit(*embeddings_of(1))
    assert learner.predict(problem[3]).tolist() == other.predict(test_embeddings).tolist()
    assert np.allclose(learner.covariance, other.covariance_, rtol=1e-4, atol=1e-9)


def test_lda_of_later_sessions_has_the_covariance_of_the_first(
    problem, split, embeddings_of, test_embeddings
):
    learner = run_until(Lda(split, shrinkage=0.2), problem, 3)
    base, base_labels = embeddings_of(1)
    values, labels = embeddings_of(3)
    within = base - np.stack([base[base_labels == c].mean(axis=0) for c in base_labels])
    covariance = 0.8 * within.T @ within / len(base)
    covariance += 0.2 * np.eye(32) * np.square(within).sum() / len(base) / 32
    classes = np.unique(labels)
    means = np.stack([values[labels == c].mean(axis=0) for c in classes])
    gaps = test_embeddings[:, None] - means[None]
    distances = np.einsum("nkd,de,nke->nk", gaps, np.linalg.inv(covariance), gaps)
    expected = classes[distances.argmin(axis=1)]
    assert learner.predict(problem[3]).tolist() == expected.tolist()
    assert (
        learner.predict(problem[3]).tolist()
        != NearestMean.classify(
            run_until(NearestMean(split, normalise=False), problem, 3), learner.features(problem[3])
        ).tolist()
    )


def test_lda_with_full_shrinkage_is_the_nearest_mean(problem, split):
    plain = run_learner(NearestMean(copy.deepcopy(split), normalise=False), *problem)
    assert run_learner(Lda(split, shrinkage=1.0), *problem) == plain


@pytest.mark.parametrize("balanced", [True, False])
@pytest.mark.parametrize("number", [1, 3])
def test_ridge_is_that_of_scikit_learn_on_all_images(
    balanced, number, problem, split, embeddings_of, test_embeddings
):
    """Though it has never seen the images of two sessions together."""
    learner = run_until(Ridge(split, penalty=0.05, balanced=balanced), problem, number)
    values, labels = embeddings_of(number)
    classes, rows, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = 1 / counts[rows] if balanced else np.ones(len(rows))
    penalty = 0.05 * (weights[:, None] * np.square(values)).sum() / values.shape[1]
    other = ScikitRidge(alpha=penalty, fit_intercept=False)
    other.fit(values, np.eye(len(classes))[rows], sample_weight=weights)
    expected = classes[other.predict(test_embeddings).argmax(axis=1)]
    assert learner.predict(problem[3]).tolist() == expected.tolist()
    # Classes come in the order of the sessions, there sorted.
    order = learner.classes.argsort().cpu()
    weight = torch.linalg.solve(learner.gram + penalty * torch.eye(32).double(), learner.sums.T)
    assert np.allclose(weight.T[order], other.coef_, rtol=1e-6)


def test_balance_is_for_the_rare_classes(problem, split):
    """6 images of each base class, 3 of each new one."""
    shares = [
        np.array(
            run_learner(Ridge(copy.deepcopy(split), penalty=1, balanced=b), *problem).predicted
        )
        for b in (True, False)
    ]
    base = problem[0][0].classes.numpy()
    assert shares[0][base].sum() < shares[1][base].sum()


@pytest.mark.parametrize("method", [Teen, Lda, Ridge])
def test_no_images_are_kept(method, problem, split):
    learner = run_until(method(split), problem, 3)
    sizes = [len(value) for value in vars(learner).values() if isinstance(value, torch.Tensor)]
    assert len(sizes) >= 3
    assert set(sizes) <= {3, 7, 32}  # classes, and entries of an embedding


@pytest.mark.parametrize(
    ("method", "wrong", "message"),
    [
        (Teen, {"temperature": 0.0}, "temperature must be above 0. Found temperature=0.0."),
        (Teen, {"shift": 1.5}, "shift must be between 0 and 1. Found shift=1.5."),
        (Teen, {"shift": float("nan")}, "shift must be between 0 and 1"),
        (Lda, {"shrinkage": 0.0}, "shrinkage must be above 0. Found shrinkage=0.0."),
        (Lda, {"shrinkage": 1.1}, "shrinkage must be between 0 and 1. Found shrinkage=1.1."),
        (Ridge, {"penalty": 0.0}, "penalty must be above 0. Found penalty=0.0."),
    ],
)
def test_wrong_settings_are_refused(split, method, wrong, message):
    with pytest.raises(ValueError, match=message):
        method(split, **wrong)


def test_prototypes_of_lda_are_class_means(problem, split, images_of):
    learner = run_until(Lda(split), problem, 2)
    images, labels = images_of(2)
    means = class_means(embed(split.network, images), labels)
    assert torch.equal(learner.prototypes[3:], means)
