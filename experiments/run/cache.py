"""Trained networks, adapters and rankings on disk, found again by all that they follow from.

Chapters that train the same thing share it, a run with other values of parameters that training
does not read trains nothing again, and a long run that was interrupted goes on where it stopped.

The folder is ``runs/cache`` in the project, or that of the environment variable ``KTLIB_CACHE``; an
empty value, or a run outside of the project, keeps nothing. Beyond 20 GB the files go that were not
used for longest. They are pickled objects: take none from people whom you do not trust.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import torch
from filelock import FileLock
from torch import Tensor

from experiments.run.atomic import write_bytes
from experiments.run.provenance import package_versions, parts_digest, project_root
from ktlib.device import hardware_name

Value = TypeVar("Value")
FOLDER = "KTLIB_CACHE"
MOST_BYTES = 20e9
PACKAGES = ("numpy", "peft", "reasoning-gym", "torch", "torchjd", "torchvision", "transformers")
taken: Counter[str] = Counter()
"""Kind of result -> how many this process, and its workers, took from the cache."""


def cache_folder() -> Path | None:
    """Where results are kept; None where nothing is."""
    chosen, root = os.environ.get(FOLDER), project_root()
    if chosen is not None:
        return Path(chosen).expanduser() if chosen else None
    return root / "runs" / "cache" if root else None


def kept(
    kind: str,
    uses: Iterable[str],
    settings: Mapping[str, Any],
    make: Callable[[], Value],
    *,
    device: torch.device | str,
    enough: Callable[[Value], bool] = lambda _: True,
) -> Value:
    """Take a result from the cache, or compute it and keep it.

    A second process that wants the same result waits for the first. A file that cannot be read, or
    is not what was written, is made anew; where none can be written, a warning says so.

    Args:
        kind: a word or two, for the record of the run.
        uses: the parts of the project whose code the result follows from, as in the header of a
            chapter; see :func:`~experiments.run.provenance.part_files`.
        settings: all else that it follows from, as JSON can hold it: parameters, seeds, checksums
            of data. Versions of packages, device, processor and threads are added.
        make: computes the result; of anything that can be pickled.
        device: where it is computed.
        enough: whether a kept result has all that is wanted; else it is made anew.

    Raises:
        TypeError: JSON cannot hold the settings.
        Exception: what ``make`` raises; nothing is kept then.
    """
    key = json.dumps([kind, dict(settings), _circumstances(device)], sort_keys=True)
    folder = cache_folder()
    if folder is None:
        return make()
    name = hashlib.sha256(f"{parts_digest(tuple(uses))} {key}".encode()).hexdigest()
    file = folder / name[:40]
    with _alone(file):
        found = _read(file)
        if found is not None and enough(found[0]):
            taken[kind] += 1
            with contextlib.suppress(OSError):
                os.utime(file)
            value: Value = found[0]
            return value
        made = make()
        try:
            _write(file, made)
        except OSError as error:
            warnings.warn(f"A result is not kept in {folder}: {error}", stacklevel=2)
    return made


def tensors_digest(tensors: Mapping[str, Tensor]) -> str:
    """SHA-256 of the names and values of tensors, for the ``settings`` of :func:`kept`."""
    total = hashlib.sha256()
    for name, value in tensors.items():
        plain = value.detach().cpu().contiguous()
        total.update(f"{name} {plain.dtype} {tuple(plain.shape)}".encode())
        total.update(plain.flatten().view(torch.uint8).numpy().data)
    return total.hexdigest()


@lru_cache
def _versions() -> dict[str, str]:
    return package_versions(PACKAGES)


def _circumstances(device: torch.device | str) -> list[Any]:
    """What the last digits depend on: versions, processor, threads."""
    place = torch.device(device)
    repeatable = torch.are_deterministic_algorithms_enabled()
    threads = torch.get_num_threads() if place.type == "cpu" else 0
    processor = torch.backends.cpu.get_cpu_capability()
    return [_versions(), place.type, hardware_name(place), processor, threads, repeatable]


@contextlib.contextmanager
def _alone(file: Path) -> Any:
    """Hold the lock of a file, which is released when a process is killed."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(file.with_suffix(".lock"))
        lock.acquire()
    except OSError:  # a folder that cannot be written to, or knows no locks
        yield
        return
    try:
        yield
    finally:
        lock.release()


def _read(file: Path) -> tuple[Any] | None:
    """The value in a file; None if it is not there, or not as it was written."""
    try:
        content = file.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        warnings.warn(f"A kept result cannot be read: {error}.", stacklevel=3)
        return None
    if hashlib.sha256(content[32:]).digest() != content[:32]:
        warnings.warn(f"{file} is damaged, and is made anew.", stacklevel=3)
        return None
    return (torch.load(io.BytesIO(content[32:]), weights_only=False),)


def _write(file: Path, value: Any) -> None:
    stream = io.BytesIO()
    torch.save(value, stream)
    content = stream.getvalue()
    write_bytes(file, hashlib.sha256(content).digest() + content)
    oldest_first = sorted((f.stat().st_mtime, f.stat().st_size, f) for f in _files(file.parent))
    total = sum(size for _, size, _ in oldest_first)
    for _, size, other in oldest_first:
        if total > MOST_BYTES and other != file:
            other.unlink(missing_ok=True)
            total -= size


def _files(folder: Path) -> list[Path]:
    return [file for file in folder.iterdir() if re.fullmatch("[0-9a-f]{40}", file.name)]
