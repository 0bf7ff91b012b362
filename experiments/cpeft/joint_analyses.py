"""Three questions that join continual learning, conflicts between tasks and the choice of layers.

1. Does a flat pre-training (F2M, SAM) make an encoder that forgets less? :func:`noise_sensitivity`
   says how flat it is.
2. Are the layers in which tasks conflict (Recon) those in which InfLoRA runs out of room?
   :func:`task_conflicts` and :func:`correlate_conflict_with_occupancy`.
3. Do later tasks need other layers (ILA)? :func:`rank_for_task` and :func:`rankings_over_tasks`.
"""

from __future__ import annotations

import copy
import itertools
import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm

from ktlib.checks import ImagePool, require_at_least, require_positive
from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.inputs import linear_layer
from ktlib.cpeft.tasks import ClassTask
from ktlib.cpeft.training import features_of
from ktlib.fcl.flatness import Flatness, flatness
from ktlib.fcl.protocol import positions_of
from ktlib.fcl.split import split_network
from ktlib.ila.agreement import TOP_FRACTIONS, agreement_table
from ktlib.ila.layers import active_adapter, adapted_layers
from ktlib.ila.ranking import LayerRanking
from ktlib.ila.search import rank_layers
from ktlib.mtl.conflict import SEVERITIES, ConflictMeter, pair_cosines
from ktlib.seeding import generator, numpy_generator

_ROUNDING = 1e-9


@dataclass(frozen=True)
class NoiseSensitivity:
    """How much a loss rises when noise moves the weights.

    Attributes:
        loss: without noise.
        mean: mean rise over the draws; below 0 where the loss falls.
        standard_error: of that mean over the draws; NaN for a single draw.
        highest: rise of the worst draw.
        weight_rms: root mean square of the weights that were moved. The same box is relatively
            wider for a network of smaller weights: compare flatness at similar values of this.
        flatness: all losses, and the indicator of F2M.
    """

    loss: float
    mean: float
    standard_error: float
    highest: float
    weight_rms: float
    flatness: Flatness


def noise_sensitivity(
    backbone: nn.Module,
    scores: Callable[[Tensor], Tensor],
    images: Tensor,
    labels: Tensor,
    *,
    layers: Sequence[str] | None = None,
    noise_bound: float,
    draws: int,
    seed: int,
) -> NoiseSensitivity:
    """Rise of the cross-entropy in a box of uniform noise around the weights of an encoder.

    The measure is that of F2M, see :func:`ktlib.fcl.flatness`. Networks of one architecture get
    the same noise from one seed, so that a plain and a flat pre-training can be compared draw by
    draw. The backbone is left as it was.

    Args:
        backbone: images -> features ``(n, dim)``.
        scores: features -> ``(n, classes)``; it gets no noise.
        images: ``(n, channels, height, width)``.
        labels: ``(n,)`` columns of the scores.
        layers: full names of linear layers whose weights (not biases) get noise; None for all. Of a
            :class:`~ktlib.cpeft.adapters.LoraBackbone` the weights beneath the adapters are moved.
        noise_bound: half-width of the box, in units of the weights.
        draws: number of points in the box.
        seed: draws them.

    Raises:
        ValueError: a name that is not a linear layer, no images, or a number outside its range.
    """
    require_at_least("draws", draws, 1)
    if len(labels) != len(images):
        raise ValueError(f"labels must have one entry per image. Found {len(labels)} labels for "
                         f"{len(images)} images.")  # fmt: skip
    names = _linear_names(backbone) if layers is None else _own_names(backbone, layers)
    device = next(backbone.parameters()).device
    with warnings.catch_warnings():
        # Little would be saved by tracing: the first layers get noise, too.
        warnings.filterwarnings("ignore", ".*cannot be traced", category=UserWarning)
        split = split_network(backbone, names)
    found = flatness(
        split,
        scores,
        images.to(device),
        labels.to(device),
        bound=noise_bound,
        generator=generator(seed, "noise around an encoder"),
        draws=draws,
        batch_size=500,
    )
    rises = found.losses - found.loss_at_minimum
    weights = torch.cat([weight.detach().flatten() for weight in split.tuned.values()])
    return NoiseSensitivity(
        loss=found.loss_at_minimum,
        mean=float(rises.mean()),
        standard_error=float(rises.std()) / math.sqrt(draws) if draws > 1 else math.nan,
        highest=float(rises.max()),
        weight_rms=float(weights.double().square().mean().sqrt()),
        flatness=found,
    )


def task_heads(
    backbone: nn.Module,
    tasks: Sequence[ClassTask],
    images: ImagePool,
    labels: Tensor,
    *,
    penalty: float = 1e-3,
    steps: int = 100,
    batch_size: int = 500,
) -> dict[int, nn.Linear]:
    """A linear classifier for each task on the features of a frozen encoder.

    The mean cross-entropy over the task's training images plus ``penalty / 2`` times the squared
    weights is minimised with L-BFGS from zero. It is convex, so nothing has to be drawn or tuned.

    Args:
        backbone: images -> features ``(n, dim)``; in ``eval`` mode.
        tasks: whose images and classes.
        images: ``(n, channels, height, width)`` what the tasks point into.
        labels: ``(n,)`` their classes.
        penalty: on the weights, above 0.
        steps: of L-BFGS at most.
        batch_size: images at a time in the passes through the encoder.

    Returns:
        Number of the task -> classifier, whose rows are its classes in their order.

    Raises:
        ValueError: a penalty that is not above 0, or ``steps`` below 1.
    """
    require_positive("penalty", penalty)
    require_at_least("steps", steps, 1)
    heads = {}
    for task in tasks:
        features = features_of(backbone, images, task.train, batch_size)
        targets = _columns(task, labels, task.train).to(features.device)
        head = nn.Linear(features.shape[1], len(task.classes)).to(features)
        for parameter in head.parameters():
            nn.init.zeros_(parameter)
        heads[task.number] = _fitted(head, features, targets, penalty, steps)
    return heads


@dataclass(frozen=True)
class GradientBatches:
    """Batches on which the gradients of tasks are compared.

    Attributes:
        batches: how many times gradients are compared.
        batch_size: images of each task in a batch, drawn without replacement among its training
            images; all of them if it has fewer.
        seed: draws them.

    Raises:
        ValueError: ``batches`` or ``batch_size`` below 1.
    """

    batches: int
    batch_size: int
    seed: int

    def __post_init__(self) -> None:
        require_at_least("batches", self.batches, 1)
        require_at_least("batch_size", self.batch_size, 1)

    def rows(self, task: ClassTask, batch: int) -> Tensor:
        """``(b,)`` positions of the images of a task in a batch."""
        rng = generator(self.seed, "images to compare gradients on", task.number, batch)
        return task.train[torch.randperm(len(task.train), generator=rng)[: self.batch_size]]


@dataclass(frozen=True, eq=False)
class TaskConflicts:
    """Cosines between the gradients of tasks, layer by layer.

    Attributes:
        layers: names, in the order given.
        pairs: numbers of the two tasks of each pair.
        cosines: ``(batches, layers, pairs)``, float64; NaN where a gradient is 0.
        meter: the counts of Recon.
    """

    layers: tuple[str, ...]
    pairs: tuple[tuple[int, int], ...]
    cosines: Tensor
    meter: ConflictMeter

    def scores(self, severity: float = 0.0) -> dict[str, float]:
        """Layer -> share of its batches and pairs with a cosine below the severity.

        Recon's conflict score, divided by the number counted. NaN if nothing was counted.

        Raises:
            ValueError: conflicts of this severity were not counted.
        """
        counted, counts = self.meter.pairs, self.meter.scores(severity)
        return {
            name: counts[name] / counted[name] if counted[name] else math.nan
            for name in self.layers
        }

    def rows(self, severity: float = 0.0) -> list[dict[str, Any]]:
        """A row for each layer: ``layer``, ``cosine`` (mean), ``score``, ``counted``.

        Raises:
            ValueError: as :meth:`scores`.
        """
        scores, counted = self.scores(severity), self.meter.pairs
        means = self.cosines.nanmean(dim=(0, 2)).tolist()
        return [
            {"layer": name, "cosine": mean, "score": scores[name], "counted": counted[name]}
            for name, mean in zip(self.layers, means, strict=True)
        ]


def task_conflicts(
    backbone: nn.Module,
    layers: Sequence[str],
    tasks: Sequence[ClassTask],
    images: ImagePool,
    labels: Tensor,
    sampling: GradientBatches,
    *,
    heads: Mapping[int, nn.Module] | None = None,
    severities: Iterable[float] = SEVERITIES,
) -> TaskConflicts:
    """How far the gradients of tasks oppose each other in some layers of an encoder.

    Each task has the cross-entropy over its own classes, and gradients are those of the layers'
    weights: what an update ``B A`` of rank ``r`` would follow. In every batch all tasks are at the
    same weights, those of ``backbone``: the conflicts are those that tasks learned one after the
    other would have if they were learned together (Recon, thesis section 4.3).

    Args:
        backbone: images -> features ``(n, dim)``; copied, and computed in ``eval`` mode.
        layers: full names of linear layers. Of a
            :class:`~ktlib.cpeft.adapters.LoraBackbone` the weights beneath the adapters count.
        tasks: at least two.
        images: ``(n, channels, height, width)`` what the tasks point into.
        labels: ``(n,)`` their classes.
        sampling: of the images whose gradients are compared.
        heads: number of a task -> its classifier of features, with the columns of its classes. By
            default :func:`task_heads` of the backbone: with random heads the gradients would say
            more about the heads than about the tasks.
        severities: cosines below which pairs are counted, see
            :class:`ktlib.mtl.conflict.ConflictMeter`.

    Raises:
        ValueError: fewer than two tasks, a task without a head, no layers or a name that is not a
            linear layer, or a severity that is out of range.
        FloatingPointError: a gradient is not finite; task and layer are named.
    """
    require_at_least("number of tasks", len(tasks), 2)
    network = copy.deepcopy(backbone).eval().requires_grad_(False)
    weights: dict[str, list[nn.Parameter]] = {}
    for name in layers:
        weights[name] = [cast("nn.Parameter", linear_layer(network, name).weight)]
        weights[name][0].requires_grad_(True)
    meter = ConflictMeter(weights, severities)
    given = task_heads(network, tasks, images, labels) if heads is None else heads
    lacking = [task.number for task in tasks if task.number not in given]
    if lacking:
        raise ValueError(f"heads must have one of each task. Found none of {lacking}.")
    frozen = {t.number: copy.deepcopy(given[t.number]).requires_grad_(False) for t in tasks}
    found = []
    for batch in tqdm(range(sampling.batches), desc="conflicts of tasks", leave=False):
        drawn = [sampling.rows(task, batch) for task in tasks]
        losses = _task_losses(network, frozen, tasks, images, labels, drawn)
        products = meter.observe_gramians(losses).layers
        gramians = torch.stack([products[name] for name in layers])  # (layers, tasks, tasks)
        cosines, defined = pair_cosines(gramians)  # (layers, pairs)
        found.append(cosines.masked_fill(~defined, math.nan))
    numbers = [task.number for task in tasks]
    return TaskConflicts(
        tuple(layers), tuple(itertools.combinations(numbers, 2)), torch.stack(found), meter
    )


def shared_input_groups(
    network: nn.Module, layers: Sequence[str], images: Tensor
) -> list[tuple[str, ...]]:
    """Layers that are given the same inputs, such as query, key and value of a block.

    Whatever depends on inputs alone, such as a memory of InfLoRA, is the same for all layers of a
    group: they are one observation, not several.

    Args:
        network: called with the images, in ``eval`` mode; its mode is put back.
        layers: full names of linear layers; of a
            :class:`~ktlib.cpeft.adapters.LoraBackbone` those beneath the adapters.
        images: ``(n, channels, height, width)``; a few that differ are enough.

    Returns:
        The groups, in the order of their first layers; a layer on its own is a group of one.

    Raises:
        ValueError: a name that is not a linear layer, or a layer that the network did not use.
    """
    inputs: dict[str, list[Tensor]] = {name: [] for name in layers}
    with ExitStack() as undo, torch.no_grad():
        for module in network.modules():
            undo.callback(setattr, module, "training", module.training)
        network.eval()
        for name, seen in inputs.items():

            def note(_: nn.Module, given: tuple[Any, ...], seen: list[Tensor] = seen) -> None:
                seen.append(given[0])

            handle = linear_layer(network, name).register_forward_pre_hook(note)
            undo.callback(handle.remove)
        network(images.to(next(network.parameters()).device))
    unused = [name for name, seen in inputs.items() if not seen]
    if unused:
        raise ValueError(f"layers must be used by the network. These were not: {unused}.")
    groups: list[list[str]] = []
    for name, seen in inputs.items():
        group = next((g for g in groups if _same(inputs[g[0]], seen)), None)
        if group is None:
            groups.append([name])
        else:
            group.append(name)
    return [tuple(group) for group in groups]


@dataclass(frozen=True)
class RankCorrelation:
    """A rank correlation over groups of layers.

    Attributes:
        correlation: Spearman's; NaN if one side is the same in all groups.
        p_value: share of the permutations of one side with a correlation at least as far from 0;
            NaN as above. For three groups it is never below 1/3, for four never below 1/12.
        groups: number of groups, over which all this is.
        layers: number of layers in them.
        exact: whether all permutations were counted, and not random ones.
    """

    correlation: float
    p_value: float
    groups: int
    layers: int
    exact: bool


def correlate_conflict_with_occupancy(
    conflicts: Mapping[str, float],
    occupancy: Mapping[str, float],
    groups: Sequence[Sequence[str]],
    *,
    seed: int,
    permutations: int = 9999,
) -> RankCorrelation:
    """Rank correlation between the conflict in layers and how full their memories are.

    Layers of a group have the same occupancy by construction, so the correlation is over groups,
    with the mean conflict of each.

    Args:
        conflicts: layer -> conflict score, such as :meth:`TaskConflicts.scores` gives.
        occupancy: layer -> share of the memory that is occupied, such as the ``occupied`` of
            :attr:`ktlib.cpeft.inflora.InfLora.history` after the last task; of the same layers.
        groups: the layers, each once, from :func:`shared_input_groups`.
        seed: of the permutations.
        permutations: how many are drawn if there are more in total; otherwise all are counted.

    Raises:
        ValueError: the three have different layers, there are fewer than three groups, layers
            of a group differ in occupancy, or a value is not finite.
    """
    require_at_least("permutations", permutations, 1)
    require_at_least("number of groups", len(groups), 3)
    _check_groups(conflicts, occupancy, groups)
    pairs = [
        (float(np.mean([conflicts[name] for name in group])), occupancy[group[0]])
        for group in groups
    ]
    # Means that are equal but for rounding are ties.
    one, other = (stats.rankdata(np.round(column, 12)) for column in zip(*pairs, strict=True))
    layers, exact = sum(map(len, groups)), math.factorial(len(groups)) <= permutations
    if np.ptp(one) == 0 or np.ptp(other) == 0:
        return RankCorrelation(math.nan, math.nan, len(groups), layers, exact)
    value = _correlation(one, other)
    if exact:
        orders: Iterable[Any] = itertools.permutations(range(len(groups)))
    else:
        rng = numpy_generator(seed, "permutations of groups of layers")
        orders = (rng.permutation(len(groups)) for _ in range(permutations))
    hits = [
        abs(_correlation(one, other[list(order)])) >= abs(value) - _ROUNDING for order in orders
    ]
    # The observed order is one of all; among random ones it is counted in addition.
    extra = 0 if exact else 1
    p_value = (sum(hits) + extra) / (len(hits) + extra)
    return RankCorrelation(value, p_value, len(groups), layers, exact)


def rank_for_task(
    backbone: nn.Module,
    head: nn.Module,
    task: ClassTask,
    images: ImagePool,
    labels: Tensor,
    *,
    batch_size: int,
    seed: int = 0,
    **options: Any,
) -> LayerRanking:
    """ILA's ranking of the adapted layers by how much their updates matter for a task.

    See :func:`ktlib.ila.rank_layers`. Rankings of two seeds for one task differ, too: only a
    difference between two tasks beyond that is one of the tasks.

    Args:
        backbone: images -> features ``(n, dim)``, with LoRA adapters of peft that were trained on
            the task and not merged, such as a :class:`~ktlib.cpeft.adapters.LoraBackbone`. It is
            left as it was.
        head: features -> scores of the task's classes, in their order; copied and kept fixed.
        task: what the ranking is for.
        images: ``(n, channels, height, width)`` what the task points into.
        labels: ``(n,)`` their classes.
        batch_size: images in each batch, of the task's training images in random order.
        seed: decides the batches and their order.
        **options: of :func:`ktlib.ila.rank_layers`: ``steps``, ``initial_score``, ``lr``, and
            ``precision``, which is float32 by default.

    Returns:
        The ranking; layers are named as in the backbone, without what wraps it.

    Raises:
        ValueError: the backbone has no adapters, or all their updates are zero, as before training
            and after merging; as :func:`ktlib.ila.rank_layers`.
        FloatingPointError: a loss or gradient is not finite.
    """
    require_at_least("batch_size", batch_size, 1)
    network = backbone.backbone if isinstance(backbone, LoraBackbone) else backbone
    _require_updates(network)
    fixed = copy.deepcopy(head).requires_grad_(False).eval()
    device = next(network.parameters()).device
    order = torch.randperm(len(task.train), generator=generator(seed, "batches to rank layers on"))

    def loss(model: nn.Module, rows: Tensor) -> Tensor:
        scores = fixed(model(images[rows].to(device)))
        return F.cross_entropy(scores, _columns(task, labels, rows).to(device))

    return rank_layers(
        network,
        task.train[order].split(batch_size),
        seed=seed,
        loss=loss,
        data=f"task {task.number}, classes {task.classes.tolist()}",
        **({"precision": "float32"} | options),
    )


def rankings_over_tasks(
    rankings: Mapping[int, LayerRanking], tops: Sequence[float] = TOP_FRACTIONS
) -> list[dict[str, Any]]:
    """How far the rankings of two tasks agree, for all pairs of tasks.

    Args:
        rankings: number of the task -> ranking; all of the same layers.
        tops: shares of the layers that are compared as sets.

    Returns:
        Rows with the columns of :func:`ktlib.ila.agreement.agreement_table`: ``a`` and ``b`` (the
        tasks), ``top``, ``value`` (Jaccard index), ``chance``, ``p_value``, ``rank_correlation``
        (Spearman's, of all scores) and more; and ``gap``, how many tasks lie between, plus one.

    Raises:
        ValueError: fewer than two rankings, or they are not of the same layers.
    """
    scores = {str(number): rankings[number].scores for number in sorted(rankings)}
    rows = agreement_table(scores, tops)
    return [
        row | {"a": int(row["a"]), "b": int(row["b"]), "gap": int(row["b"]) - int(row["a"])}
        for row in rows
    ]


def _linear_names(network: nn.Module) -> list[str]:
    """All linear layers but the adapters."""
    return [
        name
        for name, module in network.named_modules()
        if isinstance(module, nn.Linear) and ".lora_" not in name
    ]


def _own_names(network: nn.Module, layers: Sequence[str]) -> list[str]:
    """The names that layers have in the network itself, beneath adapters where there are some."""
    names = {module: name for name, module in network.named_modules()}
    return [names[linear_layer(network, name)] for name in layers]


def _columns(task: ClassTask, labels: Tensor, rows: Tensor) -> Tensor:
    """Columns of the task's classifier for the images at ``rows``."""
    return positions_of(labels[rows], task.classes)


def _fitted(
    head: nn.Linear, features: Tensor, targets: Tensor, penalty: float, steps: int
) -> nn.Linear:
    """The head after its convex problem was solved."""
    optimizer = torch.optim.LBFGS(
        head.parameters(), max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-6
    )

    def closure() -> float:
        with torch.enable_grad():
            optimizer.zero_grad()
            loss = F.cross_entropy(head(features), targets)
            loss = loss + penalty / 2 * head.weight.square().sum()
            loss.backward()
        return float(loss.detach())

    optimizer.step(closure)
    return head.requires_grad_(False)


def _task_losses(
    network: nn.Module,
    heads: Mapping[int, nn.Module],
    tasks: Sequence[ClassTask],
    images: ImagePool,
    labels: Tensor,
    drawn: list[Tensor],
) -> dict[str, Tensor]:
    """The loss of every task on its drawn images, all from one pass through the network."""
    device = next(network.parameters()).device
    features = network(images[torch.cat(drawn)].to(device)).split([len(rows) for rows in drawn])
    return {
        str(task.number): F.cross_entropy(
            heads[task.number](own), _columns(task, labels, rows).to(device)
        )
        for task, rows, own in zip(tasks, drawn, features, strict=True)
    }


def _same(one: Sequence[Tensor], other: Sequence[Tensor]) -> bool:
    """Whether two layers were given equal tensors, call by call."""
    return len(one) == len(other) and all(
        a is b or (a.shape == b.shape and torch.equal(a, b))
        for a, b in zip(one, other, strict=True)
    )


def _check_groups(
    conflicts: Mapping[str, float],
    occupancy: Mapping[str, float],
    groups: Sequence[Sequence[str]],
) -> None:
    grouped = [name for group in groups for name in group]
    for what, names in (("conflicts", conflicts), ("occupancy", occupancy)):
        if sorted(names) != sorted(grouped):
            odd = sorted({*names} ^ {*grouped}) or "a layer twice in groups"
            raise ValueError(f"{what} and groups must have the same layers. Found {odd}.")
    for what, values in (("conflicts", conflicts), ("occupancy", occupancy)):
        bad = {name: value for name, value in values.items() if not math.isfinite(value)}
        if bad:
            raise ValueError(f"{what} must be finite. Found {bad}.")
    for group in groups:
        found = {name: occupancy[name] for name in group}
        if max(found.values()) - min(found.values()) > _ROUNDING:
            raise ValueError(f"layers with the same inputs must have one occupancy. Found {found}.")


def _correlation(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    return float(np.corrcoef(one, other)[0, 1])


def _require_updates(network: nn.Module) -> None:
    """Refuse adapters whose updates are all zero: no score could be learned."""
    layers = adapted_layers(network)
    adapter = active_adapter(layers)
    if not any(bool(layer.lora_B[adapter].weight.any()) for layer in layers.values()):
        raise ValueError(
            "backbone must have adapters that were trained and not merged. Found updates of zero "
            "only."
        )
