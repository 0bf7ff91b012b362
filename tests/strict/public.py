"""What every public function of ktlib gives on small inputs, for any device.

Each function here takes a device and returns numbers and tensors that must be the same on all of
them. :data:`CHECKS` has the names that each of them covers.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import pickle
from collections.abc import Callable
from typing import Any

import peft
import torch
from torch import nn
from torch.nn import functional as F

from ktlib import cpeft, device, fcl, ila, mtl, seeding
from tests.ktlib.ila.conftest import add_lora, make_batches, make_llama

Check = Callable[[torch.device], Any]
CHECKS: dict[str, tuple[Check, frozenset[str]]] = {}
TASKS = ("left", "right")
TRAINING = cpeft.LoraTraining(layers=["1", "3"], rank=2, epochs=2, batch_size=8, lr=0.01, seed=0)


def covers(module: Any, *names: str) -> Callable[[Check], Check]:
    """Enter a check of these names of a module."""

    def enter(check: Check) -> Check:
        part = module.__name__.removeprefix("ktlib.")
        CHECKS[f"{part}: {check.__name__}"] = check, frozenset(f"{part}.{name}" for name in names)
        return check

    return enter


# Small inputs; they leave the stream of the device alone. -----------------------------------------


def stream(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def convolutions(place: torch.device) -> nn.Module:
    """Two convolutions with batch norm and a shortcut-free block: images -> 4 features."""
    torch.default_generator.manual_seed(0)
    network = nn.Sequential(
        *(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU()),
        *(nn.Conv2d(4, 4, 3), nn.ReLU(inplace=True), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
    )
    return network.to(place)


def head(place: torch.device, inputs: int = 4) -> nn.Linear:
    torch.default_generator.manual_seed(1)
    return nn.Linear(inputs, 3).to(place)


def photographs(place: torch.device, count: int = 12) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and their classes, of three."""
    images = torch.randn(count, 1, 8, 8, generator=stream())
    return images.to(place), (torch.arange(count) % 3).to(place)


def encoder(place: torch.device) -> nn.Module:
    """Images of 8x8 -> 8 features, with two linear layers to adapt."""
    torch.default_generator.manual_seed(2)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 8))
    network.dim = 8
    return network.to(place)


def adapted(place: torch.device) -> nn.Module:
    """A small network with LoRA of peft on two layers, whose updates are not zero."""
    torch.default_generator.manual_seed(3)
    config = peft.LoraConfig(r=2, target_modules=["0", "2"], init_lora_weights=False)
    network = nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))
    return peft.get_peft_model(network, config).to(place)


def rows_of_numbers(place: torch.device) -> list[torch.Tensor]:
    return [torch.randn(4, 6, generator=stream(seed)).to(place) for seed in range(3)]


def mean_square(model: nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) - 1).square().mean()


def gradients(module: nn.Module) -> list[Any]:
    return [parameter.grad for parameter in module.parameters()]


def cut(place: torch.device) -> fcl.SplitNetwork:
    network = convolutions(place)
    return fcl.split_network(network, fcl.last_convolutions(network, 1))


# Few-shot learning ------------------------------------------------------------------------------


@covers(fcl, "SplitNetwork", "split_network", "last_convolutions", "embed")
def splits(place):
    split, (images, _) = cut(place), photographs(place)
    noise = {name: torch.full_like(value, 0.1) for name, value in split.tuned.items()}
    copied = copy.deepcopy(split)
    features = copied.prefix(images)
    whole = fcl.embed(split.network, images, batch_size=5)
    return copied.tail_forward(features), copied.tail_forward(features, noise), whole


@covers(fcl, "F2MLoss", "F2MVariant", "PRINTED", "RELEASED", "f2m_loss")
def base_losses(place):
    found = []
    for variant in (fcl.PRINTED, fcl.RELEASED):
        split, classifier = cut(place), head(place)
        loss = fcl.f2m_loss(split, classifier, *photographs(place), bound=0.1, draws=2,
                            prototype_weight=1.0, generator=stream(), variant=variant)  # fmt: skip
        loss.total.backward()
        found.append((loss.total, loss.cross_entropy, loss.prototype_shift))
        found.append((gradients(split.network), gradients(classifier)))
    return found


@covers(fcl, "FlatRegion", "SessionVariant", "PRINTED_SESSION", "RELEASED_SESSION", "learn_session")
def sessions_in_the_box(place):
    crops = functools.partial(fcl.random_crop, padding=1, generator=stream())
    released = dataclasses.replace(fcl.RELEASED_SESSION, augment=crops)
    found = []
    for variant in (fcl.PRINTED_SESSION, released):
        split, (images, labels) = cut(place), photographs(place)
        region = fcl.FlatRegion(split.tuned, bound=0.01)
        old, facts = torch.tensor([7, 9], device=place), {}
        losses = fcl.learn_session(split, region, images, labels, torch.ones(2, 4, device=place),
                                   old, epochs=3, lr=1.0, variant=variant, facts=facts)  # fmt: skip
        found.append((losses, facts, region.contains(), region.largest_shift()))
        found.append((region.share_clamped(), region.share_at_wall(), [*split.tuned.values()]))
    return found


@covers(fcl, "Flatness", "flatness")
def flatness_of_a_box(place):
    split, classifier = cut(place), head(place)
    found = fcl.flatness(split, classifier, *photographs(place), bound=0.1, generator=stream(),
                         draws=3, batch_size=5)  # fmt: skip
    return found.indicator, found.variance, found.loss_at_minimum, found.losses


@covers(fcl, "draw_noise", "noise_mean", "noise_variance")
def noise(place):
    weights = {"w": torch.zeros(3, 4, device=place)}
    laws = ({}, {"levels": 5}, {"levels": 5, "shapes": (0.5, 2.0)})
    drawn = [fcl.draw_noise(weights, 0.1, stream(), **law)["w"] for law in laws]
    assert all(one.device == weights["w"].device for one in drawn)
    return drawn, fcl.noise_mean(0.1, **laws[2]), fcl.noise_variance(0.1)


@covers(fcl, "Session", "few_shot_sessions", "positions_of")
def sessions(place):
    labels = torch.arange(60, device=place) % 6
    found = fcl.few_shot_sessions(labels, base_classes=3, sessions=1, ways=2, shots=2,
                                  class_seed=0, seed=0, validation_images=1)  # fmt: skip
    rows = [(one.classes, one.train, one.validation, labels[one.train]) for one in found]
    return rows, fcl.positions_of(labels, found[0].classes)


@covers(fcl, "class_means", "few_shot_loss", "nearest_class_mean", "normalise_prototypes")
def prototypes(place):
    _, labels = photographs(place)
    embeddings = torch.randn(12, 4, generator=stream()).to(place)
    means = fcl.class_means(embeddings, labels)
    some = fcl.class_means(embeddings, labels, torch.tensor([2, 0], device=place))
    nearest = fcl.nearest_class_mean(embeddings, fcl.normalise_prototypes(means))
    return means, some, nearest, fcl.few_shot_loss(embeddings, labels, means)


@covers(fcl, "BaseTraining", "random_crop", "train_base")
def base_training(place):
    found = []
    for radius in (0.0, 0.05):
        network, classifier = convolutions(place), head(place)

        def loss(images, labels, network=network, classifier=classifier):
            return F.cross_entropy(classifier(network(images)), labels)

        settings = fcl.BaseTraining(epochs=2, batch_size=5, lr=0.1, padding=1, flip=True,
                                    sam_radius=radius)  # fmt: skip
        losses = fcl.train_base(network, classifier, *photographs(place), loss, settings,
                                generator=stream())  # fmt: skip
        found.append((losses, list(network.state_dict().values())))
    return found, fcl.random_crop(photographs(place)[0], 2, stream(), flip=True)


# Multi-task learning ----------------------------------------------------------------------------


def two_losses(trunk: nn.Module, place: torch.device) -> tuple[dict[str, Any], dict[str, Any]]:
    """Losses of two tasks with a head each, and the heads."""
    images, labels = photographs(place)
    features, heads = trunk(images), {task: head(place) for task in TASKS}
    each = features if isinstance(features, dict) else dict.fromkeys(TASKS, features)
    aims = dict(zip(TASKS, (labels, 2 - labels), strict=True))
    return {t: F.cross_entropy(heads[t](each[t]), aims[t]) for t in TASKS}, heads


def step(trunk: nn.Module, meter: mtl.ConflictMeter, method: Any, place: torch.device) -> list[Any]:
    """A step of Recon's search; the gradients."""
    losses, heads = two_losses(trunk, place)
    own = {task: list(module.parameters()) for task, module in heads.items()}
    if isinstance(trunk, mtl.SplitTrunk):
        own = {task: [*own[task], *trunk.task_parameters(task)] for task in TASKS}
    found = meter.observe(losses, task_parameters=own)
    mtl.apply_gradients(trunk, found, method)
    return [*gradients(trunk), *(gradients(module) for module in heads.values())]


@covers(mtl, "ConflictMeter", "layers_of", "task_gradients")
def conflicts(place):
    trunk = convolutions(place)
    meter, other = mtl.ConflictMeter(trunk), mtl.ConflictMeter(trunk)
    written = step(trunk, meter, mtl.aggregator("joint"), place)
    other.load_state_dict(meter.state_dict())
    meter.merge(other)
    losses, _ = two_losses(trunk, place)
    by_hand = mtl.task_gradients(losses, mtl.layers_of(trunk)["0"]).matrix
    conflicting = trunk(photographs(place)[0]).square().sum()
    meter.observe({"left": conflicting, "right": -conflicting})
    counts = meter.scores(-0.01), meter.pairs, meter.histogram(), meter.ranking(-0.01)
    return written, counts, meter.shared_score(0.0), by_hand


@covers(mtl, "apply_gramians")
def gramians(place):
    trunk, found = convolutions(place), []
    for name in ("joint", "mgda", "pcgrad"):
        losses, heads = two_losses(trunk, place)
        own = {task: list(module.parameters()) for task, module in heads.items()}
        meter = mtl.ConflictMeter(trunk)
        seen = meter.observe_gramians(losses, task_parameters=own, retain_graph=True)
        mtl.apply_gramians(trunk, losses, seen, mtl.aggregator(name))
        found.append((list(seen.layers.values()), seen.shared, gradients(trunk)))
    return found


# These draw numbers as long as the gradients where the gradients are: other ones on each device.
DRAW_ON_DEVICE = {"graddrop", "GradDrop"}


@covers(mtl, "aggregator", "aggregators", "apply_gradients")
def every_aggregator(place):
    options = {"nashmtl": {"n_tasks": 4}, "NashMTL": {"n_tasks": 4}, "Krum": {"n_byzantine": 0}}
    options |= {"TrimmedMean": {"trim_number": 0}}
    options |= {"Constant": {"weights": torch.ones(4, device=place)}}
    rows = torch.randn(4, 50, generator=stream()).to(place)
    found = {}
    for name in mtl.aggregators():
        try:
            method = mtl.aggregator(name, **options.get(name, {}))
        except ImportError:  # of a package that is not installed
            continue
        except ValueError:  # takes options that only its user knows
            assert name in ("CRMOGMWeighting", "PCD"), name
            continue
        made = method(rows)
        assert made.device == rows.device
        found[name] = made if name not in DRAW_ON_DEVICE else made.shape
    trunk = convolutions(place)
    return found, step(trunk, mtl.ConflictMeter(trunk), mtl.aggregator("cagrad"), place)


@covers(mtl, "SplitTrunk", "split")
def task_specific_layers(place):
    images, _ = photographs(place)
    found = []
    for own_statistics in (False, True):
        trunk = mtl.split(convolutions(place), ["3"], TASKS, own_statistics=own_statistics)
        found.append(step(trunk, mtl.ConflictMeter(trunk), mtl.aggregator("joint"), place))
        copies = trunk, copy.deepcopy(trunk), pickle.loads(pickle.dumps(trunk))  # noqa: S301
        found += [one.eval()(images) for one in copies]
        moved = mtl.split(convolutions(torch.device("cpu")), ["3"], TASKS,
                          own_statistics=own_statistics).to(place)  # fmt: skip
        moved.load_state_dict(trunk.state_dict())
        found.append(moved.eval()(images))
    return found


@covers(mtl, "forward_flops", "parameter_megabytes")
def costs(place):
    network = convolutions(place)
    return mtl.forward_flops(network, photographs(place)[0]), mtl.parameter_megabytes(network)


@covers(mtl, "ranking_correlation", "ranking_distance", "relative_improvement", "top_overlap")
def comparisons(place):
    """Of names and numbers that come from the device."""
    trunk = convolutions(place)
    meter = mtl.ConflictMeter(trunk)
    conflicting = trunk(photographs(place)[0]).square().sum()
    meter.observe({"left": conflicting, "right": -conflicting})
    one, other = meter.ranking(0.0), list(meter.layers)
    loss = {t: {"loss": float(one.detach())} for t, one in two_losses(trunk, place)[0].items()}
    better = {task: {"loss": 1.0} for task in loss}
    return (
        mtl.ranking_correlation(one, other), mtl.ranking_distance(one, other),
        mtl.top_overlap(one, other, 1), mtl.relative_improvement(loss, better, ["loss"]),
    )  # fmt: skip


# Layers of language models ----------------------------------------------------------------------


@covers(ila, "adapted_layers", "gated_updates", "gated_weights")
def gates(place):
    model, batch = adapted(place), rows_of_numbers(place)[0]
    with ila.gated_updates(model, 1.0) as scores:
        mean_square(model, batch).backward()
        found = [gate.score.grad for gate in scores.values()]
    whole = head(place, inputs=6)
    before = {name: torch.zeros_like(value) for name, value in whole.state_dict().items()}
    with ila.gated_weights(
        nn.Sequential(whole), {f"0.{n}": v for n, v in before.items()}
    ) as scores:
        mean_square(whole, batch).backward()
        found += [gate.score.grad for gate in scores.values()]
    return found, list(ila.adapted_layers(model)), model(batch)


@covers(ila, "LayerRanking", "rank_layers", "rank_layers_full", "first_order_scores",
        "ablation_scores", "update_norms", "freeze_unimportant")  # fmt: skip
def rankings(place):
    model, batches = adapted(place), rows_of_numbers(place)
    full = nn.Sequential(head(place, 6))
    before = {name: torch.zeros_like(value) for name, value in full.named_parameters()}
    found = [
        ila.rank_layers(model, batches, loss=mean_square, steps=4, penalty=0.1),
        ila.first_order_scores(model, batches, loss=mean_square),
        ila.ablation_scores(model, batches, loss=mean_square),
        ila.update_norms(model),
        ila.rank_layers_full(full, before, batches, loss=mean_square),
        ila.update_norms(full, base_state=before),
    ]
    frozen = ila.freeze_unimportant(model, found[0], keep=0.5)
    trained = [name for name, p in model.named_parameters() if p.requires_grad]
    scores = [(one.scores, one.standard_errors, one.losses, one.curve) for one in found]
    return scores, frozen, trained, isinstance(found[0], ila.LayerRanking)


@covers(ila, "rank_layers", "first_order_scores")
def rankings_of_a_language_model(place):
    """Batches of the CPU are taken to the model."""
    model = add_lora(make_llama(), targets=("q_proj", "down_proj")).to(place)
    batches = make_batches(2)
    one = ila.rank_layers(model, batches), ila.first_order_scores(model, batches)
    return [ranking.scores for ranking in one]


@covers(ila, "FirstOrderScores")
def scores_of_a_training(place):
    model = adapted(place)
    scores = ila.FirstOrderScores(model)
    for batch in rows_of_numbers(place):
        mean_square(model, batch).backward()
        scores.step()
        model.zero_grad()
    return scores.ranking().scores, scores.ranking().standard_errors


# Continual learning of adapters -------------------------------------------------------------------


def learned(learner: Any, place: torch.device) -> Any:
    """Scores and rows after two tasks, with images and labels on the device."""
    images, _ = photographs(place, 48)
    labels = (torch.arange(48) % 4).to(place)
    tasks = cpeft.class_tasks(labels, classes=range(4), tasks=2)
    assert isinstance(tasks[0], cpeft.ClassTask)
    rows = cpeft.learn_tasks(learner, tasks, images, labels, images, labels, batch_size=20)
    summaries = cpeft.summary(rows), cpeft.final_accuracy(rows), cpeft.average_accuracy(rows)
    predicted = cpeft.predict(learner, images)
    return rows, summaries, cpeft.forgetting(rows), learner.scores(images), predicted


@covers(cpeft, "InfLora")
def inflora(place):
    learner = cpeft.InfLora(encoder(place), TRAINING, tasks=2, on_full="shrink")
    found = learned(learner, place)
    return found, learner.history, [memory.old_rank for memory in learner.memories.values()]


@covers(cpeft, "L2C", "L2CSettings")
def cooperating_experts(place):
    settings = cpeft.L2CSettings(selector_lr=0.001, top_k=1, consistency=0.5, align_steps=4)
    learner = cpeft.L2C(encoder(place), TRAINING, settings)
    found = learned(learner, place)
    images, _ = photographs(place)
    outputs = learner.task_probabilities(images), learner.expert_probabilities(images)
    return found, outputs, learner.predict_with_task_id(images, 1)


@covers(cpeft, "SequentialLora", "LoraOracle", "JointLora", "NearestMean", "ContinualLearner",
        "LoraTraining", "class_tasks", "learn_tasks", "predict", "ClassTask", "summary",
        "final_accuracy", "average_accuracy", "forgetting")  # fmt: skip
def other_learners(place):
    made = [kind(encoder(place), TRAINING)
            for kind in (cpeft.SequentialLora, cpeft.LoraOracle, cpeft.JointLora)]  # fmt: skip
    return [learned(learner, place) for learner in (*made, cpeft.NearestMean(encoder(place)))]


@covers(cpeft, "DualGPM", "InputMoment")
def old_spaces(place):
    memory, found = cpeft.DualGPM(6), []
    for seed in range(2):
        inputs = torch.randn(3, 6, generator=stream(seed)).to(place)
        moment = cpeft.InputMoment.of(inputs)
        found += [moment.merged(moment).matrix, moment.energy, memory.residual_energy(moment)]
        memory.update(moment, 0.7)
        left = memory.project_out(inputs)
        assert left.device == inputs.device
        found += [left, memory.old_rank]
    other = cpeft.DualGPM(6)
    other.load_state_dict(memory.state_dict())
    return found, other.free_rank


@covers(cpeft, "LoraBackbone")
def adapters(place):
    network = cpeft.LoraBackbone(encoder(place), layers=["1"], rank=2)
    images, _ = photographs(place)
    network.up("1").data.fill_(0.1)
    before, kept = network(images), network.adapters()
    network.merge()
    after = network(images)
    network.load_adapters(kept)
    return before, after, network(images), list(kept.values())


# Where to compute, and random streams -------------------------------------------------------------


@covers(device, "autocast", "available_devices", "choose_device", "compute_dtype", "hardware_name")
def devices(place):
    """Nobody is offered the strict device; code that is given it runs."""
    with device.autocast(place, "float32"), device.autocast(place):
        made = head(place)(torch.ones(2, 4, device=place))
    kinds = (
        str(device.compute_dtype(place)),
        device.available_devices(),
        device.hardware_name(place),
    )
    return made, kinds, str(device.choose_device())


@covers(seeding, "seed_everything", "deterministic", "generator", "numpy_generator")
def streams(place):
    def draw():
        seeding.seed_everything(3)
        return torch.rand(3, device=place)

    with seeding.deterministic():
        assert torch.equal(draw(), draw())
    own = torch.rand(3, generator=seeding.generator(0, "words")).to(place)
    return own, torch.from_numpy(seeding.numpy_generator(0, "words").random(3)).to(place)
