"""Low-rank adapters (LoRA) on linear layers of a frozen encoder."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.checks import require_at_least, require_extra
from ktlib.cpeft.encoders import feature_dim, frozen_copy
from ktlib.ila.layers import some_of
from ktlib.seeding import generator

_ADAPTER = "default"  # peft names adapters; there is one
PROJECTIONS = {"query": "q_proj", "key": "k_proj", "value": "v_proj"}
"""Other names of the projections of attention, which differ between models and versions."""


class LoraBackbone(nn.Module):
    """A frozen encoder with LoRA on some of its linear layers.

    An adapted layer computes ``W x + scale * B A x`` with ``A`` of shape ``(rank, d_in)`` and ``B``
    of ``(d_out, rank)``, which is zero at the start, so that the encoder starts as it was. Hu et
    al., "LoRA", ICLR 2022, equation 3. InfLoRA's paper calls ``A`` ``B_t`` and ``B`` ``A_t``. The
    adapters are peft's. The network stays in ``eval`` mode: it has no dropout in training either.

    Args:
        backbone: any module with linear layers; copied, uncompiled and at least in float32.
        layers: full names of linear layers, or last words that stand for many. ``"query"``,
            ``"key"`` and ``"value"`` also stand for ``q_proj``, ``k_proj`` and ``v_proj``.
        rank: of ``B A``.
        scale: factor of the update; peft's ``lora_alpha / r``.
        seed: draws ``A``.

    Attributes:
        layers: full names of the adapted layers, in the order of the backbone.
        rank: as given.
        scale: as given.

    Raises:
        ValueError: no layer has such a name, a layer cannot be adapted, or ``rank`` is below 1.
        ImportError: peft is missing, which the extra ``lora`` installs.

    Example:
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
        >>> adapted = LoraBackbone(encoder, layers=["1"], rank=2)
        >>> adapted.down("1").shape, adapted.up("1").shape
        (torch.Size([2, 16]), torch.Size([8, 2]))
        >>> images = torch.rand(3, 1, 4, 4)
        >>> bool((adapted(images) == encoder(images)).all())  # B is zero at the start
        True
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        layers: Sequence[str],
        rank: int,
        scale: float = 1.0,
        seed: int = 0,
    ) -> None:
        super().__init__()
        peft = require_extra("peft", "lora")
        require_at_least("rank", rank, 1)
        backbone = frozen_copy(backbone)
        self.layers = _layer_names(backbone, layers)
        self.rank, self.scale = rank, scale
        config = peft.LoraConfig(
            r=rank,
            lora_alpha=scale * rank,
            # As an expression: peft compares a list with the ends of names.
            target_modules="|".join(map(re.escape, self.layers)),
        )
        with torch.random.fork_rng(devices=[]):  # peft draws A, which start() draws anew
            self.backbone: nn.Module = peft.inject_adapter_in_model(config, backbone)
        self.eval()
        self.start(seed)

    @property
    def dim(self) -> int:
        """Number of features, see :func:`~ktlib.cpeft.encoders.feature_dim`."""
        return feature_dim(self.backbone)

    def forward(self, images: Tensor) -> Tensor:
        """``(n, dim)`` features of ``n`` images, by the backbone with its adapters."""
        features: Tensor = self.backbone(images)
        return features

    def linear(self, name: str) -> nn.Linear:
        """The layer itself, with ``W``, as it is called when the adapted one is.

        Raises:
            ValueError: ``name`` is not in :attr:`layers`; so do the next two methods.
        """
        layer: nn.Linear = self._adapted(name).base_layer
        return layer

    def down(self, name: str) -> nn.Parameter:
        """``A`` of a layer, ``(rank, d_in)``."""
        parameter: nn.Parameter = self._adapted(name).lora_A[_ADAPTER].weight
        return parameter

    def up(self, name: str) -> nn.Parameter:
        """``B`` of a layer, ``(d_out, rank)``."""
        parameter: nn.Parameter = self._adapted(name).lora_B[_ADAPTER].weight
        return parameter

    @torch.no_grad()
    def start(self, seed: int, *, down: Mapping[str, Tensor] | None = None) -> None:
        """Reset the adapters: the update is zero again, and ``W`` stays as it is.

        Args:
            seed: draws every ``A`` as peft does, uniformly in ``+-1 / sqrt(d_in)``.
            down: layer -> ``A``, ``(rank, d_in)``, for all layers. They are then not trained.

        Raises:
            ValueError: ``down`` has other layers or shapes, or is not finite.
        """
        if down is not None:
            _require_like("down", down, {name: self.down(name) for name in self.layers})
        self.requires_grad_(False)
        for name in self.layers:
            first, second = self.down(name), self.up(name)  # (rank, d_in), (d_out, rank)
            if down is None:
                drawn = torch.empty(first.shape)
                stream = generator(seed, "adapter", name)
                nn.init.kaiming_uniform_(drawn, a=math.sqrt(5), generator=stream)
            first.copy_(drawn if down is None else down[name])
            second.zero_()
            first.requires_grad_(down is None)
            second.requires_grad_(True)

    def trained(self) -> list[nn.Parameter]:
        """The adapters that are trained: every ``B``, and every ``A`` that was not given."""
        both = [parameter for name in self.layers for parameter in (self.down(name), self.up(name))]
        return [parameter for parameter in both if parameter.requires_grad]

    @torch.no_grad()
    def merge(self) -> None:
        """Add the update to ``W`` and make it zero: outputs stay but for rounding."""
        for name in self.layers:
            self.linear(name).weight += self._adapted(name).get_delta_weight(_ADAPTER)
            self.up(name).zero_()

    def adapters(self) -> dict[str, Tensor]:
        """Copies of all ``A`` and ``B``: ``layer.down`` and ``layer.up`` -> tensor."""
        return {name: value.detach().clone() for name, value in self._named().items()}

    @torch.no_grad()
    def load_adapters(self, values: Mapping[str, Tensor]) -> None:
        """Load what :meth:`adapters` returned; which parameters are trained stays the same.

        Raises:
            ValueError: other names or shapes, or a value that is not finite.
        """
        own = self._named()
        _require_like("values", values, own)
        for name, parameter in own.items():
            parameter.copy_(values[name])

    def _named(self) -> dict[str, nn.Parameter]:
        named: dict[str, nn.Parameter] = {}
        for name in self.layers:
            named |= {f"{name}.down": self.down(name), f"{name}.up": self.up(name)}
        return named

    def _adapted(self, name: str) -> Any:
        if name not in self.layers:
            known = some_of(list(self.layers))
            raise ValueError(f"name must be one of the adapted layers {known}. Found {name!r}.")
        return self.backbone.get_submodule(name)


def _layer_names(backbone: nn.Module, wanted: Sequence[str]) -> tuple[str, ...]:
    """Full names of the linear layers that are wanted, in the order of the backbone."""
    if isinstance(wanted, str) or not wanted:
        raise ValueError(f"layers must be a list of at least one name. Found layers={wanted!r}.")
    linear = [n for n, module in backbone.named_modules() if n and isinstance(module, nn.Linear)]
    fitting = {word: [name for name in linear if _fits(name, word)] for word in wanted}
    unknown = [word for word, names in fitting.items() if not names]
    if unknown:
        raise ValueError(
            "layers must be names of linear layers of the backbone, or last words of "
            f"them: {', '.join(linear) or 'it has none'}. Found "
            f"{unknown}."
        )
    found = {name for names in fitting.values() for name in names}
    _require_adaptable(backbone, found)
    return tuple(name for name in linear if name in found)


def _fits(name: str, word: str) -> bool:
    return any(name == w or name.endswith(f".{w}") for w in {word, PROJECTIONS.get(word, word)})


def _require_adaptable(backbone: nn.Module, names: set[str]) -> None:
    places: dict[int, list[str]] = {}
    for name, parameter in backbone.named_parameters(remove_duplicate=False):
        places.setdefault(id(parameter), []).append(name)
    for name in sorted(names):
        parent = backbone.get_submodule(name.rpartition(".")[0])
        # Both use the weights of their layers without calling them, so that adapters would be
        # ignored silently; the second one only where no gradients are needed.
        if isinstance(parent, nn.MultiheadAttention | nn.TransformerEncoderLayer):
            raise ValueError(  # noqa: TRY004 - it is the name that is wrong
                f"layers must be linear layers that are called. {name!r} belongs to a "
                f"torch.nn.{type(parent).__name__}, which uses its weight without a call. Take a "
                "network with query, key and value as layers, such as a ViT of transformers."
            )
        weight = backbone.get_submodule(name).weight
        if len(places[id(weight)]) > 1:
            raise ValueError(f"layers must have weights of their own. {name!r} shares them: "
                             f"{', '.join(places[id(weight)])}.")  # fmt: skip


def _require_like(what: str, values: Mapping[str, Tensor], own: Mapping[str, nn.Parameter]) -> None:
    if values.keys() != own.keys():
        wrong = sorted(values.keys() ^ own.keys())
        raise ValueError(f"{what} must have the names {some_of(list(own))}. Missing or unknown: "
                         f"{some_of(wrong)}.")  # fmt: skip
    for name, parameter in own.items():
        shape = tuple(values[name].shape)
        if shape != tuple(parameter.shape):
            raise ValueError(f"{what}[{name!r}] must have shape {tuple(parameter.shape)}. "
                             f"Found {shape}.")  # fmt: skip
        if not bool(torch.isfinite(values[name]).all()):
            raise ValueError(f"{what}[{name!r}] must be finite.")
