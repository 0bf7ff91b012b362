"""What the search for conflicts and the aggregation cost, against torchjd and the floor.

The floor of a step is one backward pass per task: any method that looks at the tasks' gradients
needs them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchjd import aggregation
from torchjd.autojac import jac_to_grad, mtl_backward

from benchmarks.compare import Growth, Row, Side, compare, growth, peaks
from experiments.models.resnet import resnet18_features
from ktlib.mtl import ConflictMeter, aggregator, apply_gradients, apply_gramians, split
from ktlib.mtl.gradients import gramian

# Our name -> torchjd's aggregator, and whether it averages the tasks where ours adds them up.
PEERS = {
    "pcgrad": (aggregation.PCGrad(), False),
    "mgda": (aggregation.MGDA(epsilon=1e-6, max_iters=2000), True),  # our tolerances
    "upgrad": (aggregation.UPGrad(), True),
    "cagrad": (aggregation.CAGrad(c=0.4), True),
}


@dataclass(frozen=True)
class Sizes:
    """Of network, batch and measurements."""

    width: int
    images: int
    pixels: int
    tasks: tuple[int, ...]
    growing: tuple[int, ...]
    layers: tuple[int, ...]
    columns: int  # of the gradients that are aggregated alone
    repeats: int


FULL = Sizes(16, 32, 36, (2, 10, 40), (2, 5, 10, 20, 40), (4, 8, 16, 32, 64), 500_000, 7)
QUICK = Sizes(4, 4, 16, (2, 5), (2, 3, 4), (2, 4, 8), 1000, 2)


class Tasks:
    """A trunk with a head for each task, whose losses come from one forward pass."""

    def __init__(self, sizes: Sizes) -> None:
        self.trunk = resnet18_features(1, sizes.width, 2)
        self.shared = list(self.trunk.parameters())
        self.heads = [nn.Linear(8 * sizes.width, 1) for _ in range(max(sizes.growing))]
        self.images = torch.randn(sizes.images, 1, sizes.pixels, sizes.pixels)
        self.labels = torch.randint(2, (len(self.heads), sizes.images)).float()

    def losses(self, tasks: int, zeros: int = 0) -> tuple[Tensor, dict[str, Tensor]]:
        """Features, and the loss of every task; of the first ones its gradient is 0."""
        features = self.trunk(self.images)
        found = {}
        for task, (head, labels) in enumerate(zip(self.heads[:tasks], self.labels, strict=False)):
            loss = nn.functional.binary_cross_entropy_with_logits(head(features)[:, 0], labels)
            found[f"task{task}"] = loss * float(task >= zeros)
        return features, found

    def own(self, tasks: int) -> dict[str, list[nn.Parameter]]:
        """The parameters of every head."""
        return {f"task{t}": list(head.parameters()) for t, head in enumerate(self.heads[:tasks])}

    def written(self) -> list[Tensor]:
        """The update in ``.grad``, which is taken away."""
        found = [parameter.grad for parameter in self.shared if parameter.grad is not None]
        for parameter in (*self.shared, *(p for head in self.heads for p in head.parameters())):
            parameter.grad = None
        return found


def steps(network: Tasks, tasks: int, zeros: int = 0) -> list[Side]:
    """A step up to the update of joint training: forward, a gradient per task, their sum."""
    own, meter, joint = network.own(tasks), ConflictMeter(network.trunk), aggregator("joint")

    def floor() -> Sequence[Tensor]:
        _, losses = network.losses(tasks, zeros)
        rows = [
            torch.autograd.grad(loss, [*network.shared, *own[task]], retain_graph=True)
            for task, loss in losses.items()
        ]
        columns = list(zip(*rows, strict=False))[: len(network.shared)]  # the heads have one each
        return [torch.stack(column).sum(dim=0) for column in columns]

    def counted() -> Sequence[Tensor]:
        found = meter.observe(network.losses(tasks, zeros)[1], task_parameters=own)
        apply_gradients(network.trunk, found, joint)
        return network.written()

    def by_gramians() -> Sequence[Tensor]:
        _, losses = network.losses(tasks, zeros)
        found = meter.observe_gramians(losses, task_parameters=own, retain_graph=True)
        apply_gramians(network.trunk, losses, found, joint)
        return network.written()

    def torchjd(chunk: int | None) -> Sequence[Tensor]:
        features, losses = network.losses(tasks, zeros)
        mtl_backward(list(losses.values()), features, parallel_chunk_size=chunk)
        jac_to_grad(network.shared, aggregation.Sum())
        return network.written()

    return [
        Side("a backward pass per task", "floor", floor),
        Side("ConflictMeter.observe", "project", counted),
        Side("ConflictMeter.observe_gramians", "project", by_gramians),
        Side("torchjd, all tasks at once", "peer", partial(torchjd, None)),
        Side("torchjd, one task at a time", "peer", partial(torchjd, 1)),
    ]


def aggregations(columns: int, tasks: int, name: str, repeats: int) -> Row:
    """An aggregator alone; the floor reads the rows twice, for inner products and for the sum."""
    # Every third task pulls against the others: at random, long gradients are nearly orthogonal.
    signs = torch.where(torch.arange(tasks) % 3 == 1, -0.3, 0.3)
    rows = torch.randn(tasks, columns) + signs[:, None] * torch.randn(columns)
    ours, (peer, averages) = aggregator(name), PEERS[name]
    # PCGrad draws an order of the tasks: the same in every call, and for both.
    start, seed = ours.get_extra_state(), int(torch.randint(2**62, (), generator=ours.stream))

    def floor() -> Sequence[Tensor]:
        return [(rows @ rows.T).diagonal() @ rows]

    def mine() -> Sequence[Tensor]:
        ours.set_extra_state(start)
        return [ours(rows)]

    def theirs() -> Sequence[Tensor]:
        torch.manual_seed(seed)
        return [peer(rows) * (tasks if averages else 1)]

    sides = [
        Side("inner products and a sum", "floor", floor, checked=False),
        Side("ktlib", "project", mine),
        Side("torchjd", "peer", theirs),
    ]
    size = f"T = {tasks}, {columns:,} parameters"
    return compare(f"aggregation alone, {name}", size, sides, repeats, tolerance=0.01)


def forwards(network: Tasks, layer: str, tasks: int, repeats: int) -> Row:
    """Forward pass of a split network: the shared first part once, against whole trunks."""
    names = [f"task{i}" for i in range(tasks)]
    once = split(network.trunk, [layer], names).eval()
    whole = split(network.trunk, [layer], names, share_prefix=False).eval()

    @torch.no_grad()
    def run(by: nn.Module) -> Sequence[Tensor]:
        return list(by(network.images).values())

    sides = [
        Side("every trunk whole", "naive", partial(run, whole)),
        Side("ktlib, first part once", "project", partial(run, once)),
    ]
    return compare("forward pass of a split network", f"T = {tasks}, at {layer}", sides, repeats)


def pairs_of_tasks(network: Tasks, tasks: int, repeats: int) -> Row:
    """The only work that grows with the square of the number of tasks, as a share of a step."""
    meters = ConflictMeter(network.trunk), ConflictMeter(network.trunk)
    gradients = meters[0].observe(network.losses(tasks)[1])
    meters[0].load_state_dict(meters[1].state_dict())
    layers = {name: network.trunk.get_submodule(name) for name in meters[0].layers}
    widths = [sum(p.numel() for p in layer.parameters()) for layer in layers.values()]

    def counts(meter: ConflictMeter) -> Sequence[Tensor]:
        scores = list(meter.scores(0.0).values())
        return [torch.tensor(scores) / meter.observations]

    def step() -> Sequence[Tensor]:
        meters[0].observe(network.losses(tasks)[1])
        return counts(meters[0])

    def pairs() -> Sequence[Tensor]:
        blocks = zip(layers, gradients.matrix.split(widths, dim=1), strict=True)
        meters[1].count({name: gramian(block) for name, block in blocks})
        return counts(meters[1])

    sides = [
        Side("a counted step", "project", step),
        Side("pairs of tasks alone", "project", pairs),
    ]
    return compare("share of the pairs of tasks", f"T = {tasks}", sides, repeats)


def deep_step(layers: int, images: int) -> Callable[[], object]:
    """A counted step of 4 tasks on as many equal layers, each 64 wide."""
    trunk = nn.Sequential(*(nn.Linear(64, 64) for _ in range(layers)))
    meter, inputs = ConflictMeter(trunk), torch.randn(images, 64)

    def step() -> object:
        features = trunk(inputs)
        return meter.observe({f"task{task}": features[:, task].mean() for task in range(4)})

    return step


def measure(quick: bool) -> Iterator[Row | Growth]:
    """All comparisons of the multi-task part."""
    sizes = QUICK if quick else FULL
    network, repeats, most = Tasks(sizes), sizes.repeats, max(sizes.tasks)
    for tasks in sizes.tasks:
        yield compare("step with conflicts counted", f"T = {tasks}", steps(network, tasks), repeats)
    size = f"T = {sizes.tasks[1]}, one gradient is 0"
    sides = steps(network, sizes.tasks[1], zeros=1)[:3]
    yield compare("step with conflicts counted", size, sides, repeats)
    work = "memory of a step beyond the model"
    yield compare(work, f"T = {most}", steps(network, most), 1, measure=peaks)
    for name in PEERS:
        for tasks in sizes.tasks[:1] if name == "cagrad" else sizes.tasks:
            yield aggregations(sizes.columns, tasks, name, repeats)
    for layer in ("conv1", "layer2.0.conv1", "layer4.0.conv1"):
        yield forwards(network, layer, sizes.tasks[0], repeats)
    yield pairs_of_tasks(network, most, repeats)
    counted = {tasks: steps(network, tasks)[1].call for tasks in sizes.growing}
    yield growth("counted step", "tasks", counted, repeats)
    deep = {n: deep_step(n, sizes.images) for n in sizes.layers}
    yield growth("counted step", "layers", deep, repeats)
