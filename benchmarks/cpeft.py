"""What InfLoRA's moments and design of ``A`` cost in a layer, against the obvious ways.

No package holds the method.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import reduce

import torch
from torch import Tensor

from benchmarks.compare import Growth, Row, Side, compare
from ktlib.cpeft import DualGPM, InputMoment
from ktlib.cpeft.inflora import design_down

RANK = 8


def sides(batches: Sequence[Tensor], memory: DualGPM) -> list[Side]:
    """``A`` from batches of inputs ``(tokens, d)``; results are what it projects on."""
    old = memory.old_basis()

    def ours() -> Sequence[Tensor]:
        moment = reduce(InputMoment.merged, map(InputMoment.of, batches))
        down = design_down(moment, memory, RANK)
        return [3 * down.T @ down]

    def by_svd(matrix: Tensor) -> Sequence[Tensor]:
        left, _, _ = torch.linalg.svd(matrix - old @ (old.T @ matrix), full_matrices=False)
        down = left[:, :RANK].T / math.sqrt(3)
        return [3 * down.T @ down]

    def of_moment() -> Sequence[Tensor]:
        stacked = torch.cat(list(batches)).double()
        return by_svd(stacked.T @ stacked / len(stacked))

    def of_inputs() -> Sequence[Tensor]:
        return by_svd(torch.cat(list(batches)).double().T)

    found = [
        Side("svd of the moment of stacked inputs", "naive", of_moment),
        Side("ktlib", "project", ours),
    ]
    # Behind a projection, inputs and moment have other singular vectors.
    if not memory.old_rank:
        found.append(Side("svd of the stacked inputs", "naive", of_inputs))
    return found


def measure(quick: bool) -> Iterator[Row | Growth]:
    """All comparisons of the part on adapters."""
    width, tokens, repeats = (24, 50, 2) if quick else (768, 985, 5)  # five images of a ViT-B/16
    # Directions of falling length, so that the largest are well apart.
    lengths = 0.97 ** torch.arange(width)
    first, second = (
        [torch.randn(tokens, width) * spread for _ in range(4)] for spread in (lengths, lengths**2)
    )
    size = f"a layer of {width} inputs, {4 * tokens} tokens"
    memory = DualGPM(width)
    yield compare("InfLoRA's A of the first task", size, sides(first, memory), repeats)
    memory.update(reduce(InputMoment.merged, map(InputMoment.of, first)), 0.5)
    yield compare("InfLoRA's A of the second task", size, sides(second, memory), repeats)
