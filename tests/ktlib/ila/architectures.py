"""Architectures of transformers x variants of LoRA: what a ranking does with each.

One table of rows, from which a page can be made: :func:`rows` gives architecture, variant, verdict
and sentence. ``test_architectures.py`` holds each row against naive copies of the model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

VOCABULARY = 40
SMALL = {
    "vocab_size": VOCABULARY,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "initializer_range": 0.2,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GROUPED = SMALL | {"num_key_value_heads": 1, "head_dim": 8}
EXPERTS = {"num_experts_per_tok": 2, "num_local_experts": 4, "num_experts": 4}
GPT2 = {"vocab_size": VOCABULARY, "n_positions": 32, "n_embd": 16, "n_layer": 2, "n_head": 2}
PAIR = {
    "vocab_size": VOCABULARY,
    "d_model": 16,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "init_std": 0.2,
    "pad_token_id": 0,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}


@dataclass(frozen=True)
class Architecture:
    """A tiny random model.

    Attributes:
        model: class in transformers; its configuration is found from it.
        config: its settings.
        targets: what LoRA adapts: an attention and a feed-forward projection, as far as there are.
        labels: ``next token``, ``token`` or ``text``, as ``target_kind`` says it; ``image`` and
            ``class`` for those with one label per example.
        full: the sentence with which fine-tuning as a whole is refused; empty where it is exact.
        skipped: as ``full``, with ``skip_unsupported``.
        slow: whether it runs in the nightly tests only.
    """

    model: str
    config: Mapping[str, Any]
    targets: tuple[str, ...]
    labels: str = "next token"
    full: str = ""
    skipped: str = ""
    slow: bool = False


@dataclass(frozen=True)
class Variant:
    """Settings of LoRA.

    Attributes:
        settings: of ``peft.LoraConfig``.
        verdict: ``exact``: equal to a naive gate; ``warns``: so, with a warning; ``refused``.
        says: the warning or the refusal, a part of it.
        prepare: what is done to the adapted model before: ``merge``, ``disable``, ``second``
            adapter beside, ``both`` active, ``embeddings`` adapted, ``fresh`` as initialised.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    verdict: str = "exact"
    says: str = ""
    prepare: str = ""


ARCHITECTURES = (
    Architecture("LlamaForCausalLM", GROUPED, ("q_proj", "down_proj")),
    Architecture("MistralForCausalLM", GROUPED, ("k_proj", "up_proj"), slow=True),
    Architecture("Qwen2ForCausalLM", GROUPED, ("q_proj", "down_proj"), slow=True),
    Architecture("Qwen3ForCausalLM", GROUPED, ("v_proj", "gate_proj")),
    Architecture("GemmaForCausalLM", GROUPED, ("o_proj", "up_proj"), slow=True),
    Architecture("Gemma2ForCausalLM", GROUPED, ("q_proj", "down_proj"), slow=True),
    Architecture("PhiForCausalLM", SMALL, ("q_proj", "fc1"), slow=True),
    Architecture("Phi3ForCausalLM", SMALL, ("qkv_proj", "down_proj")),
    Architecture("GPT2LMHeadModel", GPT2, ("c_attn", "c_proj")),
    Architecture("GPTNeoXForCausalLM", SMALL, ("query_key_value", "dense_h_to_4h")),
    Architecture(
        "OPTForCausalLM",
        SMALL | {"ffn_dim": 24, "word_embed_proj_dim": 16, "init_std": 0.2},
        ("q_proj", "fc2"),
        slow=True,
    ),
    Architecture(
        "BloomForCausalLM",
        {"vocab_size": VOCABULARY, "hidden_size": 16, "n_layer": 2, "n_head": 2},
        ("query_key_value", "dense_4h_to_h"),
        slow=True,
    ),
    Architecture("FalconForCausalLM", SMALL, ("query_key_value", "dense"), slow=True),
    Architecture("Olmo2ForCausalLM", GROUPED, ("q_proj", "down_proj"), slow=True),
    Architecture(
        "MixtralForCausalLM",
        GROUPED | EXPERTS,
        ("q_proj", "v_proj"),
        full=r"Found .*mlp\.gate\.weight.*mlp\.experts\.gate_up_proj.*skip_unsupported=True",
    ),
    Architecture(
        "Qwen3MoeForCausalLM",
        GROUPED | EXPERTS | {"moe_intermediate_size": 12},
        ("q_proj", "o_proj"),
        full=r"Found .*experts\.gate_up_proj",
        slow=True,
    ),
    Architecture(
        "MambaForCausalLM",
        SMALL | {"state_size": 4, "conv_kernel": 2, "time_step_rank": 4},
        ("in_proj", "x_proj"),
        full=r"Found .*mixer\.A_log",
        skipped=r"never used .*mixer\.dt_proj",  # it reads the weight without calling the layer
    ),
    Architecture("BertForMaskedLM", SMALL, ("query", "output.dense"), labels="token"),
    Architecture("BertLMHeadModel", SMALL | {"is_decoder": True}, ("query",), slow=True),
    Architecture("RobertaForTokenClassification", SMALL, ("value",), labels="token", slow=True),
    Architecture("BertForSequenceClassification", SMALL, ("query",), labels="class", slow=True),
    Architecture(
        "T5ForConditionalGeneration",
        {
            "vocab_size": VOCABULARY,
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 24,
            "num_layers": 1,
            "num_heads": 2,
            "decoder_start_token_id": 0,
        },
        ("q", "wo"),
        labels="text",
    ),
    Architecture("BartForConditionalGeneration", PAIR, ("q_proj", "fc1"), labels="text", slow=True),
    Architecture(
        "BartForCausalLM",
        PAIR,
        ("self_attn.q_proj", "fc1"),
        labels="token",
        full=r"never used .*encoder_attn",
        skipped=r"never used .*encoder_attn",
        slow=True,
    ),
    Architecture(
        "ViTForImageClassification",
        SMALL | {"image_size": 8, "patch_size": 4, "num_labels": 3},
        ("q_proj", "fc1"),
        labels="image",
    ),
)

VARIANTS = (
    Variant("plain"),
    Variant("gaussian", {"init_lora_weights": "gaussian"}),
    Variant("random B", {"init_lora_weights": False}),
    Variant("orthogonal", {"init_lora_weights": "orthogonal", "r": 2}),
    Variant("EVA", {"init_lora_weights": "eva"}),
    Variant("rsLoRA", {"use_rslora": True}),
    Variant("rank 1", {"r": 1}),
    Variant("patterns of ranks", {"rank_pattern": {".*0.*": 2}, "alpha_pattern": {".*0.*": 5}}),
    Variant("dropout", {"lora_dropout": 0.5}),
    Variant("a second adapter, not active", prepare="second"),
    Variant("two active adapters", {}, "refused", "one active LoRA adapter", "both"),
    Variant("merged", {}, "refused", r"unmerge_adapter\(\) first", "merge"),
    Variant("switched off", {}, "refused", "enable_adapter_layers", "disable"),
    Variant("adapted embeddings", {}, "refused", "an adapted embedding", "embeddings"),
    Variant("not trained", {}, "refused", "nothing to rank", "fresh"),
    Variant(
        "not trained, orthogonal",
        {"init_lora_weights": "orthogonal", "r": 2},
        "refused",
        "nothing to rank",
        "fresh",
    ),
    Variant("trained biases", {"bias": "all"}, "warns", "only B A is gated"),
    Variant("DoRA", {"use_dora": True}, "refused", "DoraLinearVariant"),
    Variant("MiCA", {"init_lora_weights": "mica"}, "refused", "MiCALinearVariant"),
    *(
        Variant(name, {"init_lora_weights": start}, "refused", f"init_lora_weights=.'{start}'.")
        for name, start in {
            "PiSSA": "pissa",
            "PiSSA, fast": "pissa_niter_4",
            "OLoRA": "olora",
            "CorDA": "corda",
            "LoftQ": "loftq",
            "LoRA-GA": "lora_ga",
        }.items()
    ),
)


def rows() -> Iterator[tuple[Architecture, Variant]]:
    """All rows of the table, architecture by architecture."""
    for architecture in ARCHITECTURES:
        for variant in VARIANTS:
            if (architecture.labels, variant.prepare) != ("image", "embeddings"):
                yield architecture, variant
