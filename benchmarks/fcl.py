"""What the few-shot methods cost, against the whole network for every draw and the floor."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.compare import Growth, Row, Side, compare, growth
from experiments.models.resnet import resnet18_features
from ktlib.fcl import (
    SplitNetwork,
    class_means,
    draw_noise,
    f2m_loss,
    flatness,
    last_convolutions,
    learn_session,
    split_network,
)

BOUND = 0.01
PROTOTYPE_WEIGHT = 0.1
CLASSES = 60


@dataclass(frozen=True)
class Sizes:
    """Of network, batch and measurements."""

    width: int
    images: int
    pixels: int
    draws: int  # of flatness
    growing: tuple[int, ...]
    shots: tuple[int, ...]
    repeats: int


FULL = Sizes(16, 64, 36, 50, (1, 2, 4, 8, 16), (1, 5, 10, 20, 40), 9)
QUICK = Sizes(4, 8, 16, 3, (1, 2, 4), (1, 2, 4), 2)


class Problem:
    """A network whose last four convolutions receive noise, a classifier, and a batch."""

    def __init__(self, sizes: Sizes) -> None:
        network = resnet18_features(1, sizes.width).to(memory_format=torch.channels_last)
        self.split: SplitNetwork = split_network(network, last_convolutions(network, 4))
        self.classifier = nn.Linear(8 * sizes.width, CLASSES)
        self.images = torch.randn(sizes.images, 1, sizes.pixels, sizes.pixels)
        self.labels = torch.randint(CLASSES, (sizes.images,))

    def gradients(self, loss: Tensor) -> Sequence[Tensor]:
        """Of all parameters: the end of every step."""
        return torch.autograd.grad(
            loss, [*self.split.network.parameters(), *self.classifier.parameters()]
        )

    def noisy(self, stream: torch.Generator) -> Tensor:
        """Embeddings by the whole network, with noise on the tuned weights."""
        weights = dict(self.split.network.named_parameters())
        noise = draw_noise(self.split.tuned, BOUND, stream)
        moved = weights | {name: weights[name] + value for name, value in noise.items()}
        found: Tensor = torch.func.functional_call(self.split.network, moved, (self.images,))
        return found

    def loss(self, embeddings: Tensor) -> Tensor:
        """Cross-entropy of the batch."""
        return F.cross_entropy(self.classifier(embeddings), self.labels)

    def passes(self, draws: int) -> list[Tensor]:
        """Losses of the first part once, and of the rest once more than there are draws."""
        features = self.split.prefix(self.images)
        return [self.loss(self.split.tail(features)) for _ in range(draws + 1)]

    def f2m(self, draws: int) -> Sequence[Tensor]:
        """A gradient step of the base session, by the package."""
        stream = torch.Generator().manual_seed(1)
        loss = f2m_loss(
            self.split, self.classifier, self.images, self.labels, bound=BOUND, draws=draws,
            prototype_weight=PROTOTYPE_WEIGHT, generator=stream,
        )  # fmt: skip
        return self.gradients(loss.total)

    def naive_f2m(self, draws: int) -> Sequence[Tensor]:
        """The same with the whole network computed for every draw."""
        stream = torch.Generator().manual_seed(1)
        still = class_means(self.split.network(self.images), self.labels)
        total = torch.zeros(())
        for _ in range(draws):
            embeddings = self.noisy(stream)
            shift = (still - class_means(embeddings, self.labels)).square().sum(dim=1).mean()
            total = total + self.loss(embeddings) + PROTOTYPE_WEIGHT * shift
        return self.gradients(total / draws)

    def flatness(self, draws: int) -> Sequence[Tensor]:
        """Losses around the weights, by the package."""
        stream = torch.Generator().manual_seed(1)
        found = flatness(
            self.split, self.classifier, self.images, self.labels, bound=BOUND, draws=draws,
            generator=stream,
        )  # fmt: skip
        return [found.losses]

    def naive_flatness(self, draws: int) -> Sequence[Tensor]:
        """The same with the whole network computed for every draw."""
        stream = torch.Generator().manual_seed(1)
        return [torch.stack([self.loss(self.noisy(stream)) for _ in range(draws)])]

    def session(self, shots: int) -> None:
        """A step of a session of five new classes; so small that the weights stay."""
        labels = torch.arange(5).repeat_interleave(shots)
        images = self.images[:1].expand(len(labels), -1, -1, -1)
        old, base = torch.zeros(CLASSES, self.classifier.in_features), CLASSES + torch.arange(60)
        learn_session(self.split, None, images, labels, old, base, epochs=1, lr=1e-12)


def measure(quick: bool) -> Iterator[Row | Growth]:
    """All comparisons of the few-shot part."""
    sizes = QUICK if quick else FULL
    problem, repeats = Problem(sizes), sizes.repeats
    names = "passes without noise", "whole network for every draw"
    for m in sizes.growing[:3]:

        def floor(m: int = m) -> Sequence[Tensor]:
            return problem.gradients(torch.stack(problem.passes(m)).mean())

        sides = [
            Side(names[0], "floor", floor, checked=False),
            Side("f2m_loss", "project", partial(problem.f2m, m)),
            Side(names[1], "naive", partial(problem.naive_f2m, m)),
        ]
        yield compare("gradient step of F2M", f"M = {m}", sides, repeats)
    trained, draws = copy.deepcopy(problem), sizes.draws
    trained.split.network.eval()
    sides = [
        Side(names[0], "floor", torch.no_grad()(partial(trained.passes, draws)), checked=False),
        Side("flatness", "project", partial(trained.flatness, draws)),
        Side(names[1], "naive", torch.no_grad()(partial(trained.naive_flatness, draws))),
    ]
    yield compare("flatness", f"{draws} draws", sides, repeats)
    f2m = {n: partial(problem.f2m, n) for n in sizes.growing}
    yield growth("gradient step of F2M", "draws of noise", f2m, repeats)
    around = {4 * n: partial(trained.flatness, 4 * n) for n in sizes.growing}
    yield growth("flatness", "draws", around, repeats)
    sessions = {n: partial(trained.session, n) for n in sizes.shots}
    yield growth("step of a few-shot session", "shots", sessions, repeats)
