"""Split a network in front of the first layer that receives noise (thesis, section 3.4).

Everything in front of that layer gives the same values for every noise draw, so it is computed once
per batch and shared. The split is exact: prefix and tail hold the modules of the network itself, in
the order in which its forward pass calls them. Where that cannot be, with a warning, the prefix is
the identity. The draws share the random numbers of the prefix, such as the mask of a dropout.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, fx, nn

from ktlib.fcl.region import ModelParameters
from ktlib.tracing import (
    differing,
    first_of,
    may_be_written,
    program,
    split_graph,
    trace,
    warn_whole,
)


class SplitNetwork:
    """An embedding network seen as ``tail(prefix(images))``, with named tuned parameters.

    Attributes:
        network: the network that was split; the halves share its parameters and buffers.
        layers: names of the chosen layers.
        shares_prefix: whether the network was split.
        prefix: the part in front of the first chosen layer.
        tail: the rest, from the first chosen layer to the embedding.
        tuned: name of each chosen parameter -> the parameter that ``network`` has now.

    Example:
        >>> split = SplitNetwork(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["2"])
        >>> list(split.tuned), split.tail_forward(split.prefix(torch.zeros(5, 4))).shape
        (['2.weight'], torch.Size([5, 2]))
    """

    def __init__(
        self,
        network: nn.Module,
        layers: Sequence[str],
        *,
        share_prefix: bool = True,
        example: Any = None,
    ) -> None:
        self.network = network
        self.layers = tuple(layers)
        graph, reason = trace(network, (1, ())) if share_prefix else (None, "")
        if graph is not None and example is not None:
            probe = copy.deepcopy(network)
            prefix, tail = _halves(probe, graph, self.layers)
            reason = differing([probe, probe], prefix, [tail, tail], example)
            graph = None if reason else graph
        warn_whole(network, reason, "the whole network is computed for every noise draw", 3)
        self.shares_prefix = graph is not None
        self.prefix: nn.Module = nn.Identity()
        self.tail = network
        if graph is not None:
            self.prefix, self.tail = _halves(network, graph, self.layers)
        self.tuned = ModelParameters(self, [f"{layer}.weight" for layer in layers])

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the network is copied, then split in the same place."""
        again = functools.partial(SplitNetwork, share_prefix=self.shares_prefix)
        return again, (self.network, self.layers)

    def get_parameter(self, target: str) -> nn.Parameter:
        """A parameter of the network, which must be the one that the tail computes with."""
        found = self.network.get_parameter(target)
        if found is not self.tail.get_parameter(target):
            raise AttributeError("its layer was exchanged")
        return found

    def tail_forward(
        self,
        features: Tensor,
        noise: Mapping[str, Tensor] | None = None,
        *,
        clean_backward: bool = False,
    ) -> Tensor:
        """Embed prefix features, with ``noise`` added to the tuned parameters of the tail.

        The parameters themselves are never written to, so nothing has to be restored, and the
        gradient with respect to a tuned parameter is the gradient taken *at the noisy point*
        (the update (3.8) of the thesis needs exactly that).

        Args:
            features: output of :attr:`prefix`.
            noise: name in :attr:`tuned` -> tensor of the parameter's shape.
            clean_backward: the backward pass takes the weights without noise, as if it had been
                removed in between. Activations are those of the noisy point, and so is the gradient
                of the last noisy layer. What is passed on through a noisy layer to the layers in
                front of it is not: that gradient belongs to neither point.

        Returns:
            Embeddings ``(batch, dim)``.

        Raises:
            ValueError: ``clean_backward`` under autocast, where layers keep copies of the weights.
        """
        if not self.shares_prefix:
            features = features.clone()  # a network may work in place on its input
        if noise is None:
            embedding: Tensor = self.tail(features)
            return embedding
        noisy = {name: self.tuned[name] + value for name, value in noise.items()}
        with _saving_clean(self.tuned, noisy) if clean_backward else nullcontext():
            moved: Tensor = torch.func.functional_call(self.tail, noisy, (features,))
        return moved


def _saving_clean(
    tuned: Mapping[str, Tensor], noisy: Mapping[str, Tensor]
) -> AbstractContextManager[object]:
    """What autograd keeps for the backward pass of noisy weights are those without noise."""
    if any(torch.is_autocast_enabled(weight.device.type) for weight in noisy.values()):
        raise ValueError("clean_backward must not be asked for under autocast.")
    # Of the same strides, so that what is a view of one fits the other.
    clean = {
        id(weight): torch.empty_like(weight.detach()).copy_(tuned[name].detach())
        for name, weight in noisy.items()
    }

    def pack(saved: Tensor) -> Tensor:
        base = saved._base  # noqa: SLF001 - documented: the tensor that this one is a view of
        weight = clean.get(id(saved if base is None else base))
        if weight is None:
            return saved.detach()  # the output of a layer itself would keep the layer, for ever
        return weight.as_strided(saved.shape, saved.stride(), saved.storage_offset())

    return torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept)


def last_convolutions(network: nn.Module, count: int) -> list[str]:
    """Names of the last ``count`` convolutions, leaving out 1x1 ones on shortcuts.

    These are the layers that receive noise and are tuned later (thesis, section 3.4: the last 4
    or 8 convolutions of ResNet18). A shortcut is added to a path with other convolutions; of a
    network that cannot be traced, "downsample", "shortcut" or "skip" in the name tells it.

    Raises:
        ValueError: if ``count`` is below 1 or above the number of such convolutions.

    Example:
        >>> last_convolutions(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), 1)
        ['2']
    """
    found = {name: part for name, part in network.named_modules() if isinstance(part, nn.Conv2d)}
    narrow = {name for name, part in found.items() if part.kernel_size == (1, 1)}
    graph = trace(network, (1, ()))[0] if narrow else None
    if graph is None:
        words = ("downsample", "shortcut", "skip")
        shortcuts = {name for name in narrow if any(word in name.lower() for word in words)}
    else:
        shortcuts = narrow & _beside_others(graph, set(found), narrow)
    names = [name for name in found if name not in shortcuts]
    if not 1 <= count <= len(names):
        raise ValueError(
            f"count must be between 1 and {len(names)}, the number of convolutions (1x1 ones on "
            f"shortcuts left out) in {type(network).__name__}. Found count={count!r}."
        )
    return names[-count:]


def split_network(
    network: nn.Module, layers: Sequence[str], *, example: Any = None
) -> SplitNetwork:
    """Split ``network`` in front of the first of ``layers``; their weights become the tuned ones.

    Any module that :mod:`torch.fx` can trace is split, skip connections included. One that it
    cannot trace is kept whole, with a warning: the results are the same, without the saving. What
    a choice by ``type(x)`` or ``hasattr(x, ...)`` does shows only in a run: give an ``example``.

    Args:
        network: images ``(batch, ...)`` -> embeddings ``(batch, dim)``.
        layers: names as in ``network.named_modules()``. The weight of each (not its bias) is tuned.
        example: some images. The split network and the whole one are then run on them, and their
            outputs and gradients compared, in training and evaluation mode; where they differ, the
            network is kept whole. Neither random numbers nor running statistics are used up.

    Raises:
        ValueError: for an empty list, an unknown name, a layer without a ``weight`` or one that the
            forward pass does not use, or an example that the network does not take.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 3))
        >>> split_network(network, ["1"]).tuned["1.weight"].shape
        torch.Size([3, 4])
    """
    if not layers:
        raise ValueError("layers must name at least one layer. Found an empty list.")
    modules = dict(network.named_modules())
    for name in layers:
        if name not in modules:
            raise ValueError(
                f"layers must name modules of {type(network).__name__}. Found {name!r}; "
                f"the last ones are {[key for key in modules if key][-4:]}."
            )
        if "weight" not in dict(modules[name].named_parameters(recurse=False)):
            raise ValueError(f"layers must have a weight to tune. Found {name!r} without one.")
    return SplitNetwork(network, layers, example=example)


def _halves(
    network: nn.Module, graph: fx.Graph, layers: Sequence[str]
) -> tuple[nn.Module, nn.Module]:
    nodes = list(graph.nodes)
    for layer in layers:
        if first_of(nodes, [layer]) == len(nodes) - 1:
            raise ValueError(f"layers must be used in the forward pass. Found {layer!r}, unused.")
    first = first_of(nodes, layers)
    position = {node: i for i, node in enumerate(nodes)}
    # Parameters are not handed on: the tail reads them itself.
    last_use = [
        max((position[user] for user in node.users if node.op != "get_attr"), default=-1)
        for node in nodes
    ]
    # The latest point in front of the first chosen layer where one value alone is handed on: inside
    # a residual block two would cross (the branch and the skip connection).
    cut = max(i for i in range(first) if sum(last_use[j] > i >= j for j in range(first)) == 1)
    prefix, tail, (value,) = split_graph(graph, cut + 1, single=True)
    written = may_be_written(network, value, nodes[cut + 1 :])
    if all(node.op == "placeholder" for node in nodes[: cut + 1]) and not written:
        return nn.Identity(), network
    if written:  # each draw spoils a copy of its own
        taken = next(iter(tail.nodes))
        with tail.inserting_after(taken):
            copied = tail.call_method("clone", (taken,))
        taken.replace_all_uses_with(copied, lambda user: user is not copied)
    return program(network, prefix), program(network, tail)


def _beside_others(graph: fx.Graph, convolutions: set[str], narrow: set[str]) -> set[str]:
    """Convolutions that are alone on their side of an addition, other ones being on the other."""
    passed: dict[fx.Node, set[str]] = {}
    alone: set[str] = set()
    for node in graph.nodes:
        sides = [passed[value] for value in node.all_input_nodes]
        passed[node] = set().union(*sides) | ({str(node.target)} & convolutions)
        name = str(getattr(node.target, "__name__", node.target)).strip("_")
        if name in ("add", "iadd") and len(sides) == 2:
            for one, other in (sides, sides[::-1]):
                if len(one - other) == 1 and (len(other - one) > 1 or other - one - narrow):
                    alone |= one - other
    return alone
