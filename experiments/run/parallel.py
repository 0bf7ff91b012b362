"""Run several trainings in parallel processes, on a CPU with several cores.

A small network hardly uses a second core: two trainings side by side, with one thread each, take
about half as long as one after the other with two threads each.
"""

from __future__ import annotations

import os
import tempfile
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import joblib
import torch
from tqdm import tqdm

from experiments.run import cache
from ktlib.seeding import deterministic

Item = TypeVar("Item")
Result = TypeVar("Result")
VARIABLE = "KTLIB_WORKERS"
MAX_WORKERS = 4  # the default: each worker is a process with PyTorch and a copy of the images


def workers() -> int:
    """How many trainings run in parallel on the CPU.

    The environment variable ``KTLIB_WORKERS``, or else as many as PyTorch has threads, at most 4.
    With 1 everything stays in this process.

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
    """Apply a function to items in parallel.

    The threads of this process are divided among the workers even where there are fewer items than
    workers, so that the result for an item does not depend on the other items. On a GPU, and with
    one worker, items are computed one after the other in this process.

    Args:
        function: of one item. It must not depend on a global random number generator. It may be
            defined in a notebook; what it uses from the notebook is copied to the workers.
        items: duplicates are computed once.
        description: a few words shown before the progress bar.
        device: where the function computes.

    Returns:
        Item -> result, in the order of the items.

    Raises:
        Exception: the first that the function raises; remaining items are not computed.
    """
    todo, count = list(dict.fromkeys(items)), workers()

    def shown(results: Iterable[Result]) -> dict[Item, Result]:
        bar = tqdm(results, desc=description, total=len(todo), leave=False)
        return dict(zip(todo, bar, strict=True))

    if not todo or count == 1 or torch.device(device).type != "cpu":
        return shown(map(function, todo))
    # joblib's `inner_max_num_threads` would set neither the threads of a single item, which stays
    # in this process, nor whether results are repeatable.
    threads = max(1, torch.get_num_threads() // count)
    repeatable = torch.are_deterministic_algorithms_enabled()
    if len(todo) == 1:
        return shown([_computed(function, todo[0], threads, repeatable)])
    with tempfile.TemporaryDirectory() as folder:
        # Written once, not sent with each item: a function may hold all images of a data set.
        file = Path(folder) / "function.pickle"
        with file.open("wb") as stream:
            cloudpickle.dump(function, stream)
        parallel = joblib.Parallel(count, return_as="generator", batch_size=1, pre_dispatch=count)
        call = joblib.delayed(_in_worker)
        found = parallel(call(file, item, threads, repeatable) for item in todo)
        return shown(map(_noted, found))


def _computed(
    function: Callable[[Item], Result], item: Item, threads: int, repeatable: bool
) -> Result:
    before = torch.get_num_threads()
    with deterministic() if repeatable else nullcontext():
        torch.set_num_threads(threads)
        try:
            return function(item)
        finally:
            torch.set_num_threads(before)


def _in_worker(file: Path, item: Any, threads: int, repeatable: bool) -> tuple[Any, Counter[str]]:
    """The result, and what was taken from the cache for it."""
    os.environ[VARIABLE] = "1"  # a worker has no workers of its own
    cache.taken.clear()
    return _computed(_function_in(file), item, threads, repeatable), cache.taken


def _noted(answer: tuple[Any, Counter[str]]) -> Any:
    result, taken = answer
    cache.taken.update(taken)
    return result


@lru_cache(maxsize=1)
def _function_in(file: Path) -> Callable[[Any], Any]:
    with file.open("rb") as stream:
        function: Callable[[Any], Any] = cloudpickle.load(stream)
    return function
