"""Random streams and repeatable runs."""

import os
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ktlib import seeding

# Found once and frozen: a change of the streams would change every result of the book.
FROZEN_STREAM_SEED = 7537467153503207595
DRAW = "from ktlib.seeding import generator; print(generator(3, 'noise', 2).initial_seed())"


def draw(*purpose, seed=0):
    return torch.rand(4, generator=seeding.generator(seed, *purpose))


def test_same_purpose_same_stream():
    assert torch.equal(draw("noise", 1), draw("noise", 1))


@pytest.mark.parametrize(
    "other", [("noise", 2), ("noise",), ("shuffle", 1), ("noise", "1"), ("noise", 1, 1)]
)
def test_other_purpose_other_stream(other):
    assert not torch.equal(draw("noise", 1), draw(*other))


def test_other_seed_other_stream():
    assert not torch.equal(draw("noise", seed=0), draw("noise", seed=1))


@pytest.mark.slow
def test_streams_are_frozen_and_the_same_in_every_process():
    command = [sys.executable, "-c", DRAW]
    environment = {**os.environ, "PYTHONHASHSEED": "7", "PYTHONPATH": str(Path.cwd())}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) == seeding.generator(3, "noise", 2).initial_seed() == FROZEN_STREAM_SEED


def test_generators_leave_the_global_stream_alone():
    torch.manual_seed(0)
    expected = torch.rand(2)
    torch.manual_seed(0)
    draw("noise")
    assert torch.equal(torch.rand(2), expected)


def test_numpy_generator_follows_seed_and_purpose():
    first = seeding.numpy_generator(0, "split").random(4)
    assert np.array_equal(first, seeding.numpy_generator(0, "split").random(4))
    assert not np.array_equal(first, seeding.numpy_generator(0, "other").random(4))


def test_integers_of_numpy_are_integers():
    same = seeding.generator(np.int64(3), "noise", np.int64(2)).initial_seed()
    assert same == seeding.generator(3, "noise", 2).initial_seed()


@pytest.mark.parametrize("seed", [-1, 1.5, "1", True, None])
def test_seed_that_is_none(seed):
    for function in (seeding.seed_everything, seeding.generator, seeding.numpy_generator):
        with pytest.raises(ValueError, match=r"`seed` must be an integer >= 0. Found seed="):
            function(seed)


def test_purpose_must_be_words_and_integers():
    with pytest.raises(ValueError, match="`purpose` must hold words and integers. Found 0.5"):
        seeding.generator(0, 0.5)


def test_seed_everything_repeats_all_global_generators():
    def draws():
        seeding.seed_everything(2**40)
        legacy = np.random.rand()  # noqa: NPY002 - what libraries draw from
        return random.random(), legacy, torch.rand(1).item()

    assert draws() == draws()


def test_deterministic_is_undone_by_its_with_block(monkeypatch):
    monkeypatch.delenv(seeding.CUBLAS_VARIABLE, raising=False)
    threads = torch.get_num_threads()
    with seeding.deterministic(threads=1):
        assert torch.are_deterministic_algorithms_enabled()
        assert torch.is_deterministic_algorithms_warn_only_enabled()
        assert not torch.utils.deterministic.fill_uninitialized_memory
        assert torch.get_num_threads() == 1
        assert os.environ[seeding.CUBLAS_VARIABLE] == seeding.CUBLAS_VALUE
    assert not torch.are_deterministic_algorithms_enabled()
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.get_num_threads() == threads


def test_deterministic_applies_without_a_with_block():
    undo = seeding.deterministic()
    try:
        assert torch.are_deterministic_algorithms_enabled()
    finally:
        undo.__exit__(None, None, None)


def test_deterministic_warns_when_cuda_has_started(monkeypatch):
    monkeypatch.delenv(seeding.CUBLAS_VARIABLE, raising=False)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.warns(RuntimeWarning, match="after CUDA had started"), seeding.deterministic():
        pass


def test_deterministic_needs_a_thread():
    with pytest.raises(ValueError, match="`threads` must be at least 1. Found threads=0"):
        seeding.deterministic(threads=0)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_streams_of_a_gpu_repeat():
    draws = [
        torch.rand(4, device="cuda", generator=seeding.generator(0, "noise", device="cuda"))
        for _ in range(2)
    ]
    assert torch.equal(*draws)
