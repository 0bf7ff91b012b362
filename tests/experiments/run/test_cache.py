"""Results that are kept on disk: found again by all that they follow from, and by nothing less."""

import multiprocessing
import os
import time
import warnings
from collections import Counter

import pytest
import torch

from experiments.run import cache
from experiments.run.cache import kept, tensors_digest
from experiments.run.parallel import parallel_map

SETTINGS = {"lr": 0.1, "seed": 0}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty cache."""
    monkeypatch.setenv("KTLIB_CACHE", str(tmp_path / "cache"))
    cache.taken.clear()
    return tmp_path / "cache"


class Training:
    """Counts how often it is done."""

    def __init__(self):
        self.times = 0

    def __call__(self):
        self.times += 1
        return {"weight": torch.arange(3.0), "loss": 0.5}


def take(make, settings=SETTINGS, kind="training", uses=("fcl",), **options):
    return kept(kind, uses, settings, make, device="cpu", **options)


def results(folder):
    return [file for file in folder.iterdir() if file.suffix != ".lock"]


def test_a_result_is_made_once(folder):
    make = Training()
    first, second = take(make), take(make)
    assert make.times == 1
    assert torch.equal(first["weight"], second["weight"])
    assert second["loss"] == 0.5
    assert cache.taken == Counter(training=1)
    assert len(results(folder)) == 1


@pytest.mark.parametrize(
    "other",
    [
        {"settings": {"lr": 0.2, "seed": 0}},
        {"settings": {"lr": 0.1, "seed": 0, "more": None}},
        {"kind": "ranking"},
        {"uses": ("mtl",)},
    ],
)
def test_what_follows_from_something_else_is_made(folder, other):
    make = Training()
    take(make)
    take(make, **other)
    assert make.times == 2


@pytest.mark.usefixtures("folder")
def test_threads_and_repeatability_count():
    make, threads = Training(), torch.get_num_threads()
    take(make)
    try:
        torch.set_num_threads(threads + 1)
        take(make)
    finally:
        torch.set_num_threads(threads)
    assert make.times == 2


@pytest.mark.usefixtures("folder")
def test_the_code_counts(monkeypatch):
    make = Training()
    take(make)
    monkeypatch.setattr(cache, "parts_digest", lambda parts: f"other {parts}")
    take(make)
    assert make.times == 2


@pytest.mark.parametrize("damage", [b"", b"nothing", "cut", "flipped"])
def test_a_damaged_file_is_made_anew(folder, damage):
    make = Training()
    take(make)
    (file,) = results(folder)
    content = file.read_bytes()
    if damage == "cut":
        damage = content[:-5]
    elif damage == "flipped":
        middle = len(content) // 2
        damage = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    file.write_bytes(damage)
    with pytest.warns(UserWarning, match="damaged, and is made anew"):
        again = take(make)
    assert make.times == 2
    assert torch.equal(again["weight"], torch.arange(3.0))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        take(make)
    assert make.times == 2


@pytest.mark.usefixtures("folder")
def test_what_raises_leaves_nothing(folder):
    def fails():
        raise FloatingPointError("diverged")

    with pytest.raises(FloatingPointError):
        take(fails)
    make = Training()
    take(make)
    assert make.times == 1


def test_a_result_that_lacks_something_is_made_anew(folder):
    make = Training()
    take(make)
    take(make, enough=lambda value: "loss" in value)
    assert make.times == 1
    take(make, enough=lambda value: "accuracy" in value)
    assert make.times == 2


def test_nothing_is_lost_where_nothing_can_be_written(tmp_path, monkeypatch):
    occupied = tmp_path / "file"
    occupied.write_text("no folder")
    monkeypatch.setenv("KTLIB_CACHE", str(occupied))
    with pytest.warns(UserWarning, match="cannot be read|not kept"):
        found = take(Training())
    assert found["loss"] == 0.5


def test_an_empty_variable_keeps_nothing(monkeypatch):
    monkeypatch.setenv("KTLIB_CACHE", "")
    make = Training()
    take(make)
    take(make)
    assert make.times == 2


@pytest.mark.usefixtures("folder")
def test_settings_that_json_cannot_hold_are_refused():
    with pytest.raises(TypeError):
        take(Training(), settings={"lr": torch.tensor(1.0)})


def test_what_was_not_used_for_longest_goes(folder, monkeypatch):
    makes = [Training() for _ in range(3)]
    for number, make in enumerate(makes):
        take(make, {"number": number})
        for file in results(folder):  # all older, in the order in which they were written
            os.utime(file, (file.stat().st_atime, file.stat().st_mtime - 100))
    take(makes[0], {"number": 0})  # used just now
    size = results(folder)[0].stat().st_size
    monkeypatch.setattr(cache, "MOST_BYTES", 3.5 * size)
    take(Training(), {"number": 3})
    assert len(results(folder)) == 3
    take(makes[0], {"number": 0})
    take(makes[2], {"number": 2})
    assert [make.times for make in makes] == [1, 1, 1]
    take(makes[1], {"number": 1})
    assert makes[1].times == 2


def slow_training(folder):
    """In a process of its own; writes a line where it computes."""
    os.environ["KTLIB_CACHE"] = str(folder)

    def make():
        with (folder.parent / "made.txt").open("a") as stream:
            stream.write("made\n")
        time.sleep(1)
        return 1

    take(make)


@pytest.mark.slow
def test_of_two_processes_one_computes(folder):
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=slow_training, args=(folder,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert (folder.parent / "made.txt").read_text() == "made\n"


def killed_training(folder):
    os.environ["KTLIB_CACHE"] = str(folder)
    take(lambda: os._exit(9))


@pytest.mark.slow
def test_a_killed_process_blocks_nobody(folder):
    process = multiprocessing.get_context("spawn").Process(target=killed_training, args=(folder,))
    process.start()
    process.join(60)
    assert process.exitcode == 9
    make = Training()
    take(make)
    assert make.times == 1


@pytest.mark.usefixtures("folder")
def test_what_workers_take_is_counted(monkeypatch):
    monkeypatch.setenv("KTLIB_WORKERS", "2")

    def train(number):
        return take(lambda: number, {"number": number})

    parallel_map(train, range(4), "first")
    assert not cache.taken
    assert parallel_map(train, range(3), "again") == {0: 0, 1: 1, 2: 2}
    assert cache.taken == Counter(training=3)


def test_a_digest_of_tensors_sees_names_types_and_values():
    one = {"a": torch.zeros(2, 3), "b": torch.ones(2)}
    others = [
        {"a": torch.zeros(3, 2), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3), "c": torch.ones(2)},
        {"a": torch.zeros(2, 3, dtype=torch.int32), "b": torch.ones(2)},
        {"a": torch.zeros(2, 3), "b": torch.tensor([1.0, 2.0])},
    ]
    digests = [tensors_digest(tensors) for tensors in (one, *others)]
    assert len(set(digests)) == 5
    assert tensors_digest({name: value.clone() for name, value in one.items()}) == digests[0]
    strided = torch.stack([torch.zeros(3, 2), torch.ones(3, 2)])[0].t()
    assert tensors_digest({"a": strided, "b": torch.ones(2)}) == digests[0]
