"""The uncentred second moment of the inputs of linear layers, over all tokens.

This matrix, ``E[x x^T]``, is all that InfLoRA and gradient projection use of the data of a layer.
Its trace is the mean squared length of an input, here called energy; its eigenvectors are the left
singular vectors of the matrix of all inputs, its eigenvalues their squared singular values, divided
by the number of tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn

from ktlib.checks import ImagePool, images_for, require_at_least
from ktlib.cpeft.adapters import LoraBackbone
from ktlib.fcl.evaluation import evaluating


@dataclass(frozen=True, eq=False)
class InputMoment:
    """The uncentred second moment of the inputs of a layer.

    Attributes:
        matrix: ``E[x x^T]``, ``(d, d)``, float64, symmetric; ``d`` is the layer's input size.
        tokens: how many inputs ``x`` the mean is over; a ViT has several in each image.

    Example:
        >>> moment = InputMoment.of(torch.tensor([[1.0, 0.0], [0.0, 3.0]]))
        >>> moment.matrix.tolist(), moment.energy
        ([[0.5, 0.0], [0.0, 4.5]], 5.0)
    """

    matrix: Tensor
    tokens: int

    @classmethod
    def of(cls, inputs: Tensor) -> InputMoment:
        """The moment of inputs ``(..., d)``, which are turned to float64 first.

        Raises:
            ValueError: there are none.
        """
        flat = inputs.detach().reshape(-1, inputs.shape[-1])  # (tokens, d)
        if not len(flat):
            raise ValueError(f"inputs must hold at least one token. Found {tuple(inputs.shape)}.")
        # Apple's GPU computes no float64.
        flat = (flat.cpu() if flat.device.type == "mps" else flat).double()
        return cls(flat.T @ flat / len(flat), len(flat))

    @property
    def energy(self) -> float:
        """Mean squared length of an input, ``E||x||^2``: the trace."""
        return float(self.matrix.trace())

    def merged(self, other: InputMoment) -> InputMoment:
        """The moment of the inputs of both.

        Raises:
            ValueError: they are not of the same input size.
        """
        if self.matrix.shape != other.matrix.shape:
            raise ValueError(
                "moments must be of the same input size to be merged. Found "
                f"{len(self.matrix)} and {len(other.matrix)}."
            )
        tokens = self.tokens + other.tokens
        # Rounding differs with the order, as in every sum; it does not grow with the batches.
        moved = (other.matrix - self.matrix) * (other.tokens / tokens)
        return InputMoment(self.matrix + moved, tokens)


def input_moments(
    network: nn.Module,
    layers: Sequence[str],
    images: ImagePool,
    rows: Tensor,
    batch_size: int,
) -> dict[str, InputMoment]:
    """The second moment of the inputs of layers, over all tokens of some images.

    The network computes in evaluation mode and without gradients; its mode is put back. Layers that
    read one tensor in succession, as query, key and value of an attention do, share one moment: the
    same object.

    Args:
        network: called with a batch of images, on the device where it is.
        layers: names of linear modules: of the encoder in a
            :class:`~ktlib.cpeft.adapters.LoraBackbone`, of ``network`` otherwise.
        images: ``images[rows]`` is ``(n, channels, height, width)``.
        rows: ``(n,)`` positions of the images to use.
        batch_size: images at a time; it changes the last digits only.

    Returns:
        Layer -> moment, in the order of ``layers``.

    Raises:
        ValueError: no layers, no rows, a batch size below 1, a name that is no linear layer, or a
            layer that the network did not use.
        FloatingPointError: inputs that are not finite, as those of a NaN among the images.
    """
    require_at_least("batch_size", batch_size, 1)
    if not layers:
        raise ValueError("layers must name at least one linear layer. Found none.")
    if not len(rows):
        raise ValueError("rows must name at least one image. Found none.")
    sums: dict[str, InputMoment] = {}
    last: tuple[Any, ...] = (None,) * 4  # tensor, writes to it, moment before it, moment with it

    def note(name: str, inputs: Tensor) -> None:
        nonlocal last
        # PyTorch counts writes in place, but in inference mode.
        writes = None if inputs.is_inference() else inputs._version  # noqa: SLF001
        new, before = inputs is not last[0] or writes is None or writes != last[1], sums.get(name)
        if new or before is not last[2]:
            moment = InputMoment.of(inputs)
            last = inputs, writes, before, before.merged(moment) if before else moment
        sums[name] = last[3]

    with _hooked(network, layers, note), evaluating(network), torch.no_grad():
        for batch in rows.split(batch_size):
            with images_for(network, images[batch]) as given:
                network(given)
    unused = [name for name in layers if name not in sums]
    if unused:
        raise ValueError(f"layers must be used by the network. These were not: {unused}.")
    broken = [name for name in layers if not bool(sums[name].matrix.isfinite().all())]
    if broken:
        raise FloatingPointError(
            f"the inputs of layer {broken[0]!r} are not finite: images and weights must be."
        )
    return {name: sums[name] for name in layers}


def linear_layer(network: nn.Module, name: str) -> nn.Linear:
    """A linear layer by its name; in a network with adapters the layer beneath them.

    Raises:
        ValueError: there is no linear layer of this name; the message lists all linear layers.
    """
    if isinstance(network, LoraBackbone):
        return network.linear(name)
    linear = {n: m for n, m in network.named_modules() if isinstance(m, nn.Linear)}
    if name not in linear:
        raise ValueError(f"layers must be linear layers: {list(linear)}. Found {name!r}.")
    return linear[name]


@contextmanager
def _hooked(
    network: nn.Module, layers: Sequence[str], note: Callable[[str, Tensor], None]
) -> Iterator[None]:
    """Call ``note`` with the input of each layer, whenever the layer is called."""
    with ExitStack() as stack:
        for name, module in [(name, linear_layer(network, name)) for name in layers]:

            def hook(_: nn.Module, given: tuple[Any, ...], name: str = name) -> None:
                note(name, cast("Tensor", given[0]))

            stack.enter_context(module.register_forward_pre_hook(hook))
        yield
