import copy
from dataclasses import replace

import pytest
import torch

from ktlib.fcl import learn_session, run_sessions
from ktlib.fcl.methods import F2M, Exemplars, Finetune, Learner, NearestMean, herding, run_learner


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

    def predict(self, images):
        row = images.mean(dim=(1, 3)).argmax(dim=1)
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
    assert [(r["session"], r["origin"], r["accuracy"]) for r in results.by_origin] == [
        (1, 1, 100.0),
        (2, 1, 100.0),
        (2, 2, 0.0),
        (3, 1, 100.0),
        (3, 2, 0.0),
        (3, 3, 0.0),
    ]


def test_nan_names_the_method_and_keeps_the_rows_so_far(problem):
    from ktlib.fcl.methods import SessionResults

    learner, results = Oracle(None), SessionResults()
    learner.predict = lambda images: torch.zeros(len(images), dtype=torch.long)
    with pytest.raises(FloatingPointError, match=r"method 'oracle', session 2: .* step 3"):
        run_learner(learner, *problem, results=results)
    assert [row["session"] for row in results.rows] == [1]


def test_a_class_in_two_sessions_is_refused(problem):
    sessions, *rest = problem
    twice = [*sessions[:2], replace(sessions[2], classes=sessions[1].classes)]
    with pytest.raises(ValueError, match=r"class \d+ in sessions 2 and 3"):
        run_learner(Oracle(None), twice, *rest)


@pytest.mark.parametrize("how", ["frozen", "tuned"])
def test_equal_to_the_run_with_cached_features(problem, split, how):
    """Two ways through the same protocol."""
    other = copy.deepcopy(split)
    if how == "frozen":
        rows = run_sessions(split, *problem)
        learner = NearestMean(other)
    else:
        rows = run_sessions(
            split, *problem, learn=lambda *a: learn_session(split, None, *a, epochs=3, lr=0.1)
        )
        learner = Finetune(other, epochs=3, lr=0.1)
    assert run_learner(learner, *problem).rows == rows


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
    for choice, expected in (("first", [0, 1, 4]), ("nearest", [2, 3, 4]), ("herding", [2, 3, 4])):
        kept = Exemplars(0, 2)
        kept.add_chosen(torch.arange(5), labels, embeddings, base=False, choice=choice)
        assert sorted(kept.all()[0].tolist()) == expected, choice


def test_herding_by_hand():
    """Mean 5: first 4 (nearest, before 6), then 6 as (4 + 6) / 2 = 5, then the best of 0 and 10."""
    embeddings = torch.tensor([[0.0], [10.0], [4.0], [6.0]])
    assert herding(embeddings, 2).tolist() == [2, 3]
    assert sorted(herding(embeddings, 9).tolist()) == [0, 1, 2, 3]
    assert herding(embeddings, 4)[:2].tolist() == [2, 3]
