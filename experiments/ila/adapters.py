"""What is trained in a language model: LoRA or AdaLoRA on chosen layers, or the weights themselves.

A layer is a linear module, named as in the model of transformers, such as
``model.layers.0.self_attn.q_proj``. Adapters are peft's.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ktlib.ila.gates import GATE
from ktlib.seeding import generator

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

COMPONENTS = {
    "attention": ("q_proj", "k_proj", "v_proj", "o_proj"),
    "qkv": ("q_proj", "k_proj", "v_proj"),
    "feed_forward": ("gate_proj", "up_proj", "down_proj"),
}
"""Parts of a block by the last word of a layer's name, as in Llama, Mistral and Qwen."""


def layer_names(model: nn.Module, layers: str | Iterable[str] = "all") -> tuple[str, ...]:
    """Full names of linear layers, in the order of the model.

    Args:
        model: of transformers, without adapters.
        layers: ``"attention"``, ``"qkv"``, ``"feed_forward"`` or ``"all"``: attention, feed-forward
            and the output head. A head that shares its weights with the input embedding is left
            out of ``"all"``: to adapt it would untie the two. Or names: that of one layer
            (``model.layers.0.self_attn.q_proj``), or a last word that stands for many
            (``q_proj``).

    Raises:
        ValueError: a name that fits no layer, or no names.
    """
    linear = [name for name, module in model.named_modules() if _is_linear(module)]
    if isinstance(layers, str) and (layers == "all" or layers in COMPONENTS):
        words = COMPONENTS.get(layers, (*COMPONENTS["attention"], *COMPONENTS["feed_forward"]))
        found = {name for name in linear if name.rpartition(".")[2] in words}
        if not found:
            last = sorted({name.rpartition(".")[2] for name in linear})
            raise ValueError(
                f"layers={layers!r} needs a model with layers named {words}. "
                f"Found {last}: name the layers instead."
            )
        if layers == "all":
            found.update(_free_head(model))
        return tuple(name for name in linear if name in found)
    wanted = [layers] if isinstance(layers, str) else list(layers)
    if not wanted:
        raise ValueError("layers must name at least one layer. Found none.")
    unknown = [w for w in wanted if not any(_fits(name, w) for name in linear)]
    if unknown:
        known = ", ".join(sorted({*COMPONENTS, "all", *(n.rpartition(".")[2] for n in linear)}))
        raise ValueError(
            f"layers must be a component or names of linear layers of this model: {known}, "
            f"or full names such as {linear[:1]}. Found {unknown[:5]} ({len(unknown)} unknown)."
        )
    return tuple(name for name in linear if any(_fits(name, w) for w in wanted))


def with_lora(
    model: PreTrainedModel,
    *,
    rank: int = 32,
    layers: str | Iterable[str] = "all",
    alpha: float | None = None,
    dropout: float = 0.0,
    seed: int = 0,
) -> PeftModel:
    """Put LoRA on layers of a model; from then on nothing else of it is trained.

    An adapted layer computes ``W x + beta B A x`` with ``beta = alpha / rank``. ``B`` is zero at
    first, so that the model starts as it was. The model is changed in place, its weights are not:
    ``adapted.unload()`` gives it back.

    Args:
        model: of transformers, without adapters; one loaded in 4 bits makes this QLoRA, see
            :func:`with_qlora`.
        rank: of ``B A``; the thesis uses 32.
        layers: a component or names, as in :func:`layer_names`.
        alpha: by default ``rank``, thus ``beta = 1``. The thesis does not say.
        dropout: share of the inputs of ``A`` that is dropped in training.
        seed: decides ``A``; the global generator is left as it was.

    Raises:
        ValueError: an argument outside its range, or a model that has adapters already.
    """
    from peft import LoraConfig

    _check_rank("rank", rank)
    scaled = float(rank) if alpha is None else alpha
    settings = {"r": rank, "lora_alpha": scaled, "lora_dropout": dropout}
    return _adapted(model, LoraConfig, layers, seed, settings)


def with_adalora(
    model: PreTrainedModel,
    *,
    steps: int,
    target_rank: int = 32,
    initial_rank: int | None = None,
    shrink: tuple[float, float] = (0.1, 0.7),
    layers: str | Iterable[str] = "all",
    alpha: float | None = None,
    seed: int = 0,
) -> PeftModel:
    """Put AdaLoRA on layers of a model: ranks that are taken from some layers and left to others.

    An adapted layer computes ``W x + beta P diag(lambda) Q x``. From one share of the training to
    another the least important entries of ``lambda`` are set to zero, over all layers together,
    until ``target_rank`` per layer are left on average. :func:`experiments.ila.finetuning.finetune`
    makes the calls that this needs; :func:`active_ranks` shows the outcome.

    Args:
        model: of transformers, without adapters.
        steps: of the training; it must have exactly as many.
        target_rank: average rank at the end.
        initial_rank: rank of every layer at the start; by default half as much again. It must be
            larger than ``target_rank``: otherwise peft fails in the middle of the training.
        shrink: shares of the training between which ranks are taken away.
        layers: a component or names, as in :func:`layer_names`.
        alpha: by default ``initial_rank``, thus ``beta = 1``.
        seed: decides ``P`` and ``Q``; the global generator is left as it was.

    Raises:
        ValueError: an argument outside its range, or a model that has adapters already.
    """
    from peft import AdaLoraConfig

    _check_rank("target_rank", target_rank)
    first = -(-3 * target_rank // 2) if initial_rank is None else initial_rank
    if first <= target_rank:
        raise ValueError(
            f"initial_rank must be larger than target_rank={target_rank}. "
            f"Found initial_rank={initial_rank!r}."
        )
    start, end = shrink
    if not 0 <= start < end <= 1:
        raise ValueError(f"shrink must be two rising shares in [0, 1]. Found shrink={shrink!r}.")
    before, after = round(start * steps), steps - round(end * steps)
    if steps - max(before, 1) - after < 1:  # peft needs the importance of a step before them
        raise ValueError(
            f"steps must leave at least one step, behind the first, to take ranks away. "
            f"Found steps={steps!r} with shrink={shrink!r}."
        )
    settings = {
        "total_step": steps,
        "tinit": before,
        "tfinal": after,
        "init_r": first,
        "target_r": target_rank,
        "lora_alpha": float(first) if alpha is None else alpha,
    }
    return _adapted(model, AdaLoraConfig, layers, seed, settings)


def active_ranks(model: nn.Module) -> dict[str, int]:
    """Rank that AdaLoRA has left to each layer: the number of its nonzero entries of ``lambda``.

    ``lambda`` starts at zero: the ranks are known only after the first steps.

    Raises:
        ValueError: the model has no AdaLoRA.
    """
    ranks = {}
    for name, parameter in model.named_parameters():
        layer, found, _ = name.partition(".lora_E.")
        if found:
            ranks[layer.removeprefix("base_model.model.")] = int((parameter != 0).sum())
    if not ranks:
        raise ValueError("model must have AdaLoRA, see with_adalora. Found none.")
    return ranks


def with_qlora(
    model: PreTrainedModel,
    *,
    checkpointing: bool = False,
    **lora: Any,
) -> PeftModel:
    """Put LoRA on a model whose weights are kept in 4 bits: QLoRA. Needs a CUDA device.

    Load the model with ``BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.bfloat16)``. A GGUF file cannot be
    used: transformers always turns it into full precision.

    Args:
        model: of transformers, loaded in 4 bits.
        checkpointing: recompute activations in the backward pass, to save memory.
        **lora: as for :func:`with_lora`.

    Raises:
        ValueError: the model is not kept in 4 bits.
    """
    from peft import prepare_model_for_kbit_training

    if not getattr(model, "is_loaded_in_4bit", False):
        raise ValueError(
            "model must be loaded in 4 bits, with a BitsAndBytesConfig, on a CUDA device. "
            "Found one in full precision."
        )
    prepared = prepare_model_for_kbit_training(
        model,
        use_gradient_checkpointing=checkpointing,
        # The re-entrant kind would make the backward pass go through all blocks.
        gradient_checkpointing_kwargs={"use_reentrant": False},
    )
    return with_lora(prepared, **lora)


def with_all_weights(
    model: PreTrainedModel, layers: str | Iterable[str] | None = None
) -> PreTrainedModel:
    """Train weights themselves: all of a model, or those of chosen layers.

    Call it before :func:`experiments.ila.finetuning.finetune`: what is not trained when the
    optimizer is made is never trained.

    Args:
        model: of transformers, without adapters. Changed in place and returned.
        layers: ``None`` for every weight, embeddings and norms included; else a component or names,
            as in :func:`layer_names`. A head that is tied to the embedding trains both.

    Raises:
        ValueError: a name that fits no layer, a model with adapters, or one in 4 or 8 bits.
    """
    _check_plain(model)
    if getattr(model, "is_quantized", False):
        raise ValueError("model must be in full precision to train its weights. Found quantized.")
    chosen = None if layers is None else layer_names(model, layers)
    model.requires_grad_(chosen is None)
    for name in chosen or ():
        model.get_submodule(name).requires_grad_(True)
    return model


@contextmanager
def merged_adapters(model: nn.Module) -> Iterator[None]:
    """Inside, the update of LoRA is in the weights: a forward pass costs what it did without.

    Results in evaluation mode are those of adapters beside their weights, up to rounding.
    Afterwards, also after an error, the weights are the same tensors as before, which are kept for
    that: peft would subtract the update, which leaves rounding. Layers stay as they are in 4 or 8
    bits or half precision, where they are tied or gated, and with other adapters than plain LoRA.
    """
    from peft.tuners.lora import Linear

    owners = Counter(id(p) for module in model.modules() for p in module.parameters(recurse=False))
    # Those in few bits, and other kinds of adapters, are of classes of their own.
    layers: list[Any] = [module for module in model.modules() if type(module) is Linear]
    kept: list[tuple[Any, Tensor]] = []
    try:
        for layer in layers:
            if _mergeable(layer) and owners[id(layer.weight)] == 1:
                kept.append((layer, layer.weight.data))
                active = [name for name in layer.active_adapters if name in layer.lora_A]
                with torch.no_grad():  # into a new tensor; layer.merge() would change this one
                    updates = map(layer.get_delta_weight, active)
                    layer.weight.data = sum(updates, layer.weight.data)
                layer.merged_adapters.extend(active)
        yield
    finally:
        for layer, weight in kept:
            layer.weight.data = weight
            layer.merged_adapters.clear()


def _mergeable(layer: Any) -> bool:
    """Whether a layer of LoRA is plain, in use, and held in full precision."""
    plain = not (layer.lora_variant or any(layer.lora_bias.values()) or hasattr(layer, GATE))
    in_use = not (layer.merged or layer.disable_adapters or layer.weight.is_meta)
    return plain and in_use and layer.weight.dtype in (torch.float32, torch.float64)


def trained_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What an optimizer would train: name -> parameter, in the order of the model."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _adapted(
    model: PreTrainedModel,
    config: Any,
    layers: str | Iterable[str],
    seed: int,
    settings: dict[str, Any],
) -> PeftModel:
    from peft import get_peft_model

    _check_plain(model)
    names = list(layer_names(model, layers))
    with torch.random.fork_rng(devices=[]), _quiet():
        # peft draws on the CPU, from the global generator.
        torch.default_generator.manual_seed(generator(seed, "adapters").initial_seed())
        made: PeftModel = get_peft_model(
            model, config(task_type="CAUSAL_LM", target_modules=names, **settings)
        )
    return made


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide a warning, for which users can do nothing, that peft uses an old transformers name."""
    with warnings.catch_warnings():
        warnings.filterwarnings(
            "ignore", "`is_gradient_checkpointing` is deprecated", category=FutureWarning
        )
        yield


def _check_plain(model: nn.Module) -> None:
    if any(".lora_" in name for name, _ in model.named_parameters()):
        raise ValueError(
            "model must have no adapters. Found some: take them off with model.unload()."
        )


def _check_rank(name: str, rank: int) -> None:
    if rank < 1:
        raise ValueError(f"{name} must be at least 1. Found {name}={rank!r}.")


def _is_linear(module: nn.Module) -> bool:
    # Those of bitsandbytes are subclasses.
    return isinstance(module, nn.Linear)


def _fits(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith("." + wanted)


def _free_head(model: nn.Module) -> Sequence[str]:
    """Name of the output head, if its weights are its own."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    inputs = getattr(model, "get_input_embeddings", lambda: None)()
    if head is None or getattr(inputs, "weight", None) is head.weight:
        return ()
    return [name for name, module in model.named_modules() if module is head]
