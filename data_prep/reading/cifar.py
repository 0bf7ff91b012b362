"""CIFAR-100 in the format that torchvision keeps on disk: a folder of three pickles.

A pickle can name any function and have it called, so these are read with an unpickler that knows
only what the files need: dictionaries, lists, text, numbers and arrays of unsigned bytes.
"""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDER = "cifar-100-python"
FILES = tuple(f"{FOLDER}/{name}" for name in ("train", "test", "meta"))
SHAPE = (3, 32, 32)


class CifarFormatError(ValueError):
    """A CIFAR-100 file does not hold what the format says."""


class RestrictedUnpickler(pickle.Unpickler):
    """An unpickler for dictionaries, lists, text, numbers and arrays of unsigned bytes."""

    def find_class(self, module: str, name: str) -> Any:
        """The stand-in for a name found in the file; every other name is refused."""
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _empty_array
        if (module, name) == ("numpy", "ndarray"):
            return np.ndarray
        if (module, name) == ("numpy", "dtype"):
            return _byte_type
        raise CifarFormatError(f"the pickle asks for {module}.{name}, which is not allowed")


def _empty_array(kind: object, *_: object) -> NDArray[np.uint8]:
    """What numpy makes before it fills in shape and values, which come in a second step."""
    if kind is not np.ndarray:
        raise CifarFormatError(f"an array of type {kind!r} is not allowed")
    return np.empty(0, dtype=np.uint8)


def _byte_type(code: object, *_: object) -> np.dtype[np.uint8]:
    """The one allowed element type. A fresh object, since unpickling then sets its state."""
    if code not in ("u1", "|u1"):
        raise CifarFormatError(f"an array of element type {code!r} is not allowed")
    return np.dtype(np.uint8, copy=True)


def unpickle(content: bytes) -> dict[str, Any]:
    """The dictionary in a pickle written by Python 2, as the CIFAR files are.

    Raises:
        CifarFormatError: it holds anything but plain values and byte arrays, or is cut short.
    """
    try:
        value = RestrictedUnpickler(io.BytesIO(content), encoding="latin1").load()
    except CifarFormatError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way
        raise CifarFormatError(f"it cannot be unpickled: {error}") from error
    if not isinstance(value, dict):
        raise CifarFormatError(f"it must hold a dictionary. Found {type(value).__name__}")
    return value


def cifar_split(content: bytes) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Images (n, 3, 32, 32) and fine labels (n,) in the content of ``train`` or ``test``.

    Raises:
        CifarFormatError: the pickle does not hold images with one label each.
    """
    entries = unpickle(content)
    images = entries.get("data")
    width = int(np.prod(SHAPE))
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
        raise CifarFormatError("'data' must be an array of bytes with one row per image")
    if images.shape[1] != width:
        raise CifarFormatError(f"'data' must have {width} columns. Found {images.shape[1]}")
    labels = entries.get("fine_labels")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise CifarFormatError("'fine_labels' must be a list of integers")
    if len(labels) != len(images):
        raise CifarFormatError(f"found {len(labels)} labels for {len(images)} images")
    return images.reshape(-1, *SHAPE), np.array(labels, dtype=np.int64)


def cifar_class_names(content: bytes) -> tuple[str, ...]:
    """The names of the 100 fine classes in the content of ``meta``.

    Raises:
        CifarFormatError: the pickle does not hold them.
    """
    names = unpickle(content).get("fine_label_names")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise CifarFormatError("'fine_label_names' must be a list of names")
    return tuple(names)
