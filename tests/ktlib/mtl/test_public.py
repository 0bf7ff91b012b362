"""The names of ``ktlib.mtl`` and the example in its docstring."""

import textwrap

import torch
from torch import nn
from torch.nn import functional as F

from ktlib import mtl


def example():
    """The lines of the docstring that are code."""
    _, _, rest = mtl.__doc__.partition("::\n\n")
    code = [line for line in rest.splitlines() if not line or line.startswith("    ")]
    return textwrap.dedent("\n".join(code))


def test_the_example_of_the_docstring_runs():
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 3), nn.BatchNorm1d(3))
    heads = {task: nn.Linear(3, 2) for task in ("left", "right")}
    parameters = [p for module in (trunk, *heads.values()) for p in module.parameters()]
    before = [p.detach().clone() for p in parameters]
    batches = []
    for _ in range(3):
        images = torch.randn(6, 4)
        batches.append((images, {task: torch.randint(2, (6,)) for task in heads}))
    names = {name: getattr(mtl, name) for name in mtl.__all__} | {
        "trunk": trunk,
        "heads": heads,
        "batches": batches,
        "loss": F.cross_entropy,
        "optimizer": torch.optim.SGD(parameters, lr=0.1),
    }
    # Another method than the docstring's, whose solver need not be installed.
    lines = example().replace('"cagrad"', '"pcgrad"')
    assert 10 <= len(lines.splitlines()) <= 13
    exec(lines, names)  # noqa: S102 - our own docstring
    assert names["meter"].observations == 3
    assert all(not torch.equal(p, old) for p, old in zip(parameters, before, strict=True))
    assert names["network"].tasks == ("left", "right")
    assert names["features"].keys() == heads.keys()
    assert set(names["network"].layers) == {"0", "2", "3"}


def test_a_split_network_is_searched_and_trained_by_the_same_calls():
    """Its shared part counts as the trunk; joint training is backward of the sum of losses."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 3)).double()
    heads = {task: nn.Linear(3, 2).double() for task in ("left", "right")}
    network, images = mtl.split(trunk, ["3"], list(heads)), torch.randn(6, 4).double()
    own = {t: [*network.task_parameters(t), *heads[t].parameters()] for t in heads}
    everything = [*network.parameters(), *(p for head in heads.values() for p in head.parameters())]

    def losses():
        features = network(images)
        return {task: heads[task](features[task]).square().mean() for task in heads}

    sum(losses().values()).backward()
    expected = [p.grad.clone() for p in everything]
    meter = mtl.ConflictMeter(network)
    assert meter.layers == ("0", "1")
    assert mtl.ConflictMeter(network, batch_norm=False).layers == ("0",)
    gradients = meter.observe(losses(), task_parameters=own)
    assert gradients.matrix.shape == (2, sum(p.numel() for p in network.shared_parameters()))
    mtl.apply_gradients(network, gradients, mtl.aggregator("joint"))
    torch.testing.assert_close([p.grad for p in everything], expected)
    for p in everything:
        p.grad = None
    now = losses()
    gramians = meter.observe_gramians(now, task_parameters=own, retain_graph=True)
    mtl.apply_gramians(network, now, gramians, mtl.aggregator("joint"))
    torch.testing.assert_close([p.grad for p in everything], expected)
    assert meter.pairs == {"0": 2, "1": 2}


def test_every_public_name_is_there_and_documented():
    for name in mtl.__all__:
        assert ">>>" in getattr(mtl, name).__doc__, name
