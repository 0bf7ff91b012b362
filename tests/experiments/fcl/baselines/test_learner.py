import copy
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from experiments.fcl.baselines import (
    F2M,
    Exemplars,
    Finetune,
    Learner,
    NearestMean,
    SessionResults,
    average_incremental_accuracy,
    herding,
    run_learner,
)
from experiments.fcl.baselines.nearest_mean import TunedNearestMean
from ktlib.fcl import SessionVariant, embed, learn_session


class Oracle(Learner):
    """Knows the classes of ``known`` and answers the first class seen for all other images."""

    name = "oracle"

    def __init__(self, known):
        self.known = known
        self.shown = []

    def start(self, images, labels):
        self.shown.append((images, labels))

    def learn(self, images, labels):
        if self.known is None:
            raise FloatingPointError("the loss is nan at step 3: lower the lr.")
        self.shown.append((images, labels))

    def classify(self, features):
        row = features.mean(dim=(1, 3)).argmax(dim=1)
        return torch.where(torch.isin(row, self.known), row, torch.full_like(row, -1))


def test_each_session_shows_its_own_images_only(problem):
    sessions, images, labels, *_ = problem
    learner = Oracle(labels.unique())
    run_learner(learner, *problem)
    for session, (shown, shown_labels) in zip(sessions, learner.shown, strict=True):
        assert torch.equal(shown, images[session.train])
        assert torch.equal(shown_labels, labels[session.train])


def test_accuracies_of_an_oracle_that_knows_the_base_classes(problem):
    sessions, *_ = problem
    results = run_learner(Oracle(sessions[0].classes.to(problem[2].device)), *problem)
    found = [(r["base_accuracy"], r["new_accuracy"], round(r["accuracy"], 2)) for r in results.rows]
    assert found == [(100.0, None, 100.0), (100.0, 0.0, 60.0), (100.0, 0.0, 42.86)]
    assert [row["harmonic"] for row in results.rows] == [None, 0.0, 0.0]
    assert [(r["session"], r["origin"], r["accuracy"]) for r in results.by_origin] == [
        (1, 1, 100.0),
        (2, 1, 100.0),
        (2, 2, 0.0),
        (3, 1, 100.0),
        (3, 2, 0.0),
        (3, 3, 0.0),
    ]


def test_harmonic_mean_and_counts_of_an_oracle(problem):
    """It knows 6 of 7 classes, of 12 - 8 = 4 test images each: new 3 of 4, and 3 / 3.5 = 6 / 7."""
    new = problem[0][-1].classes
    known = torch.tensor([label for label in range(7) if label != new[0]]).to(problem[2])
    results = run_learner(Oracle(known), *problem)
    last = results.rows[-1]
    assert (last["base_accuracy"], last["new_accuracy"]) == (100.0, 75.0)
    assert last["harmonic"] == pytest.approx(600 / 7)
    assert results.predicted == results.right == [0 if c == new[0] else 4 for c in range(7)]
    expected = (100 + 100 + 600 / 7) / 3
    assert average_incremental_accuracy(results.rows) == pytest.approx(expected)


def test_counts_tell_wrong_answers_from_right_ones(problem):
    """All is taken for class 2; of what is shown in the end, 4 images are of it."""
    learner = Oracle(problem[2].unique())
    learner.classify = lambda images: torch.full((len(images),), 2).to(problem[2])
    results = run_learner(learner, *problem)
    assert results.predicted == [0, 0, 28, 0, 0, 0, 0]
    assert results.right == [0, 0, 4, 0, 0, 0, 0]


def test_only_the_last_session_is_tested_if_asked(problem, split):
    """With the same results, and once."""
    learner = F2M(copy.deepcopy(split), bound=0.01, epochs=2, lr=0.1)
    every = run_learner(F2M(split, bound=0.01, epochs=2, lr=0.1), *problem)
    classify, calls = learner.classify, []
    learner.classify = lambda features: calls.append(0) or classify(features)
    last = run_learner(learner, *problem, only_last=True)
    assert len(calls) == 1
    assert last.rows == every.rows[-1:]
    assert last.by_origin == every.by_origin[-3:]
    assert (last.predicted, last.right) == (every.predicted, every.right)


def test_nan_names_the_method_and_keeps_the_rows_so_far(problem):
    learner, results = Oracle(None), SessionResults()
    learner.classify = lambda images: torch.zeros(len(images), dtype=torch.long)
    with pytest.raises(FloatingPointError, match=r"method 'oracle', session 2: .* step 3"):
        run_learner(learner, *problem, results=results)
    assert [row["session"] for row in results.rows] == [1]


def test_a_class_in_two_sessions_is_refused(problem):
    sessions, *rest = problem
    twice = [*sessions[:2], replace(sessions[2], classes=sessions[1].classes)]
    with pytest.raises(ValueError, match=r"class \d+ in sessions 2 and 3"):
        run_learner(Oracle(None), twice, *rest)


def test_predictions_are_made_from_features(problem):
    """By default the images themselves."""
    learner, tests = Oracle(torch.arange(7).to(problem[2])), problem[3]
    assert learner.features(tests) is tests
    assert torch.equal(learner.predict(tests), problem[4])
    learner.features = lambda images: images.flip(2)  # another row is bright
    assert torch.equal(learner.predict(tests), learner.classify(tests.flip(2)))
    assert not torch.equal(learner.predict(tests), problem[4])


@torch.no_grad()
def accuracies(split, classes, means, tests, test_labels, normalise):
    """All, base and new classes, by inner products with prototypes of norm 1, or by distances."""
    embeddings = split.network.eval()(tests)
    scores = embeddings @ F.normalize(means, dim=1).T
    if not normalise:
        scores = -(embeddings[:, None] - means[None]).square().sum(dim=2)
    right = (classes[scores.argmax(dim=1)] == test_labels).double()
    base = torch.isin(test_labels, classes[:3])
    shown = torch.isin(test_labels, classes)
    return [100 * right[part].mean().item() for part in (shown, base, shown & ~base)]


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("how", ["frozen", "tuned", "squared"])
def test_equal_to_the_protocol_written_out(problem, split, how, normalise):
    """Without prototype normalisation, squared distances and plain ones decide alike."""
    sessions, images, labels, *tests = problem
    other, variant = copy.deepcopy(split), SessionVariant(squared=how == "squared")
    steps = {"epochs": 3, "lr": 0.1}
    if how == "frozen":
        learner = NearestMean(other, normalise=normalise)
    else:
        session = variant if how == "squared" else None
        learner = Finetune(other, **steps, normalise=normalise, session=session)
    rows = run_learner(learner, *problem).rows

    def means_of(classes, positions):
        with torch.no_grad():
            found = split.network.eval()(images[positions])
        return torch.stack([found[labels[positions] == label].mean(dim=0) for label in classes])

    base = sessions[0].classes.to(labels)
    saved = means_of(base, sessions[0].train)
    expected = [accuracies(split, base, saved, *tests, normalise)]
    for number in (2, 3):
        new = torch.cat([session.classes for session in sessions[1:number]]).to(labels)
        kept = torch.cat([session.train for session in sessions[1:number]])
        if how != "frozen":
            shots = images[kept], labels[kept], saved, base
            learn_session(split, None, *shots, **steps, variant=variant)
        means = torch.cat([saved, means_of(new, kept)])
        expected.append(accuracies(split, torch.cat([base, new]), means, *tests, normalise))
    names = "accuracy", "base_accuracy", "new_accuracy"
    for row, values in zip(rows, expected, strict=True):
        first = row["session"] == 1
        assert [row[name] for name in names[: 2 if first else 3]] == values[: 2 if first else 3]
    assert rows[0]["new_accuracy"] is None
    assert len(getattr(learner, "gradients", [0, 0])) == 2
    for name, parameter in split.tuned.items():
        torch.testing.assert_close(other.tuned[name], parameter, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0. Found lr=0.0."),
    ],
)
def test_wrong_settings_are_refused_before_the_first_session(split, wrong, message):
    for method, options in ((Finetune, {}), (F2M, {"bound": 0.1})):
        with pytest.raises(ValueError, match=message):
            method(split, **options, **({"epochs": 1, "lr": 0.1} | wrong))


class Retold(TunedNearestMean):
    """Computes its prototypes anew, in a network that no session changes."""

    name = "retold"

    def tune(self, shots, labels):
        pass


def test_frozen_prototypes_are_those_computed_anew_from_all_shots(problem, split):
    saved, anew = NearestMean(split), Retold(split, new_exemplars=3)
    assert run_learner(saved, *problem) == run_learner(anew, *problem)
    order, other = saved.classes[3:].argsort() + 3, anew.classes[3:].argsort() + 3
    assert torch.equal(saved.classes[order], anew.classes[other])
    assert torch.equal(saved.prototypes[order], anew.prototypes[other])
    assert torch.equal(saved.prototypes[:3], anew.prototypes[:3])


def test_frozen_prototypes_need_no_exemplars(problem, split):
    """3 shots, of which the other way keeps 2: its prototypes of session 2 are worse for it."""
    sessions, images, labels, *_ = problem
    saved, anew = NearestMean(split), Retold(split, new_exemplars=2)
    run_learner(saved, *problem), run_learner(anew, *problem)
    for session in sessions:
        for label in session.classes.to(labels):
            own = session.train.to(labels)[labels[session.train] == label]
            assert len(own) == (6 if session.number == 1 else 3)
            expected = embed(split.network, images[own]).mean(dim=0)
            torch.testing.assert_close(saved.prototypes[saved.classes == label][0], expected)
            close = torch.allclose(anew.prototypes[anew.classes == label][0], expected)
            assert close == (session.number != 2)


def test_f2m_stays_in_its_box(problem, split):
    learner = F2M(split, bound=0.001, epochs=3, lr=5.0)
    run_learner(learner, *problem)
    assert learner.region.contains()
    assert learner.region.largest_shift() > 0.0009


def test_f2m_with_an_empty_box_is_the_frozen_network(problem, split):
    frozen = run_learner(NearestMean(copy.deepcopy(split)), *problem)
    assert run_learner(F2M(split, bound=0.0, epochs=3, lr=5.0), *problem) == frozen


def test_budget_is_held():
    kept = Exemplars(per_base_class=0, per_new_class=2)
    images, labels = torch.zeros(3, 1), torch.tensor([4, 4, 5])
    with pytest.raises(ValueError, match="at most 0 exemplars of a base class may be kept. Found"):
        kept.add(images, labels, base=True)
    kept.add(images, labels, base=False)
    with pytest.raises(ValueError, match=r"at most 2 .* Found 3 of class 4"):
        kept.add(images[:1], labels[:1], base=False)
    assert len(kept) == 3
    with pytest.raises(ValueError, match="must be at least 0"):
        Exemplars(-1, 2)


def test_nothing_kept_cannot_be_given_back():
    with pytest.raises(ValueError, match="no exemplars are kept"):
        Exemplars(0, 5).all()


def test_chosen_exemplars():
    embeddings = torch.tensor([[0.0], [10.0], [4.0], [6.0], [1.0]])
    labels = torch.tensor([7, 7, 7, 7, 3])
    for given, expected in ((None, [0, 1, 4]), (embeddings, [2, 3, 4])):
        kept = Exemplars(0, 2)
        kept.add_chosen(torch.arange(5), labels, given, base=False)
        assert sorted(kept.all()[0].tolist()) == expected


def test_herding_by_hand():
    """Mean 5: first 4 (nearest, before 6), then 6 as (4 + 6) / 2 = 5, then the best of 0 and 10."""
    embeddings = torch.tensor([[0.0], [10.0], [4.0], [6.0]])
    assert herding(embeddings, 2).tolist() == [2, 3]
    assert sorted(herding(embeddings, 9).tolist()) == [0, 1, 2, 3]
    assert herding(embeddings, 4)[:2].tolist() == [2, 3]
