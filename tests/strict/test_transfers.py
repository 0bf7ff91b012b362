"""How often a step waits for the device: an implicit transfer in a loop would stall a GPU.

Counted are the operations of one step more, so that what comes before and after a loop is left out.
The numbers are the least that were reached; raise one only for a reason that is worth the wait.
"""

from collections import Counter

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ktlib import cpeft, fcl, ila, mtl
from ktlib.cpeft.heads import JoinedHead
from ktlib.cpeft.statistics import ClassStatistics, align_head
from tests.ktlib.ila.conftest import add_lora, make_batches, make_llama
from tests.strict import public
from tests.strict_device import recorded


def waits_in_a_step(loop, place):
    """Names of the operations that a further step of a loop waits for."""
    counts = []
    for steps in (2, 3):
        with recorded() as record:
            loop(place, steps)
        counts.append(Counter([*record.reads, *record.waits]))
    return counts[1] - counts[0]


def recon(name, **options):
    def loop(place, steps):
        trunk, method = public.convolutions(place), mtl.aggregator(name, **options)
        meter = mtl.ConflictMeter(trunk)
        for _ in range(steps):
            public.step(trunk, meter, method, place)

    return loop


def recon_gramians(name):
    def loop(place, steps):
        trunk, method = public.convolutions(place), mtl.aggregator(name)
        meter = mtl.ConflictMeter(trunk)
        for _ in range(steps):
            losses, heads = public.two_losses(trunk, place)
            own = {task: list(head.parameters()) for task, head in heads.items()}
            gramians = meter.observe_gramians(losses, task_parameters=own, retain_graph=True)
            mtl.apply_gramians(trunk, losses, gramians, method)

    return loop


def base_session(make_loss, **options):
    def loop(place, steps):
        split, classifier = public.cut(place), public.head(place)
        settings = fcl.BaseTraining(epochs=1, batch_size=6, lr=0.1, padding=1, flip=True, **options)
        pool = public.photographs(place, 6 * steps)
        loss = make_loss(split, classifier)
        fcl.train_base(split.network, classifier, *pool, loss, settings, generator=public.stream())

    return loop


def plain(split, classifier):
    return lambda images, labels: F.cross_entropy(classifier(split.network(images)), labels)


def f2m(variant):
    def make(split, classifier):
        noise = public.stream()

        def loss(images, labels):
            return fcl.f2m_loss(
                split, classifier, images, labels, bound=0.1, draws=2, prototype_weight=1.0,
                generator=noise, variant=variant,
            ).total  # fmt: skip

        return loss

    return make


def few_shot_session(variant):
    def loop(place, steps):
        split, pool = public.cut(place), public.photographs(place)
        old = torch.tensor([7, 9], device=place)
        region = fcl.FlatRegion(split.tuned, bound=0.01)
        means, options = torch.ones(2, 4, device=place), {"epochs": steps, "lr": 0.1}
        fcl.learn_session(split, region, *pool, means, old, **options, variant=variant)

    return loop


def flatness(place, steps):
    pool = public.cut(place), public.head(place), *public.photographs(place)
    fcl.flatness(*pool, bound=0.1, generator=public.stream(), draws=steps)


def stage_2(place, steps):
    model, batches = public.adapted(place), public.rows_of_numbers(place)
    ila.rank_layers(
        model, batches, loss=public.mean_square, steps=steps, penalty=0.1, snapshot_every=100
    )


def stage_2_full(place, steps):
    full = nn.Sequential(public.head(place, 6))
    before = {name: torch.zeros_like(value) for name, value in full.named_parameters()}
    options = {"loss": public.mean_square, "steps": steps, "snapshot_every": 100}
    ila.rank_layers_full(full, before, public.rows_of_numbers(place), **options)


def stage_2_of_a_language_model(place, steps):
    """Two of its reads are of transformers, which looks at the mask."""
    model = add_lora(make_llama(), targets=("q_proj", "down_proj")).to(place)
    ila.rank_layers(model, make_batches(1), steps=steps, snapshot_every=100)


def first_order(place, steps):
    batches = [torch.ones(2, 6, device=place)] * steps
    ila.first_order_scores(public.adapted(place), batches, loss=public.mean_square)


def first_order_of_a_training(place, steps):
    model = public.adapted(place)
    scores = ila.FirstOrderScores(model)
    for _ in range(steps):
        public.mean_square(model, torch.ones(2, 6, device=place)).backward()
        scores.step(scale=2.0)
    scores.ranking()


def continual(make, tasks=1):
    """The steps of one task, or those of the first and the second together."""

    def loop(place, steps):
        count = 8 * steps
        training = cpeft.LoraTraining(
            layers=["1", "3"], rank=2, epochs=1, batch_size=4 * tasks, lr=0.01, seed=0
        )
        images, _ = public.photographs(place, count * tasks)
        labels = (torch.arange(len(images)) % (2 * tasks)).to(place)
        learner = make(public.encoder(place), training)
        for task in cpeft.class_tasks(labels, classes=range(2 * tasks), tasks=tasks):
            learner.learn(task, images, labels)

    return loop


def cooperating(encoder, training):
    settings = cpeft.L2CSettings(selector_lr=0.001, consistency=0.5, align_steps=1)
    return cpeft.L2C(encoder, training, settings)


def alignment(place, steps):
    head, statistics = JoinedHead(4).to(place), ClassStatistics(4)
    head.add(torch.tensor([0, 1]), 0)
    features = torch.randn(8, 4, generator=public.stream()).to(place)
    statistics.add(features, torch.arange(8) % 2)
    align_head(head, statistics, steps=steps, lr=0.1, per_class=3, seed=0)


LOOPS = {
    "joint": (recon("joint"), 1),
    **{
        name: (recon(name), 2)  # which tasks have a gradient, or the weights of their Gramian
        for name in (
            *("graddrop", "config", "mgda", "pcgrad", "cagrad", "imtl_g", "fairgrad"),
            *("gradvac", "aligned_mtl"),
        )
    },
    "joint from Gramians": (recon_gramians("joint"), 1),
    "pcgrad from Gramians": (recon_gramians("pcgrad"), 1),
    "base session": (base_session(plain), 0),
    "base session with SAM": (base_session(plain, sam_radius=0.05), 0),
    # For each prototype, which classes are in the batch: those without noise, and of two draws.
    "F2M": (base_session(f2m(fcl.PRINTED)), 3),
    "F2M as released": (base_session(f2m(fcl.RELEASED)), 3),
    "few-shot session": (few_shot_session(fcl.PRINTED_SESSION), 3),
    "few-shot session as released": (few_shot_session(fcl.RELEASED_SESSION), 3),
    "flatness, a draw": (flatness, 0),
    "stage 2 of ILA": (stage_2, 2),
    "stage 2 of ILA, full": (stage_2_full, 2),
    "stage 2 of ILA, Llama": (stage_2_of_a_language_model, 4),
    "first-order scores, a batch": (first_order, 2),
    "first-order scores, a step of training": (first_order_of_a_training, 0),
    "InfLoRA": (continual(lambda encoder, training: cpeft.InfLora(encoder, training, tasks=1)), 0),
    "L2C": (continual(cooperating), 0),
    "L2C, two tasks": (continual(cooperating, tasks=2), 0),
    "alignment": (alignment, 1),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:.* scores are below the start")
@pytest.mark.parametrize("name", LOOPS)
def test_a_step_waits_no_oftener(name, strict):
    loop, least = LOOPS[name]
    found = waits_in_a_step(loop, strict)
    assert found.total() <= least, found
