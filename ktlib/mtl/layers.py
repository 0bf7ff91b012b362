"""Which layers a network has, and which parameters belong to each."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Set

from torch import Tensor, nn

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def layers_of(module: nn.Module, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
    """The layers of a network: every module that owns parameters itself, not through a child.

    Weight and bias of a layer belong together. Convolutions, batch norms and linear layers are
    layers, and so is a module of your own with an ``nn.Parameter``; a block of layers is not.

    Frozen parameters, those with ``requires_grad=False``, are left out; a layer all of whose
    parameters are frozen is not a layer.

    Args:
        module: the network.
        batch_norm: whether batch norms count, as in the thesis (chapter 4) and its released code,
            where they come out on top of the rankings.

    Returns:
        Name as in ``module.named_modules()`` -> trainable parameters, in the order in which the
        network registered its layers. The name of the network itself is ``""``. A module or a
        parameter that is used in several places, as tied weights are, has the first of its names.

    Example:
        >>> network = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU())
        >>> list(layers_of(network)), list(layers_of(network, batch_norm=False))
        (['0', '1'], ['0'])
    """
    layers, seen = {}, set[nn.Parameter]()
    for name, layer in module.named_modules():
        own = [p for p in layer.parameters(recurse=False) if p.requires_grad and p not in seen]
        seen.update(own)
        if own and (batch_norm or not isinstance(layer, _BATCH_NORMS)):
            layers[name] = own
    return layers


def check_layers(module: nn.Module, layers: Iterable[str] | str) -> tuple[str, ...]:
    """The names, in the order of the network and each once, if all are layers of ``module``.

    Raises:
        ValueError: a name is unknown, what it names has no trainable parameters of its own, or it
            is used under another name, too: a copy for one place would leave the other as it is.
    """
    known, modules = layers_of(module), dict(module.named_modules())
    chosen = {layers} if isinstance(layers, str) else set(layers)
    _refuse_two_names(module, chosen)
    for name in sorted(chosen - known.keys()):
        if name in modules:
            frozen = bool(list(modules[name].parameters(recurse=False)))
            why = "all its parameters are frozen" if frozen else "it has no parameters of its own"
            found = f"{name!r} ({type(modules[name]).__name__}); {why}."
        else:
            close = difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            hint = f"did you mean {close[0]!r}?" if close else "it has no layers."
            found = f"{name!r}; {hint}"
        raise ValueError(f"layers must name layers of {type(module).__name__}. Found {found}")
    return tuple(name for name in known if name in chosen)


def _refuse_two_names(module: nn.Module, chosen: Set[str]) -> None:
    """Chosen layers, and their parameters, must each have one name."""
    names: dict[nn.Module | nn.Parameter, list[str]] = {}
    for every in (module.named_modules, module.named_parameters):
        for name, part in every(remove_duplicate=False):
            names.setdefault(part, []).append(name)
    for part, found in names.items():
        layers = {name.rpartition(".")[0] for name in found} if isinstance(part, Tensor) else found
        if len(found) > 1 and chosen & set(layers):
            raise ValueError(
                "layers must name layers that are used in one place. Found one "
                f"{type(part).__name__} under the names {' and '.join(map(repr, found))}."
            )
