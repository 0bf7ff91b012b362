"""Choice of device and precision."""

from typing import get_args

import pytest
import torch

from experiments.run.parameters import ChapterParameters
from ktlib import device


def pretend(monkeypatch, *, cuda=False, mps=False, bf16=True):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda: bf16)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"),
    [(True, True, "cuda"), (True, False, "cuda"), (False, True, "mps"), (False, False, "cpu")],
)
def test_auto_takes_the_fastest_there_is(monkeypatch, cuda, mps, expected):
    pretend(monkeypatch, cuda=cuda, mps=mps)
    assert device.choose_device("auto").type == expected
    assert device.choose_device("cpu").type == "cpu"


@pytest.mark.parametrize("name", ["cuda", "mps"])
def test_device_that_is_not_there(monkeypatch, name):
    pretend(monkeypatch)
    with pytest.raises(ValueError, match=rf"`device` asks for '{name}'.*\['cpu'\]"):
        device.choose_device(name)


@pytest.mark.parametrize("name", ["gpu", "CPU", "cuda:0", ""])
def test_unknown_device(name):
    with pytest.raises(ValueError, match=f"'auto', 'cpu', 'cuda', 'mps'.*device='{name}'"):
        device.choose_device(name)


def test_auto_precision_is_the_same_on_every_cpu():
    assert device.compute_dtype("cpu", "auto") == torch.float32
    assert device.compute_dtype("mps", "auto") == torch.float32


def test_auto_precision_on_cuda_follows_its_support(monkeypatch):
    pretend(monkeypatch, cuda=True, bf16=True)
    assert device.compute_dtype("cuda", "auto") == torch.bfloat16
    pretend(monkeypatch, cuda=True, bf16=False)
    assert device.compute_dtype("cuda", "auto") == torch.float32


def test_bfloat16_is_refused_where_the_gpu_lacks_it(monkeypatch):
    pretend(monkeypatch, cuda=True, bf16=False)
    with pytest.raises(ValueError, match="`precision` asks for 'bfloat16'"):
        device.compute_dtype("cuda", "bfloat16")


def test_unknown_precision():
    with pytest.raises(ValueError, match=r"'auto', 'float32', 'bfloat16'.*precision='float16'"):
        device.compute_dtype("cpu", "float16")


def test_autocast_computes_in_the_wanted_precision():
    layer, inputs = torch.nn.Linear(4, 3), torch.randn(2, 4)
    with device.autocast("cpu", "bfloat16"):
        assert layer(inputs).dtype == torch.bfloat16
        with device.autocast("cpu", "float32"):
            assert layer(inputs).dtype == torch.float32
    with device.autocast("cpu", "auto"):
        assert layer(inputs).dtype == torch.float32


def test_hardware_has_a_name():
    assert device.hardware_name("cpu")


def test_parameters_offer_the_choices_of_this_module():
    fields = ChapterParameters.model_fields
    assert get_args(fields["device"].annotation) == get_args(device.DeviceName)
    assert get_args(fields["precision"].annotation) == get_args(device.PrecisionName)


def test_hardware_name_without_a_list_of_processors(monkeypatch):
    monkeypatch.setattr("pathlib.Path.exists", lambda _: False)
    assert device.hardware_name("cpu")


def test_hardware_name_of_a_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Some GPU")
    assert device.hardware_name("cuda") == "Some GPU"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_cuda_computes_in_bfloat16_where_it_can():
    chosen = device.choose_device("auto")
    layer, inputs = torch.nn.Linear(4, 3).to(chosen), torch.randn(2, 4, device=chosen)
    with device.autocast(chosen, "auto"):
        assert layer(inputs).dtype == device.compute_dtype(chosen, "auto")
    with device.autocast(chosen, "float32"):
        assert layer(inputs).dtype == torch.float32
