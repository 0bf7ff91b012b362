"""Cost of the search for conflicts, both sides in one run: ``python benchmarks/recon.py``.

Time: a counted iteration (:meth:`ConflictMeter.observe`) against the backward passes, one per task,
that any method that looks at the tasks' gradients needs. Memory: the search that keeps inner
products only against the one that keeps the gradients of all tasks. Forward pass: a split network
whose shared first part is computed once against one that computes every task's whole trunk. Prints
ratios; in time the sides take turns, so that a machine whose speed drifts treats them alike. Each
comparison first checks that both sides compute the same.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
import weakref
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree
from torch.utils._python_dispatch import TorchDispatchMode

from experiments.models.resnet import resnet18_features
from ktlib.mtl import ConflictMeter, forward_flops, split

MIB = 2**20


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of the tensors that operations make, until they are freed.

    What an operation allocates and frees inside is not seen. On a CPU, where PyTorch keeps no count
    of its own, that is as near as one gets; on a GPU its own count is used.
    """

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the operation and look at what it made."""
        del types
        result = func(*args, **(kwargs or {}))
        for value in _pytree.tree_leaves(result):
            if isinstance(value, Tensor) and value.untyped_storage() not in self.known:
                storage = value.untyped_storage()
                self.known.add(storage)
                self.now += storage.nbytes()
                weakref.finalize(storage, self.freed, storage.nbytes())
        self.peak = max(self.peak, self.now)
        return result

    def freed(self, size: int) -> None:
        """A tensor's memory was given back."""
        self.now -= size


def peak_bytes(call: Callable[[], object], device: torch.device) -> int:
    """The most memory that a call holds at one time, beyond what was held before."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    with LiveBytes() as memory:
        call()
    return memory.peak


def seconds(call: Callable[[], object], device: torch.device) -> float:
    """Wall-clock time of a call, the GPU's work included."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start


def backward_passes(
    losses: dict[str, Tensor], parameters: list[nn.Parameter]
) -> list[tuple[Tensor, ...]]:
    """The gradients of every task, kept as autograd gives them."""
    return [
        torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=False)
        for loss in losses.values()
    ]


def largest_difference(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """The largest difference of two sets of numbers, relative to the largest number."""
    return max(float((a - b).abs().max() / b.abs().max().clamp_min(1e-30)) for a, b in pairs)


def take_turns(
    calls: dict[str, Callable[[], object]], repeats: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of every call in every turn, after one turn to warm up."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for turn, (name, call) in itertools.product(range(repeats + 1), calls.items()):
        spent = seconds(call, device)
        if turn:
            taken[name].append(spent)
    return taken


def compare_forwards(
    trunk: nn.Module, images: Tensor, tasks: int, repeats: int, device: torch.device
) -> None:
    """Split at the beginning of each stage: shared first part against whole trunks."""
    names = [f"task{i}" for i in range(tasks)]
    for layer in ("conv1", *(f"layer{stage}.0.conv1" for stage in range(1, 5))):
        once = split(trunk, [layer], names).eval()
        whole = split(trunk, [layer], names, share_prefix=False).eval()
        with torch.no_grad():
            ours, theirs = once(images), whole(images)
            error = largest_difference([(ours[name], theirs[name]) for name in names])
            taken = take_turns(
                {"once": lambda by=once: by(images), "whole": lambda by=whole: by(images)},
                repeats,
                device,
            )
        spent = {name: statistics.median(turns) for name, turns in taken.items()}
        operations = forward_flops(once, images[:1]) / forward_flops(whole, images[:1])
        print(
            f"T = {tasks:2d}, split at {layer}: whole trunks {spent['whole'] * 1e3:8.1f} ms   "
            f"first part once {spent['once'] / spent['whole']:.3f}x (operations {operations:.3f}x)"
            f"; largest relative difference {error:.0e}"
        )


def main() -> None:
    """Compare, then print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--size", type=int, default=36, help="of the images, in pixels")
    parser.add_argument("--tasks", type=int, nargs="+", default=[2, 10, 40])
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    torch.manual_seed(0)
    device = torch.device(given.device)
    trunk = resnet18_features(1, given.width, 2).to(device)
    heads = [nn.Linear(8 * given.width, 1).to(device) for _ in range(max(given.tasks))]
    images = torch.randn(given.batch_size, 1, given.size, given.size, device=device)
    labels = torch.randint(2, (len(heads), given.batch_size), device=device).float()
    parameters = list(trunk.parameters())
    count = sum(parameter.numel() for parameter in parameters)
    print(
        f"ResNet18 width {given.width}, stem stride 2, batch {given.batch_size}, {given.size} x "
        f"{given.size}, {count / 1e6:.2f} million shared parameters, {device}, {given.threads} "
        f"threads, torch {torch.__version__}"
    )

    def fresh_losses(tasks: int) -> dict[str, Tensor]:
        features = trunk(images)
        criterion = nn.functional.binary_cross_entropy_with_logits
        return {f"task{i}": criterion(heads[i](features)[:, 0], labels[i]) for i in range(tasks)}

    for tasks in given.tasks:
        losses = fresh_losses(tasks)
        meter = ConflictMeter(trunk)
        kept = meter.observe(losses, retain_graph=True)
        rows = torch.stack(
            [torch.cat([g.flatten() for g in row]) for row in backward_passes(losses, parameters)]
        )
        error = largest_difference([(kept.matrix, rows)])
        del kept, rows
        calls: dict[str, Callable[[], object]] = {
            "backward": lambda given=losses: backward_passes(given, parameters),
            "observe": lambda given=losses, by=meter: by.observe(given, retain_graph=True),
            "gramians": lambda given=losses, by=meter: by.observe_gramians(
                given, retain_graph=True
            ),
            # A task that has learned all it can: its gradient is 0.
            "observe_zero": lambda given=losses | {"task0": 0 * losses["task0"]}, by=meter: (
                by.observe(given, retain_graph=True)
            ),
        }
        taken = take_turns(calls, given.repeats, device)
        base = statistics.median(taken["backward"])
        line = f"T = {tasks:2d}: backward passes {base * 1e3:8.1f} ms"
        for name in ("observe", "gramians", "observe_zero"):
            pairs = [a / b for a, b in zip(taken[name], taken["backward"], strict=True)]
            line += (
                f"   {name} {statistics.median(taken[name]) / base:.3f}x "
                f"(turn by turn {min(pairs):.2f} to {max(pairs):.2f})"
            )
        print(f"{line}; largest relative difference {error:.0e}")

    compare_forwards(trunk, images, min(given.tasks), given.repeats, device)

    tasks = max(given.tasks)
    losses = fresh_losses(tasks)
    sides = [ConflictMeter(trunk), ConflictMeter(trunk)]
    rows = sides[0].observe(losses, retain_graph=True).matrix.double()
    found = sides[1].observe_gramians(losses, retain_graph=True).shared
    error = largest_difference([(found, (rows @ rows.T).cpu())])
    del rows
    everything = peak_bytes(lambda: backward_passes(losses, parameters), device)
    observed = peak_bytes(lambda: sides[0].observe(losses, retain_graph=True), device)
    inner = peak_bytes(lambda: sides[1].observe_gramians(losses, retain_graph=True), device)
    print(
        f"T = {tasks}: all gradients {everything / MIB:.1f} MiB   observe {observed / MIB:.1f} MiB "
        f"{observed / everything:.2f}x   gramians {inner / MIB:.1f} MiB {inner / everything:.2f}x; "
        f"largest relative difference {error:.0e}"
    )


if __name__ == "__main__":
    main()
