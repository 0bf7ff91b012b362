"""The idx format of the MNIST files: a big-endian header, then the values as bytes."""

from __future__ import annotations

import struct

import numpy as np
from numpy.typing import NDArray

UNSIGNED_BYTE = 0x08


def decode_idx(content: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The array stored in the bytes of an idx file of unsigned bytes.

    Args:
        content: The whole file, shape (bytes,).

    Returns:
        A view of ``content`` in the shape that the header names.

    Raises:
        ValueError: the header is not one of unsigned bytes, or sizes do not agree.
    """
    head = content[:4].tobytes()
    if len(head) < 4 or head[:3] != bytes([0, 0, UNSIGNED_BYTE]):
        raise ValueError(f"content must start with an idx header of bytes. Found {head!r}.")
    dimensions = head[3]
    start = 4 + 4 * dimensions
    if content.size < start:
        raise ValueError(f"content must hold {dimensions} sizes. Found {content.size} bytes.")
    shape = struct.unpack(f">{dimensions}I", content[4:start].tobytes())
    values = content[start:]
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise ValueError(f"content must hold {shape} values. Found {values.size}.")
    return values.reshape(shape)


def encode_idx(values: NDArray[np.uint8]) -> bytes:
    """The idx file that holds ``values``, an array of unsigned bytes of any shape.

    Raises:
        ValueError: ``values`` is not of dtype uint8.
    """
    if values.dtype != np.uint8:
        raise ValueError(f"values must have dtype uint8. Found {values.dtype}.")
    header = struct.pack(f">BBBB{values.ndim}I", 0, 0, UNSIGNED_BYTE, values.ndim, *values.shape)
    return header + values.tobytes()
