"""Copies of the trained parameters of a model, to come back to."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from experiments.ila.adapters import trained_parameters

Snapshot = dict[str, Tensor]


@torch.no_grad()
def snapshot(model: nn.Module) -> Snapshot:
    """A copy of the trained parameters in the memory of the CPU: name -> values.

    Of a sharded model every process must call this, and each gets the whole.
    """
    found = {}
    for name, parameter in trained_parameters(model).items():
        whole = getattr(parameter, "full_tensor", None)  # that of a sharded parameter
        values = parameter.detach() if whole is None else whole()
        found[name] = values.to("cpu", copy=True)
    return found


@torch.no_grad()
def restore(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Set parameters to the values of a :func:`snapshot`, bit for bit.

    Raises:
        ValueError: the model lacks one of them, or has it in another shape; nothing is changed.
    """
    parameters = dict(model.named_parameters())
    wrong = [
        name
        for name, value in values.items()
        if name not in parameters or parameters[name].shape != value.shape
    ]
    if wrong:
        raise ValueError(
            f"values must be a snapshot of this model. Found {len(wrong)} parameters that it "
            f"lacks or has in another shape, such as {wrong[:3]}."
        )
    for name, value in values.items():
        parameters[name].copy_(_like(value, parameters[name]))


def _like(value: Tensor, parameter: nn.Parameter) -> Tensor:
    """The value on the parameter's device, sharded as it is."""
    here = value.to(parameter.device)
    mesh = getattr(parameter, "device_mesh", None)
    if mesh is None:
        return here
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(here, mesh, getattr(parameter, "placements", None))
