"""The multi-task experiment that the chapters, their studies and their searches have in common.

What must be the same wherever methods are compared has its one home here: which images each seed
trains on, how a network starts, how it is trained, and how conflicts are counted meanwhile. The
chapter ``chapters/recon.py`` shows the functions in the order in which it explains them.
"""

from __future__ import annotations

import copy
import time
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Generic, Self, TypeVar

import torch
from torch import Tensor, nn

import data_prep as data
from data_prep.common.multi_task import MultiTaskFiles, MultiTaskImages, Task
from experiments.models.backbones import SETTINGS, backbone_for
from experiments.models.resnet import IMAGENET_MEAN, IMAGENET_STD
from experiments.models.weights import weights_checksum
from experiments.mtl.augment import scale_crop_flip
from experiments.mtl.balancing import balancer
from experiments.mtl.network import MultiTaskModule, MultiTaskNetwork
from experiments.mtl.parameters import BALANCERS, GRADIENT_METHODS, MultiTaskParameters
from experiments.mtl.statistics import MixedStatistics
from experiments.mtl.tasks import TABLE_COLUMNS, split_trunk, task_heads, task_loss, task_metric
from experiments.run.cache import kept
from ktlib.device import autocast
from ktlib.mtl.aggregation import aggregator
from ktlib.mtl.conflict import SEVERITIES, ConflictMeter
from ktlib.mtl.gradients import apply_gradients
from ktlib.seeding import generator

Parameters = TypeVar("Parameters", bound=MultiTaskParameters)
Result = TypeVar("Result")
Batch = tuple[Tensor, dict[str, Tensor]]
Scores = dict[str, dict[str, float]]
"""Task -> metric -> value."""

QUARTERS = 4

# What training does not read, or is handed over beside it.
_NOT_TRAINED = {
    *("seeds", "profile", "run_dir", "test_images", "per_image", "lr"),
    *("batch_norm", "severity", "top_k", "search_quarters"),
}
_USES = ("mtl", "models", "data_prep")

# Images that are tested at once, and the most pixels of them, which a network of full width holds
# beside its maps on a card of 24 GB; images behind the mean and the spread of the pixels.
_CHUNK, _PIXELS, _SAMPLE = 500, 1 << 21, 1000
# To which images of different sizes are filled up.
_SIDES = (512, 512)


@dataclass
class TrainedRun:
    """A trained network, and what was seen on the way.

    Attributes:
        network: task -> output, in evaluation mode.
        mixed: the one set of running statistics that shared norms would have kept as published;
            those of the network are each task's own.
        meters: conflicts on the shared layers, one meter for each quarter of the training; none
            where there is one task, or no layer that all tasks share.
        losses: task -> mean training loss of each epoch.
        seconds: mean duration of a training step, conflicts counted.
        branches: a row for each block of BMTAS's tree, see
            :func:`experiments.mtl.comparison.search_branches`.
    """

    network: Any
    mixed: MixedStatistics
    meters: list[ConflictMeter] = field(default_factory=list)
    losses: dict[str, list[float]] = field(default_factory=dict)
    seconds: float = 0.0
    branches: list[dict[str, Any]] = field(default_factory=list)

    def conflicts(self, quarters: int = QUARTERS) -> ConflictMeter:
        """The counts of the first quarters together.

        Raises:
            ValueError: nothing was counted, or ``quarters`` is not 1 to 4.
        """
        if not self.meters:
            raise ValueError("this network was trained without counting conflicts.")
        if not 1 <= quarters <= QUARTERS:
            raise ValueError(f"quarters must lie between 1 and {QUARTERS}. Found {quarters!r}.")
        together = copy.deepcopy(self.meters[0])
        for meter in self.meters[1:quarters]:
            together.merge(meter)
        return together


class MultiTaskExperiment(Generic[Parameters]):
    """Data, networks and training, for any seed.

    Args:
        parameters: of the chapter.
        device: where to compute.
        validation_images: training images that are held out and stand in for the test images; 0
            tests on the test images. For searches: these never load the test files.

    Attributes:
        train_data: all training images with their targets.
        tasks: name -> what its targets are, in the order of the tables.
    """

    def __init__(
        self, parameters: Parameters, device: torch.device | str, *, validation_images: int = 0
    ) -> None:
        self.parameters = parameters
        self.device = torch.device(device)
        self.validation_images = validation_images
        if parameters.weights:
            self.new_trunk()  # weights that are missing are named before anything is read
        self.train_data = self._opened("train")
        self.own_images = False
        self.tasks: dict[str, Task] = {task.name: task for task in self.train_data.tasks}
        available = len(self.train_data) - validation_images
        if available < QUARTERS * parameters.batch_size:
            raise ValueError(
                f"batch_size must be at most a quarter of the {available} training images. "
                f"Found batch_size={parameters.batch_size}."
            )

    def with_parameters(self, **values: Any) -> Self:
        """The same experiment with other values of some parameters, on the same images.

        Raises:
            ValueError: for an unknown name, the data set, or a value that is not allowed.
        """
        known = self.parameters.model_dump()
        allowed = sorted(set(known) - {"dataset"})
        unknown = sorted(set(values) - set(allowed))
        if unknown:
            raise ValueError(f"values must be of {allowed}. Found {unknown}.")
        other = copy.copy(self)
        other.parameters = type(self.parameters).model_validate(known | values)
        if "test_images" in values:
            other.__dict__.pop("test_data", None)
        return other

    def with_data(self, train_data: MultiTaskImages) -> Self:
        """The same networks and training on other images or targets; there are no test images.

        Args:
            train_data: in place of the training images of the data set.
        """
        other = copy.copy(self)
        other.train_data, other.own_images = train_data, True
        other.tasks = {task.name: task for task in train_data.tasks}
        for name in ("normalisation", "held_out", "test_data"):
            other.__dict__.pop(name, None)  # computed anew when it is asked for
        return other

    # Data --------------------------------------------------------------------------------------

    @cached_property
    def normalisation(self) -> tuple[list[float], list[float]]:
        """Mean and spread of the pixels, for each channel, of some training images.

        With weights of ImageNet those of ImageNet, which the network was trained with.
        """
        if self.parameters.weights:
            return list(IMAGENET_MEAN), list(IMAGENET_STD)
        rows = self._order(self.parameters.seeds[0])[:_SAMPLE]  # the same for every size
        pixels = data.scaled(_gathered(self.train_data, rows).images)
        spread = pixels.std(dim=(0, 2, 3)).clamp(min=1e-6)
        return pixels.mean(dim=(0, 2, 3)).tolist(), spread.tolist()

    @cached_property
    def held_out(self) -> Tensor:
        """Rows of the training images that no seed trains on; none without a search."""
        order = torch.randperm(len(self.train_data), generator=generator(0, "validation images"))
        return order[: self.validation_images]

    @cached_property
    def test_data(self) -> MultiTaskImages | MultiTaskFiles:
        """The images to test on, the same for every seed; in their files where they were there."""
        if self.validation_images:
            return self.train_data.subset(self.held_out)
        test = self._opened("test")
        order = torch.randperm(len(test), generator=generator(0, "test images"))
        return test.subset(order[: self.parameters.test_images or len(test)])

    def _opened(self, split: str) -> MultiTaskImages | MultiTaskFiles:
        """A split in memory, or in its files where images differ in size; the chosen tasks."""
        name, chosen = self.parameters.dataset, self.parameters.tasks
        load = data.open_tasks if name == "pascal_context" else data.load_tasks
        found: MultiTaskImages | MultiTaskFiles = load(name, split)
        return found.with_tasks(chosen) if chosen else found

    def training_rows(self, seed: int) -> Tensor:
        """Numbers of the images that this seed trains on."""
        order = self._order(seed)
        return order[: self.parameters.train_images or len(order)]

    def _order(self, seed: int) -> Tensor:
        """Numbers of all images that this seed might train on."""
        order = torch.randperm(len(self.train_data), generator=generator(seed, "training images"))
        return order[~torch.isin(order, self.held_out)] if self.validation_images else order

    def training_images(self, rows: Tensor) -> MultiTaskImages:
        """Some training images as they are, with their targets."""
        return _gathered(self.train_data, rows)

    def batch(self, images: MultiTaskImages | MultiTaskFiles, rows: Tensor) -> Batch:
        """Normalised images ``(batch, channels, height, width)`` and task -> targets."""
        chosen = _gathered(images, rows)
        targets = {
            name: values.to(self.device, torch.int64 if not values.is_floating_point() else None)
            for name, values in chosen.targets.items()
        }
        return data.normalised(chosen.images, *self.normalisation).to(self.device), targets

    # Networks ----------------------------------------------------------------------------------

    def new_trunk(self) -> Any:
        """A backbone before training; what no file gives comes from the global generator."""
        p = self.parameters
        known = p.dataset if p.dataset in SETTINGS else "multi_fashion_mnist"
        return backbone_for(known, p.backbone, p.width, weights=p.weights or None)

    def new_network(
        self, seed: int, layers: Sequence[str] = (), tasks: Collection[str] | None = None
    ) -> MultiTaskNetwork:
        """A trunk with some layers split, and a head for each task.

        Equal seeds give equal initial weights; the copies of a split layer start equal. Norms that
        stay shared behind the split keep running statistics of each task's own.

        Args:
            seed: of the initial weights.
            layers: names of the layers that each task has for itself.
            tasks: all by default.
        """
        names = tuple(self.tasks if tasks is None else tasks)
        torch.manual_seed(seed)
        trunk = self.new_trunk()
        # All are drawn, so that a task's head does not depend on which others there are.
        every = self.new_heads(trunk, self.tasks)
        heads = {name: every[name] for name in names}
        if layers or getattr(trunk, "attention_layers", ()):
            few, _ = self.batch(self.train_data, self.training_rows(seed)[:4])
            few = few[..., :64, :64].cpu()  # enough to compare the steps, and no more to compute
            trunk = split_trunk(trunk, layers, names, own_statistics=True, example=few)
        return MultiTaskNetwork(trunk, heads).to(self.device)

    def new_heads(self, trunk: nn.Module, tasks: Collection[str]) -> dict[str, nn.Module]:
        """Untrained heads on the features of a trunk."""
        return dict(task_heads([self.tasks[name] for name in tasks], trunk).items())

    # Training ----------------------------------------------------------------------------------

    def losses(self, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Task -> its mean loss on a batch, from one forward pass."""
        images, targets = batch
        with autocast(self.device, self.parameters.precision):
            outputs = network(images)
            return {
                name: task_loss(self.tasks[name], output, targets[name])
                for name, output in outputs.items()
            }

    def train(
        self,
        method: str,
        seed: int,
        layers: Sequence[str] = (),
        *,
        lr: float | None = None,
        **options: float,
    ) -> TrainedRun:
        """Train a network by a gradient method, and count the conflicts on the way.

        Args:
            method: id, one of :data:`experiments.mtl.parameters.GRADIENT_METHODS`.
            seed: of images, weights, batches, and what the method draws at random.
            layers: names of the layers that each task has for itself: none without Recon.
            lr: first learning rate, where it is not that of the parameters.
            **options: of the method, such as ``c`` of CAGrad.

        Raises:
            ValueError: for an unknown method.
            FloatingPointError: as soon as a gradient is not finite; task and layer are named.
        """
        rate = self.parameters.lr if lr is None else lr

        def make() -> TrainedRun:
            network = self.new_network(seed, layers)
            return self.train_network(network, method, seed, lr=rate, groups=None, **options)

        return self.kept(make, method=method, seed=seed, layers=layers, lr=rate, **options)

    def kept(self, make: Callable[[], Result], **settings: Any) -> Result:
        """A training, from the cache where it was done before.

        Args:
            make: trains.
            **settings: all that it follows from, beside parameters and data.
        """
        p = self.parameters
        if self.own_images:
            return make()
        names = MultiTaskParameters.model_fields.keys() - _NOT_TRAINED
        settings = {name: getattr(p, name) for name in names} | settings
        settings |= {"tasks": [*self.tasks], "severities": p.severities}
        settings |= {"validation_images": self.validation_images, "pixels": self.normalisation}
        settings |= {
            "data": data.checksums(p.dataset),
            "weights": weights_checksum(p.weights),
        }
        return kept("training", _USES, settings, make, device=self.device)

    def train_network(
        self,
        network: MultiTaskModule,
        method: str,
        seed: int,
        *,
        lr: float | None = None,
        groups: list[dict[str, Any]] | None = None,
        **options: float,
    ) -> TrainedRun:
        """As :meth:`train`, with any network of :mod:`ktlib.mtl`."""
        if method not in GRADIENT_METHODS:
            raise ValueError(f"method must be one of {GRADIENT_METHODS}. Found {method!r}.")
        if method in BALANCERS:
            return self._train_balanced(network, method, seed, lr, **options)
        meters, shared, own = self._meters(network)
        if not meters:  # nothing to count and nothing to combine: every task goes its own way
            return self.optimise(network, seed, lr=lr, groups=groups)
        tasks = {"n_tasks": len(self.tasks)} if method == "nashmtl" else {}
        update_rule = aggregator(method, seed=seed, **tasks, **options)

        def backward(losses: Mapping[str, Tensor], quarter: int) -> None:
            gradients = meters[quarter].observe(losses, task_parameters=own)
            apply_gradients(shared, gradients, update_rule)

        return self.optimise(network, seed, backward, meters=meters, lr=lr, groups=groups)

    def _train_balanced(
        self, network: MultiTaskModule, method: str, seed: int, lr: float | None, **options: float
    ) -> TrainedRun:
        """By a method that weights the losses, whose gradients then add up."""
        meters, shared, own = self._meters(network)
        rate = self.parameters.lr if lr is None else lr
        balance = balancer(method, len(self.tasks), lr=rate, device=self.device, **options)
        update_rule = aggregator("joint")

        def backward(losses: Mapping[str, Tensor], quarter: int) -> None:
            weights = balance.weights(torch.stack([loss.detach() for loss in losses.values()]))
            weighted = {
                name: weight * loss
                for weight, (name, loss) in zip(weights, losses.items(), strict=True)
            }
            if not meters:
                torch.stack([*weighted.values()]).sum().backward()
                return
            gradients = meters[quarter].observe(weighted, task_parameters=own)
            apply_gradients(shared, gradients, update_rule)
            balance.learn(gradients)

        def after_step(batch: Batch) -> None:
            with torch.no_grad():
                balance.after_step(torch.stack([*self.losses(network, batch).values()]))

        after = after_step if balance.looks_back else None
        return self.optimise(network, seed, backward, meters=meters, lr=lr, after_step=after)

    def _meters(
        self, network: MultiTaskModule
    ) -> tuple[list[ConflictMeter], dict[str, list[nn.Parameter]], dict[str, list[nn.Parameter]]]:
        """A meter for each quarter, the shared layers, and each task's own parameters."""
        shared, own = network.shared_layers(), network.own_parameters()
        severities = (*SEVERITIES, *self.parameters.severities)
        count = QUARTERS if shared else 0
        meters = [ConflictMeter(shared, severities, task_pairs=True) for _ in range(count)]
        return meters, shared, own

    def train_single(self, seed: int, *, lr: float | None = None) -> dict[str, TrainedRun]:
        """A network for each task alone, from the same initial weights and batches."""
        rate = self.parameters.lr if lr is None else lr

        def make() -> dict[str, TrainedRun]:
            return {
                name: self.optimise(self.new_network(seed, tasks=[name]), seed, lr=rate)
                for name in self.tasks
            }

        return self.kept(make, method="single", seed=seed, lr=rate)

    def optimise(
        self,
        network: MultiTaskModule,
        seed: int,
        backward: Callable[[dict[str, Tensor], int], None] | None = None,
        *,
        meters: Sequence[ConflictMeter] = (),
        lr: float | None = None,
        groups: list[dict[str, Any]] | None = None,
        after_step: Callable[[Batch], None] | None = None,
    ) -> TrainedRun:
        """Train any network whose forward pass gives task -> output.

        All networks of one seed see the same batches.

        Args:
            network: is changed, and left in evaluation mode.
            seed: of images and batches.
            backward: task -> loss, and the quarter of the training from 0, to gradients in
                ``.grad``; by default those of the sum of the losses.
            meters: where ``backward`` counts conflicts.
            lr: first learning rate, where it is not the parameter of this name.
            groups: parameter groups, where parameters have learning rates of their own.
            after_step: gets each batch after its step, and makes one forward pass.

        Raises:
            FloatingPointError: a loss is not finite; epoch, task and value are named.
        """
        p = self.parameters
        rows, batch_rng = self.training_rows(seed), generator(seed, "batches")
        augment_rng = generator(seed, "augmentation")
        parameters: Any = groups or network.parameters()
        first = p.lr if lr is None else lr
        optimizer: torch.optim.Optimizer
        if p.optimizer == "sgd":
            optimizer = torch.optim.SGD(parameters, lr=first, momentum=0.9)
        else:
            optimizer = torch.optim.Adam(parameters, lr=first)
        per_epoch = max(1, len(rows) // p.batch_size)
        total = p.epochs * per_epoch
        drops = [round(share * total) for share in p.lr_drops]
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, drops, p.lr_factor)
        run = TrainedRun(network, MixedStatistics(network), list(meters))
        network.train()
        step, started = 0, time.perf_counter()
        for epoch in range(p.epochs):
            sums: dict[str, Tensor] = {}
            shuffled = rows[torch.randperm(len(rows), generator=batch_rng)]
            for index in range(per_epoch):  # the rest of an epoch, less than a batch, is left out
                chosen = shuffled[index * p.batch_size : (index + 1) * p.batch_size]
                batch = self.batch(self.train_data, chosen)
                if p.augment:
                    batch = scale_crop_flip(*batch, list(self.tasks.values()), augment_rng)
                losses = self.losses(network, batch)
                run.mixed.update()
                optimizer.zero_grad()
                if backward is None:
                    torch.stack(list(losses.values())).sum().backward()
                else:
                    backward(losses, QUARTERS * step // total)
                optimizer.step()
                schedule.step()
                if after_step is not None:
                    after_step(batch)
                    run.mixed.update()
                step += 1
                for name, loss in losses.items():
                    sums[name] = sums.get(name, 0) + loss.detach()
            for name, value in sums.items():
                mean = float(value) / per_epoch
                if not torch.isfinite(value):
                    raise FloatingPointError(
                        f"the loss of task {name!r} is {mean} in epoch {epoch + 1} of {p.epochs}: "
                        f"lower lr={first!r}."
                    )
                run.losses.setdefault(name, []).append(mean)
        run.seconds = (time.perf_counter() - started) / total
        network.eval()
        return run

    # Scores ------------------------------------------------------------------------------------

    @torch.no_grad()
    def scores(self, network: nn.Module) -> Scores:
        """Task -> metric -> value on :attr:`test_data`, the network in evaluation mode."""
        network.eval()
        counters: dict[str, Any] = {}
        test = self.test_data
        height, width = _SIDES if isinstance(test, MultiTaskFiles) else test.images.shape[2:]
        size = max(1, min(_CHUNK, _PIXELS // (height * width)))
        for rows in torch.arange(len(test)).split(size):
            images, targets = self.batch(test, rows)
            with autocast(self.device, self.parameters.precision):
                outputs = network(images)
            for name, output in outputs.items():
                if name not in counters:
                    counters[name] = task_metric(
                        self.tasks[name], per_image=self.parameters.per_image
                    )
                counters[name].update(output.float(), targets[name])
        return {name: self._reported(name, counter.compute()) for name, counter in counters.items()}

    def _reported(self, task: str, found: dict[str, float]) -> dict[str, float]:
        """The metrics that the thesis reports, which Dm is made of; of other classes accuracy."""
        tables = TABLE_COLUMNS.get(self.parameters.dataset, {})
        if task in tables:
            return {name: found[name] for name in tables[task]}
        if self.tasks[task].kind == "classes":
            return {"accuracy": found["accuracy"]}
        return found

    def single_scores(self, runs: Mapping[str, TrainedRun]) -> Scores:
        """The scores of networks with one task each."""
        return {name: self.scores(run.network)[name] for name, run in runs.items()}

    # Recon -------------------------------------------------------------------------------------

    def ranking(self, run: TrainedRun, quarters: int | None = None) -> list[str]:
        """Layers of a trained network from most conflicts to fewest.

        Args:
            run: of :meth:`train`, without layers of their own.
            quarters: how many quarters of the training count; those of the parameters by default.
        """
        p = self.parameters
        counts = run.conflicts(p.search_quarters if quarters is None else quarters)
        ranked = run.network.shared_layers(p.batch_norm)
        return [name for name in conflict_ranking(counts, p.severity) if name in ranked]

    def recon_layers(self, run: TrainedRun) -> list[str]:
        """The ``top_k`` layers of :meth:`ranking`: those that become task-specific."""
        return self.ranking(run)[: self.parameters.top_k]


def conflict_ranking(meter: ConflictMeter, severity: float) -> list[str]:
    """The ranking of a meter; where no conflict was counted the layers in order, with a warning."""
    if any(meter.scores(severity).values()):
        return meter.ranking(severity)
    warnings.warn(
        f"no conflict of severity {severity} was counted in {meter.observations} steps: the layers "
        "are in the order of the network, which says nothing about them.",
        stacklevel=2,
    )
    return list(meter.layers)


def _gathered(images: MultiTaskImages | MultiTaskFiles, rows: Tensor) -> MultiTaskImages:
    """Some images of a set, in memory."""
    if isinstance(images, MultiTaskFiles):
        return images.in_memory(rows.tolist(), size=_SIDES)
    return images.subset(rows)
