"""What a network costs: the size of its parameters, operations and time of a forward pass."""

from __future__ import annotations

import copy
import time

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


def parameter_megabytes(module: nn.Module) -> float:
    """Size of all parameters in MB (2^20 bytes) of float32: ``#P`` in the tables of the thesis.

    Example:
        >>> parameter_megabytes(nn.Linear(1024, 1024, bias=False))
        4.0
    """
    return sum(parameter.numel() for parameter in module.parameters()) * 4 / 2**20


def forward_flops(module: nn.Module, images: Tensor) -> int:
    """Floating-point operations of one forward pass in evaluation mode, for the whole batch.

    Counted from shapes by :mod:`torch.utils.flop_counter`: matrix products and convolutions, a
    multiplication and an addition each; all else, such as batch norms, counts as nothing. The
    module is copied for it: its modes and statistics stay as they are.

    Args:
        module: any network.
        images: ``(batch, ...)``, as the network takes them.

    Example:
        >>> forward_flops(nn.Linear(3, 5), torch.zeros(2, 3))  # 2 images x 3 x 5 products, twice
        60
    """
    # Gradients stay on: without them some modules of torch take fused ways that are not counted.
    probe = copy.deepcopy(module).eval()
    with FlopCounterMode(display=False) as counter:
        probe(images)
    return int(counter.get_total_flops())


@torch.no_grad()
def forward_milliseconds(network: nn.Module, images: Tensor, repeats: int = 5) -> float:
    """Duration of one forward pass in evaluation mode: the shortest of some, after one to warm up.

    The shortest, because whatever else the machine does can only make a pass longer. The network
    keeps its mode.

    Args:
        network: any module of images.
        images: ``(batch, channels, height, width)``, on the network's device.
        repeats: number of timed passes.

    Raises:
        ValueError: ``repeats`` is below 1.
    """
    if repeats < 1:
        raise ValueError(f"repeats must be at least 1. Found repeats={repeats!r}.")
    was_training = network.training
    network.eval()
    times = []
    for _ in range(repeats + 1):
        started = time.perf_counter()
        network(images)
        if images.is_cuda:
            torch.cuda.synchronize(images.device)
        times.append(time.perf_counter() - started)
    network.train(was_training)
    return 1000 * min(times[1:])
