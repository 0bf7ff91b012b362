"""Train the architectures that Recon is compared with, on the experiment of the chapters."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from experiments.mtl.architectures import BMTAS, BranchedNetwork, CrossStitch, MMoE, stops_of_segnet
from experiments.mtl.architectures.rotograd import RotoGrad
from experiments.mtl.experiment import MultiTaskExperiment, TrainedRun
from experiments.mtl.network import MultiTaskModule
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
# Of BMTAS, as in its released search.
RESOURCE_WEIGHT = 0.05


def train_architecture(
    experiment: MultiTaskExperiment[Any],
    name: str,
    seed: int,
    layers: Sequence[str] = (),
    *,
    lr: float | None = None,
    experts: int = 2,
) -> TrainedRun:
    """Train one of the architectures, jointly; conflicts are counted where layers are shared.

    RotoGrad makes its own update and counts nothing. BMTAS is searched for first, with half of
    the epochs, and then trained from scratch.

    Args:
        experiment: images, networks and training.
        name: id, one of :data:`experiments.mtl.parameters.ARCHITECTURES`.
        seed: as in :meth:`experiments.mtl.experiment.MultiTaskExperiment.train`.
        layers: names of the layers of the trunk that each task has for itself.
        lr: first learning rate, where it is not that of the parameters.
        experts: of MMoE.

    Raises:
        ValueError: for an unknown name.
    """
    if name not in ARCHITECTURES:
        raise ValueError(f"name must be one of {ARCHITECTURES}. Found {name!r}.")
    lr = experiment.parameters.rate(name) if lr is None else lr
    if name == "rotograd":
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
    torch.manual_seed(seed)
    heads = experiment.new_heads(experiment.new_trunk(), experiment.tasks)
    torch.manual_seed(seed)
    example = experiment.batch(experiment.train_data, torch.arange(2))[0].cpu()
    network: MultiTaskModule
    if name == "mmoe":
        network = MMoE(
            experiment.new_trunk, heads, experts=experts, channels=example.shape[1], layers=layers
        ).to(experiment.device)
        return experiment.train_network(network, "joint", seed, lr=lr)
    if name == "cross_stitch":
        stages: Any = stops_of_segnet if experiment.parameters.backbone == "segnet" else STAGES
        stitched = CrossStitch(experiment.new_trunk, heads, stages=stages, example=example)
        stitched.to(experiment.device)
        groups = stitched.parameter_groups(lr, UNIT_LR * lr)
        return experiment.optimise(stitched, seed, groups=groups)
    tree = search_branches(experiment, seed, heads, example)
    torch.manual_seed(seed)
    network = BranchedNetwork(experiment.new_trunk(), tree, heads, layers=layers).to(
        experiment.device
    )
    return experiment.train_network(network, "joint", seed, lr=lr)


def search_branches(
    experiment: MultiTaskExperiment[Any], seed: int, heads: dict[str, nn.Module], example: Tensor
) -> Tree:
    """Where tasks part, found by BMTAS: the logits on a fifth of the images, the rest on four.

    Args:
        experiment: images and networks.
        seed: of images, weights, batches and Gumbel noise.
        heads: are copied.
        example: a batch of images, of which operations are counted.
    """
    p = experiment.parameters
    graph = BMTAS(
        experiment.new_trunk, copy.deepcopy(heads), blocks=STAGES, example=example,
        generator=generator(seed, "branches"),
    ).to(experiment.device)  # fmt: skip
    weights = torch.optim.Adam(graph.weight_parameters(), lr=1e-3, weight_decay=1e-4)
    logits = torch.optim.Adam([graph.logits], lr=1e-2, weight_decay=5e-5)
    rows, rng = experiment.training_rows(seed), generator(seed, "branch batches")
    fifth = len(rows) // 5
    epochs = max(1, p.epochs // 2)
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
    return graph.branches()
