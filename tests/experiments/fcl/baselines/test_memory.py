"""What the upper bounds hold in memory on miniImageNet, measured without holding it."""

import weakref

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from experiments.fcl.baselines import ClassifierRetraining, Joint, upper_bounds
from experiments.fcl.baselines.features import chosen
from experiments.models.images import NormalisedImages
from experiments.models.resnet import resnet18_features
from ktlib.fcl import last_convolutions, split_network

CARD = 24e9
RESERVE = 4e9  # for the display, CUDA itself, workspaces of cuDNN and fragments


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all tensors that are alive, also of those on the device ``meta``."""

    def __init__(self):
        super().__init__()
        self.now = self.peak = 0
        self.known = set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten._local_scalar_dense.default and args[0].is_meta:
            return 1  # a meta tensor has no value; here it only decides that a check passes
        found = function(*args, **(kwargs or {}))
        for value in tree_leaves(found):
            if isinstance(value, torch.Tensor):
                self.note(value.untyped_storage())
        return found

    def note(self, storage):
        key, size = storage._cdata, storage.nbytes()
        if key not in self.known:
            self.known.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self.gone, key, size)

    def gone(self, key, size):
        self.known.discard(key)
        self.now -= size


def meta(*shape, dtype=torch.float32):
    return torch.empty(*shape, dtype=dtype, device="meta")


def test_bytes_are_counted_while_they_live():
    with LiveBytes() as live:
        one = meta(1000)
        view, two = one[:10], torch.cat([one, one])
        assert live.now == 12_000
        del two
        assert live.now == 4_000
        del one
        assert live.now == 4_000  # held by the view
        del view
        assert live.now == 0
    assert live.peak == 12_000


@pytest.mark.parametrize("method", [Joint, ClassifierRetraining])
def test_upper_bounds_fit_a_card_of_24_gb(method, monkeypatch):
    """At the sizes of the thesis: 500 images of 60 classes, 100 test images of 100, width 64."""

    def one_step(loss, count, parameters, **options):
        gradients = torch.autograd.grad(loss(torch.arange(256)), list(parameters))
        velocity = [torch.empty_like(gradient) for gradient in gradients]
        assert len(velocity) == len(parameters)

    # Targets have no values either.
    targets = lambda labels, classes: meta(len(labels), dtype=torch.long)  # noqa: E731
    monkeypatch.setattr(upper_bounds, "positions_of", targets)
    monkeypatch.setattr(upper_bounds, "class_balanced_weights", lambda targets: None)
    with LiveBytes() as live:
        network = resnet18_features(3, 64, 1).to("meta")
        split = split_network(network, last_convolutions(network, 8))
        pool = NormalisedImages(meta(50_000, 3, 84, 84, dtype=torch.uint8), 0.5, 0.5)
        tests = meta(10_000, 3, 84, 84)
        learner = method(
            split, nn.Linear(512, 60, device="meta"), torch.arange(60),
            epochs=2, lr=0.1, batch_size=256, generator=torch.Generator(),
        )  # fmt: skip
        monkeypatch.setattr(learner.trainer, "minimise", one_step)
        learner.start(pool[torch.arange(30_000)], torch.arange(30_000) % 60)
        features = learner.features(tests)
        for session in range(2):
            first = 60 + 5 * session
            learner.learn(pool[torch.arange(25)], first + torch.arange(25) % 5)
        learner.classify(chosen(features, torch.arange(10_000) >= 0))
    held = 3 * 84 * 84 * (50_000 + 4 * 10_000 + 4 * 30_050)  # pool, test images, images of joint
    assert held < live.now < held + 0.3e9
    assert live.now < live.peak < CARD - RESERVE
