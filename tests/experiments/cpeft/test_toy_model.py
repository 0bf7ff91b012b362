"""Isolation or cooperation: the identity, the bound, and the tiny model against enumeration."""

import itertools
import math

import pytest
import torch

from experiments.cpeft.expert_outputs import ExpertOutputs
from experiments.cpeft.toy_model import (
    critical_confidence,
    isolating_temperature,
    isolation_identity,
    log_loss_bounds,
    simulated_accuracy,
    toy_accuracy,
    toy_expert_outputs,
    toy_grid,
    toy_model_checks,
)

MODEL = {"experts": 4, "p_right": 0.9, "p_other": 0.6}


def random_answers(*, images=60, unknown=False, seed=0):
    """Three experts, six classes; with ``unknown``, experts know no classes of earlier tasks."""
    stream = torch.Generator().manual_seed(seed)
    logits = torch.randn(images, 3, 6, generator=stream)
    task_of = torch.tensor([1, 1, 2, 2, 3, 3])
    if unknown:
        logits[:, task_of < torch.arange(1, 4)[:, None]] = -math.inf
    labels = torch.randint(6, (images,), generator=stream)
    task_logits = torch.randn(images, 3, generator=stream)
    return ExpertOutputs(
        task_logits, logits.log_softmax(dim=2), labels + 10, torch.arange(10, 16), task_of
    )


def enumerated(rule, confidence, *, experts, p_right, p_other):
    """Accuracy of a rule on (favourite, votes), by summing over everything that can happen.

    Expert 0 is the right one. ``rule`` returns the share of the credit that the true class gets.
    """
    accuracy = 0.0
    for favourite in range(experts):
        found = confidence if favourite == 0 else (1 - confidence) / (experts - 1)
        for votes in itertools.product((True, False), repeat=experts):
            chance = found
            for expert, vote in enumerate(votes):
                p = p_right if expert == 0 else p_other
                chance *= p if vote else 1 - p
            accuracy += chance * rule(favourite, votes)
    return accuracy


def weighted_vote(top, weight):
    """The rule of K experts: mean over all sets of K - 1 others."""

    def rule(favourite, votes):
        others = [vote for expert, vote in enumerate(votes) if expert != favourite]
        sets = list(itertools.combinations(others, top - 1))
        credit = 0.0
        for chosen in sets:
            lead = (weight if votes[favourite] else -weight) + 2 * sum(chosen) - len(chosen)
            credit += 0.5 if lead == 0 else float(lead > 0)
        return credit / len(sets)

    return rule


def bayes(confidence, *, experts, p_right, p_other):
    """Accuracy of the best rule there is, which knows the favourite and all votes."""
    best = 0.0
    for favourite_votes in (True, False):
        for others in range(experts):  # how many of the others vote for the true class

            def fits(favourite, votes, first=favourite_votes, count=others):
                rest = sum(votes) - votes[favourite]
                return float(votes[favourite] == first and rest == count)

            def mirrored(favourite, votes, first=favourite_votes, count=others):
                rest = sum(votes) - votes[favourite]
                return float(votes[favourite] != first and rest == experts - 1 - count)

            model = {"experts": experts, "p_right": p_right, "p_other": p_other}
            pair = (
                enumerated(fits, confidence, **model),
                enumerated(mirrored, confidence, **model),
            )
            best += max(pair) / 2  # each pair is met from both sides
    return best


# Identity and bound ----------------------------------------------------------------------------


@pytest.mark.parametrize("unknown", [False, True])
def test_the_accuracy_of_one_expert_is_the_sum_over_right_and_wrong_selections(unknown):
    answers = random_answers(unknown=unknown)
    (row,) = isolation_identity(answers)
    assert row["holds"]
    assert row["left"] == pytest.approx(row["right"], abs=1e-9)
    # By hand, image by image.
    correct = 0
    for logits, experts, label in zip(
        answers.task_logits, answers.log_probabilities, answers.labels, strict=True
    ):
        correct += int(experts[logits.argmax()].argmax() + 10 == label)
    assert row["right"] == pytest.approx(100 * correct / 60)
    moved = (answers.selected != answers.tasks).double().mean()
    assert row["misallocated"] == pytest.approx(100 * float(moved))
    m = row["misallocated"] / 100
    assert (1 - m) * row["own"] + m * row["wrong"] == pytest.approx(row["left"])


def test_shares_of_no_images_are_none():
    answers = random_answers()
    right = torch.zeros(60, 3)
    right[torch.arange(60), answers.tasks - 1] = 1.0
    parts = (answers.log_probabilities, answers.labels, answers.classes, answers.task_of)
    (row,) = isolation_identity(ExpertOutputs(right, *parts))
    assert (row["misallocated"], row["wrong"], row["holds"]) == (0.0, None, True)
    (row,) = isolation_identity(ExpertOutputs(-right, *parts))
    assert (row["misallocated"], row["own"], row["holds"]) == (100.0, None, True)


def test_the_bound_holds_for_every_set_of_experts():
    answers = random_answers()
    rows = log_loss_bounds(answers)
    assert [row["statement"].partition("S = ")[2] for row in rows] == [
        "the right expert",
        "the experts that know the class",
        "all experts",
    ]
    assert all(row["holds"] and row["left"] <= row["right"] for row in rows)
    g = answers.task_logits.double().softmax(dim=1)
    columns = answers.labels - 10
    f = answers.log_probabilities.double().exp()[torch.arange(60), :, columns]
    loss = -(g * f).sum(dim=1).log()
    own = torch.arange(60), answers.tasks - 1
    assert rows[0]["left"] == pytest.approx(float(loss.mean()))
    assert rows[0]["right"] == pytest.approx(float(-(g[own] * f[own]).log().mean()))
    assert rows[2]["right"] == pytest.approx(float(-(g * f.log()).sum(dim=1).mean()))
    assert rows[1]["right"] == pytest.approx(rows[2]["right"])  # here all know all


def test_experts_that_do_not_know_a_class_are_left_out_of_the_bound():
    answers = random_answers(unknown=True)
    rows = log_loss_bounds(answers, temperature=2.0)
    assert all(row["holds"] for row in rows)
    assert all(math.isfinite(row["left"]) and math.isfinite(row["right"]) for row in rows)
    assert len(rows) == 3  # all experts know the classes of the last task
    early = answers.tasks < 3
    parts = [answers.task_logits, answers.log_probabilities, answers.labels]
    kept = ExpertOutputs(*(part[early] for part in parts), answers.classes, answers.task_of)
    assert len(log_loss_bounds(kept)) == 2
    with pytest.raises(ValueError, match="temperature must be above 0"):
        log_loss_bounds(answers, temperature=0.0)


def test_where_the_bound_is_infinite_it_says_nothing():
    votes = toy_expert_outputs(200, confidence=0.6, seed=0, **MODEL)
    rows = log_loss_bounds(votes)
    assert all(row["holds"] and math.isfinite(row["right"]) for row in rows)


def test_a_sure_and_right_selector_leaves_the_loss_of_the_right_expert():
    answers = random_answers()
    sure = torch.full((60, 3), -50.0)
    sure[torch.arange(60), answers.tasks - 1] = 50.0
    right = ExpertOutputs(
        sure, answers.log_probabilities, answers.labels, answers.classes, answers.task_of
    )
    row = log_loss_bounds(right)[0]
    assert row["right"] == pytest.approx(row["left"], abs=1e-6)


# Tiny model ------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [1, 2, 3, 4])
@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0, 3.0, math.inf])
@pytest.mark.parametrize("confidence", [0.25, 0.45, 0.8])
def test_the_formula_agrees_with_enumeration(top, temperature, confidence):
    odds = confidence * 3 / (1 - confidence)
    weight = math.inf if temperature == 0 else odds ** (1 / temperature)
    weight = 1.0 if confidence == 0.25 else weight  # no favourite, at any temperature
    expected = enumerated(weighted_vote(top, weight), confidence, **MODEL)
    assert toy_accuracy(top, temperature, confidence=confidence, **MODEL) == pytest.approx(
        expected, abs=1e-12
    )


def test_no_rule_beats_isolation_from_the_critical_confidence_on():
    critical = critical_confidence(**MODEL)
    assert 0.5 < critical < 1
    for confidence in (critical + 0.001, 0.9 * critical + 0.1, 0.99):
        alone = toy_accuracy(1, 1.0, confidence=confidence, **MODEL)
        assert bayes(confidence, **MODEL) == pytest.approx(alone, abs=1e-12)
    for confidence in (0.3, 0.5, critical - 0.001):
        alone = toy_accuracy(1, 1.0, confidence=confidence, **MODEL)
        assert bayes(confidence, **MODEL) > alone + 1e-6


def test_the_critical_confidence_has_its_known_values():
    assert critical_confidence(experts=2, p_right=0.9, p_other=0.6) == pytest.approx(0.5)
    for experts in (3, 5, 9):
        assert critical_confidence(experts=experts, p_right=0.8, p_other=0.5) == pytest.approx(0.5)
    rising = [critical_confidence(experts=5, p_right=0.9, p_other=q) for q in (0.5, 0.6, 0.7, 0.8)]
    assert rising == sorted(rising)
    assert rising[-1] > 1
    assert critical_confidence(experts=4, p_right=0.7, p_other=0.7) == math.inf
    assert critical_confidence(experts=2, p_right=0.7, p_other=0.7) == 0.0


def test_between_one_half_and_critical_the_best_temperature_is_above_one():
    critical = critical_confidence(**MODEL)
    confidence = (0.5 + critical) / 2
    border = isolating_temperature(experts=4, confidence=confidence)
    assert border > 1
    alone = toy_accuracy(1, 1.0, confidence=confidence, **MODEL)
    assert toy_accuracy(4, 1.0, confidence=confidence, **MODEL) == pytest.approx(alone)
    assert toy_accuracy(4, 0.999 * border, confidence=confidence, **MODEL) == pytest.approx(alone)
    assert toy_accuracy(4, 1.001 * border, confidence=confidence, **MODEL) > alone + 1e-4
    assert isolating_temperature(experts=4, confidence=0.5) == pytest.approx(1)
    assert isolating_temperature(experts=2, confidence=0.6) == math.inf


def test_the_simulation_agrees_and_both_ends_are_their_limits():
    answers = toy_expert_outputs(20_000, confidence=0.6, seed=1, **MODEL)
    assert float((answers.selected == answers.tasks).double().mean()) == pytest.approx(
        0.6, abs=0.015
    )
    for top, temperature in ((1, 1.0), (2, 1.0), (3, 2.0), (4, 0.0), (4, math.inf)):
        found, error = simulated_accuracy(answers, top, temperature)
        exact = toy_accuracy(top, temperature, confidence=0.6, **MODEL)
        assert abs(found - exact) < 4 * error
    alone = toy_accuracy(1, 1.0, confidence=0.6, **MODEL)
    assert alone == pytest.approx(0.6 * 0.9 + 0.4 * 0.6)
    assert toy_accuracy(4, 0.0, confidence=0.6, **MODEL) == pytest.approx(alone)
    again = toy_expert_outputs(20_000, confidence=0.6, seed=1, **MODEL)
    assert torch.equal(again.log_probabilities, answers.log_probabilities)
    other = toy_expert_outputs(20_000, confidence=0.6, seed=2, **MODEL)
    assert not torch.equal(other.log_probabilities, answers.log_probabilities)


@pytest.mark.parametrize("confidence", [0.3, 0.6, 0.9])
def test_all_statements_on_the_tiny_model_hold(confidence):
    settings = {"top_ks": [1, 2, 4], "temperatures": [0.5, 1.0, 4.0], "images": 4000, "seed": 0}
    rows = toy_model_checks(confidence=confidence, **MODEL, **settings)
    assert len(rows) == 12
    assert all(row["holds"] for row in rows), rows
    assert all(list(row) == ["statement", "left", "right", "difference", "holds"] for row in rows)
    cells = toy_grid([1, 4], [1.0, 2.0], confidence=confidence, **MODEL)
    assert [(cell["top"], cell["temperature"]) for cell in cells] == [
        (1, 1.0),
        (1, 2.0),
        (4, 1.0),
        (4, 2.0),
    ]


def test_models_out_of_range_are_refused():
    with pytest.raises(ValueError, match="Found p_right=0.6, p_other=0.7"):
        critical_confidence(experts=3, p_right=0.6, p_other=0.7)
    with pytest.raises(ValueError, match="p_other=0.4"):
        toy_accuracy(1, 1.0, experts=3, confidence=0.5, p_right=0.9, p_other=0.4)
    with pytest.raises(ValueError, match="p_right must be above 1/2"):
        critical_confidence(experts=3, p_right=0.5, p_other=0.5)
    with pytest.raises(ValueError, match="experts must be at least 2"):
        critical_confidence(experts=1, p_right=0.9, p_other=0.7)
    for confidence in (0.2, 1.0, math.nan):
        with pytest.raises(ValueError, match="confidence must be at least 1/experts = 0.25"):
            toy_accuracy(1, 1.0, confidence=confidence, **MODEL)
    for top in (0, 5):
        with pytest.raises(ValueError, match=f"top_k must lie in 1 to 4.*Found {top}"):
            toy_accuracy(top, 1.0, confidence=0.6, **MODEL)
    with pytest.raises(ValueError, match="temperature must be at least 0"):
        toy_accuracy(2, -1.0, confidence=0.6, **MODEL)
    with pytest.raises(ValueError, match="Found p_other=0.9"):
        toy_model_checks(
            **(MODEL | {"p_other": 0.9}),
            confidence=0.6,
            top_ks=[1],
            temperatures=[1.0],
            images=9,
            seed=0,
        )
    with pytest.raises(ValueError, match="images must be at least 1"):
        toy_expert_outputs(0, confidence=0.6, seed=0, **MODEL)
