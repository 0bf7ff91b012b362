import pytest
import torch
from torch import nn

from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.inputs import InputMoment, input_moments, linear_layer


class TwoLayers(nn.Module):
    """Tokens ``(n, length, 5)`` through ``first`` and ``twin``, then ``second``; never ``idle``."""

    def __init__(self):
        super().__init__()
        self.first, self.twin = nn.Linear(5, 4), nn.Linear(5, 4)
        self.second, self.idle = nn.Linear(4, 3), nn.Linear(5, 3)
        self.noise = nn.Dropout(0.5)

    def forward(self, tokens):
        return self.second(self.noise(self.first(tokens)).tanh() + self.twin(tokens))


@pytest.fixture
def network(device):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return TwoLayers().to(device)


@pytest.fixture
def tokens():
    return torch.randn(7, 3, 5, generator=torch.Generator().manual_seed(2)) + 1


LAYERS = ("second", "first", "twin")


def test_the_moment_is_the_mean_of_outer_products_over_all_tokens(network, tokens, device):
    rows = torch.tensor([0, 2, 3, 5, 6])
    found = input_moments(network, LAYERS, tokens, rows, 2)
    assert tuple(found) == LAYERS
    flat = tokens[rows].reshape(-1, 5).double()
    expected = sum(torch.outer(x, x) for x in flat) / len(flat)
    for name in ("first", "twin"):
        torch.testing.assert_close(found[name].matrix.cpu(), expected, rtol=1e-12, atol=1e-12)
        assert found[name].tokens == 15
    # Behind an activation: the inputs of the second layer, without dropout.
    with torch.no_grad():
        given = tokens[rows].to(device)
        hidden = network.first(given).tanh() + network.twin(given)
    expected = InputMoment.of(hidden)
    torch.testing.assert_close(found["second"].matrix, expected.matrix, rtol=1e-6, atol=1e-6)
    assert found["second"].matrix.dtype == torch.float64
    assert found["first"].energy == pytest.approx(float(flat.square().sum(1).mean()))


class InPlace(nn.Module):
    """One tensor that goes into two layers and is changed in between, as some residuals are."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(5, 5), nn.Linear(5, 5)

    def forward(self, tokens):
        stream = tokens.clone()
        stream += self.first(stream)
        return self.second(stream)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_tensor_that_is_changed_in_place_is_seen_as_each_layer_sees_it(tokens, mode):
    network = InPlace()
    with mode():
        found = input_moments(network, ["first", "second"], tokens, torch.arange(7), 7)
    with torch.no_grad():
        expected = InputMoment.of(tokens + network.first(tokens))
    torch.testing.assert_close(found["first"].matrix, InputMoment.of(tokens).matrix)
    torch.testing.assert_close(found["second"].matrix, expected.matrix, rtol=1e-6, atol=1e-6)


def test_layers_that_read_one_tensor_share_a_moment(network, tokens):
    rows = torch.arange(7)
    found = input_moments(network, LAYERS, tokens, rows, 3)
    assert found["first"] is found["twin"]
    alone = input_moments(network, ["twin"], tokens, rows, 3)["twin"]
    assert torch.equal(found["twin"].matrix, alone.matrix)


class Uneven(TwoLayers):
    """``first`` is called twice, ``twin`` in between for some of the images only."""

    def forward(self, tokens):
        self.first(tokens)
        if tokens[0, 0, 0] > 1:
            self.twin(tokens)
        return self.first(tokens)


def test_layers_that_share_only_some_inputs_have_moments_of_their_own(tokens):
    found = input_moments(Uneven(), ["first", "twin"], tokens, torch.arange(7), 1)
    some = InputMoment.of(tokens[tokens[:, 0, 0] > 1])
    assert 0 < some.tokens < 21
    assert (found["first"].tokens, found["twin"].tokens) == (42, some.tokens)
    torch.testing.assert_close(found["first"].matrix, InputMoment.of(tokens).matrix)
    torch.testing.assert_close(found["twin"].matrix, some.matrix)


@pytest.mark.parametrize("batch_size", [1, 3, 4, 100])
def test_the_batch_size_does_not_matter(network, tokens, batch_size):
    rows = torch.arange(7)
    whole, parts = (input_moments(network, LAYERS, tokens, rows, b) for b in (7, batch_size))
    for name in LAYERS:
        # Matrix products of another shape are rounded otherwise, in float32 behind a layer.
        torch.testing.assert_close(parts[name].matrix, whole[name].matrix, rtol=1e-6, atol=1e-6)
        assert parts[name].tokens == whole[name].tokens == 21


def test_moments_merge_to_that_of_all_inputs(tokens):
    parts = [InputMoment.of(tokens[:2]), InputMoment.of(tokens[2:])]
    merged, whole = parts[0].merged(parts[1]), InputMoment.of(tokens)
    torch.testing.assert_close(merged.matrix, whole.matrix, rtol=1e-14, atol=1e-14)
    assert merged.tokens == whole.tokens == 21
    with pytest.raises(ValueError, match="same input size to be merged. Found 5 and 4"):
        whole.merged(InputMoment.of(tokens[..., :4]))
    with pytest.raises(ValueError, match=r"at least one token. Found \(0, 5\)"):
        InputMoment.of(torch.zeros(0, 5))


def test_the_network_is_left_as_it_was(network, tokens):
    network.train()
    network.second.eval()
    state = {name: value.clone() for name, value in network.state_dict().items()}
    input_moments(network, LAYERS, tokens, torch.arange(7), 3)
    assert network.training
    assert network.noise.training
    assert not network.second.training
    assert not any(module._forward_pre_hooks for module in network.modules())
    assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
    assert all(p.grad is None for p in network.parameters())


def test_hooks_are_gone_after_an_error(network, tokens):
    with pytest.raises(RuntimeError):
        input_moments(network, LAYERS, tokens[..., :4], torch.arange(7), 3)
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_layers_beneath_adapters_see_the_inputs_of_the_adapted_network(tiny_vit, tiny_data):
    adapted = LoraBackbone(tiny_vit, layers=["key", "value"], rank=2, seed=1)
    rows = torch.arange(6)
    plain = input_moments(tiny_vit, adapted.layers, tiny_data.images, rows, 4)
    found = input_moments(adapted, adapted.layers, tiny_data.images, rows, 4)
    for name in adapted.layers:
        torch.testing.assert_close(found[name].matrix, plain[name].matrix, rtol=1e-5, atol=1e-5)
        assert found[name].tokens == 6 * 5  # four patches and the class token
    first, last = adapted.layers[0], adapted.layers[-1]
    with torch.no_grad():
        adapted.up(first).add_(1.0)
    moved = input_moments(adapted, adapted.layers, tiny_data.images, rows, 4)
    assert torch.equal(moved[first].matrix, found[first].matrix)
    assert not torch.allclose(moved[last].matrix, found[last].matrix, rtol=0.01)
    assert linear_layer(adapted, first) is adapted.linear(first)


def test_layers_that_are_missing_or_not_used_are_named(network, tokens):
    rows = torch.arange(7)
    with pytest.raises(ValueError, match=r"linear layers: \['first', .*\]. Found 'noise'"):
        input_moments(network, ["noise"], tokens, rows, 3)
    with pytest.raises(ValueError, match=r"used by the network. These were not: \['idle'\]"):
        input_moments(network, ["first", "idle"], tokens, rows, 3)
    with pytest.raises(ValueError, match="layers must name at least one"):
        input_moments(network, [], tokens, rows, 3)
    with pytest.raises(ValueError, match="rows must name at least one image"):
        input_moments(network, LAYERS, tokens, rows[:0], 3)
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        input_moments(network, LAYERS, tokens, rows, 0)
