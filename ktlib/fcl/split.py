"""Split a network in front of the first layer that receives noise (thesis, section 3.4).

Everything in front of that layer gives the same values for every noise draw, so it is computed once
per batch and shared. The split is exact: prefix and tail hold the modules of the network itself, in
the order in which its forward pass calls them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.fcl.region import ModelParameters
from ktlib.tracing import program, split_graph, trace


class SplitNetwork:
    """An embedding network seen as ``tail(prefix(images))``, with named tuned parameters.

    Attributes:
        network: the network that was split; the halves share its parameters and buffers.
        layers: names of the chosen layers.
        prefix: the part in front of the first chosen layer.
        tail: the rest, from the first chosen layer to the embedding.
        tuned: name of each chosen parameter -> the parameter that ``network`` has now.

    Example:
        >>> split = SplitNetwork(nn.Sequential(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2)), ["2"])
        >>> list(split.tuned), split.tail_forward(split.prefix(torch.zeros(5, 4))).shape
        (['2.weight'], torch.Size([5, 2]))
    """

    def __init__(self, network: nn.Module, layers: Sequence[str]) -> None:
        self.network = network
        self.layers = tuple(layers)
        self.prefix, self.tail = _split_prefix(network, set(layers))
        self.tuned = ModelParameters(self, [f"{layer}.weight" for layer in layers])

    def __reduce__(self) -> tuple[Any, ...]:
        """For copies and pickles: the network is copied, then split in the same place."""
        return SplitNetwork, (self.network, self.layers)

    def get_parameter(self, target: str) -> nn.Parameter:
        """A parameter of the network, which must be the one that the tail computes with."""
        found = self.network.get_parameter(target)
        if found is not self.tail.get_parameter(target):
            raise AttributeError("its layer was exchanged")
        return found

    def tail_forward(self, features: Tensor, noise: Mapping[str, Tensor] | None = None) -> Tensor:
        """Embed prefix features, with ``noise`` added to the tuned parameters of the tail.

        The parameters themselves are never written to, so nothing has to be restored, and the
        gradient with respect to a tuned parameter is the gradient taken *at the noisy point*
        (the update (3.8) of the thesis needs exactly that).

        Args:
            features: output of :attr:`prefix`.
            noise: name in :attr:`tuned` -> tensor of the parameter's shape.

        Returns:
            Embeddings ``(batch, dim)``.
        """
        if noise is None:
            embedding: Tensor = self.tail(features)
            return embedding
        noisy = {name: self.tuned[name] + value for name, value in noise.items()}
        moved: Tensor = torch.func.functional_call(self.tail, noisy, (features,))
        return moved


def last_convolutions(network: nn.Module, count: int) -> list[str]:
    """Names of the last ``count`` convolutions, leaving out 1x1 ones on shortcuts.

    These are the layers that receive noise and are tuned later (thesis, section 3.4: the last 4
    or 8 convolutions of ResNet18).

    Raises:
        ValueError: if ``count`` is below 1 or above the number of such convolutions.

    Example:
        >>> last_convolutions(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3)), 1)
        ['2']
    """
    names = [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv2d) and module.kernel_size != (1, 1)
    ]
    if not 1 <= count <= len(names):
        raise ValueError(
            f"count must be between 1 and {len(names)}, the number of convolutions (1x1 ones left "
            f"out) in {type(network).__name__}. Found count={count!r}."
        )
    return names[-count:]


def split_network(network: nn.Module, layers: Sequence[str]) -> SplitNetwork:
    """Split ``network`` in front of the first of ``layers``; their weights become the tuned ones.

    Any module that :mod:`torch.fx` can trace is split, skip connections included. One that it
    cannot trace is kept whole, with a warning: the results are the same, without the saving.

    Args:
        network: images ``(batch, ...)`` -> embeddings ``(batch, dim)``.
        layers: names as in ``network.named_modules()``. The weight of each (not its bias) is tuned.

    Raises:
        ValueError: for an empty list, an unknown name, or a layer without a ``weight``.

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
    return SplitNetwork(network, layers)


def _split_prefix(network: nn.Module, layers: set[str]) -> tuple[nn.Module, nn.Module]:
    graph = trace(network, "the whole network is computed for every noise draw", 3)
    if graph is None:
        return nn.Identity(), network
    nodes = list(graph.nodes)
    first = next(i for i, n in enumerate(nodes) if n.op == "call_module" and n.target in layers)
    position = {node: i for i, node in enumerate(nodes)}
    last_use = [max((position[user] for user in node.users), default=-1) for node in nodes]
    # The latest point in front of the first chosen layer where one value alone is handed on: inside
    # a residual block two would cross (the branch and the skip connection).
    cut = max(i for i in range(first) if sum(last_use[j] > i >= j for j in range(first)) == 1)
    if all(node.op == "placeholder" for node in nodes[: cut + 1]):
        return nn.Identity(), network
    prefix, tail, _ = split_graph(graph, cut + 1, single=True)
    return program(network, prefix), program(network, tail)
