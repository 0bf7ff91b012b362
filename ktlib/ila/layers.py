"""The layers of a language model that ILA ranks: adapted linear modules, or all linear modules.

A layer is named as in the transformers model, without the prefixes that peft and other wrappers
put before it: ``model.layers.0.self_attn.q_proj``, ``lm_head``.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.checks import require_extra

# Wrappers of PyTorch that add a part to the names of what they hold.
_WRAPPERS = frozenset({"_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"})
# Kinds of LoraLayer whose forward pass does not call lora_A and lora_B one after the other.
_OTHER_FORWARD = frozenset({"MultiheadAttention", "ParamWrapper"})
# Initialisations that take a part of the base weight into B A: B A is then not the update.
_CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")


def layer_name(module_name: str) -> str:
    """The name of a module as in the transformers model, from that in a wrapped or peft model."""
    parts = [part for part in module_name.split(".") if part not in _WRAPPERS]
    name = ".".join(parts).removeprefix("module.")
    return name.removeprefix("base_model.model.")


def adapted_layers(model: nn.Module) -> dict[str, Any]:
    """The modules that the active LoRA adapter of peft adapts: the layers that are ranked.

    Returns:
        Name of the layer -> its ``peft.tuners.lora.LoraLayer``, in the order of the model.

    Raises:
        ValueError: the model has no LoRA adapters, none of them is active, or several are.
        ImportError: peft is not installed.

    Example:
        >>> import peft, torch
        >>> net = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 2))
        >>> model = peft.get_peft_model(net, peft.LoraConfig(r=2, target_modules=["1"]))
        >>> list(adapted_layers(model))
        ['1']
    """
    lora = require_extra("peft.tuners.lora", "lora")
    found = {layer_name(n): m for n, m in model.named_modules() if isinstance(m, lora.LoraLayer)}
    if not found:
        other = {type(m).__name__ for m in model.modules() if is_tuner_layer(m)}
        hint = f"adapters of another kind: {sorted(other)}" if other else "none"
        raise ValueError(
            "model must have LoRA adapters, put there by peft.get_peft_model or "
            f"PeftModel.from_pretrained and not merged away. Found {hint} in "
            f"{type(model).__name__}."
        )
    active = {name: _active_here(layer) for name, layer in found.items()}
    names = sorted({adapter for here in active.values() for adapter in here})
    if len(names) != 1:
        raise ValueError(
            "model must have one active LoRA adapter; choose it with model.set_adapter. "
            f"Found {names if names else 'none that is active'}."
        )
    return {name: layer for name, layer in found.items() if active[name]}


def is_tuner_layer(module: nn.Module) -> bool:
    """Whether a module carries an adapter of peft, of any kind."""
    return isinstance(module, _if_imported("peft.tuners.tuners_utils", "BaseTunerLayer"))


def _if_imported(module: str, name: str) -> Any:
    """A class of an optional library; none if the library was never imported: no object has it."""
    return getattr(sys.modules.get(module), name, ())


def _active_here(layer: Any) -> list[str]:
    """The active adapters that this layer has weights of."""
    held = {*layer.lora_A.keys(), *layer.lora_embedding_A.keys()}
    return [adapter for adapter in layer.active_adapters if adapter in held]


def active_adapter(layers: Mapping[str, Any]) -> str:
    """The name of the adapter that all of ``layers``, from :func:`adapted_layers`, use."""
    return _active_here(next(iter(layers.values())))[0]


def plain_lora_layers(model: nn.Module) -> dict[str, Any]:
    """:func:`adapted_layers`, if each computes ``base(x) + beta B A x`` through modules A and B.

    That holds for linear and convolutional layers, quantised ones included, but not for DoRA and
    other variants, AdaLoRA, or adapted embeddings. ``base`` must be the original model: PiSSA,
    OLoRA, CorDA, LoftQ and LoRA-GA change it when they initialise A and B. Biases that peft trained
    beside (``bias="all"``) stay as they are, with a warning.

    Raises:
        ValueError: adapters are merged, switched off or changed the base weights, or a layer is of
            another kind; as :func:`adapted_layers`.
    """
    layers = adapted_layers(model)
    adapter = active_adapter(layers)
    configs = [item for m in model.modules() for item in getattr(m, "peft_config", {}).items()]
    starts = {str(getattr(config, "init_lora_weights", "")) for _, config in configs}
    changed = sorted(start for start in starts if start.lower().startswith(_CHANGE_THE_BASE))
    if changed:
        raise ValueError(
            "model must have adapters that began without changing the base weights. Found "
            f"init_lora_weights={changed}: merge_and_unload() and use rank_layers_full with the "
            "state dict of the original model, or let save_pretrained of peft convert them."
        )
    if any(name == adapter and getattr(c, "bias", "none") != "none" for name, c in configs):
        warnings.warn(
            "the biases that were trained with the adapter keep their values: only B A is gated.",
            stacklevel=2,
        )
    merged = [name for name, layer in layers.items() if layer.merged]
    if merged:
        raise ValueError(
            "model must have its adapters unmerged: call model.unmerge_adapter() first. "
            f"Found merged ones in {some_of(merged)}."
        )
    if any(layer.disable_adapters for layer in layers.values()):
        raise ValueError(
            "model must have its adapters switched on; call model.enable_adapter_layers() first."
        )
    other = {name: kind for name, layer in layers.items() if (kind := _variant(layer, adapter))}
    if other:
        raise ValueError(
            "model must have plain LoRA adapters on its layers, whose update is beta B A. Found "
            f"{', '.join(sorted(set(other.values())))} in {some_of(list(other))}."
        )
    return layers


def _variant(layer: Any, adapter: str) -> str | None:
    """The kind of a layer that is not plain LoRA; None for one that is."""
    variant = getattr(layer, "lora_variant", {}).get(adapter)
    if variant is not None:
        return type(variant).__name__
    if adapter not in layer.lora_A:
        return "an adapted embedding"
    modules = (layer.lora_A[adapter], layer.lora_B[adapter])
    plain = all(isinstance(module, nn.Module) for module in modules)
    kind = type(layer).__name__
    return None if plain and kind not in _OTHER_FORWARD else kind


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """All linear modules of a model without adapters: ``nn.Linear`` and the ``Conv1D`` of GPT-2.

    Returns:
        Name of the layer -> module, in the order of the model.

    Raises:
        ValueError: the model has adapters of peft, or no linear module.
    """
    if any(map(is_tuner_layer, model.modules())):
        raise ValueError(
            "model must be fine-tuned as a whole here. Found adapters of peft: use rank_layers, or "
            "merge_and_unload() them first."
        )
    kinds = (nn.Linear, _if_imported("transformers.pytorch_utils", "Conv1D"))
    found: dict[str, nn.Module] = {
        layer_name(name): module
        for name, module in model.named_modules()
        if isinstance(module, kinds) and module.weight.is_floating_point()
    }
    if not found:
        raise ValueError(f"model must have linear layers. Found none in {type(model).__name__}.")
    return found


def left_out(model: nn.Module, base_state: Mapping[str, Tensor]) -> list[str]:
    """Matrices outside the linear layers that fine-tuning changed, embeddings apart.

    Such as the routers and the stacked experts of a mixture of experts, and convolutions.
    """
    known = {layer_name(name): tensor for name, tensor in base_state.items()}
    modules = [*linear_layers(model).values()]
    modules += [module for module in model.modules() if isinstance(module, nn.Embedding)]
    covered = {id(parameter) for module in modules for parameter in module.parameters()}
    others = {
        layer_name(name): parameter
        for name, parameter in model.named_parameters()
        if id(parameter) not in covered and parameter.squeeze().ndim > 1 and "embed" not in name
    }
    return [n for n, p in others.items() if n not in known or not torch.equal(p, known[n].to(p))]


def base_weights(
    model: nn.Module, base_state: Mapping[str, Tensor], *, skip_unsupported: bool = False
) -> dict[str, dict[str, Tensor]]:
    """Weights before fine-tuning of each linear layer, looked up in a state dict.

    A head tied to the embeddings may stand in ``base_state`` under either name.

    Args:
        model: the fine-tuned model.
        base_state: state dict before fine-tuning.
        skip_unsupported: leave out what :func:`left_out` finds, with a warning that names it.

    Returns:
        Name of the layer -> ``{"weight": (out, in), "bias": (out,)}``, on the device and in the
        type of the model's own; without bias where the layer has none.

    Raises:
        ValueError: weights are missing or have another shape, or others than those of linear layers
            changed; as :func:`linear_layers`.
        TypeError: ``base_state`` is not a mapping.
    """
    if not isinstance(base_state, Mapping):
        raise TypeError(
            "base_state must be the state dict of the model before fine-tuning. Found "
            f"{type(base_state).__name__}."
        )
    known = {layer_name(name): tensor for name, tensor in base_state.items()}
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(layer_name(name))
    weights: dict[str, dict[str, Tensor]] = {}
    missing: list[str] = []
    reshaped: list[str] = []
    for layer, module in linear_layers(model).items():
        weights[layer] = {}
        for key, parameter in module.named_parameters(recurse=False):
            # Its own name first: the two may have been apart before fine-tuning.
            candidates = (f"{layer}.{key}", *names[id(parameter)])
            before = next((known[name] for name in candidates if name in known), None)
            if before is None:
                missing.append(f"{layer}.{key}")
            elif before.shape != parameter.shape:
                reshaped.append(f"{layer}.{key}")
            else:
                weights[layer][key] = before.detach().to(parameter)
    if missing:
        raise ValueError(f"base_state must hold every layer. Missing: {some_of(missing)}.")
    if reshaped:
        raise ValueError(
            f"base_state must have the shapes of the model. Others: {some_of(reshaped)}."
        )
    others = left_out(model, base_state)
    if others and not skip_unsupported:
        raise ValueError(
            "model must have changed in its linear layers alone, embeddings and vectors apart. "
            f"Found {some_of(others)}: leave these as fine-tuned with skip_unsupported=True."
        )
    if others:
        warnings.warn(f"left out, kept as fine-tuned: {some_of(others)}.", stacklevel=2)
    return weights


def norms_of_updates(
    model: nn.Module, base_state: Mapping[str, Tensor] | None, *, skip_unsupported: bool = False
) -> dict[str, float]:
    """Frobenius norm of each layer's update, ``beta B A`` or ``theta_t - theta_0``, with biases.

    B A is never formed: ``||B A||^2`` is the sum of all products of entries of ``B^T B`` and
    ``A A^T``, both (rank, rank). What is zero up to rounding counts as zero.

    Raises:
        ValueError: all are zero; as :func:`plain_lora_layers` or :func:`base_weights`.
    """
    norms, whose = {}, "the model, which equals base_state."
    if base_state is not None:
        before = base_weights(model, base_state, skip_unsupported=skip_unsupported)
        for name, layer in linear_layers(model).items():
            ends = [(layer.get_parameter(key), value) for key, value in before[name].items()]
            parts = [(_wide(after) - _wide(value)).square().sum() for after, value in ends]
            norms[name] = math.sqrt(sum(map(float, parts)))
    else:
        layers = plain_lora_layers(model)
        adapter = active_adapter(layers)
        whose = f"adapter {adapter!r}: has it been trained?"
        norms = {name: _lora_norm(layer, adapter) for name, layer in layers.items()}
    if not any(norms.values()):
        raise ValueError(f"nothing to rank: the update of every layer is zero in {whose}")
    return norms


def _lora_norm(layer: Any, adapter: str) -> float:
    modules = layer.lora_A[adapter], layer.lora_B[adapter]
    if any(module.weight.ndim < 2 or not module.weight.numel() for module in modules):
        return math.nan  # sharded over processes: unknown
    # Convolutions: A has (rank, in, height, width), B (out, rank, 1, 1).
    first, second = (_wide(module.weight).flatten(1) for module in modules)
    square = float(((second.T @ second) * (first @ first.T)).sum())
    if square <= 1e-12 * float(first.square().sum() * second.square().sum()):
        square = 0.0  # as after init_lora_weights="orthogonal"
    bias = getattr(modules[1], "bias", None)
    if bias is not None:
        square += float(_wide(bias).square().sum())
    return abs(float(layer.scaling[adapter])) * math.sqrt(square)


def _wide(tensor: Tensor) -> Tensor:
    """In double precision, where the device has it."""
    return tensor.detach().to(torch.float32 if tensor.device.type == "mps" else torch.float64)


def without_update(sizes: Mapping[str, float]) -> list[str]:
    """The layers of size 0, which a ranking puts last, with a warning that names them.

    Raises:
        ValueError: all of them are.
    """
    still = [name for name, size in sizes.items() if size == 0]
    if len(still) == len(sizes):
        raise ValueError("nothing to rank: no update of a layer reaches the loss.")
    if still:
        warnings.warn(
            f"ranked last, for want of an update that reaches the loss: {some_of(still)}.",
            stacklevel=3,
        )
    return still


def some_of(names: Iterable[str], at_most: int = 5) -> str:
    """Names for a message: the first few, and how many more there are."""
    listed = list(names)
    more = f" and {len(listed) - at_most} more" if len(listed) > at_most else ""
    return ", ".join(listed[:at_most]) + more
