"""Train the architectures that Recon is compared with, on the experiment of the chapters."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from experiments.mtl.architectures import BMTAS, BranchedNetwork, CrossStitch, MMoE, stops_of_segnet
from experiments.mtl.architectures.rotograd import RotoGrad
from experiments.mtl.experiment import MultiTaskExperiment, TrainedRun
from experiments.mtl.parameters import ARCHITECTURES
from ktlib.seeding import generator

Tree = Mapping[str, Sequence[Sequence[str]]]

STAGES = ("layer1", "layer2", "layer3", "layer4")
"""Of ResNet18: where Cross-Stitch mixes, and where BMTAS may branch."""

# Of RotoGrad's rotations, which have an Adam of their own, as in its authors' example: their
# gradients are too small for plain descent.
ROTATION_LR = 1e-3
# Of Cross-Stitch's units, in learning rates of the network. The paper takes 100 to 1000, with far
# smaller learning rates.
UNIT_LR = 10.0
# Of BMTAS, as in its released search: so much of a loss is one whole trunk worth.
RESOURCE_WEIGHT = 0.05


def train_architecture(
    experiment: MultiTaskExperiment[Any],
    name: str,
    seed: int,
    layers: Sequence[str] = (),
    *,
    lr: float | None = None,
    experts: int = 2,
    branch_epochs: int = 8,
) -> TrainedRun:
    """Train one of the architectures, jointly; conflicts are counted where layers are shared.

    RotoGrad makes its own update and counts nothing. BMTAS is searched for first, and then trained
    from scratch.

    Args:
        experiment: images, networks and training.
        name: id, one of :data:`experiments.mtl.parameters.ARCHITECTURES`.
        seed: as in :meth:`experiments.mtl.experiment.MultiTaskExperiment.train`.
        layers: names of the layers of the trunk that each task has for itself.
        lr: first learning rate, where it is not that of the parameters.
        experts: of MMoE.
        branch_epochs: passes of the search of BMTAS over its images.

    Raises:
        ValueError: for an unknown name.
    """
    make: Callable[[], TrainedRun]
    lr = experiment.parameters.lr if lr is None else lr
    known: dict[str, Any] = {"method": name, "seed": seed, "layers": layers, "lr": lr}
    if name == "rotograd":
        make = partial(_train_rotograd, experiment, seed, layers, lr)
    elif name == "mmoe":
        make = partial(_train_mmoe, experiment, seed, layers, lr, experts)
        known["experts"] = experts
    elif name == "cross_stitch":
        make = partial(_train_cross_stitch, experiment, seed, lr)
    elif name == "bmtas":
        make = partial(_train_bmtas, experiment, seed, layers, lr, branch_epochs)
        known["branch_epochs"] = branch_epochs
    else:
        raise ValueError(f"name must be one of {ARCHITECTURES}. Found {name!r}.")
    return experiment.kept(make, **known)


def _train_rotograd(
    experiment: MultiTaskExperiment[Any], seed: int, layers: Sequence[str], lr: float
) -> TrainedRun:
    inner = experiment.new_network(seed, layers)
    width = int(experiment.new_trunk().feature_dim)
    rotated = RotoGrad(inner, feature_dim=width).to(experiment.device)
    rotation_optimizer = torch.optim.Adam(rotated.rotation_parameters(), lr=ROTATION_LR)

    def backward(losses: Mapping[str, Tensor], _quarter: int) -> None:
        rotation_optimizer.zero_grad()
        rotated.backward(losses)
        rotation_optimizer.step()

    groups: list[dict[str, Any]] = [{"params": rotated.network_parameters()}]
    return experiment.optimise(rotated, seed, backward, lr=lr, groups=groups)


def _train_mmoe(
    experiment: MultiTaskExperiment[Any], seed: int, layers: Sequence[str], lr: float, experts: int
) -> TrainedRun:
    heads, example = _heads_and_example(experiment, seed)
    network = MMoE(
        experiment.new_trunk, heads, experts=experts, channels=example.shape[1], layers=layers
    ).to(experiment.device)
    return experiment.train_network(network, "joint", seed, lr=lr)


def _train_cross_stitch(experiment: MultiTaskExperiment[Any], seed: int, lr: float) -> TrainedRun:
    heads, example = _heads_and_example(experiment, seed)
    stages: Any = stops_of_segnet if experiment.parameters.backbone == "segnet" else STAGES
    stitched = CrossStitch(experiment.new_trunk, heads, stages=stages, example=example)
    stitched.to(experiment.device)
    groups = stitched.parameter_groups(lr, UNIT_LR * lr)
    return experiment.optimise(stitched, seed, groups=groups)


def _train_bmtas(
    experiment: MultiTaskExperiment[Any],
    seed: int,
    layers: Sequence[str],
    lr: float,
    branch_epochs: int,
) -> TrainedRun:
    heads, example = _heads_and_example(experiment, seed)
    search = partial(search_branches, experiment, seed, heads, example, branch_epochs)
    known = {"method": "search of bmtas", "seed": seed, "branch_epochs": branch_epochs}
    tree, rows = experiment.kept(search, **known)
    torch.manual_seed(seed)
    network = BranchedNetwork(experiment.new_trunk(), tree, heads, layers=layers)
    run = experiment.train_network(network.to(experiment.device), "joint", seed, lr=lr)
    run.branches = rows
    return run


def _heads_and_example(
    experiment: MultiTaskExperiment[Any], seed: int
) -> tuple[dict[str, nn.Module], Tensor]:
    """Untrained heads, and two images; what is drawn next follows from the seed, too."""
    torch.manual_seed(seed)
    heads = experiment.new_heads(experiment.new_trunk(), experiment.tasks)
    torch.manual_seed(seed)
    return heads, experiment.batch(experiment.train_data, torch.arange(2))[0].cpu()


def search_branches(
    experiment: MultiTaskExperiment[Any],
    seed: int,
    heads: dict[str, nn.Module],
    example: Tensor,
    epochs: int,
) -> tuple[Tree, list[dict[str, Any]]]:
    """Where tasks part, found by BMTAS: the logits on a fifth of the images, the rest on four.

    Args:
        experiment: images and networks.
        seed: of images, weights, batches and Gumbel noise.
        heads: are copied.
        example: a batch of images, of which operations are counted.
        epochs: passes over the images.

    Returns:
        The tree; and of each block its ``groups`` of tasks as text, the ``margin``, least distance
        over tasks of the two largest probabilities, and the ``steps`` of the logits.
    """
    p = experiment.parameters
    graph = BMTAS(
        experiment.new_trunk, copy.deepcopy(heads), blocks=STAGES, example=example,
        generator=generator(seed, "branches"),
    ).to(experiment.device)  # fmt: skip
    weights = torch.optim.Adam(graph.weight_parameters(), lr=1e-3, weight_decay=1e-4)
    logits = torch.optim.Adam([graph.logits], lr=1e-2, weight_decay=5e-5)
    rows, rng = experiment.training_rows(seed), generator(seed, "branch batches")
    fifth, steps = len(rows) // 5, 0
    graph.train()
    for epoch in range(1, epochs + 1):
        graph.anneal(epoch, epochs)
        for optimizer, part, price in (
            (logits, rows[:fifth], RESOURCE_WEIGHT), (weights, rows[fifth:], 0.0)
        ):  # fmt: skip
            shuffled = part[torch.randperm(len(part), generator=rng)]
            for chosen in shuffled.split(p.batch_size):
                if len(chosen) < 2:
                    continue  # batch norm needs two
                losses = experiment.losses(graph, experiment.batch(experiment.train_data, chosen))
                total = torch.stack(list(losses.values())).sum()
                graph.zero_grad()
                (total + price * graph.resource_loss()).backward()
                optimizer.step()
                steps += optimizer is logits
    tree = graph.branches()
    first_two = graph.logits.detach().softmax(dim=-1).topk(2, dim=-1).values  # (blocks, T, 2)
    margins = (first_two[..., 0] - first_two[..., 1]).amin(dim=1).tolist()
    found = [
        {"block": block, "groups": " ".join("+".join(group) for group in groups),
         "margin": margin, "steps": steps}
        for (block, groups), margin in zip(tree.items(), margins, strict=True)
    ]  # fmt: skip
    return tree, found
