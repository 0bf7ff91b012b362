import math

import pytest

from experiments.cpeft import proof
from experiments.cpeft.proof import (
    gradient_span,
    linear_interference,
    network_drift,
    row_space_steps,
    threshold_bound,
)

FUNCTIONS = (row_space_steps, gradient_span, linear_interference, threshold_bound, network_drift)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_rows_have_a_statement_and_two_sides_and_repeat(function):
    rows = function(3)
    # As text: NaN is not equal to itself.
    assert repr(rows) == repr(function(3)) != repr(function(4))
    for row in rows:
        assert row["seed"] == 3
        assert isinstance(row["statement"], str)
        assert isinstance(row["holds"], bool)
        assert all(math.isfinite(row[side]) for side in ("left", "right", "difference"))
    assert function.__doc__.count("\n") > 15  # the page shows the derivation


@pytest.mark.parametrize("seed", range(5))
def test_training_b_is_training_in_the_row_space(seed):
    rows = row_space_steps(seed)
    assert len(rows) == 5
    for row in rows:
        assert row["holds"], row
        assert row["left"] > 0.05


def test_the_span_of_the_gradient_is_that_of_the_inputs():
    rows = gradient_span(0)
    assert [row["layer"] for row in rows] == [1, 2, 3]
    assert all(row["holds"] and row["left"] > 0.01 for row in rows)
    with pytest.raises(ValueError, match="images must be fewer than size=20 and hidden=16"):
        gradient_span(0, images=16)


def test_a_step_that_is_wrong_would_be_noticed(monkeypatch):
    right = proof._projector
    monkeypatch.setattr(proof, "_projector", lambda basis: right(basis[:, 1:]))
    assert not all(row["holds"] for row in gradient_span(0))
    assert not all(row["holds"] for row in row_space_steps(0))


@pytest.mark.parametrize("seed", range(3))
def test_a_linear_model_does_not_interfere_with_the_design(seed):
    rows = linear_interference(seed)
    assert all(row["holds"] for row in rows)
    for design in proof.DESIGNS:
        moved = [r["left"] for r in rows if r["design"] == design and "old" in r["statement"]]
        assert len(moved) == 3
        assert max(moved) < 1e-10 if design == "inflora" else min(moved) > 0.01
    with pytest.raises(ValueError, match="tasks x subspace = 30. Found size=29"):
        linear_interference(0, tasks=5, size=29)


def test_a_design_without_memory_is_what_moves_the_outputs(monkeypatch):
    def no_memory(moment, memory, rank):
        return proof_design(moment, type(memory)(memory.size), rank)

    proof_design = proof.design_down
    monkeypatch.setattr(proof, "design_down", no_memory)
    rows = linear_interference(0, designs=["inflora"])
    assert not any(row["holds"] for row in rows if row["statement"] == "old outputs stay")


def test_the_bound_holds_for_every_threshold_and_is_two_factors_loose():
    rows = [row for seed in range(4) for row in threshold_bound(seed)]
    assert all(row["holds"] for row in rows)
    for row in rows:
        assert row["right"] <= row["promised"] + 1e-6
        assert row["new_loss"] < 1
        if row["threshold"] < 1:
            assert row["looseness"] == pytest.approx(row["by_rows"] * row["by_norm"])
            assert row["looseness"] == pytest.approx(row["right"] / row["left"])
            assert min(row["by_rows"], row["by_norm"]) >= 1
        else:
            assert row["old_rank"] == 28
            assert max(row["left"], row["right"]) < 1e-6
            assert math.isnan(row["looseness"])
    for seed in range(4):
        ranks = [row["old_rank"] for row in rows if row["seed"] == seed]
        assert ranks == sorted(ranks)


def test_the_bound_needs_the_design(monkeypatch):
    def no_memory(moment, memory, rank):
        return design(moment, type(memory)(memory.size), rank)

    design = proof.design_down
    monkeypatch.setattr(proof, "design_down", no_memory)
    rows = threshold_bound(0, thresholds=(0.99, 1.0))
    assert not any(row["holds"] for row in rows)


@pytest.fixture(scope="module")
def drifts():
    return [row for seed in range(4) for row in network_drift(seed)]


def test_the_recursive_bounds_hold_in_a_network_that_moves(drifts):
    for start in ("(1)", "(2)"):
        rows = [row for row in drifts if row["statement"].startswith(start)]
        assert len(rows) == 4 * 5 * 2 * 3  # seeds, thresholds, tasks, layers
        assert all(row["holds"] for row in rows)
        assert any(row["left"] > 0.1 for row in rows)
    # What is known without the old images is never less than what they show.
    one, two = (
        [r["right"] for r in drifts if r["statement"].startswith(s)] for s in ("(1)", "(2)")
    )
    assert all(a <= b * (1 + 1e-9) + 1e-9 for a, b in zip(one, two, strict=True))


def test_a_layer_alone_does_not_bound_its_drift(drifts):
    own = [row for row in drifts if row["statement"].startswith("own")]
    assert all(row["holds"] for row in own if row["layer"] == 1)
    behind = [
        row for row in own
        if (row["threshold"], row["threshold_behind"]) == (0.95, 1.0) and row["layer"] > 1
    ]  # fmt: skip
    second = [row for row in behind if row["task"] == 2]
    assert len(second) == 8
    assert all(row["right"] < 1e-10 < 0.01 < row["left"] and not row["holds"] for row in second)
    # A task later the old inputs have left the memory: the layer's own bound is no longer zero.
    assert all(row["right"] > 1e-3 for row in behind if row["task"] == 3)


def test_threshold_one_protects_the_images_seen_and_no_others(drifts):
    kept = [row for row in drifts if row["statement"].endswith("seen stay")]
    moved = [row for row in drifts if row["statement"].endswith("others move")]
    assert len(kept) == len(moved) == 4
    assert all(row["holds"] for row in kept + moved)
    assert min(row["left"] for row in moved) > 0.1


def test_a_network_without_room_is_refused():
    with pytest.raises(ValueError, match=r"images \+ rank = 23. Found size=22"):
        network_drift(0, size=22)
    with pytest.raises(ValueError, match="tasks must be at least 2"):
        network_drift(0, tasks=1)
