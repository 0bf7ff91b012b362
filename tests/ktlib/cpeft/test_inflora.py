import copy
import math
from dataclasses import replace

import pytest
import torch
from torch import nn

from ktlib.cpeft.comparisons import SequentialLora
from ktlib.cpeft.drift import drift_rows, layer_state
from ktlib.cpeft.gpm import ZERO_ENERGY, DualGPM, threshold_for
from ktlib.cpeft.inflora import InfLora, design_down, usable_rank
from ktlib.cpeft.inputs import InputMoment, input_moments
from ktlib.cpeft.tasks import ClassTask, class_tasks, learn_tasks
from ktlib.cpeft.training import LoraTraining


def normal(seed, *shape):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


def memory_of(inputs, threshold=1.0):
    memory = DualGPM(inputs.shape[1])
    memory.update(InputMoment.of(inputs), threshold)
    return memory


# The design of A -------------------------------------------------------------------------------


def test_the_first_task_gets_the_top_directions_of_its_inputs():
    inputs = normal(1, 60, 8) * torch.arange(8, 0, -1)
    down = design_down(InputMoment.of(inputs), DualGPM(8), 3)
    top = torch.linalg.svd(inputs, full_matrices=False).Vh[:3]
    assert down.shape == (3, 8)
    torch.testing.assert_close(down @ down.T, torch.eye(3, dtype=torch.float64) / 3)
    torch.testing.assert_close((down @ top.T).abs(), torch.eye(3, dtype=torch.float64) / 3**0.5,
                               rtol=0, atol=1e-10)  # fmt: skip


@pytest.mark.parametrize("old", [3, 5])
def test_rows_are_orthogonal_to_old_inputs_and_those_of_the_projected_moment(old):
    # Up to half of the dimensions the old space is stored, then its complement.
    memory = memory_of(normal(1, 60, old) @ normal(2, old, 8))
    assert memory.holds_old == (old == 3)
    moment = InputMoment.of(normal(3, 60, 8) * torch.arange(8, 0, -1))
    down = design_down(moment, memory, 2)
    assert float((down @ memory.old_basis()).abs().max()) < 1e-14
    basis = memory.old_basis()
    left = torch.linalg.svd(moment.matrix - basis @ basis.T @ moment.matrix).U[:, :2]
    torch.testing.assert_close((down @ left).abs(), torch.eye(2, dtype=torch.float64) / 3**0.5,
                               rtol=0, atol=1e-10)  # fmt: skip
    # Without the memory they would not be.
    free = design_down(moment, DualGPM(8), 2)
    assert float((free @ memory.old_basis()).abs().max()) > 0.1


def test_a_rank_larger_than_the_free_space_is_refused():
    memory, moment = memory_of(normal(1, 60, 5) @ normal(2, 5, 8)), InputMoment.of(normal(3, 60, 8))
    message = (
        "block.key: rank must be at most 3, what the old tasks leave free of 8 dimensions. "
        "Found rank=4."
    )
    with pytest.raises(ValueError, match=message):
        design_down(moment, memory, 4, layer="block.key")
    assert design_down(moment, memory, 3).shape == (3, 8)
    assert usable_rank(moment, memory) == 3
    with pytest.raises(ValueError, match="rank must be at least 1. Found rank=0"):
        design_down(moment, memory, 0)
    with pytest.raises(ValueError, match="inputs of size 8. Found 7"):
        design_down(InputMoment.of(normal(3, 60, 7)), memory, 1)


def test_a_rank_larger_than_that_of_the_new_inputs_is_refused():
    old = normal(1, 60, 2) @ normal(2, 2, 8)
    memory = memory_of(old)
    # Two new directions; the others are old ones, which the memory holds.
    new = normal(4, 60, 2) @ normal(5, 2, 8) + old
    message = (
        "block.key: rank must be at most 2, the rank of the new task's inputs in the 6 dimensions "
        "that are free. Found rank=3."
    )
    with pytest.raises(ValueError, match=message):
        design_down(InputMoment.of(new), memory, 3, layer="block.key")
    assert usable_rank(InputMoment.of(new), memory) == 2
    assert usable_rank(InputMoment.of(old), memory) == 0
    full = memory_of(normal(6, 60, 8))
    assert full.free_rank == usable_rank(InputMoment.of(new), full) == 0


def top_of_all(moment, memory, rank):
    """From all singular vectors of H - M M^T H: the projector on the top ones, and how many.

    Of equal values all are taken: which of them come first is not determined.
    """
    free = memory.free_basis()
    left, values, _ = torch.linalg.svd(free.T @ moment.matrix, full_matrices=False)
    reached = int((values > ZERO_ENERGY * moment.energy).sum())
    rank = min(rank, reached)
    while 0 < rank < reached and float(values[rank] / values[rank - 1]) > 1 - 1e-6:
        rank += 1
    chosen = free @ left[:, :rank]
    return chosen @ chosen.T, rank


def with_spectrum(values):
    axes = torch.linalg.qr(normal(7, len(values), len(values))).Q
    return InputMoment((axes * torch.as_tensor(values, dtype=torch.float64)) @ axes.T, 100)


SPECTRA = {
    "falling": [2.0**-k for k in range(24)],
    "many equal": [3.0] * 5 + [1.0] * 7 + [0.5] * 12,
    "four directions": [4.0, 3.0, 2.0, 1.0] + [0.0] * 20,
    "one far above": [1e6, 1e-1, 1e-2, 1e-3] + [1e-7] * 8 + [0.0] * 12,
    "none": [1.0] + [0.0] * 23,
}


@pytest.mark.parametrize("rank", [5, 12, 24])
@pytest.mark.parametrize("old", [0, 2, 9, 15])
@pytest.mark.parametrize("spectrum", SPECTRA)
def test_the_directions_are_those_of_all_singular_vectors(spectrum, old, rank):
    moment, memory = with_spectrum(SPECTRA[spectrum]), DualGPM(24)
    if old and spectrum != "none":  # old tasks filled the first axes of the new one, and others
        inputs = torch.linalg.eigh(moment.matrix).eigenvectors.T[-min(old, 2) :]
        memory.update(InputMoment.of(torch.cat([inputs, normal(8, max(old - 2, 1), 24)])), 1.0)
    expected, number = top_of_all(moment, memory, rank)
    down = design_down(moment, memory, max(rank, number), on_full="shrink")
    assert len(down) == number <= usable_rank(moment, memory)
    torch.testing.assert_close(down @ down.T * 3, torch.eye(number, dtype=torch.float64))
    torch.testing.assert_close(down.T @ down * 3, expected, rtol=0, atol=1e-8)


def test_a_design_needs_no_decomposition_into_all_singular_vectors(monkeypatch):
    monkeypatch.setattr(torch.linalg, "svd", None)
    memory, moment = memory_of(normal(1, 60, 5) @ normal(2, 5, 8)), InputMoment.of(normal(3, 60, 8))
    assert design_down(moment, memory, 3).shape == (3, 8)


# A linear model --------------------------------------------------------------------------------


class LinearFeatures(nn.Module):
    """Features that are linear in the image: ``(n, 1, 4, 6)`` -> ``(n, 5)``."""

    dim = 5

    def __init__(self):
        super().__init__()
        self.map = nn.Linear(24, 5)

    def forward(self, images):
        return self.map(images.flatten(1))


@pytest.fixture
def linear_model(device):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return LinearFeatures().to(device)


@pytest.fixture
def linear_data():
    """Three tasks of two classes; the images of each task lie in a space of five dimensions."""
    labels = torch.arange(6).repeat_interleave(15)
    tasks, images = [], []
    for task in range(3):
        parts, space = normal(task, 30, 5), normal(10 + task, 5, 24)
        parts[:15, 0] += 3
        parts[15:, 0] -= 3
        images.append((parts @ space / 5**0.5).float().reshape(-1, 1, 4, 6))
        rows, none = torch.arange(30) + 30 * task, torch.arange(0)
        tasks.append(ClassTask(task + 1, torch.tensor([2 * task, 2 * task + 1]), rows, none))
    return tasks, torch.cat(images), labels


SETTINGS = LoraTraining(layers=["map"], rank=4, epochs=15, batch_size=10, lr=0.05, seed=0)


def changes_of_old_outputs(learner, tasks, images, labels):
    """Largest change of the features of each old task from its end to that of the last."""
    then = []
    for task in tasks:
        learner.learn(task, images, labels)
        with torch.no_grad():
            then.append(learner.backbone(images[task.train].to(learner.head.classes.device)))
    with torch.no_grad():
        now = [learner.backbone(images[t.train].to(then[0].device)) for t in tasks]
    pairs = list(zip(then, now, strict=True))[:-1]
    return [float((b - a).abs().max() / a.square().mean().sqrt()) for a, b in pairs]


def test_threshold_one_does_not_touch_old_outputs_of_a_linear_model(linear_model, linear_data):
    learner = InfLora(linear_model, SETTINGS, tasks=3, first_threshold=1.0)
    start = learner.backbone.linear("map").weight.detach().clone()
    assert max(changes_of_old_outputs(learner, *linear_data)) < 1e-6
    assert [row["rank"] for row in learner.history] == [4, 4, 4]
    assert [row["free"] for row in learner.history] == [19, 14, 9]
    assert float((learner.backbone.linear("map").weight - start).norm()) > 0.1  # it did learn
    assert all(losses[-1] < 0.5 * losses[0] for losses in learner.losses.values())


def test_without_the_design_old_outputs_move(linear_model, linear_data, monkeypatch):
    tasks, images, labels = linear_data
    plain = SequentialLora(linear_model, SETTINGS)
    assert min(changes_of_old_outputs(plain, tasks, images, labels)) > 0.1

    def of_the_inputs_alone(moment, memory, rank, **options):
        return design_down(moment, DualGPM(memory.size), rank, **options)

    monkeypatch.setattr("ktlib.cpeft.inflora.design_down", of_the_inputs_alone)
    learner = InfLora(linear_model, SETTINGS, tasks=3, first_threshold=1.0)
    assert min(changes_of_old_outputs(learner, tasks, images, labels)) > 0.1


# A transformer ---------------------------------------------------------------------------------


@pytest.fixture
def vit_tasks(tiny_data):
    return class_tasks(
        tiny_data.labels, classes=range(6), tasks=3, images=None, class_seed=0, seed=0
    )


VIT = LoraTraining(layers=["key", "value"], rank=2, epochs=4, batch_size=16, lr=0.02, seed=0)


def run(learner, tasks, data):
    """Accuracies; and the largest move of a layer for the inputs of the first task."""
    moved = []
    state = moments = None

    def observe(number, learner):
        nonlocal state, moments
        names, rows = learner.backbone.layers, tasks[0].train
        now = layer_state(learner.backbone, names)
        if number > 1:
            moved.extend(row["relative"] for row in drift_rows(state, now, moments))
        state, moments = now, input_moments(learner.backbone, names, data.images, rows, 32)

    rows = learn_tasks(learner, tasks, data.images, data.labels, data.test_images,
                       data.test_labels, observe=observe)  # fmt: skip
    return rows, moved


def test_it_moves_old_layer_outputs_less_than_sequential_lora(tiny_vit, tiny_data, vit_tasks):
    means = {}
    for name, learner in (
        ("inflora", InfLora(tiny_vit, VIT, tasks=3, first_threshold=0.95)),
        ("sequential", SequentialLora(tiny_vit, VIT)),
    ):
        _, moved = run(learner, vit_tasks, tiny_data)
        assert len(moved) == 2 * 4
        means[name] = sum(moved) / len(moved)
    assert 0 < means["inflora"] < 0.5 * means["sequential"]


def test_a_run_learns_and_writes_its_history(tiny_vit, tiny_data, vit_tasks):
    learner = InfLora(tiny_vit, VIT, tasks=3, first_threshold=0.8)
    untouched = {name: value.clone() for name, value in tiny_vit.state_dict().items()}
    rows, _ = run(learner, vit_tasks, tiny_data)
    assert learner.classes.tolist() == torch.cat([t.classes for t in vit_tasks]).tolist()
    assert all(row["task_il_accuracy"] > 80 for row in rows if row["after"] == row["task"])
    assert len(learner.history) == 3 * 4
    for row in learner.history:
        memory = learner.memories[row["layer"]]
        assert row["threshold"] == threshold_for(row["task"], 3, 0.8)
        assert row["occupied"] == 1 - row["free"] / 16
        assert row["discarded"] == memory.discarded[row["task"] - 1] <= 1 - row["threshold"]
        assert row["rank"] == 2
    # The inputs that count are those of the network as it is after the task.
    layers, rows = learner.backbone.layers, vit_tasks[-1].train
    for name, moment in input_moments(learner.backbone, layers, tiny_data.images, rows, 16).items():
        outside = learner.memories[name].residual_energy(moment) / moment.energy
        assert outside == pytest.approx(learner.memories[name].discarded[-1], rel=1e-6)
    last = learner.backbone.layers[-1]
    occupied = [row["occupied"] for row in learner.history if row["layer"] == last]
    assert occupied == sorted(occupied)
    assert all(torch.equal(v, untouched[n]) for n, v in tiny_vit.state_dict().items())


def test_the_same_seed_gives_the_same_run(tiny_vit, tiny_data, vit_tasks):
    def scores(seed):
        learner = InfLora(tiny_vit, replace(VIT, seed=seed), tasks=3, first_threshold=0.8)
        for task in vit_tasks[:2]:
            learner.learn(task, tiny_data.images, tiny_data.labels)
        return learner.scores(tiny_data.test_images), learner.history

    first, again, other = scores(1), scores(1), scores(2)
    assert torch.equal(first[0], again[0])
    assert first[1] == again[1]
    assert not torch.equal(first[0], other[0])


def test_layers_with_the_same_inputs_are_computed_once(tiny_vit, tiny_data, vit_tasks, monkeypatch):
    def run(shared):
        calls, update = [], DualGPM.update
        with monkeypatch.context() as patch:
            patch.setattr(DualGPM, "update", lambda *a: (calls.append(a[0]), update(*a)))
            if not shared:
                patch.setattr("ktlib.cpeft.inflora.input_moments", apart)
            learner = InfLora(tiny_vit, VIT, tasks=3, first_threshold=0.8)
            for task in vit_tasks[:2]:
                learner.learn(task, tiny_data.images, tiny_data.labels)
        return learner, calls

    def apart(*given):
        return {name: replace(moment) for name, moment in input_moments(*given).items()}

    (learner, calls), (other, all_calls) = run(True), run(False)
    assert (len(calls), len(all_calls)) == (2 * 2, 2 * 4)  # tasks, blocks; key and value apart
    assert learner.history == other.history
    assert torch.equal(learner.scores(tiny_data.test_images), other.scores(tiny_data.test_images))
    for name, memory in learner.memories.items():
        assert torch.equal(memory.basis, other.memories[name].basis)
    assert len({id(memory.basis) for memory in learner.memories.values()}) == 4


def test_only_up_and_the_new_head_are_trained(tiny_vit, tiny_data, vit_tasks):
    learner = InfLora(tiny_vit, VIT, tasks=3, first_threshold=0.8)
    learner.learn(vit_tasks[0], tiny_data.images, tiny_data.labels)
    state, head = layer_state(learner.backbone, learner.backbone.layers), learner.head
    first_head = copy.deepcopy(head.head(1).state_dict())
    others = {
        name: value.clone()
        for name, value in learner.backbone.state_dict().items()
        if not any(layer in name for layer in learner.backbone.layers)
    }
    memories = copy.deepcopy(learner.memories)
    learner.learn(vit_tasks[1], tiny_data.images, tiny_data.labels)
    for name, value in head.head(1).state_dict().items():
        assert torch.equal(value, first_head[name])
    now = learner.backbone.state_dict()
    assert all(torch.equal(now[name], value) for name, value in others.items())
    for name, weight in layer_state(learner.backbone, learner.backbone.layers).items():
        update = weight - state[name]
        inside = update - memories[name].project_out(update)
        assert float(update.norm()) > 1e-3
        assert float(inside.norm()) < 1e-4 * float(update.norm())
        # Up to the rounding of the weights in float32, its rank is that of A.
        assert int((torch.linalg.svdvals(update) > 1e-5).sum()) == 2


def test_a_full_layer_is_an_error_or_shrinks(tiny_vit, tiny_data, vit_tasks):
    images, labels = tiny_data.images, tiny_data.labels
    strict = replace(VIT, rank=12)
    learner = InfLora(tiny_vit, strict, tasks=3, first_threshold=0.9)
    learner.learn(vit_tasks[0], images, labels)
    name = learner.backbone.layers[0]
    left = learner.memories[name].free_rank
    assert left < 12
    weights = layer_state(learner.backbone, learner.backbone.layers)
    with pytest.raises(ValueError, match=f"{name}: rank must be at most {left}, what the old "
                       "tasks leave free of 16 dimensions. Found rank=12"):  # fmt: skip
        learner.learn(vit_tasks[1], images, labels)
    # Nothing has happened: no head, no step.
    assert learner.classes.tolist() == vit_tasks[0].classes.tolist()
    after = layer_state(learner.backbone, learner.backbone.layers)
    assert all(torch.equal(after[layer], weight) for layer, weight in weights.items())

    shrinking = InfLora(tiny_vit, strict, tasks=3, first_threshold=0.9, on_full="shrink")
    for task in vit_tasks[:2]:
        shrinking.learn(task, images, labels)
    used = {row["layer"]: row["rank"] for row in shrinking.history if row["task"] == 2}
    free = {row["layer"]: row["free"] for row in shrinking.history if row["task"] == 1}
    assert used == free
    assert used[name] == left


def test_a_layer_without_room_stays_as_it_is(tiny_vit, tiny_data, vit_tasks):
    images, labels = tiny_data.images, tiny_data.labels
    learner = InfLora(tiny_vit, VIT, tasks=3, first_threshold=1.0, on_full="shrink")
    learner.learn(vit_tasks[0], images, labels)
    name, twin = learner.backbone.layers[:2]  # key and value of one attention: the same inputs
    learner.memories[name].update(InputMoment.of(normal(1, 50, 16)), 1.0)
    before = layer_state(learner.backbone, learner.backbone.layers)
    learner.learn(vit_tasks[1], images, labels)
    rank = {row["layer"]: row["rank"] for row in learner.history if row["task"] == 2}
    assert rank[name] == 0 < rank[twin]
    assert torch.equal(layer_state(learner.backbone, [name])[name], before[name])
    assert all(torch.isfinite(learner.scores(tiny_data.test_images)).flatten())


def test_arguments_outside_are_refused_at_once(tiny_vit, tiny_data, vit_tasks):
    with pytest.raises(ValueError, match="Found 1.0 and 0.9"):
        InfLora(tiny_vit, VIT, tasks=3, first_threshold=1.0, last_threshold=0.9)
    with pytest.raises(ValueError, match="on_full must be one of .* Found 'skip'"):
        InfLora(tiny_vit, VIT, tasks=3, on_full="skip")
    with pytest.raises(ValueError, match="energy must be one of"):
        InfLora(tiny_vit, VIT, tasks=3, energy="trace")
    with pytest.raises(ValueError, match="task must lie in 1 to tasks=0"):
        InfLora(tiny_vit, VIT, tasks=0)
    learner = InfLora(tiny_vit, VIT, tasks=2)
    with pytest.raises(ValueError, match="task must lie in 1 to tasks=2. Found task=3"):
        learner.learn(vit_tasks[2], tiny_data.images, tiny_data.labels)


def test_the_energy_of_the_moment_occupies_less(tiny_vit, tiny_data, vit_tasks):
    occupied = {}
    for energy in ("activations", "moment"):
        learner = InfLora(tiny_vit, VIT, tasks=3, energy=energy)
        learner.learn(vit_tasks[0], tiny_data.images, tiny_data.labels)
        occupied[energy] = sum(row["occupied"] for row in learner.history)
    assert occupied["moment"] < occupied["activations"]
    assert math.isfinite(occupied["moment"])
