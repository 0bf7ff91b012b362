"""The strict device: it refuses what CUDA refuses, and lists what makes a real device wait."""

import gc
import weakref

import pytest
import torch
from torch import nn

from ktlib.device import choose_device
from tests.strict_device import recorded

CPU = torch.arange(6.0).reshape(2, 3)


@pytest.fixture
def there(strict):
    return CPU.to(strict)


def refused():
    generator = torch.Generator()
    return {
        "add": lambda t: t + CPU,
        "matrix product": lambda t: t @ CPU.T,
        "cat": lambda t: torch.cat([t, CPU]),
        "numbers that are stacked": lambda t: torch.stack([t.sum(), CPU.sum()]),
        "a sum on the CPU": lambda t: torch.zeros(()).add_(t.sum()),
        "an index of the device": lambda t: CPU[torch.tensor([0]).to(t.device)],
        "values at an index": lambda t: t.index_put_((torch.tensor([0]),), torch.ones(3)),
        "a generator of the CPU": lambda t: t.uniform_(generator=generator),
        "a factory with it": lambda t: torch.rand(2, device=t.device, generator=generator),
        "one that is given by its place": lambda t: torch.ops.aten.rrelu_with_noise(
            t, t.clone(), 0.1, 0.3, True, generator
        ),
        "a layer": nn.Linear(3, 2),
    }


@pytest.mark.parametrize("name", refused())
def test_what_a_gpu_refuses(name, there):
    with pytest.raises(RuntimeError, match=r"same device|generator|index"):
        refused()[name](there)


def test_an_operation_keeps_nothing_alive(there):
    """Else a module could not be moved after a forward pass, as on CUDA it can."""
    gc.disable()
    try:
        value = there + 1
        held = weakref.ref(value)
        value.mul(2)
        del value
        assert held() is None
    finally:
        gc.enable()


def test_numpy_is_refused(there):
    for view in (there.numpy, there.__array__, there.sum().numpy):
        with pytest.raises(TypeError, match="numpy"):
            view()


def test_what_a_gpu_takes(there):
    number, rows = torch.tensor(2.0), torch.tensor([1, 0])
    expected = (CPU * 2)[rows]
    assert torch.equal((there * number)[rows].cpu(), expected)
    there.masked_fill_(there > 4, number)
    there[rows] = 1.0
    assert there.cpu().tolist() == [[1.0] * 3] * 2
    assert torch.arange(3, device=there.device).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("reads", "waits", "what"),
    [
        (1, 0, lambda t: t.sum().item()),
        (1, 0, lambda t: bool(t.sum() > 1)),
        (1, 0, lambda t: t.tolist()),
        (1, 0, lambda t: t.cpu()),
        (1, 0, lambda t: torch.zeros(2, 3).copy_(t)),
        (1, 0, lambda t: torch.equal(t, t)),
        (0, 1, lambda t: t.unique()),
        (0, 1, lambda t: (t > 1).nonzero()),
        (0, 1, lambda t: t[t > 1]),
        (0, 1, lambda t: t.index_put_((t[:, 0] > 1,), t[0] + 1)),
        (0, 0, lambda t: (t[torch.tensor([0])] @ t.T).softmax(0) + torch.tensor(1.0)),
        (0, 0, lambda t: t.copy_(CPU)),
    ],
)
def test_what_a_device_waits_for_is_listed(there, reads, waits, what):
    with recorded() as record:
        what(there)
    assert (len(record.reads), len(record.waits)) == (reads, waits), record


def test_modules_move_and_train_as_on_a_gpu(strict):
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU(inplace=True))
    network.append(nn.Linear(3, 3))
    network[3].weight = network[0].weight
    weight, twin = network[0].weight, nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.ReLU())
    twin.append(nn.Linear(3, 3))
    twin[3].weight = twin[0].weight
    twin.load_state_dict(network.state_dict())
    network.to(strict)
    assert network[0].weight is network[3].weight is weight  # tied, and the same object
    assert isinstance(weight, nn.Parameter)
    for one, images in ((network, CPU.to(strict)), (twin, CPU)):
        optimizer = torch.optim.Adam(one.parameters(), lr=0.1)
        one(images).square().sum().backward()
        optimizer.step()
    for mine, theirs in zip(network.state_dict().values(), twin.state_dict().values(), strict=True):
        torch.testing.assert_close(mine.cpu(), theirs)
    assert network.cpu()[0].weight is weight
    assert weight.device.type == "cpu"


def test_it_has_a_random_stream_of_its_own(strict):
    torch.manual_seed(0)
    one, cpu = torch.rand(3, device=strict), torch.rand(3)
    torch.manual_seed(0)
    assert torch.equal(torch.rand(3), cpu)  # draws on the device do not move it
    assert torch.equal(torch.rand(3, device=strict), one)
    state = torch.get_rng_state()
    nn.Dropout(0.5)(torch.ones(3, device=strict))
    assert torch.equal(torch.get_rng_state(), state)


def test_users_are_not_offered_it(strict):
    with pytest.raises(ValueError, match="device"):
        choose_device("strict")
    assert choose_device().type != "strict"
