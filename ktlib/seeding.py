"""Random streams that follow from a seed and a purpose, and settings for repeatable runs."""

from __future__ import annotations

import hashlib
import importlib
import json
import operator
import os
import random
import warnings
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

# PyTorch makes the names of this module at run time, which its types do not show.
_deterministic: Any = importlib.import_module("torch.utils.deterministic")

# The environment variable that makes cuBLAS repeatable, and the value that costs the least speed.
CUBLAS_VARIABLE = "CUBLAS_WORKSPACE_CONFIG"
CUBLAS_VALUE = ":4096:8"


def seed_everything(seed: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (all devices).

    For code that draws from the global generators, such as the initial weights of ``torch.nn``
    modules. Code of this package takes a :func:`generator` instead.

    Raises:
        ValueError: ``seed`` is not an integer >= 0.
    """
    value = _checked_seed(seed)
    random.seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002 - for libraries that draw from it
    torch.manual_seed(value % 2**63)


def generator(
    seed: int, *purpose: str | int, device: torch.device | str = "cpu"
) -> torch.Generator:
    """A PyTorch generator of its own for each seed and purpose.

    Streams of different purposes are independent, and adding a draw to one leaves the others as
    they
    were: ``generator(seed, "noise", session)`` does not depend on how the batches were shuffled.

    Args:
        seed: an entry of the chapter's ``seeds``.
        *purpose: words and numbers saying what the stream is for.
        device: where the generator draws. CPU and GPU streams of one purpose differ.

    Raises:
        ValueError: ``seed`` is not an integer >= 0, or a purpose is neither a word nor an integer.
    """
    return torch.Generator(device=device).manual_seed(_stream_seed(seed, purpose))


def numpy_generator(seed: int, *purpose: str | int) -> np.random.Generator:
    """As :func:`generator`, for NumPy and scikit-learn.

    NumPy may change the stream of a ``Generator`` between versions; what must stay the same for
    ever, such as the order of a data set, uses ``numpy.random.RandomState``.
    """
    return np.random.Generator(np.random.PCG64(_stream_seed(seed, purpose)))


def deterministic(threads: int | None = None) -> AbstractContextManager[object]:
    """Ask PyTorch for repeatable results: the call applies it, a ``with`` block also undoes it.

    The same parameters then give the same numbers on the same CPU with the same number of threads.
    Between CPU types, thread counts, and CPU and GPU the last digits differ, and a few GPU
    operations have no repeatable version: PyTorch warns when it meets one instead of stopping.

    Call it before the first work on a GPU, because cuBLAS reads its setting when it starts.

    Args:
        threads: number of CPU threads; ``None`` leaves it.

    Raises:
        ValueError: ``threads`` is less than 1.
    """
    if threads is not None and threads < 1:
        raise ValueError(f"Parameter `threads` must be at least 1. Found threads={threads}.")
    cuda_started = torch.cuda.is_initialized()
    if cuda_started and CUBLAS_VARIABLE not in os.environ:
        warnings.warn(
            "deterministic() was called after CUDA had started: cuBLAS results may differ from run "
            "to run. Call it before the first work on the GPU.",
            RuntimeWarning,
            stacklevel=2,
        )
    os.environ.setdefault(CUBLAS_VARIABLE, CUBLAS_VALUE)
    before = _TorchSettings.read()
    _TorchSettings(
        deterministic=True,
        warn_only=True,
        # Filling fresh memory only helps code that reads it before writing, and is costly.
        fill_memory=False,
        cudnn_benchmark=False,
        threads=threads or before.threads,
    ).apply()
    undo = ExitStack()
    undo.callback(before.apply)
    return undo


@dataclass(frozen=True)
class _TorchSettings:
    """The settings of PyTorch that :func:`deterministic` touches."""

    deterministic: bool
    warn_only: bool
    fill_memory: bool
    cudnn_benchmark: bool
    threads: int

    @classmethod
    def read(cls) -> _TorchSettings:
        return cls(
            deterministic=torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            fill_memory=bool(_deterministic.fill_uninitialized_memory),
            cudnn_benchmark=torch.backends.cudnn.benchmark,
            threads=torch.get_num_threads(),
        )

    def apply(self) -> None:
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        _deterministic.fill_uninitialized_memory = self.fill_memory
        torch.backends.cudnn.benchmark = self.cudnn_benchmark
        torch.set_num_threads(self.threads)


def _checked_seed(seed: int) -> int:
    try:
        value = -1 if isinstance(seed, bool) else operator.index(seed)
    except TypeError:
        value = -1
    if value < 0:
        raise ValueError(f"Parameter `seed` must be an integer >= 0. Found seed={seed!r}.")
    return value


def _stream_seed(seed: int, purpose: tuple[str | int, ...]) -> int:
    """63 bits of the SHA-256 of seed and purpose: Python's own hash changes between processes."""
    words = [word if isinstance(word, str) else _checked_index(word) for word in purpose]
    text = json.dumps([_checked_seed(seed), *words])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def _checked_index(word: int) -> int:
    try:
        return operator.index(word)
    except TypeError:
        raise ValueError(
            f"Parameter `purpose` must hold words and integers. Found {word!r}."
        ) from None
