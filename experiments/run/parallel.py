"""Several trainings at once, in processes of their own, on a CPU with several cores.

A small network keeps one core busy and hardly a second one: two trainings side by side, with one
thread each, take about half as long as one after the other with two threads each.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import joblib
import torch
from tqdm import tqdm

from ktlib.seeding import deterministic

Item = TypeVar("Item")
Result = TypeVar("Result")
VARIABLE = "KTLIB_WORKERS"
MAX_WORKERS = 4  # by default: each worker is a Python process with PyTorch and a copy of the images


def workers() -> int:
    """How many trainings run at once on the CPU.

    As many as PyTorch has threads, at most 4, unless the environment variable ``KTLIB_WORKERS``
    says another number. With 1 everything stays in this process.

    Raises:
        ValueError: ``KTLIB_WORKERS`` is not a whole number from 1.
    """
    setting = os.environ.get(VARIABLE)
    if setting is None:
        return min(MAX_WORKERS, torch.get_num_threads())
    if not setting.isdecimal() or int(setting) < 1:
        raise ValueError(
            f"Environment variable {VARIABLE} must be a whole number from 1. Found {setting!r}."
        )
    return int(setting)


def parallel_map(
    function: Callable[[Item], Result],
    items: Iterable[Item],
    description: str,
    *,
    device: torch.device | str = "cpu",
) -> dict[Item, Result]:
    """The result of a function for each of some items, several computed at the same time.

    The threads of this process are divided among the workers, also where there are fewer items
    than workers: so what comes out for an item does not depend on what else is computed. On a GPU,
    and with one worker, items are taken one after the other in this process.

    Args:
        function: of one item. It must not depend on a global generator of random numbers. It may
            be defined in a notebook; what it uses of the notebook is copied to the workers.
        items: each occurs once in the result, in this order.
        description: a few words shown before the progress bar.
        device: where the function computes.

    Raises:
        Exception: the first that the function raises; remaining items are not computed.
    """
    todo, count = list(dict.fromkeys(items)), workers()
    if not todo or count == 1 or torch.device(device).type != "cpu":
        return {item: function(item) for item in tqdm(todo, desc=description, leave=False)}
    settings = (
        max(1, torch.get_num_threads() // count),
        torch.are_deterministic_algorithms_enabled(),
    )
    if len(todo) == 1:
        return {
            item: _under(settings, function, item)
            for item in tqdm(todo, desc=description, leave=False)
        }
    with tempfile.TemporaryDirectory() as folder:
        # Written once, not sent with each item: a function may hold all images of a data set.
        file = Path(folder) / "function.pickle"
        with file.open("wb") as stream:
            cloudpickle.dump(function, stream)
        parallel = joblib.Parallel(count, return_as="generator", batch_size=1, pre_dispatch=count)
        found = parallel(joblib.delayed(_in_worker)(settings, file, item) for item in todo)
        return dict(
            zip(todo, tqdm(found, desc=description, total=len(todo), leave=False), strict=True)
        )


Settings = tuple[int, bool]  # threads, and whether results are to be repeatable


def _under(settings: Settings, function: Callable[[Item], Result], item: Item) -> Result:
    threads, repeatable = settings
    if repeatable:
        with deterministic(threads):
            return function(item)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        return function(item)
    finally:
        torch.set_num_threads(before)


def _in_worker(settings: Settings, file: Path, item: Any) -> Any:
    os.environ[VARIABLE] = "1"  # a worker has no workers of its own
    return _under(settings, _function_in(file), item)


@lru_cache(maxsize=1)
def _function_in(file: Path) -> Callable[[Any], Any]:
    with file.open("rb") as stream:
        function: Callable[[Any], Any] = cloudpickle.load(stream)
    return function
