"""How far the outputs of adapted layers move for inputs of old tasks, and how far they can.

An update ``D`` of a weight changes the output for an input ``x`` by ``D x``. Over all old inputs
the mean square of that follows from their second moment ``H`` alone::

    E||D x||^2 = tr(D H D^T)

so it can be measured without the old data. If the rows of ``D`` are orthogonal to the space kept
for old tasks, with basis ``M``, then ``D x = D (I - M M^T) x``, and therefore::

    E||D x||^2 <= ||D||_2^2 E||(I - M M^T) x||^2

where ``||D||_2`` is the largest singular value: what moves is at most what the memory discarded. An
update of InfLoRA has such rows up to rounding. For any other update, the part ``D M M^T x`` is
added, by the triangle inequality in the root mean square.

The bound is of one layer at inputs that stay as they are. In a deep network the inputs of later
layers move, too; :func:`experiments.cpeft.proof.network_drift` has the bound for that case.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.gpm import DualGPM
from ktlib.cpeft.inputs import InputMoment, linear_layer

_ROUNDING = torch.finfo(torch.float64).eps


def layer_state(network: nn.Module, layers: Sequence[str]) -> dict[str, Tensor]:
    """Copies of the weights of linear layers as they act, adapters included.

    Args:
        network: as in :func:`~ktlib.cpeft.inputs.input_moments`.
        layers: names of linear layers.

    Returns:
        Layer -> ``(d_out, d_in)``, float64, on the CPU.

    Raises:
        ValueError: a name that is not a linear layer.
    """
    weights = {}
    for name in layers:
        weight = linear_layer(network, name).weight.detach().cpu().double()
        if isinstance(network, LoraBackbone):
            up, down = (p.detach().cpu().double() for p in (network.up(name), network.down(name)))
            weight = weight + network.scale * up @ down
        weights[name] = weight.clone()
    return weights


def drift_rows(
    before: Mapping[str, Tensor],
    after: Mapping[str, Tensor],
    moments_of_old_inputs: Mapping[str, InputMoment],
    memory: Mapping[str, DualGPM] | None = None,
) -> list[dict[str, Any]]:
    """How far the outputs of each layer moved for old inputs and, with a memory, a bound on it.

    Args:
        before: from :func:`layer_state`, before the new task.
        after: the same, after it.
        moments_of_old_inputs: from :func:`~ktlib.cpeft.inputs.input_moments` with the network as it
            was before.
        memory: layer -> the memory that the update was designed with, that is, from before the new
            task. A copy: ``copy.deepcopy(learner.memories)``.

    Returns:
        A row for each layer, in the order of ``before``, all root mean squares over the old inputs:

        - ``layer``;
        - ``moved``: of ``D x``, the change of the output; ``output``: of ``W x`` before, without
          the bias; ``relative``: their ratio;
        - ``resolution``: below which ``moved`` and the bound are rounding, as squares are rounded:
          1e-8 times the square root of ``d``, of ``||D||_2`` times that of ``x``;

        and with a memory:

        - ``outside``: ``||D||_2`` times that of ``(I - M M^T) x``, the bound by what was discarded;
        - ``inside``: of ``D M M^T x``; zero up to rounding for updates of InfLoRA;
        - ``bound``: their sum, which ``moved`` never exceeds by more than ``resolution``.

    Raises:
        ValueError: layers or sizes differ between the arguments.
    """
    memory_layers = before if memory is None else memory
    for name, given in (("after", after), ("moments_of_old_inputs", moments_of_old_inputs),
                        ("memory", memory_layers)):  # fmt: skip
        if given.keys() != before.keys():
            raise ValueError(
                f"{name} must have the layers of before: {list(before)}. Found {list(given)}."
            )
    rows = []
    for name, weight in before.items():
        moment = moments_of_old_inputs[name]
        matrix, update = moment.matrix.cpu(), after[name] - weight  # (d_in, d_in), (d_out, d_in)
        if len(matrix) != weight.shape[1]:
            raise ValueError(
                f"{name}: the moment must be of inputs of size {weight.shape[1]}. "
                f"Found {len(matrix)}."
            )
        norm = float(torch.linalg.matrix_norm(update, 2))
        moved, output = _rms(update, matrix), _rms(weight, matrix)
        row: dict[str, Any] = {"layer": name, "moved": moved, "output": output}
        row["relative"] = moved / output if output else math.nan
        row["resolution"] = norm * math.sqrt(len(matrix) * _ROUNDING * moment.energy)
        if memory is not None:
            row["outside"] = norm * math.sqrt(memory[name].residual_energy(moment))
            row["inside"] = _rms(update - memory[name].project_out(update), matrix)
            row["bound"] = row["outside"] + row["inside"]
        rows.append(row)
    return rows


def _rms(matrix: Tensor, moment: Tensor) -> float:
    """Root mean square of ``||matrix x||`` over inputs with this moment."""
    return math.sqrt(max(0.0, float(((matrix @ moment) * matrix).sum())))
