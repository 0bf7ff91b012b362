"""Tiny random Llamas for the tests of ``ktlib.ila``, with and without LoRA, and small batches.

``KTLIB_TEST_DEVICE=cuda`` runs them on a GPU. A model is made anew for each test: change it freely.
"""

import os
import warnings

import peft
import pytest
import torch
import transformers

VOCABULARY = 64
CONTEXT = 32
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def device():
    return torch.device(os.environ.get("KTLIB_TEST_DEVICE", "cpu"))


def make_llama(*, seed=0, blocks=2, tied=True, **changes):
    """A random Llama of about 10,000 weights; the global generator is left as it was."""
    settings = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": blocks,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "max_position_embeddings": CONTEXT,
        "tie_word_embeddings": tied,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "pad_token_id": 0,
        # The usual 0.02 leaves so small a model with next to no signal.
        "initializer_range": 0.2,
    } | changes
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return transformers.LlamaForCausalLM(transformers.LlamaConfig(**settings))


def add_lora(model, *, seed=1, targets=PROJECTIONS, size=0.3, **changes):
    """The model with LoRA of rank 3 as peft makes it, and B random instead of zero."""
    settings = {"r": 3, "lora_alpha": 6, "task_type": "CAUSAL_LM"} | changes
    with torch.random.fork_rng(), warnings.catch_warnings():
        # peft 0.21 still asks by a name that transformers 5.23 calls old; nothing to do here.
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        torch.manual_seed(seed)
        adapted = peft.get_peft_model(
            model, peft.LoraConfig(target_modules=list(targets), **settings)
        )
        fill_lora_b(adapted, size=size)
    return adapted


@torch.no_grad()
def fill_lora_b(model, *, size=0.3):
    """Draw every B of LoRA anew from the global generator."""
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            parameter.normal_(std=size)


def make_batches(number=3, *, size=2, length=10, seed=2, device="cpu"):
    """Batches of random tokens; the first three are the prompt, the last rows are padded."""
    generator = torch.Generator().manual_seed(seed)
    batches = []
    for _ in range(number):
        ids = torch.randint(3, VOCABULARY, (size, length), generator=generator)
        mask = torch.ones_like(ids)
        labels = ids.clone()
        labels[:, :3] = -100
        ids[-1, -2:], mask[-1, -2:], labels[-1, -2:] = 0, 0, -100
        batch = {"input_ids": ids, "attention_mask": mask, "labels": labels}
        batches.append({key: value.to(device) for key, value in batch.items()})
    return batches


@pytest.fixture
def llama(device):
    """Two blocks, tied embeddings, no adapters."""
    return make_llama().to(device)


@pytest.fixture
def lora_llama(device):
    """Two blocks with LoRA on all seven projections: 14 layers; B is not zero."""
    return add_lora(make_llama()).to(device)


@pytest.fixture
def batches(device):
    """Three batches of two sequences of ten tokens."""
    return make_batches(device=device)


@pytest.fixture
def new_llama():
    """Make a Llama without adapters: ``new_llama(seed=, blocks=, tied=, **config)``."""
    return make_llama


@pytest.fixture
def new_lora():
    """Put LoRA on a model: ``new_lora(model, seed=, targets=, size=, **lora_config)``."""
    return add_lora


@pytest.fixture
def new_batches():
    """Make batches: ``new_batches(number, size=, length=, seed=, device=)``."""
    return make_batches
