"""A split network as the released code of Recon would run it: skip connections are lost.

In the released code of Recon (Shi et al., ICLR 2023) every map becomes a
list with one entry per task at the first task-specific layer. If this layer lies in a residual
block without a projection, the block's input still has one entry, and the loop that adds it to the
output runs once: only the first task receives the skip connection of this block.
:func:`lose_skips` does the same; written from a description of that code, which has no licence.
"""

from __future__ import annotations

from collections.abc import Collection

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock

from experiments.mtl.network import MultiTaskNetwork
from ktlib.mtl.layers import check_layers
from ktlib.mtl.split import SplitTrunk, split


class BlockWithoutSkip(BasicBlock):  # type: ignore[misc]
    """A residual block whose input is not added to its output."""

    def forward(self, x: Tensor) -> Tensor:
        """Features of the same shape, of features ``(batch, channels, height, width)``."""
        inner = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        made: Tensor = self.relu(inner)
        return made


def block_losing_skips(trunk: nn.Module, layers: Collection[str]) -> str | None:
    """Name of the block that would lose its skip connections; None where none would.

    Args:
        trunk: a ResNet of torchvision's blocks, its modules in the order of the forward pass.
        layers: names of the task-specific layers.

    Raises:
        ValueError: a layer is unknown.
    """
    ordered = check_layers(trunk, layers)
    parent = ordered[0].rpartition(".")[0] if ordered else ""
    block = trunk.get_submodule(parent)
    plain = isinstance(block, BasicBlock) and block.downsample is None
    return parent if plain and parent else None


def lose_skips(network: MultiTaskNetwork, keeps: str) -> MultiTaskNetwork:
    """The same network, as the released code would run it: one task keeps the skip connection.

    Args:
        network: with a split trunk; its heads and its initial weights are taken over.
        keeps: the task that receives the skip; in the released code the first one.

    Returns:
        A network in which every task computes its whole trunk. Statistics of batch norms in front
        of the split are therefore updated once per task instead of once per batch.

    Raises:
        ValueError: the task is unknown, the trunk is not split, or no block would lose a skip.
    """
    if keeps not in network.tasks:
        raise ValueError(f"keeps must be one of {list(network.tasks)}. Found {keeps!r}.")
    trunk = _split_trunk(network)
    block = block_losing_skips(trunk.trunk_of(keeps), trunk.layers)
    if block is None:
        raise ValueError(
            f"layers must begin in a residual block without projection. Found {trunk.layers[0]!r}."
        )
    whole = trunk.trunk_of(trunk.tasks[0])
    made = split(whole, trunk.layers, trunk.tasks, share_prefix=False, own_statistics=True)
    known = trunk.state_dict()
    # Statistics of a task's own start as copies of the shared ones, which `split` has made.
    made.load_state_dict({name: known.get(name, own) for name, own in made.state_dict().items()})
    for task in set(trunk.tasks) - {keeps}:
        made.trunk_of(task).get_submodule(block).__class__ = BlockWithoutSkip
    return MultiTaskNetwork(made, dict(network.heads.items()))


def _split_trunk(network: MultiTaskNetwork) -> SplitTrunk:
    if not isinstance(network.trunk, SplitTrunk) or not network.trunk.layers:
        raise ValueError("network must have a trunk with task-specific layers. Found none.")
    return network.trunk
