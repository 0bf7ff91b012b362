"""Small trunks that are split and measured in the tests, and what is compared of them."""

import copy
import random
import types
import warnings
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import parameters_to_vector
from torch.nn.utils.parametrizations import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint
from torchvision.models import mobilenet_v2
from torchvision.models.resnet import BasicBlock

from ktlib.mtl import ConflictMeter, split

LEFT_RIGHT = ["left", "right"]


def names(count):
    return [f"task {i}" for i in range(count)]


def small_resnet():
    """Two residual blocks, the second with a convolution and a batch norm on its shortcut."""
    shortcut = nn.Sequential(nn.Conv2d(2, 4, 1, 2, bias=False), nn.BatchNorm2d(4))
    return nn.Sequential(
        OrderedDict(
            conv1=nn.Conv2d(1, 2, 3, padding=1, bias=False),
            bn1=nn.BatchNorm2d(2),
            relu=nn.ReLU(inplace=True),
            layer1=BasicBlock(2, 2),
            layer2=BasicBlock(2, 4, stride=2, downsample=shortcut),
            pool=nn.AdaptiveAvgPool2d(1),
            flatten=nn.Flatten(),
        )
    )


def by_hand():
    """y = 2 * relu(3 x), with both layers of one weight."""
    network = nn.Sequential(nn.Linear(1, 1, bias=False), nn.ReLU(), nn.Linear(1, 1, bias=False))
    with torch.no_grad():
        network[0].weight.fill_(3.0)
        network[2].weight.fill_(2.0)
    return network


def loss_of(features, i):
    """A loss for task ``i``, different for every task."""
    flat = features.flatten(1)
    target = torch.linspace(-1 - i, 1 + 2 * i, flat.shape[1]).to(flat)
    return (i + 1) * (flat - target).square().mean()


def summed(features):
    return sum(loss_of(value, i) for i, value in enumerate(features.values()))


def assert_same(ours, theirs, tolerance=0.0):
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        torch.testing.assert_close(value, theirs[key], rtol=tolerance, atol=tolerance, msg=key)


def numbers(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def perturb(trunk, tasks):
    """Make every task's own layers differ from each other's."""
    with torch.no_grad():
        for i, task in enumerate(tasks):
            for p in trunk.task_parameters(task):
                p.mul_(1 + 0.1 * i).add_(0.01 * i)


def assert_equal_to_copies(trunk, layers, inputs):
    """Outputs and gradients of a split trunk are those of whole copies."""
    views = [copy.deepcopy(trunk.trunk_of(task)) for task in trunk.tasks]
    trunk.zero_grad()
    features = trunk(*inputs)
    summed(features).backward()
    for i, (view, value) in enumerate(zip(views, features.values(), strict=True)):
        view.zero_grad()
        alone = view(*(x.clone() for x in inputs))
        torch.testing.assert_close(value, alone, rtol=1e-9, atol=1e-9)
        loss_of(alone, i).backward()
    for name, _ in views[0].named_parameters():
        theirs = [view.get_parameter(name).grad for view in views]
        theirs = [g if g is None else g.to_dense() for g in theirs]
        ours = [trunk.trunk_of(task).get_parameter(name).grad for task in trunk.tasks]
        if name.rpartition(".")[0] not in layers:
            total = None if theirs[0] is None else sum(theirs)
            theirs = [total] * len(ours)
        ours = [g if g is None else g.to_dense() for g in ours]
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9, msg=name)


# The matrix: what becomes of a trunk when it is split, and when a meter observes it. A table of
# book/api/support.md is generated from it.

EXACT, WARNS, REFUSED = "exact", "warns", "refused"


@dataclass(frozen=True)
class Row:
    """A kind of trunk and what :func:`ktlib.mtl.split` makes of it.

    Attributes:
        name: the kind, in words.
        make: makes the trunk.
        layers: those that become task-specific.
        outcome: "exact" shares the part in front of the first of them, "warns" computes whole
            trunks and says why, "refused" raises ValueError. Outputs and gradients are those of
            naive copies in either of the first two.
        says: of the warning or the error.
        meter: of the error with which a meter refuses it; empty where gradients are exact.
        inputs: shapes or tensors.
        random: whether training mode draws random numbers.
        example_only: whether only ``example=`` finds it.
        slow: whether it takes seconds.
    """

    name: str
    make: Callable[[], nn.Module]
    layers: tuple[str, ...] = ("c",)
    outcome: str = EXACT
    says: str = ""
    meter: str = ""
    inputs: tuple = ((4, 6),)
    random: bool = False
    example_only: bool = False
    slow: bool = False

    def made(self):
        """The trunk and its inputs, in double precision."""
        torch.manual_seed(0)
        trunk = self.make().double()
        return trunk, tuple(
            torch.randn(shape, dtype=torch.float64) if isinstance(shape, tuple) else shape
            for shape in self.inputs
        )

    def split(self, checked=True):
        """Split it and compare with naive copies; the outcome and what was said."""
        network, inputs = self.made()
        states, before = (random.getstate(), torch.get_rng_state()), numbers(network)
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always")
            try:
                trunk = split(network, self.layers, names(3), example=inputs if checked else None)
            except ValueError as error:
                return REFUSED, str(error)
        assert states[0] == random.getstate()
        assert torch.equal(states[1], torch.get_rng_state())
        assert_same(network.state_dict(), before)
        told = [str(w.message) for w in told if issubclass(w.category, UserWarning)]
        assert len(told) == (not trunk.shares_prefix), told
        perturb(trunk, trunk.tasks)
        for mode in (False, True)[: 1 if self.random else 2]:
            assert_equal_to_copies(trunk.train(mode), self.layers, inputs)
        return (EXACT, "") if trunk.shares_prefix else (WARNS, *told)

    def observe(self):
        """Observe two losses of it, in both ways, and compare with copies, one for each loss."""
        trunk, inputs = self.made()
        owners = {p: name for name, p in trunk.named_parameters()}
        expected, found = [], []

        def features(network):
            torch.manual_seed(3)
            return network(*(x.clone() for x in inputs))

        try:
            meter = ConflictMeter(trunk)
            for observe in (meter.observe, meter.observe_gramians):
                shared = features(trunk)
                found.append(observe({f"task {i}": loss_of(shared, i) for i in range(2)}))
        except (ValueError, RuntimeError) as error:
            return REFUSED, str(error)
        gradients, gramians = found
        assert {*gradients.parameters} == {p for p in trunk.parameters() if p.requires_grad}
        for i in range(2):
            alone = copy.deepcopy(trunk)
            loss_of(features(alone), i).backward()
            parts = [alone.get_parameter(owners[p]) for p in gradients.parameters]
            parts = [torch.zeros_like(p) if p.grad is None else p.grad.to_dense() for p in parts]
            expected.append(parameters_to_vector(parts))
        expected = torch.stack(expected)
        torch.testing.assert_close(gradients.matrix, expected)
        torch.testing.assert_close(gramians.shared, expected @ expected.T)
        return EXACT, ""


class Linears(nn.Module):
    """Three layers a, b and c, a norm, and whatever a row does with them."""

    def __init__(self, prepare=None):
        super().__init__()
        self.a, self.b, self.c = (nn.Linear(6, 6) for _ in range(3))
        self.norm = nn.BatchNorm1d(6)
        self.scale = nn.Parameter(torch.linspace(0.5, 1.5, 6))
        self.register_buffer("shift", torch.linspace(-1, 1, 6))
        self.constant, self.count, self.kept = torch.ones(6, dtype=torch.float64), 0, None
        self.own_random = random.Random(3)
        if prepare is not None:
            prepare(self)

    def forward(self, x):
        return self.c(self.b(self.a(x)).tanh()) * self.scale + self.shift


def linears(forward):
    return type("Trunk", (Linears,), {"forward": forward})


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.view_as(value)

    @staticmethod
    def backward(ctx, gradient):
        return -0.5 * gradient


class Unseen(Reverse):
    @staticmethod
    def forward(ctx, value):
        return value


reverse = Unseen.apply


def _context(make):
    def forward(self, x):
        with make():
            h = self.a(x)
        return self.c(self.b(h).tanh() + self.b(x))

    return linears(forward)


def _optional(self, x, scale=None):
    h = self.b(self.a(x))
    return self.c(h) if scale is None else h


def _keeps(self, x):
    h = self.a(x)
    self.kept = h.detach()
    return self.c(h)


def _counts(self, x):
    self.count += 1
    return self.c(self.a(x) * (1 if self.count < 100 else 2))


def _view_written(self, x):
    h = self.norm(self.a(x))
    row = h.view(-1)
    y = self.c(x)
    row.mul_(2)
    return h + y


def _data_replaced(self, x):
    self.a.weight.data = self.a.weight.data.clamp(-0.1, 0.1)
    return self.c(self.b(self.a(x)))


def _transposed_written(self, x):
    h = self.norm(self.a(x))
    y = self.c(x)
    h.T.mul_(2)
    return h + y


def _in_place(self, x):
    h = self.norm(self.a(x))
    same = h
    h += 1.0
    return self.c(self.b(h) + same)


def _in_place_later(self, x):
    h = self.norm(self.a(x))
    y = self.c(x)
    return F.leaky_relu(h, 0.2, inplace=True) + y


def _statistics_by_hand(self, x):
    mean, variance = self.norm.running_mean, self.norm.running_var
    y = self.c(self.a(x))
    return F.batch_norm(y, mean, variance, training=True)


def _hooked(kind, hook, block="block"):
    def make():
        trunk = nn.Sequential(
            OrderedDict(
                a=nn.Linear(6, 6),
                block=nn.Sequential(nn.Linear(6, 6), nn.Tanh()),
                c=nn.Linear(6, 6),
            )
        )
        getattr(trunk.get_submodule(block), f"register_{kind}")(hook)
        return trunk

    return make


def _replaced():
    trunk = Linears()
    trunk.forward = types.MethodType(lambda self, x: self.c(self.a(x).sigmoid()), trunk)
    return trunk


def _tied():
    trunk = Linears()
    trunk.c.weight = trunk.a.weight
    return trunk


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.qkv, self.norm, self.out = nn.Linear(6, 18), nn.LayerNorm(6), nn.Linear(6, 6)
        self.token = nn.Parameter(torch.randn(1, 1, 6))

    def forward(self, x):
        x = torch.cat([self.token.expand(x.shape[0], -1, -1), x], dim=1)
        query, key, value = self.qkv(x).chunk(3, dim=-1)
        query = self.norm(query)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.out(mixed)[:, 0] + x[:, 0]


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.a, self.cell, self.c = nn.Linear(6, 6), kind(6, 6, batch_first=True), nn.Linear(6, 6)

    def forward(self, x):
        return self.c(self.cell(self.a(x))[0][:, -1])


class UNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.middle = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.up, self.c = nn.ConvTranspose2d(4, 4, 2, stride=2), nn.Conv2d(8, 2, 1)

    def forward(self, x):
        skip = F.relu(self.down(x), inplace=True)
        below = F.relu(self.middle(F.max_pool2d(skip, 2)))
        return self.c(torch.cat([skip, self.up(below)], dim=1))


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.words = nn.Embedding(9, 6, sparse=True)
        self.b, self.c = nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, words):
        return self.c(self.b(self.words(words).mean(dim=1)).tanh())


class TracedWrongly(nn.Module):
    """Of images; that tracing sees other steps, a comparison on an example alone can tell."""

    feature_dim = 2

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = (nn.Conv2d(i, 2, 3) for i in (1, 1, 2))

    def forward(self, x):
        x = self.a(x) if type(x) is torch.Tensor else self.b(x)
        return self.c(x).mean(dim=(2, 3))


def _checkpointed(reentrant):
    def forward(self, x):
        h = checkpoint(lambda v: self.b(v).tanh(), self.a(x), use_reentrant=reentrant)
        return self.c(h)

    return linears(forward)


def _transformer():
    layer = nn.TransformerEncoderLayer(6, 2, 8, dropout=0.0, batch_first=True)
    return nn.Sequential(nn.Linear(6, 6), layer, nn.Linear(6, 2))


MATRIX = [
    Row(
        "convolutions",
        lambda: nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(True), nn.Conv2d(4, 2, 3), nn.Flatten()),
        ("2",),
        inputs=((4, 1, 6, 6),),
    ),
    Row("residual blocks", small_resnet, ("layer1.conv2", "layer2.bn1"), inputs=((4, 1, 6, 6),)),
    Row(
        "inverted residuals",
        lambda: mobilenet_v2(width_mult=0.1).features,
        ("17.conv.2",),
        inputs=((4, 3, 32, 32),),
    ),
    Row("U-Net", UNet, inputs=((2, 1, 6, 6),)),
    Row("attention, class token", Attention, ("norm",), inputs=((3, 4, 6),)),
    Row("transformer layer of torch", _transformer, ("1.linear1",), inputs=((3, 4, 6),)),
    Row("LSTM", lambda: Recurrent(nn.LSTM), inputs=((3, 4, 6),)),
    Row("GRU", lambda: Recurrent(nn.GRU), ("cell",), inputs=((3, 4, 6),)),
    Row("sparse embedding", Words, inputs=(torch.tensor([[1, 2, 3], [4, 5, 1]]),)),
    Row("parameter and buffer in forward", Linears),
    Row("parameter of the trunk itself", Linears, ("",)),
    Row("several inputs", linears(lambda self, x, y: self.c(self.a(x) + self.b(y))),
        inputs=((4, 6), (4, 6))),
    Row("any number of inputs", linears(lambda self, *x: self.c(self.a(x[0])))),
    Row("optional argument", linears(_optional)),
    Row("tied weights, one of them chosen", _tied, outcome=REFUSED,
        says="Found one Parameter under the names"),
    Row("tied weights, another layer chosen", _tied, ("b",)),
    Row("frozen layer", lambda: Linears(lambda t: t.a.requires_grad_(False))),
    Row("weight norm", lambda: Linears(lambda t: weight_norm(t.a))),
    Row("spectral norm", lambda: Linears(lambda t: spectral_norm(t.b)), random=True),
    Row("forward hook on a block", _hooked("forward_hook", lambda m, x, y: y * 2)),
    Row("forward hook on the block of a task-specific layer",
        _hooked("forward_pre_hook", lambda m, x: (x[0] * 2,)), ("block.0",)),
    Row("backward hook on a block",
        _hooked("full_backward_hook", lambda m, given, taken: (given[0] * 3,))),
    Row("forward hook on a layer", _hooked("forward_hook", lambda m, x, y: y * 2, "a")),
    Row("forward hook on the trunk", _hooked("forward_hook", lambda m, x, y: y * 2, ""),
        outcome=WARNS, says="hooks hang on the network itself"),
    Row("backward hook on the trunk",
        _hooked("full_backward_hook", lambda m, given, taken: (given[0],), ""),
        outcome=WARNS, says="hooks hang on the network itself"),
    Row("forward replaced on the object", _replaced),
    Row("hook on a tensor", linears(
        lambda self, x: (h := self.a(x), h.requires_grad and h.register_hook(lambda g: -g),
                         self.c(h))[2]),
        outcome=WARNS, says="used as inputs to control flow"),
    Row("custom backward pass", linears(lambda self, x: self.c(Reverse.apply(self.a(x)))),
        outcome=WARNS, says="own backward pass"),
    Row("custom backward pass, another name", linears(lambda self, x: self.c(reverse(self.a(x)))),
        outcome=WARNS, says="own backward pass"),
    Row("block in no_grad", _context(torch.no_grad), outcome=WARNS, says="gradients"),
    Row("block in enable_grad", _context(torch.enable_grad), outcome=WARNS, says="gradients"),
    Row("set_grad_enabled called", _context(lambda: torch.set_grad_enabled(False)),
        outcome=WARNS, says="gradients"),
    Row("method decorated with no_grad", linears(
        lambda self, x: self.c(torch.no_grad()(self.a.forward)(x) + self.b(x))),
        outcome=WARNS, says="gradients"),
    Row("mixed precision block", _context(lambda: torch.autocast("cpu", enabled=False)),
        outcome=WARNS, says="precision"),
    Row("branch on whether gradients are on", linears(
        lambda self, x: self.c(self.a(x) if torch.is_grad_enabled() else self.b(x))),
        outcome=WARNS, says="training and evaluation mode"),
    Row("branch on training mode", linears(
        lambda self, x: self.c(self.a(x) + 1.0 if self.training else self.b(x))),
        outcome=WARNS, says="training and evaluation mode"),
    Row("functional dropout", linears(
        lambda self, x: self.c(F.dropout(self.a(x), 0.5, training=self.training))),
        outcome=WARNS, says="training and evaluation mode", random=True),
    Row("dropout layer", lambda: nn.Sequential(
        OrderedDict(a=nn.Linear(6, 6), drop=nn.Dropout(), c=nn.Linear(6, 6))), random=True),
    Row("random branch, Python", linears(
        lambda self, x: self.c(self.a(x) if random.random() < 2 else x)),
        outcome=WARNS, says="at random", random=True),
    Row("random branch, NumPy", linears(
        lambda self, x: self.c(self.a(x) if np.random.rand() < 2 else x)),  # noqa: NPY002
        outcome=WARNS, says="at random", random=True),
    Row("random branch, own stream", linears(
        lambda self, x: self.c(self.a(x) if self.own_random.random() < 2 else x)),
        outcome=WARNS, says="at random", random=True),
    Row("count of its calls kept", linears(_counts), outcome=WARNS, says="keeps something"),
    Row("features kept", linears(_keeps), outcome=WARNS, says="keeps something"),
    Row("branch on values", linears(lambda self, x: self.c(self.a(x) if x.sum() > 0 else x)),
        outcome=WARNS, says="control flow"),
    Row("branch on the class of a value", linears(
        lambda self, x: self.c(self.a(x)) if isinstance(x, torch.Tensor) else self.b(x)),
        outcome=WARNS, says="type of a value"),
    Row("branch on the exact type of a value", linears(
        lambda self, x: self.c(self.a(x)) if type(x) is torch.Tensor else self.b(self.c(x))),
        outcome=WARNS, says="on the example|the example gives", example_only=True),
    Row("constant that is not a buffer", linears(lambda self, x: self.c(self.a(x) * self.constant)),
        outcome=WARNS, says="not a buffer"),
    Row("running statistics by hand", linears(_statistics_by_hand)),
    Row("work in place on a value with two names", linears(_in_place)),
    Row("work in place behind the split", linears(_in_place_later)),
    Row("view written across the split", linears(_view_written), outcome=WARNS,
        says="another value be a view"),
    Row("data of a weight replaced in forward", linears(_data_replaced), outcome=WARNS,
        says="sets 'data'"),
    Row("transposed view written across the split", linears(_transposed_written)),
    Row("checkpointed block", _checkpointed(False)),
    Row("checkpointed block, reentrant", _checkpointed(True), outcome=WARNS,
        says="backward pass", meter="set use_reentrant=False"),
    Row("DataParallel", lambda: nn.DataParallel(Linears()), ("module.c",)),
    Row("compiled, torch.compile", lambda: torch.compile(Linears(), backend="eager"),
        ("_orig_mod.c",), outcome=WARNS, says="dynamo|symbolically trace", slow=True),
]  # fmt: skip
