"""The search that keeps inner products only: exact in every graph, in less memory."""

import os
import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.models.resnet import resnet18_features
from ktlib.mtl.conflict import ConflictMeter
from ktlib.mtl.graph_segments import segment_backward_graph

DEVICE = torch.device(os.environ.get("KTLIB_TEST_DEVICE", "cpu"))
SEARCHES = ["observe", "observe_gramians"]


class SkipsOverAll(nn.Module):
    """The input of the head hangs on every layer: nothing but the output separates the graph."""

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(4, 4) for _ in range(4))

    def forward(self, x):
        outputs = [x]
        for layer in self.layers:
            outputs.append(layer(sum(outputs)).tanh())
        return sum(outputs)


class UsesOneTwice(nn.Module):
    """One layer early and late: its gradient is complete only when both have been passed."""

    def __init__(self):
        super().__init__()
        self.tied, *self.others = (nn.Linear(4, 4) for _ in range(3))
        self.others = nn.ModuleList(self.others)

    def forward(self, x):
        x = self.others[0](self.tied(x).tanh()).tanh()
        return self.tied(self.others[1](x).tanh()).tanh()


class Splits(nn.Module):
    """A node with several outputs in the one way through the graph."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(4, 4)

    def forward(self, x):
        left, right = self.one(x).chunk(2, dim=1)
        return self.two(left.tanh() * right).tanh()


class Scaled(nn.Module):
    """A parameter of the module itself beside its layers."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(4))
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.two(self.one(x).tanh() * self.scale).tanh()


class Hooked(nn.Module):
    """A hook on the one tensor between two wide parts, where a segment would end."""

    def __init__(self, hook=lambda gradient: -0.5 * gradient):
        super().__init__()
        self.hook = hook
        for name in ("one", "two"):
            wide = nn.Sequential(nn.Linear(4, 90), nn.Tanh(), nn.Linear(90, 4), nn.Tanh())
            self.add_module(name, wide)

    def forward(self, x):
        middle = self.one(x)
        middle.register_hook(self.hook)
        return self.two(middle)


@pytest.mark.parametrize(
    "kind",
    [
        SkipsOverAll, UsesOneTwice, Splits, Scaled, Hooked,
        lambda: Hooked(lambda gradient: None),  # only looks
        lambda: Hooked(lambda gradient: gradient.clamp(-1e-3, 1e-3)),
        lambda: Hooked(lambda gradient: (gradient.mul_(2), None)[1]),  # in place
        lambda: Hooked(lambda gradient: gradient / gradient.norm()),
    ],
)  # fmt: skip
def test_gramians_are_exact_in_other_graphs(kind):
    torch.manual_seed(0)
    trunk = kind().to(DEVICE, torch.float64)
    heads = {f"t{i}": nn.Linear(4, 1).to(DEVICE, torch.float64) for i in range(3)}
    x = torch.randn(5, 4, dtype=torch.float64, device=DEVICE)
    features = trunk(x)
    losses = {task: head(features).square().mean() for task, head in heads.items()}
    meter = ConflictMeter(trunk)
    expected = meter.observe(losses, retain_graph=True).matrix
    found = meter.observe_gramians(losses).shared
    torch.testing.assert_close(found, (expected @ expected.T).cpu())


def test_network_is_cut_where_it_saves_most():
    """ResNet18: one basic block of the last stage is the largest part, 42 % of the parameters."""
    torch.manual_seed(0)
    trunk = resnet18_features(1, 4, 2).to(DEVICE)
    features = trunk(torch.randn(2, 1, 12, 12, device=DEVICE))
    segments = segment_backward_graph(
        {"a": features.sum(), "b": features.square().sum()}, list(trunk.parameters())
    )
    total = sum(p.numel() for p in trunk.parameters())
    shares = [sum(p.numel() for p in segment.parameters) / total for segment in segments]
    assert sum(shares) == pytest.approx(1)
    assert max(shares) == pytest.approx(0.42, abs=0.01)
    assert len(shares) == 3
    assert sum(len(segment.parameters) for segment in segments) == len(list(trunk.parameters()))


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, until they are freed."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = weakref.WeakSet()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for value in torch.utils._pytree.tree_leaves(result):
            if isinstance(value, torch.Tensor):
                storage = value.untyped_storage()
                if storage not in self.known:
                    self.known.add(storage)
                    self.now += storage.nbytes()
                    weakref.finalize(storage, self.freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def freed(self, size):
        self.now -= size


def test_memory_of_forty_tasks_is_halved():
    torch.manual_seed(0)
    trunk = resnet18_features(1, 8, 2).to(DEVICE)
    heads = [nn.Linear(64, 1).to(DEVICE) for _ in range(40)]
    images = torch.randn(2, 1, 12, 12, device=DEVICE)
    peaks = {}
    meters = {}
    for search in SEARCHES:
        features = trunk(images)
        losses = {f"t{i}": head(features).square().mean() for i, head in enumerate(heads)}
        meters[search] = ConflictMeter(trunk)
        with LiveBytes() as memory:
            result = getattr(meters[search], search)(losses)
        assert len(result.tasks) == 40
        peaks[search] = memory.peak
    everything = 40 * 4 * sum(p.numel() for p in trunk.parameters())
    assert peaks["observe"] >= everything
    assert peaks["observe_gramians"] <= 0.5 * everything
    assert set(meters["observe"].pairs.values()) == {780}
