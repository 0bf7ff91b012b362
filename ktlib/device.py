"""Choose where to compute and in which precision."""

from __future__ import annotations

import platform
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal, get_args

import torch

DeviceName = Literal["auto", "cpu", "cuda", "mps"]
PrecisionName = Literal["auto", "float32", "bfloat16"]


def available_devices() -> list[str]:
    """Device types this machine can compute on, the fastest first; ``"cpu"`` is always the last."""
    found = []
    if torch.cuda.is_available():
        found.append("cuda")
    if torch.backends.mps.is_available():
        found.append("mps")
    return [*found, "cpu"]


def choose_device(name: str = "auto") -> torch.device:
    """Turn the value of a ``device`` parameter into a device of this machine.

    Args:
        name: ``"auto"`` takes cuda, else mps, else cpu; the other names ask for exactly that one.

    Raises:
        ValueError: the name is unknown, or this machine has no such device.
    """
    if name not in get_args(DeviceName):
        allowed = ", ".join(repr(choice) for choice in get_args(DeviceName))
        raise ValueError(f"Parameter `device` must be one of {allowed}. Found device={name!r}.")
    available = available_devices()
    if name == "auto":
        return torch.device(available[0])
    if name not in available:
        raise ValueError(
            f"Parameter `device` asks for {name!r}, which this machine does not have. "
            f"Use 'auto' or one of {available}."
        )
    return torch.device(name)


def compute_dtype(device: torch.device | str, precision: str = "auto") -> torch.dtype:
    """The floating-point type that :func:`autocast` computes matrix products and convolutions in.

    ``"auto"`` is bfloat16 on a CUDA device that supports it and float32 everywhere else. It is
    float32 on every CPU on purpose, although some are faster in bfloat16: the same parameters then
    give the same numbers on CPUs with and without bfloat16 instructions.

    Raises:
        ValueError: the name is unknown, or the device cannot compute in it.
    """
    if precision not in get_args(PrecisionName):
        allowed = ", ".join(repr(choice) for choice in get_args(PrecisionName))
        raise ValueError(
            f"Parameter `precision` must be one of {allowed}. Found precision={precision!r}."
        )
    kind = torch.device(device).type
    supported = kind != "cuda" or torch.cuda.is_bf16_supported()
    if precision == "bfloat16" and not supported:
        raise ValueError(
            "Parameter `precision` asks for 'bfloat16', which this CUDA device does not support. "
            "Use 'auto' or 'float32'."
        )
    if precision == "bfloat16" or (precision == "auto" and kind == "cuda" and supported):
        return torch.bfloat16
    return torch.float32


def autocast(device: torch.device | str, precision: str = "auto") -> AbstractContextManager[object]:
    """Context in which the forward pass and the loss run in the wanted precision.

    ``"float32"`` switches an enclosing autocast off; see :func:`compute_dtype` for ``"auto"``.
    Bfloat16 has the exponent range of float32, so no gradient scaler is needed.

    Raises:
        ValueError: as :func:`compute_dtype`.
    """
    dtype = compute_dtype(device, precision)
    if dtype == torch.float32:
        return torch.autocast(torch.device(device).type, enabled=False)
    return torch.autocast(torch.device(device).type, dtype=dtype)


def hardware_name(device: torch.device | str) -> str:
    """Model name of the GPU or CPU behind a device, for records and captions."""
    if torch.device(device).type == "cuda":
        return torch.cuda.get_device_name(device)
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name":
                return value.strip()
    return platform.processor() or platform.machine()
