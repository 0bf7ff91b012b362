"""Speed of the few-shot methods, both sides in one run: ``python benchmarks/fcl.py``.

Prints ratios of medians; the two sides take turns, so that a machine whose speed drifts treats them
alike. Each comparison first checks that both sides compute the same.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from experiments.models.resnet import resnet18_features
from ktlib.fcl import (
    SplitNetwork,
    class_means,
    draw_noise,
    f2m_loss,
    flatness,
    last_convolutions,
    split_network,
)

BOUND = 0.01
PROTOTYPE_WEIGHT = 0.1


def naive_f2m_loss(
    split: SplitNetwork,
    classifier: nn.Module,
    images: Tensor,
    labels: Tensor,
    draws: int,
    generator: torch.Generator,
) -> Tensor:
    """The same loss with the whole network computed for every draw."""
    weights = dict(split.network.named_parameters())
    still = class_means(split.network(images), labels)
    total = torch.zeros(())
    for _ in range(draws):
        noise = draw_noise(split.tuned, BOUND, generator)
        noisy = weights | {name: weights[name] + value for name, value in noise.items()}
        embeddings = torch.func.functional_call(split.network, noisy, (images,))
        shift = (still - class_means(embeddings, labels)).square().sum(dim=1).mean()
        total = total + F.cross_entropy(classifier(embeddings), labels) + PROTOTYPE_WEIGHT * shift
    return total / draws


def naive_flatness(
    split: SplitNetwork, classifier: nn.Module, images: Tensor, labels: Tensor, draws: int
) -> Tensor:
    """Losses at random points, with the whole network computed for each."""
    generator = torch.Generator().manual_seed(0)
    weights = dict(split.network.named_parameters())
    losses = []
    with torch.no_grad():
        for _ in range(draws):
            noise = draw_noise(split.tuned, BOUND, generator)
            noisy = weights | {name: weights[name] + value for name, value in noise.items()}
            scores = classifier(torch.func.functional_call(split.network, noisy, (images,)))
            losses.append(F.cross_entropy(scores, labels))
    return torch.stack(losses)


def ratio(naive: Callable[[], object], shared: Callable[[], object], repeats: int) -> str:
    """Median seconds of both, taken in turn after a warm-up, and their ratio."""
    seconds: dict[str, list[float]] = {"naive": [], "shared": []}
    for turn in range(repeats + 1):
        for name, call in (("naive", naive), ("shared", shared)):
            start = time.perf_counter()
            call()
            if turn:
                seconds[name].append(time.perf_counter() - start)
    slow, fast = (statistics.median(seconds[name]) for name in ("naive", "shared"))
    pairs = [a / b for a, b in zip(seconds["naive"], seconds["shared"], strict=True)]
    spread = f"pair by pair {min(pairs):.2f} to {max(pairs):.2f}"
    return (
        f"naive {slow * 1e3:7.1f} ms   shared {fast * 1e3:7.1f} ms   {slow / fast:.2f}x ({spread})"
    )


def gradients(loss: Tensor, *modules: nn.Module) -> list[Tensor]:
    """Gradients of all parameters; the step that is timed."""
    return list(torch.autograd.grad(loss, [p for m in modules for p in m.parameters()]))


def main() -> None:
    """Compare, then print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=16)
    parser.add_argument("--stem-stride", type=int, default=1)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    network = resnet18_features(1, given.width, given.stem_stride)
    network = network.to(memory_format=torch.channels_last)
    classifier = nn.Linear(8 * given.width, 60)
    split = split_network(network, last_convolutions(network, 4))
    images = torch.randn(given.batch_size, 1, 36, 36)
    labels = torch.randint(60, (given.batch_size,))
    print(
        f"ResNet18 width {given.width}, stem stride {given.stem_stride}, batch {given.batch_size}, "
        f"36 x 36, last 4 convolutions, {given.threads} threads, torch {torch.__version__}"
    )
    for draws in (1, 2, 4):

        def shared(draws: int = draws, net: SplitNetwork = split) -> list[Tensor]:
            rng = torch.Generator().manual_seed(1)
            loss = f2m_loss(
                net, classifier, images, labels, bound=BOUND, draws=draws,
                prototype_weight=PROTOTYPE_WEIGHT, generator=rng,
            )  # fmt: skip
            return gradients(loss.total, net.network, classifier)

        def naive(draws: int = draws, net: SplitNetwork = split) -> list[Tensor]:
            rng = torch.Generator().manual_seed(1)
            loss = naive_f2m_loss(net, classifier, images, labels, draws, rng)
            return gradients(loss, net.network, classifier)

        pairs = zip(shared(net=copy.deepcopy(split)), naive(net=copy.deepcopy(split)), strict=True)
        error = max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in pairs)
        line = ratio(naive, shared, given.repeats)
        print(f"F2M gradient step, M = {draws}: {line}; largest relative difference {error:.0e}")

    def cached() -> Tensor:
        rng = torch.Generator().manual_seed(0)
        return flatness(
            split, classifier, images, labels, bound=BOUND, draws=50, generator=rng
        ).losses

    def whole() -> Tensor:
        return naive_flatness(split, classifier, images, labels, 50)

    network.eval()
    error = float((cached() - whole()).abs().max())
    line = ratio(whole, cached, max(3, given.repeats // 3))
    print(f"Flatness, 50 draws:       {line}; largest difference {error:.0e}")


if __name__ == "__main__":
    main()
