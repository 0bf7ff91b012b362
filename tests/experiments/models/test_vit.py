"""One vision transformer, with weights as torchvision, timm and transformers keep them."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F
from torchvision.models import VisionTransformer
from transformers import ViTForImageClassification

from experiments.models import vit
from experiments.models.vit import VitFeatures, small_vit, vit_b16, vit_from_state

WIDTH, HEADS, BLOCKS, HIDDEN, PATCH, SIDE = 16, 2, 2, 24, 4, 3


@pytest.fixture(scope="module")
def theirs():
    """A small VisionTransformer of torchvision, none of whose weights are the initial ones."""
    torch.manual_seed(0)
    network = VisionTransformer(SIDE * PATCH, PATCH, BLOCKS, HEADS, WIDTH, HIDDEN, num_classes=3)
    for value in network.parameters():
        value.data.add_(torch.randn_like(value), alpha=0.3)
    return network.eval()


@pytest.fixture(scope="module")
def timm_state():
    """Random weights by the names and shapes that timm gives them."""
    stream = torch.Generator().manual_seed(1)
    shapes = {
        "cls_token": (1, 1, WIDTH),
        "pos_embed": (1, SIDE**2 + 1, WIDTH),
        "patch_embed.proj.weight": (WIDTH, 3, PATCH, PATCH),
        "patch_embed.proj.bias": (WIDTH,),
        "norm.weight": (WIDTH,),
        "norm.bias": (WIDTH,),
        "head.weight": (3, WIDTH),
        "head.bias": (3,),
    }
    for block in range(BLOCKS):
        for name, shape in {
            "norm1": (WIDTH,), "attn.qkv": (3 * WIDTH, WIDTH), "attn.proj": (WIDTH, WIDTH),
            "norm2": (WIDTH,), "mlp.fc1": (HIDDEN, WIDTH), "mlp.fc2": (WIDTH, HIDDEN),
        }.items():  # fmt: skip
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
    return {n: 0.5 * torch.randn(shape, generator=stream) for n, shape in shapes.items()}


@pytest.fixture(scope="module")
def images():
    return torch.randn(5, 3, SIDE * PATCH, SIDE * PATCH, generator=torch.Generator().manual_seed(2))


def features_of_theirs(network, images):
    features = []
    hook = network.encoder.register_forward_hook(lambda _, __, out: features.append(out[:, 0]))
    network(images)
    hook.remove()
    return features[0]


def features_as_timm(state, images):
    """The forward pass of timm's VisionTransformer, written down."""
    patches = F.conv2d(images, state["patch_embed.proj.weight"], state["patch_embed.proj.bias"],
                       stride=PATCH)  # fmt: skip
    patches = patches.flatten(2).transpose(1, 2)
    x = torch.cat([state["cls_token"].expand(len(images), -1, -1), patches], dim=1)
    x = x + state["pos_embed"]

    def linear(name, values):
        return F.linear(values, state[f"{name}.weight"], state[f"{name}.bias"])

    def norm(name, values):
        weight, bias = state[f"{name}.weight"], state[f"{name}.bias"]
        return F.layer_norm(values, (WIDTH,), weight, bias, eps=1e-6)

    for block in range(BLOCKS):
        b = f"blocks.{block}"
        qkv = linear(f"{b}.attn.qkv", norm(f"{b}.norm1", x))
        batch, tokens, _ = qkv.shape
        q, k, v = qkv.reshape(batch, tokens, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        attention = (q @ k.transpose(-2, -1) / (WIDTH // HEADS) ** 0.5).softmax(-1)
        joined = (attention @ v).transpose(1, 2).reshape(batch, tokens, WIDTH)
        x = x + linear(f"{b}.attn.proj", joined)
        hidden = F.gelu(linear(f"{b}.mlp.fc1", norm(f"{b}.norm2", x)))
        x = x + linear(f"{b}.mlp.fc2", hidden)
    return norm("norm", x)[:, 0]


@torch.no_grad()
def test_weights_of_torchvision_give_its_class_token(theirs, images):
    ours = vit_from_state(theirs.state_dict(), heads=HEADS)
    expected = features_of_theirs(theirs, images)
    assert ours.dim == WIDTH
    assert expected.std(0).min() > 0.01  # features depend on the image
    torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(theirs.heads(ours(images)), theirs(images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_names_of_torchvisions_published_files_are_read_too(theirs, images):
    """They are older than its code, which renames them when they are loaded."""
    old = {
        name.replace("mlp.0.", "mlp.linear_1.").replace("mlp.3.", "mlp.linear_2."): value
        for name, value in theirs.state_dict().items()
    }
    assert old.keys() != theirs.state_dict().keys()
    ours = vit_from_state(old, heads=HEADS)
    torch.testing.assert_close(ours(images), features_of_theirs(theirs, images), rtol=0, atol=1e-5)


@torch.no_grad()
def test_weights_of_timm_give_its_class_token(timm_state, images):
    ours = vit_from_state(timm_state, heads=HEADS)
    expected = features_as_timm(timm_state, images)
    torch.testing.assert_close(ours(images), expected, rtol=0, atol=1e-5)


def test_query_key_and_value_are_layers_of_their_own(timm_state):
    ours = vit_from_state(timm_state, heads=HEADS)
    linear = [module for module in ours.modules() if isinstance(module, nn.Linear)]
    assert len(linear) == 6 * BLOCKS
    fused = timm_state["blocks.1.attn.qkv.weight"]
    for place in range(3):
        found = linear[6 + place].weight
        assert torch.equal(found, fused[place * WIDTH : (place + 1) * WIDTH])


def without(state, name):
    return {key: value for key, value in state.items() if key != name}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: without(s, "pos_embed"), "In x pos_embed is missing"),
        (lambda s: {"conv1.weight": torch.zeros(1)}, "torchvision and timm name them. In x pos_"),
        (lambda s: without(s, "blocks.1.norm2.bias"), r"1.layernorm_after.bias is missing"),
        (lambda s: without(s, "blocks.0.attn.qkv.bias"), r"bias is missing; .*bias is missing; "),
        (lambda s: {**s, "fc_norm.bias": torch.zeros(1)}, "In x fc_norm.bias is unknown"),
        (lambda s: {**s, "blocks.0.attn.qkv.bias": torch.zeros(17)}, r"bias has shape \(6,\)"),
        (lambda s: {**s, "pos_embed": torch.zeros(1, 9, WIDTH)}, r"has shape \(1, 9, 16\)"),
    ],
)
def test_other_weights_are_refused(timm_state, change, message):
    with pytest.raises(ValueError, match=message):
        vit_from_state(change(timm_state), heads=HEADS, source="x")


def test_heads_must_divide_the_width(timm_state):
    with pytest.raises(ValueError, match="heads must divide width=16. Found heads=3"):
        vit_from_state(timm_state, heads=3)


@pytest.fixture(scope="module")
def b16_state():
    """All names and sizes of a ViT-B/16, without taking the memory of one."""
    zero = torch.zeros(())
    network = VisionTransformer(16, 16, 1, 12, 768, 4)
    state = {n: zero.expand(v.shape) for n, v in network.state_dict().items()}
    return {
        name.replace("layer_0", f"layer_{block}"): value
        for block in range(12)
        for name, value in state.items()
    }


def test_files_are_read_as_torch_and_safetensors_keep_them(b16_state, tmp_path):
    state = {name: value.clone() for name, value in b16_state.items()}
    state["encoder.ln.bias"] += 2
    torch.save(state, tmp_path / "a.pth")
    save_file(state, tmp_path / "b.safetensors")
    for name in ("a.pth", "b.safetensors"):
        ours = vit_b16(str(tmp_path / name))
        assert (ours.dim, ours.training) == (768, False)
        assert torch.equal(ours(torch.ones(1, 3, 16, 16)), torch.full((1, 768), 2.0))


def test_files_of_other_sizes_are_refused(theirs, tmp_path, monkeypatch):
    torch.save(theirs.state_dict(), tmp_path / "small.pth")
    monkeypatch.setattr(vit, "_HEADS", HEADS)
    with pytest.raises(ValueError, match="768, 12 blocks, .* has width 16, 2 blocks, patches of 4"):
        vit_b16(str(tmp_path / "small.pth"))


def test_unreadable_and_missing_files_are_told(tmp_path):
    for name in ("x.pth", "x.safetensors"):
        (tmp_path / name).write_bytes(b"<html></html>")
        with pytest.raises(ValueError, match=f"file of tensors. .*{name} cannot be read"):
            vit_b16(str(tmp_path / name))
        with pytest.raises(FileNotFoundError, match="None, one of 'IMAGENET1K_V1'.* no such file"):
            vit_b16(str(tmp_path / f"no-{name}"))


def test_a_folder_of_transformers_is_read_and_another_model_refused(theirs, images, tmp_path):
    ours = vit_from_state(theirs.state_dict(), heads=HEADS)
    ours.model.save_pretrained(tmp_path)
    loaded = vit._of_folder(tmp_path)
    assert torch.equal(loaded(images), ours(images))
    classifier = ViTForImageClassification(ours.model.config)
    classifier.save_pretrained(tmp_path / "classifier")
    loaded = vit._of_folder(tmp_path / "classifier")
    assert torch.equal(loaded(images), VitFeatures(classifier.vit).eval()(images))
    with pytest.raises(ValueError, match="has width 16, 2 blocks"):
        vit_b16(str(tmp_path))
    settings = json.loads((tmp_path / "config.json").read_text())
    for change, message in (
        ({"model_type": "deit"}, "must be a ViT of transformers. .* holds 'deit'"),
        ({"num_hidden_layers": 3}, "must be all of a ViT. .* are missing"),
    ):
        (tmp_path / "config.json").write_text(json.dumps(settings | change))
        with pytest.raises(ValueError, match=message):
            vit_b16(str(tmp_path))
    (tmp_path / "model.safetensors").unlink()
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(ValueError, match="folder with safetensors of transformers. .*no file"):
        vit_b16(str(tmp_path))
    (tmp_path / "config.json").unlink()
    with pytest.raises(ValueError, match="has no readable config.json"):
        vit_b16(str(tmp_path))


def test_a_small_one_follows_its_seed_alone():
    state = torch.get_rng_state()
    sizes = {"image_size": 12, "patch_size": 4, "channels": 2, "width": 8, "blocks": 1, "heads": 2}
    first, same, other = (small_vit(**sizes, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(3, 2, 12, 12)
    assert first(images).shape == (3, first.dim) == (3, 8)
    assert torch.equal(first(images), same(images))
    assert not torch.allclose(first(images), other(images))
    assert not first.training
    assert small_vit().dim == 96


@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ({"patch_size": 5}, "patch_size must divide image_size=36. Found patch_size=5"),
        ({"heads": 5}, "heads must divide width=96. Found heads=5"),
        ({"blocks": 0}, "blocks must be at least 1. Found blocks=0"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(sizes, message):
    with pytest.raises(ValueError, match=message):
        small_vit(**sizes)
