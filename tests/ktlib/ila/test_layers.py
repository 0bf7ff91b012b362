"""Which layers a model has, and what is said where there are none."""

import peft
import pytest
import torch
import transformers
from torch import nn

from ktlib.ila.layers import (
    active_adapter,
    adapted_layers,
    base_weights,
    layer_name,
    linear_layers,
    plain_lora_layers,
    some_of,
)

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")


def expected(block):
    attention = [f"model.layers.{block}.self_attn.{name}" for name in ATTENTION]
    return attention + [f"model.layers.{block}.mlp.{name}" for name in FEED_FORWARD]


@pytest.mark.parametrize(
    ("module", "layer"),
    [
        ("base_model.model.model.layers.0.mlp.up_proj", "model.layers.0.mlp.up_proj"),
        ("module.base_model.model.lm_head", "lm_head"),
        ("_orig_mod.model.layers.1.mlp.up_proj", "model.layers.1.mlp.up_proj"),
        ("model.layers.1._fsdp_wrapped_module.mlp.up_proj", "model.layers.1.mlp.up_proj"),
        ("transformer.h.0.attn.c_attn", "transformer.h.0.attn.c_attn"),
    ],
)
def test_names_are_those_of_the_model_without_wrappers(module, layer):
    assert layer_name(module) == layer


def test_adapted_layers_are_all_projections_in_the_order_of_the_model(lora_llama):
    layers = adapted_layers(lora_llama)
    assert list(layers) == expected(0) + expected(1)
    assert active_adapter(layers) == "default"
    assert list(plain_lora_layers(lora_llama)) == list(layers)


def test_a_tied_head_is_a_layer_like_any_other(new_llama, new_lora):
    with pytest.warns(UserWarning, match="tie_word_embeddings"):
        model = new_lora(new_llama(), targets=["v_proj", "lm_head"])
    assert list(adapted_layers(model)) == [
        "model.layers.0.self_attn.v_proj",
        "model.layers.1.self_attn.v_proj",
        "lm_head",
    ]


def test_a_model_without_adapters_is_refused(llama):
    with pytest.raises(ValueError, match="must have LoRA adapters.*Found none in LlamaForCausalLM"):
        adapted_layers(llama)


def test_adapters_of_another_kind_are_named(llama):
    config = peft.IA3Config(target_modules=["v_proj"], feedforward_modules=[])
    with pytest.raises(ValueError, match="another kind"):
        adapted_layers(peft.inject_adapter_in_model(config, llama))


def test_merged_and_disabled_adapters_are_refused_and_nothing_is_unmerged(lora_llama):
    lora_llama.merge_adapter()
    with pytest.raises(ValueError, match=r"unmerge_adapter\(\) first. Found merged ones in model"):
        plain_lora_layers(lora_llama)
    assert all(layer.merged for layer in adapted_layers(lora_llama).values())
    lora_llama.unmerge_adapter()
    with (
        lora_llama.disable_adapter(),
        pytest.raises(ValueError, match="enable_adapter_layers"),
    ):
        plain_lora_layers(lora_llama)


def test_dora_is_refused_by_name(new_llama, new_lora):
    model = new_lora(new_llama(), targets=["q_proj"], use_dora=True)
    with pytest.raises(ValueError, match="Found DoraLinearVariant in model.layers.0.self_attn"):
        plain_lora_layers(model)


def test_adalora_is_refused_by_name(llama):
    config = peft.AdaLoraConfig(target_modules=["q_proj"], total_step=10)
    with pytest.raises(ValueError, match="Found SVDLinear"):
        plain_lora_layers(peft.inject_adapter_in_model(config, llama))


def test_an_adapted_embedding_is_refused(new_llama, new_lora):
    model = new_lora(new_llama(tied=False), targets=["embed_tokens", "q_proj"])
    with pytest.raises(ValueError, match="an adapted embedding in model.embed_tokens"):
        plain_lora_layers(model)


def test_only_the_active_adapter_counts_and_several_are_refused(lora_llama):
    other = peft.LoraConfig(r=2, target_modules=["q_proj"])
    lora_llama.add_adapter("other", other)
    assert len(adapted_layers(lora_llama)) == 14
    lora_llama.set_adapter("other")
    layers = adapted_layers(lora_llama)
    assert [name.rpartition(".")[2] for name in layers] == ["q_proj", "q_proj"]
    assert active_adapter(layers) == "other"
    lora_llama.base_model.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match=r"one active LoRA adapter.*\['default', 'other'\]"):
        adapted_layers(lora_llama)


def test_linear_layers_of_a_whole_model_hold_the_head(llama, lora_llama):
    assert list(linear_layers(llama)) == [*expected(0), *expected(1), "lm_head"]
    with pytest.raises(ValueError, match="Found adapters of peft"):
        linear_layers(lora_llama)
    with pytest.raises(ValueError, match="Found none in LayerNorm"):
        linear_layers(nn.LayerNorm(3))


def test_conv1d_of_gpt2_is_linear():
    config = transformers.GPT2Config(vocab_size=8, n_positions=8, n_embd=4, n_layer=1, n_head=1)
    names = list(linear_layers(transformers.GPT2LMHeadModel(config)))
    assert "transformer.h.0.attn.c_attn" in names
    assert "transformer.h.0.mlp.c_proj" in names


def test_base_weights_are_found_under_either_name_of_a_tied_head(llama, new_llama):
    state = new_llama(seed=9).state_dict()
    both = base_weights(llama, state)
    assert torch.equal(both["lm_head"]["weight"], state["model.embed_tokens.weight"])
    del state["lm_head.weight"]
    one = base_weights(llama, state)
    assert torch.equal(one["lm_head"]["weight"], state["model.embed_tokens.weight"])
    assert list(one) == list(linear_layers(llama))


def test_a_state_of_another_model_is_refused(llama, new_llama):
    state = new_llama(blocks=1).state_dict()
    with pytest.raises(ValueError, match="model.layers.1.self_attn.q_proj.weight.*2 m"):
        base_weights(llama, state)
    with pytest.raises(ValueError, match="shapes of the model.*mlp.gate_proj.weight"):
        base_weights(llama, new_llama(intermediate_size=8).state_dict())
    with pytest.raises(TypeError, match="Found LlamaForCausalLM"):
        base_weights(llama, llama)
    with pytest.raises(ValueError, match="Missing:"):
        base_weights(llama, {})


def test_messages_name_a_few_layers():
    assert some_of("abc") == "a, b, c"
    assert some_of("abcdefg") == "a, b, c, d, e and 2 more"
