import os
from functools import partial

import pytest
import torch
from torch import nn

from experiments.run.parallel import parallel_map, workers
from ktlib.seeding import deterministic, generator


@pytest.fixture
def two_workers(monkeypatch):
    """Two workers, and two threads for them; other tests get back what they had."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    monkeypatch.setenv("KTLIB_WORKERS", "2")
    yield
    torch.set_num_threads(before)


def place(_item):
    """Where an item is computed, and under which settings."""
    repeatable = torch.are_deterministic_algorithms_enabled()
    return os.getpid(), (torch.get_num_threads(), repeatable, workers())


def trained(seed):
    """A small network after some steps, and its weights."""
    torch.manual_seed(seed)
    network = nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LazyLinear(3))
    images = torch.randn(16, 1, 9, 9, generator=generator(seed, "images"))
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    for _ in range(5):
        optimizer.zero_grad()
        network(images).square().mean().backward()
        optimizer.step()
    return network


def test_items_are_computed_in_other_processes_and_come_in_order(two_workers):
    with deterministic():
        found = parallel_map(place, ["b", "a", "c", "a"], "places")
    assert list(found) == ["b", "a", "c"]
    assert os.getpid() not in {where for where, _ in found.values()}
    # One of two threads for each, repeatable as in this process, and no workers of its own.
    assert {settings for _, settings in found.values()} == {(1, True, 1)}
    assert torch.get_num_threads() == 2


def test_a_training_does_not_depend_on_what_else_is_computed(two_workers, monkeypatch):
    several, alone = parallel_map(trained, [3, 4, 5], "three"), parallel_map(trained, [4], "one")
    torch.set_num_threads(1)
    monkeypatch.setenv("KTLIB_WORKERS", "1")
    here = parallel_map(trained, [4], "here")
    for other in (alone, here):
        pairs = zip(several[4].state_dict().values(), other[4].state_dict().values(), strict=True)
        assert all(torch.equal(one, two) for one, two in pairs)
    assert not torch.equal(several[3][0].weight, several[4][0].weight)


def test_functions_of_a_notebook_and_what_they_use_are_copied(two_workers):
    table = {"a": torch.ones(2), "b": torch.zeros(2)}

    def changed(name):
        table[name] += 1
        return float(table[name].sum())

    assert parallel_map(changed, table, "local") == {"a": 4.0, "b": 2.0}
    assert float(table["a"].sum()) == 2.0, "the original is left alone"


def test_one_worker_or_a_gpu_stays_in_this_process(monkeypatch):
    monkeypatch.setenv("KTLIB_WORKERS", "1")
    assert parallel_map(place, [1, 2], "here")[2][0] == os.getpid()
    monkeypatch.setenv("KTLIB_WORKERS", "2")
    assert parallel_map(place, [1, 2], "gpu", device="cuda")[2][0] == os.getpid()
    assert parallel_map(place, [1], "one item")[1][0] == os.getpid()
    assert parallel_map(place, [], "nothing") == {}


def diverge(item, at):
    if item == at:
        raise FloatingPointError(f"the loss of item {item} is nan")
    return item


@pytest.mark.parametrize("items", [[1, 2, 3], [2]])
def test_an_error_keeps_its_type_and_its_words(two_workers, items):
    with pytest.raises(FloatingPointError, match="the loss of item 2 is nan"):
        parallel_map(partial(diverge, at=2), items, "diverges")
    assert torch.get_num_threads() == 2


def test_number_of_workers(monkeypatch):
    monkeypatch.delenv("KTLIB_WORKERS", raising=False)
    before = torch.get_num_threads()
    for threads, expected in ((1, 1), (2, 2), (16, 4)):
        torch.set_num_threads(threads)
        assert workers() == expected
    torch.set_num_threads(before)
    monkeypatch.setenv("KTLIB_WORKERS", "3")
    assert workers() == 3


@pytest.mark.parametrize("given", ["0", "-1", "two", "1.5", ""])
def test_a_wrong_number_of_workers_is_refused(monkeypatch, given):
    monkeypatch.setenv("KTLIB_WORKERS", given)
    with pytest.raises(ValueError, match=r"KTLIB_WORKERS must be a whole number from 1. Found"):
        parallel_map(place, [1, 2], "places")
