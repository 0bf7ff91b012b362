"""LoRA on a frozen encoder: starts, trains, merges, and refuses what it cannot adapt."""

import copy

import pytest
import torch
from torch import nn

from experiments.models.vit import small_vit
from ktlib.cpeft.adapters import LoraBackbone

WORDS = ["key", "value"]


def plain_network():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 12), nn.ReLU(), nn.Linear(12, 5))
    network.dim = 5
    return network


@pytest.fixture(params=["transformer", "plain"])
def backbone(request, tiny_vit, device):
    return tiny_vit if request.param == "transformer" else plain_network().to(device)


@pytest.fixture
def layers(backbone):
    return ["1", "3"] if isinstance(backbone, nn.Sequential) else WORDS


@pytest.fixture
def images(tiny_data, device):
    return tiny_data.images[::8].to(device)


def disturbed(lora, seed=1):
    """The same with adapters that do something."""
    stream = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name in lora.layers:
            lora.up(name).copy_(torch.randn(lora.up(name).shape, generator=stream))
    return lora


def test_it_starts_as_the_backbone_and_leaves_it_alone(backbone, layers, images):
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    state = torch.get_rng_state()
    lora = LoraBackbone(backbone, layers=layers, rank=2)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(lora(images), backbone(images))
    disturbed(lora)
    assert not torch.allclose(lora(images), backbone(images))
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())
    assert all(parameter.requires_grad for parameter in backbone.parameters())
    assert lora.dim == backbone.dim


def test_an_adapted_layer_adds_scale_b_a(images, device):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 5)).to(device)
    lora = disturbed(LoraBackbone(network, layers=["1"], rank=3, scale=0.5))
    weight = network[1].weight + 0.5 * lora.up("1") @ lora.down("1")
    expected = images.flatten(1) @ weight.T + network[1].bias
    torch.testing.assert_close(lora(images), expected, rtol=1e-5, atol=1e-5)
    assert lora.down("1").shape == (3, 64)
    assert lora.up("1").shape == (5, 3)
    assert torch.equal(lora.linear("1").weight, network[1].weight)


def test_layers_are_found_by_last_words_and_by_full_names(tiny_vit):
    by_words = LoraBackbone(tiny_vit, layers=["value", "key"], rank=1)
    assert len(by_words.layers) == 4
    linear = [n for n, m in tiny_vit.named_modules() if isinstance(m, nn.Linear)]
    assert list(by_words.layers) == [name for name in linear if name in by_words.layers]
    one = LoraBackbone(tiny_vit, layers=[by_words.layers[1]], rank=1)
    assert one.layers == by_words.layers[1:2]
    # A word that happens to be what another version of transformers calls the same layers.
    assert LoraBackbone(tiny_vit, layers=["q_proj"], rank=1).layers == LoraBackbone(
        tiny_vit, layers=["query"], rank=1
    ).layers  # fmt: skip


def test_a_name_that_ends_another_name_means_both_as_a_word():
    network = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)))
    assert LoraBackbone(network, layers=["0"], rank=1).layers == ("0", "1.0")
    assert LoraBackbone(network, layers=["1.0"], rank=1).layers == ("1.0",)


def test_only_adapters_are_trained_and_get_gradients(backbone, layers, images):
    lora = LoraBackbone(backbone, layers=layers, rank=2)
    pairs = [(lora.down(name), lora.up(name)) for name in lora.layers]
    assert [id(p) for p in lora.trained()] == [id(p) for pair in pairs for p in pair]
    wanted = {id(p) for p in lora.trained()}
    assert {id(p) for p in lora.parameters() if p.requires_grad} == wanted
    lora(images).square().sum().backward()
    assert all(up.grad.abs().sum() > 0 for _, up in pairs)
    assert not lora.training


def test_a_given_a_is_frozen_and_a_new_start_frees_it(backbone, layers, images):
    lora = disturbed(LoraBackbone(backbone, layers=layers, rank=2))
    given = {name: torch.full_like(lora.down(name), 0.25) for name in lora.layers}
    lora.start(0, down=given)
    assert torch.equal(lora(images), backbone(images))
    assert all(torch.equal(lora.down(name), given[name]) for name in lora.layers)
    assert [id(p) for p in lora.trained()] == [id(lora.up(name)) for name in lora.layers]
    lora(images).sum().backward()
    assert all(lora.down(name).grad is None for name in lora.layers)
    lora.start(0)
    assert len(lora.trained()) == 2 * len(lora.layers)


def test_the_seed_decides_a_for_each_layer(tiny_vit):
    first, same, other = (LoraBackbone(tiny_vit, layers=WORDS, rank=2, seed=s) for s in (3, 3, 4))
    drawn = first.adapters()
    assert all(torch.equal(drawn[name], value) for name, value in same.adapters().items())
    assert not any(torch.equal(first.down(n), other.down(n)) for n in first.layers)
    assert not torch.equal(first.down(first.layers[0]), first.down(first.layers[1]))
    first.start(4)
    assert all(torch.equal(first.down(n), other.down(n)) for n in first.layers)
    bound = 1 / 16**0.5
    assert 0.7 * bound < first.down(first.layers[0]).abs().max() <= bound


def test_merging_keeps_the_outputs_and_frees_the_adapters(backbone, layers, images):
    lora = disturbed(LoraBackbone(backbone, layers=layers, rank=2, scale=0.3))
    before = lora(images)
    for seed in (1, 2):  # updates add up
        lora.merge()
        torch.testing.assert_close(lora(images), before, rtol=1e-5, atol=1e-5)
        assert not any(lora.up(name).any() for name in lora.layers)
        before = disturbed(lora, seed)(images)
    lora.start(0)
    assert not torch.allclose(lora(images), backbone(images))


def test_adapters_can_be_taken_out_and_put_back(backbone, layers, images):
    lora = disturbed(LoraBackbone(backbone, layers=layers, rank=2))
    kept, outputs = lora.adapters(), lora(images)
    assert list(kept)[:2] == [f"{lora.layers[0]}.down", f"{lora.layers[0]}.up"]
    lora.start(7)
    assert not torch.allclose(lora(images), outputs)
    lora.load_adapters(kept)
    assert torch.equal(lora(images), outputs)
    twin = copy.deepcopy(lora)
    disturbed(twin, 9)
    assert torch.equal(lora(images), outputs)  # a copy is a copy
    assert not torch.allclose(twin(images), outputs)


def test_adapters_that_do_not_fit_are_refused(tiny_vit):
    lora = LoraBackbone(tiny_vit, layers=WORDS, rank=2)
    kept = lora.adapters()
    first = next(iter(kept))
    with pytest.raises(ValueError, match=f"values must have the names .*unknown: {first}"):
        lora.load_adapters({name: kept[name] for name in kept if name != first})
    with pytest.raises(ValueError, match=r"must have shape \(2, 16\). Found \(3, 16\)"):
        lora.load_adapters(kept | {first: torch.zeros(3, 16)})
    with pytest.raises(ValueError, match="must be finite"):
        lora.load_adapters(kept | {first: torch.full((2, 16), float("nan"))})
    with pytest.raises(ValueError, match="down must have the names"):
        lora.start(0, down={})
    # Nothing was changed by what was refused.
    assert all(torch.equal(kept[name], value) for name, value in lora.adapters().items())
    with pytest.raises(ValueError, match="name must be one of the adapted layers .*Found 'head'"):
        lora.up("head")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": ["keys"]}, r"names of linear layers .*v_proj|value.*Found \['keys'\]"),
        ({"layers": []}, "at least one name. Found layers=\\[\\]"),
        ({"layers": "key"}, "must be a list of at least one name. Found layers='key'"),
        ({"rank": 0}, "rank must be at least 1. Found rank=0"),
    ],
)
def test_bad_settings_are_told(tiny_vit, settings, message):
    with pytest.raises(ValueError, match=message):
        LoraBackbone(tiny_vit, **({"layers": WORDS, "rank": 2} | settings))


def test_layers_that_are_used_without_a_call_are_refused():
    """Adapters there would be passed by in silence."""
    block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for name, owner in (("self_attn.out_proj", "MultiheadAttention"), ("linear1", "Encoder")):
        with pytest.raises(ValueError, match=f"{name}' belongs to a torch.nn..*{owner}"):
            LoraBackbone(block, layers=[name], rank=1)
    decoder = nn.TransformerDecoderLayer(8, 2, 16, batch_first=True)
    assert LoraBackbone(decoder, layers=["linear1"], rank=1).layers == ("linear1",)


def test_layers_that_share_their_weights_are_refused():
    """One adapter would stand for two layers, or merging would change what has none."""
    layer = nn.Linear(4, 4)
    with pytest.raises(ValueError, match="weights of their own. '0' shares them: 0.weight, 2.wei"):
        LoraBackbone(nn.Sequential(layer, nn.ReLU(), layer), layers=["0"], rank=1)
    network = nn.ModuleDict({"in": nn.Embedding(4, 4), "out": nn.Linear(4, 4, bias=False)})
    network["out"].weight = network["in"].weight
    with pytest.raises(ValueError, match="'out' shares them: in.weight, out.weight"):
        LoraBackbone(network, layers=["out"], rank=1)


def test_a_backbone_without_dim_is_told(images, device):
    lora = LoraBackbone(nn.Sequential(nn.Flatten(), nn.Linear(64, 5)), layers=["1"], rank=1)
    with pytest.raises(ValueError, match="attribute `dim`. Sequential has dim=None"):
        _ = lora.dim
    assert small_vit(image_size=8, patch_size=4, width=8, blocks=1, heads=2).dim == 8
