import copy
import math

import pytest
import torch
from torch import nn

from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.drift import drift_rows, layer_state
from ktlib.cpeft.gpm import DualGPM
from ktlib.cpeft.inflora import design_down
from ktlib.cpeft.inputs import InputMoment, input_moments

SIZE, OUTPUTS = 10, 4


def normal(seed, *shape):
    stream = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=stream, dtype=torch.float64)


def old_inputs(seed, *, directions=SIZE):
    scales = torch.arange(1, directions + 1, dtype=torch.float64) ** -1.0
    axes = torch.linalg.qr(normal(seed + 1000, SIZE, SIZE)).Q
    return (normal(seed, 80, directions) * scales) @ axes[:directions]


def rms(rows):
    return float(rows.square().sum(1).mean().sqrt())


def one_layer(before, update, inputs, memory=None):
    weights = {"a": before}, {"a": before + update}
    memories = None if memory is None else {"a": memory}
    (row,) = drift_rows(*weights, {"a": InputMoment.of(inputs)}, memories)
    return row


def test_the_formula_is_what_the_outputs_show():
    inputs, weight, update = old_inputs(1), normal(2, OUTPUTS, SIZE), 0.1 * normal(3, OUTPUTS, SIZE)
    row = one_layer(weight, update, inputs)
    assert row["moved"] == pytest.approx(rms(inputs @ (weight + update).T - inputs @ weight.T))
    assert row["output"] == pytest.approx(rms(inputs @ weight.T))
    assert row["relative"] == pytest.approx(row["moved"] / row["output"])
    assert set(row) == {"layer", "moved", "output", "relative", "resolution"}


def designed(seed, threshold, rank):
    """A memory of old inputs, and an update with rows in its complement."""
    inputs, memory = old_inputs(seed), DualGPM(SIZE)
    memory.update(InputMoment.of(inputs), threshold)
    rank = min(rank, memory.free_rank)
    down = design_down(InputMoment.of(normal(seed + 1, 40, SIZE)), memory, rank)
    return inputs, memory, normal(seed + 2, OUTPUTS, rank) @ down


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.8, 0.9, 0.97])
def test_the_bound_holds_for_updates_in_the_complement(threshold):
    ratios = []
    for seed in range(0, 300, 10):
        inputs, memory, update = designed(seed, threshold, rank=3)
        row = one_layer(normal(seed + 3, OUTPUTS, SIZE), update, inputs, memory)
        assert row["moved"] <= row["bound"] + row["resolution"]
        assert row["inside"] <= row["resolution"]
        norm = float(torch.linalg.matrix_norm(update, 2))
        assert row["outside"] == pytest.approx(norm * rms(memory.project_out(inputs)))
        ratios.append(row["bound"] / row["moved"])
    # Loose, but not empty: some update comes near to it.
    assert 1 < min(ratios) < 3


def test_the_bound_is_reached():
    # Along the strongest direction that was discarded, with nothing else left.
    inputs, memory = old_inputs(4, directions=5), DualGPM(SIZE)
    values, axes = torch.linalg.eigh(InputMoment.of(inputs).matrix)
    memory.update(InputMoment.of(inputs), float(1 - values[-5] / values.sum()) - 1e-9)
    assert memory.old_rank == 4
    update = torch.outer(normal(5, OUTPUTS), axes[:, -5])
    row = one_layer(normal(6, OUTPUTS, SIZE), update, inputs, memory)
    assert row["moved"] == pytest.approx(row["bound"], rel=1e-6)
    assert row["moved"] > 0.05 * row["output"] > 0


def test_the_bound_holds_for_any_update():
    # One that was not designed: what it does inside the memory is added.
    beyond = 0
    for seed in range(0, 200, 10):
        inputs, memory, _ = designed(seed, 0.95, rank=3)
        update = normal(seed + 5, OUTPUTS, SIZE)
        row = one_layer(normal(seed + 3, OUTPUTS, SIZE), update, inputs, memory)
        assert row["moved"] <= row["bound"] == row["outside"] + row["inside"]
        beyond += row["moved"] > row["outside"]
        inside = rms((inputs - memory.project_out(inputs)) @ update.T)
        assert row["inside"] == pytest.approx(inside)
    assert beyond > 15  # what was discarded alone would not bound them


def test_threshold_one_moves_nothing():
    inputs, memory = old_inputs(8, directions=6), DualGPM(SIZE)
    memory.update(InputMoment.of(inputs), 1.0)
    down = design_down(InputMoment.of(normal(9, 40, SIZE)), memory, 4)
    weight, update = normal(10, OUTPUTS, SIZE), normal(11, OUTPUTS, 4) @ down
    assert rms(inputs @ update.T) < 1e-12
    row = one_layer(weight, update, inputs, memory)
    assert max(row["moved"], row["bound"]) <= row["resolution"] < 1e-6


def test_no_update_and_no_output_are_told_apart():
    inputs, nothing = old_inputs(1), torch.zeros(OUTPUTS, SIZE, dtype=torch.float64)
    row = one_layer(normal(2, OUTPUTS, SIZE), nothing, inputs)
    assert row["moved"] == row["relative"] == 0
    assert math.isnan(one_layer(nothing, normal(2, OUTPUTS, SIZE), inputs)["relative"])


def test_the_state_of_a_network_with_adapters_is_what_acts(tiny_vit, tiny_data):
    adapted = LoraBackbone(tiny_vit, layers=["key"], rank=2, scale=0.5, seed=1)
    before = layer_state(adapted, adapted.layers)
    for name, weight in before.items():
        assert weight.dtype == torch.float64
        assert torch.equal(weight.float(), adapted.linear(name).weight.cpu())
    with torch.no_grad():
        for name in adapted.layers:
            adapted.up(name).fill_(0.1)
    open_state = layer_state(adapted, adapted.layers)
    adapted.merge()
    merged = layer_state(adapted, adapted.layers)
    for name in adapted.layers:
        torch.testing.assert_close(open_state[name], merged[name], rtol=1e-5, atol=1e-6)
        assert not torch.allclose(merged[name], before[name], atol=1e-3)


def test_the_drift_of_a_network_is_that_of_its_layer(tiny_vit, tiny_data):
    """The first adapted layer sees the same inputs before and after: hooks show the formula."""
    adapted = LoraBackbone(tiny_vit, layers=["key"], rank=2, seed=1)
    first, rows = adapted.layers[0], torch.arange(12)
    seen = []
    layer = adapted.backbone.get_submodule(first)
    handle = layer.register_forward_hook(lambda _m, _x, out: seen.append(out.detach()))
    moments = input_moments(adapted, adapted.layers, tiny_data.images, rows, 12)
    before = layer_state(adapted, adapted.layers)
    with torch.no_grad():
        adapted.up(first).add_(0.3)
    input_moments(adapted, adapted.layers, tiny_data.images, rows, 12)
    handle.remove()
    found = drift_rows(before, layer_state(adapted, adapted.layers), moments)
    assert [row["layer"] for row in found] == list(adapted.layers)
    moved = rms((seen[1] - seen[0]).double().flatten(0, 1))
    assert found[0]["moved"] == pytest.approx(moved, rel=1e-5)
    assert found[1]["moved"] == 0


def test_a_plain_network_has_a_state_too():
    network = nn.Sequential(nn.Linear(3, 2))
    state = layer_state(network, ["0"])
    with torch.no_grad():
        network[0].weight.zero_()
    assert state["0"].abs().min() > 0  # a copy
    with pytest.raises(ValueError, match="linear layers: .*Found 'one'"):
        layer_state(network, ["one"])


def test_what_does_not_fit_together_is_named():
    inputs, weight = old_inputs(1), normal(2, OUTPUTS, SIZE)
    state, moments = {"a": weight}, {"a": InputMoment.of(inputs)}
    with pytest.raises(ValueError, match=r"after must have the layers .*\['a'\]. Found \['b'\]"):
        drift_rows(state, {"b": weight}, moments)
    with pytest.raises(ValueError, match="moments_of_old_inputs must have"):
        drift_rows(state, state, {})
    with pytest.raises(ValueError, match="memory must have"):
        drift_rows(state, state, moments, {"b": DualGPM(SIZE)})
    with pytest.raises(ValueError, match="a: the moment must be of inputs of size 10. Found 9"):
        drift_rows(state, state, {"a": InputMoment.of(inputs[:, :9])})


def test_the_memory_is_not_changed():
    inputs, memory, update = designed(20, 0.8, rank=2)
    kept = copy.deepcopy(memory.state_dict())
    one_layer(normal(1, OUTPUTS, SIZE), update, inputs, memory)
    assert torch.equal(memory.basis, kept["basis"])
    assert memory.discarded == kept["discarded"]
