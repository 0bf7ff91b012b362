"""Gates on the updates of layers: stage 2 of ILA trains one score per layer and nothing else.

The gate of layer i multiplies its update by gamma_i = sigmoid(s_i) (thesis, 5.5 to 5.7)::

    with gated_updates(model, initial_score=4.0) as gates:      # LoRA
        loss = model(**batch).loss                              # theta_0 + gamma . Dtheta
        loss.backward()                                         # reaches gates[name].score only

Inside, everything else is frozen, dropout is off, and the scores are parameters of the model like
any other: ``model.named_parameters()`` and ``state_dict()`` list them. Afterwards, also after an
error, the model is as it was: modules, hooks, trainable flags, modes, gradients, random state.

A gate of 1 gives the fine-tuned model bit for bit, one of 0 the model before fine-tuning. Scores of
plus and minus infinity are such gates. What fine-tuning changed besides the gated layers, such as
``modules_to_save`` of peft, stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.ila.layers import active_adapter, base_weights, linear_layers, plain_lora_layers

GATE = "layer_gate"
"""Name of the gate inside the layer that it belongs to."""

Link = Callable[[Tensor], Tensor]


class LayerGate(nn.Module):
    """The factor gamma on the update of one layer.

    Args:
        score: initial value of s, a scalar parameter in float32.
        link: maps s to gamma.
        device: where the layer computes.

    Attributes:
        uses: how often the layer was computed since this was last set to 0.
    """

    def __init__(self, score: float, link: Link, device: torch.device) -> None:
        super().__init__()
        self.score = nn.Parameter(torch.tensor(float(score), device=device))
        self.link = link
        self.uses = 0

    def gamma(self) -> Tensor:
        """The factor, shape (1,), in float32.

        Not a scalar: a product of a scalar and a bfloat16 tensor is bfloat16, and so would be the
        sum over tokens that is the gradient of the score.
        """
        return self.link(self.score).reshape(1)

    def forward(self, update: Tensor) -> Tensor:
        """``gamma * update``, multiplied in float32 at least, in the type of ``update``."""
        self.uses += 1
        return (self.gamma() * update).to(update.dtype)

    def between(self, before: Tensor, after: Tensor) -> Tensor:
        """``before + gamma (after - before)``, exact at gamma = 0 and at gamma = 1."""
        dtype = torch.promote_types(after.dtype, torch.float32)
        # lerp starts from the nearer end: before + 1 * (after - before) is not exactly after.
        mixed = torch.lerp(before.to(dtype), after.to(dtype), self.gamma().to(dtype))
        return mixed.to(after.dtype)


@contextmanager
def gated_updates(
    model: nn.Module, initial_score: float = 4.0, link: Link = torch.sigmoid
) -> Iterator[dict[str, LayerGate]]:
    """Put a gate on the LoRA update ``beta B A`` of every layer, for the ``with`` block (5.5, 5.6).

    The gate acts inside peft's own modules, so that quantised layers work as well: on the output of
    A, which is small, or on that of B where B has a bias.

    Args:
        model: a model with LoRA adapters of peft, one of them active.
        initial_score: s_0.
        link: maps a score to gamma; the identity makes the scores the gammas themselves.

    Yields:
        Name of the layer -> its gate, in the order of the model.

    Raises:
        ValueError: as :func:`~ktlib.ila.layers.plain_lora_layers`.
        RuntimeError: the model has gates already.

    Example:
        >>> import peft
        >>> config = peft.LoraConfig(r=2, target_modules=["0"], init_lora_weights=False)
        >>> model = peft.get_peft_model(nn.Sequential(nn.Linear(4, 3)), config)
        >>> x = torch.ones(1, 4)
        >>> with gated_updates(model, initial_score=-torch.inf), model.disable_adapter():
        ...     before = model(x)
        >>> with gated_updates(model, initial_score=-torch.inf):  # every gate is closed
        ...     torch.equal(model(x), before)
        True
    """
    layers = plain_lora_layers(model)
    adapter = active_adapter(layers)
    with _frozen(model), ExitStack() as undo:
        gates = {}
        for name, layer in layers.items():
            first, second = layer.lora_A[adapter], layer.lora_B[adapter]
            gates[name] = _new_gate(name, layer, first.weight.device, initial_score, link, undo)
            gated = first if getattr(second, "bias", None) is None else second
            undo.callback(gated.register_forward_hook(_multiply(gates[name])).remove)
        yield gates


@contextmanager
def gated_weights(
    model: nn.Module,
    base_state: Mapping[str, Tensor],
    initial_score: float = 4.0,
    link: Link = torch.sigmoid,
    *,
    skip_unsupported: bool = False,
) -> Iterator[dict[str, LayerGate]]:
    """As :func:`gated_updates` for a model that was fine-tuned as a whole.

    The update of a linear layer is ``theta_t - theta_0``, of weight and bias. Everything else, such
    as embeddings and norms, keeps its fine-tuned values; so do embeddings tied to a gated head.

    Args:
        model: the fine-tuned model, theta_t.
        base_state: state dict of the same model before fine-tuning, theta_0.
        initial_score: s_0.
        link: maps a score to gamma.
        skip_unsupported: as in :func:`~ktlib.ila.layers.base_weights`.

    Yields:
        Name of the layer -> its gate, in the order of the model.

    Raises:
        ValueError: as :func:`~ktlib.ila.layers.base_weights`.
        RuntimeError: the model has gates already.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> with gated_weights(model, {"0.weight": torch.zeros(1, 2)}, initial_score=0.0) as gates:
        ...     model(torch.ones(1, 2)).item()  # gamma = 1/2
        3.5
    """
    before = base_weights(model, base_state, skip_unsupported=skip_unsupported)
    with _frozen(model), ExitStack() as undo:
        gates = {}
        for name, layer in linear_layers(model).items():
            device = next(layer.parameters()).device
            gates[name] = _new_gate(name, layer, device, initial_score, link, undo)
            ends = {key: (value, layer.get_parameter(key)) for key, value in before[name].items()}
            start, end = _swap_in(gates[name], ends)
            undo.callback(end, layer)
            undo.callback(layer.register_forward_pre_hook(start).remove)
            undo.callback(layer.register_forward_hook(end, always_call=True).remove)
        yield gates


def gates_of(
    model: nn.Module,
    base_state: Mapping[str, Tensor] | None,
    initial_score: float,
    link: Link = torch.sigmoid,
    *,
    skip_unsupported: bool = False,
) -> AbstractContextManager[dict[str, LayerGate]]:
    """:func:`gated_weights` with ``base_state``, else :func:`gated_updates`."""
    if base_state is None:
        return gated_updates(model, initial_score, link)
    return gated_weights(model, base_state, initial_score, link, skip_unsupported=skip_unsupported)


def _new_gate(
    name: str, layer: nn.Module, device: torch.device, score: float, link: Link, undo: ExitStack
) -> LayerGate:
    """Register a gate in a layer until ``undo`` is closed."""
    if hasattr(layer, GATE):
        raise RuntimeError(f"model must have no gates yet. Found one in {name}.")
    gate = LayerGate(score, link, device)
    layer.add_module(GATE, gate)
    undo.callback(delattr, layer, GATE)
    return gate


def _multiply(gate: LayerGate) -> Callable[[nn.Module, Any, Tensor], Tensor]:
    def hook(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
        result: Tensor = gate(output)
        return result

    return hook


def _swap_in(
    gate: LayerGate, ends: Mapping[str, tuple[Tensor, Tensor]]
) -> tuple[Callable[..., None], Callable[..., None]]:
    """Hooks that give a layer other weights while it computes.

    An attribute of the instance hides the parameter of the same name, which stays registered where
    it is: unlike with ``torch.nn.utils.parametrize``, names, order and ties of the parameters never
    change.
    """

    def start(module: nn.Module, _arguments: Any) -> None:
        gate.uses += 1
        for key, (before, after) in ends.items():
            module.__dict__[key] = gate.between(before, after)

    def end(module: nn.Module, *_arguments: Any) -> None:
        for key in ends:
            module.__dict__.pop(key, None)

    return start, end


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter trains and no dropout acts inside; everything is put back at the end."""
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    gradients = [(parameter, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    config = getattr(model, "config", None)
    caches = getattr(config, "use_cache", None)
    devices = sorted({p.device.index for p in model.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            for parameter, _ in flags:
                parameter.requires_grad_(False)
            for module, mode in modes:
                module.training = mode and _checkpoints(module)
            if caches is not None:
                config.use_cache = False  # type: ignore[union-attr]  # no text is generated
            yield
        finally:
            if caches is not None:
                config.use_cache = caches  # type: ignore[union-attr]
            for module, mode in modes:
                module.training = mode
            for parameter, flag in flags:
                parameter.requires_grad_(flag)
            for parameter, gradient in gradients:
                parameter.grad = gradient


def _checkpoints(module: nn.Module) -> bool:
    """Whether a module must stay in training mode, because it checkpoints only there.

    One that draws dropout itself, not through ``nn.Dropout``, does without checkpointing instead.
    """
    draws = [getattr(module, key, 0.0) for key in ("dropout", "activation_dropout")]
    return bool(getattr(module, "gradient_checkpointing", False)) and not any(
        isinstance(rate, float) and rate > 0 for rate in draws
    )
