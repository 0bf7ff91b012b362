import io

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from ktlib.cpeft.gpm import DualGPM, threshold_for
from ktlib.cpeft.inputs import InputMoment


def inputs_of(seed, *, size=12, directions=12, number=50, power=0.5):
    """Inputs in a random space, with a falling spectrum."""
    stream = torch.Generator().manual_seed(seed)
    axes = torch.linalg.qr(torch.randn(size, size, generator=stream, dtype=torch.float64)).Q
    scales = torch.arange(1, directions + 1, dtype=torch.float64) ** -power
    parts = torch.randn(number, directions, generator=stream, dtype=torch.float64) * scales
    return parts @ axes[:directions]


def moment_of(seed, **changes):
    return InputMoment.of(inputs_of(seed, **changes))


def projector(memory):
    return memory.old_basis() @ memory.old_basis().T


def residual(memory, inputs):
    """Share of the energy outside the memory, from the inputs themselves."""
    return float(memory.project_out(inputs).square().sum() / inputs.square().sum())


@pytest.mark.parametrize("threshold", [0.1, 0.5, 0.8, 0.95, 0.99])
@pytest.mark.parametrize("seed", range(3))
def test_the_fewest_directions_that_hold_the_threshold_are_kept(seed, threshold):
    inputs, memory = inputs_of(seed), DualGPM(12)
    memory.update(InputMoment.of(inputs), threshold)
    assert residual(memory, inputs) <= 1 - threshold + 1e-12
    assert memory.discarded == [pytest.approx(residual(memory, inputs), abs=1e-12)]
    squared = torch.linalg.svdvals(inputs) ** 2
    shares = squared.cumsum(0) / squared.sum()
    assert memory.old_rank == int((shares < threshold).sum()) + 1
    assert memory.free_rank == 12 - memory.old_rank


def test_what_is_inside_already_counts():
    first, second = inputs_of(1), inputs_of(2)
    memory = DualGPM(12)
    memory.update(InputMoment.of(first), 0.6)
    held = 1 - residual(memory, second)
    before, kept = projector(memory), memory.old_rank
    assert 0.1 < held < 0.9
    memory.update(InputMoment.of(second), held - 0.01)
    torch.testing.assert_close(projector(memory), before)  # nothing to add
    assert memory.discarded[-1] == pytest.approx(1 - held)
    memory.update(InputMoment.of(second), held + 0.01)
    assert memory.old_rank == kept + 1
    # The old space stays in it, and the direction added is the strongest outside.
    torch.testing.assert_close(projector(memory) @ before, before)
    outside = second - second @ before
    best = torch.linalg.svd(outside, full_matrices=False).Vh[0]
    assert float(memory.project_out(best).norm()) < 1e-10


def test_the_memory_and_its_dual_give_the_same_projector():
    plain = torch.zeros(12, 0, dtype=torch.float64)  # the old space alone, never its complement
    memory, kinds = DualGPM(12), []
    for seed, threshold in enumerate((0.4, 0.5, 0.6, 0.7, 0.8)):
        inputs = inputs_of(seed)
        memory.update(InputMoment.of(inputs), threshold)
        outside = inputs - inputs @ plain @ plain.T
        directions = torch.linalg.svd(outside, full_matrices=False).Vh.T
        while (1 - (inputs @ plain).square().sum() / inputs.square().sum()) > 1 - threshold:
            plain = torch.cat([plain, directions[:, :1]], dim=1)
            directions = directions[:, 1:]
        kinds.append(memory.holds_old)
        assert memory.old_rank == plain.shape[1]
        assert memory.basis.shape[1] == min(memory.old_rank, memory.free_rank) <= 6
        torch.testing.assert_close(projector(memory), plain @ plain.T, rtol=0, atol=1e-10)
        vectors = inputs_of(100 + seed, number=12).reshape(4, 3, 12)
        torch.testing.assert_close(
            memory.project_out(vectors), vectors - vectors @ plain @ plain.T, rtol=0, atol=1e-10
        )
        both = torch.cat([memory.old_basis(), memory.free_basis()], dim=1)
        eye = torch.eye(12, dtype=torch.float64)
        torch.testing.assert_close(both.T @ both, eye, rtol=0, atol=1e-12)
    assert kinds[0]
    assert not kinds[-1]
    assert 0 < memory.free_rank < 6


def test_exactly_half_is_still_the_old_space():
    memory = DualGPM(12)
    memory.update(moment_of(0, directions=6), 1.0)
    assert memory.holds_old
    assert memory.old_rank == 6
    memory.update(moment_of(1, directions=1), 1.0)
    assert not memory.holds_old
    assert memory.old_rank == 7
    assert memory.basis.shape == (12, 5)


@pytest.mark.parametrize("energy", ["activations", "moment"])
def test_threshold_one_keeps_all_that_is_above_zero(energy):
    memory = DualGPM(12, energy=energy)
    spaces = [inputs_of(seed, directions=3, power=2) for seed in range(3)]
    for number, inputs in enumerate(spaces, 1):
        memory.update(InputMoment.of(inputs), 1.0)
        assert memory.old_rank == 3 * number
        for old in spaces[:number]:
            assert float(memory.project_out(old).abs().max()) < 1e-12
    full = inputs_of(5)
    memory.update(InputMoment.of(full), 1.0)
    assert memory.free_rank == 0
    assert memory.old_rank == 12
    assert memory.project_out(full).abs().max() == 0
    memory.update(InputMoment.of(full), 0.9)
    assert memory.discarded[-1] == 0


def test_what_rounding_alone_fills_is_no_direction():
    inputs = inputs_of(3, directions=4).float()  # in float32 they leave their space by 1e-7
    memory = DualGPM(12)
    memory.update(InputMoment.of(inputs), 1.0)
    assert memory.old_rank == 4


def test_the_energy_of_the_moment_is_the_fourth_power():
    inputs = inputs_of(4)
    values = torch.linalg.svdvals(inputs)
    ranks = {}
    for energy, power in (("activations", 2), ("moment", 4)):
        memory = DualGPM(12, energy=energy)
        memory.update(InputMoment.of(inputs), 0.9)
        shares = (values**power).cumsum(0) / (values**power).sum()
        ranks[energy] = memory.old_rank
        assert memory.old_rank == int((shares < 0.9).sum()) + 1
        # What is on record is the energy of the activations in both cases.
        assert memory.discarded[0] == pytest.approx(residual(memory, inputs))
    assert ranks["moment"] < ranks["activations"]


def test_the_energy_of_the_moment_counts_what_is_inside():
    first, second = moment_of(1), moment_of(2)
    memory = DualGPM(12, energy="moment")
    memory.update(first, 0.9)
    kept, before = memory.old_rank, projector(memory)
    left, values, _ = torch.linalg.svd(second.matrix - before @ second.matrix)
    total = float(second.matrix.square().sum())
    held = 1 - float(values.square().sum()) / total
    memory.update(second, held + 0.9 * float(values[0] ** 2) / total)
    assert memory.old_rank == kept + 1
    assert float(memory.project_out(left[:, 0]).norm()) < 1e-10


@given(seed=st.integers(0, 10_000), thresholds=st.lists(st.floats(0.05, 1.0), max_size=4))
@settings(max_examples=40, deadline=None)
def test_the_memory_only_grows(seed, thresholds):
    memory, before = DualGPM(6), torch.zeros(6, 6, dtype=torch.float64)
    for number, threshold in enumerate(thresholds):
        moment = moment_of(seed + number, size=6, directions=1 + (seed + number) % 6, number=9)
        memory.update(moment, threshold)
        after = projector(memory)
        torch.testing.assert_close(after @ before, before, rtol=0, atol=1e-9)
        assert memory.residual_energy(moment) <= (1 - threshold + 1e-9) * moment.energy
        assert memory.basis.shape[1] <= 3
        before = after


def test_a_memory_comes_back_from_its_state():
    memory = DualGPM(12)
    for seed in range(2):
        memory.update(moment_of(seed), 0.7)
    file = io.BytesIO()
    torch.save(memory.state_dict(), file)
    file.seek(0)
    other = DualGPM(12)
    other.load_state_dict(torch.load(file, weights_only=True))
    assert torch.equal(other.basis, memory.basis)
    assert (other.holds_old, other.discarded) == (memory.holds_old, memory.discarded)
    memory.update(moment_of(7), 0.95)
    assert other.old_rank < memory.old_rank  # a copy, not the same tensors
    other.update(moment_of(7), 0.95)
    assert torch.equal(other.basis, memory.basis)
    with pytest.raises(ValueError, match="memory with size=5. Found size=12"):
        DualGPM(5).load_state_dict(memory.state_dict())
    with pytest.raises(ValueError, match="energy='moment'. Found energy='activations'"):
        DualGPM(12, energy="moment").load_state_dict(memory.state_dict())


def test_projections_keep_shape_and_type():
    memory = DualGPM(12)
    vectors = torch.randn(2, 12)
    assert torch.equal(memory.project_out(vectors), vectors)
    memory.update(moment_of(0), 0.5)
    assert memory.project_out(vectors).dtype == torch.float32
    assert memory.project_out(vectors[0]).shape == (12,)
    assert memory.project_out(vectors[:0]).shape == (0, 12)
    with pytest.raises(ValueError, match=r"12 entries each. Found \(2, 11\)"):
        memory.project_out(vectors[:, 1:])


@pytest.mark.parametrize("threshold", [0, -1, 1.01, float("nan")])
def test_thresholds_outside_are_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold must lie in \(0, 1\]. Found"):
        DualGPM(12).update(moment_of(0), threshold)


def test_what_no_memory_can_be_made_of_is_refused():
    memory = DualGPM(12)
    with pytest.raises(ValueError, match="inputs of size 12. Found 6"):
        memory.update(moment_of(0, size=6, directions=6), 0.9)
    for wrong in (0.0, float("nan")):
        with pytest.raises(ValueError, match="energy above 0. Found"):
            memory.update(InputMoment.of(torch.full((3, 12), wrong)), 0.9)
    with pytest.raises(ValueError, match="size must be at least 1"):
        DualGPM(0)
    with pytest.raises(ValueError, match="Found 'trace'"):
        DualGPM(3, energy="trace")


def test_the_threshold_grows_linearly_as_released():
    assert [threshold_for(task, 10) for task in (1, 6, 10)] == pytest.approx([0.95, 0.975, 0.995])
    assert threshold_for(3, 4, 0.6, 0.8) == pytest.approx(0.7)
    assert threshold_for(5, 5, 1.0, 1.0) == 1.0
    for task in (0, 11):
        with pytest.raises(ValueError, match=f"task must lie in 1 to tasks=10. Found task={task}"):
            threshold_for(task, 10)
    for first, last in ((0, 1), (0.9, 0.8), (0.9, 1.1)):
        with pytest.raises(ValueError, match=f"Found {first} and {last}"):
            threshold_for(1, 10, first, last)
