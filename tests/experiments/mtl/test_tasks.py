"""Losses, scores and heads by the kind of a task, and Dm over what the thesis prints."""

import math

import pytest
import torch
from torch import nn

from data_prep import celeba, cityscapes, multi_fashion_mnist, nyuv2, pascal_context
from data_prep.common.multi_task import CHANNELS, Task
from experiments.models.mobilenet import Decoder
from experiments.models.mtan import MTAN
from experiments.models.segnet import SegNet
from experiments.mtl import dense
from experiments.mtl.tasks import (
    LOWER_IS_BETTER,
    TABLE_COLUMNS,
    split_trunk,
    table_improvement,
    task_head,
    task_heads,
    task_loss,
    task_metric,
)
from experiments.run.tables import thesis_table
from ktlib.mtl import split

TASKS = {
    "multi_fashion_mnist": multi_fashion_mnist.DATA.tasks,
    "celeba": celeba.TASKS,
    "cityscapes": cityscapes.DATA.tasks,
    "nyuv2": nyuv2.DATA.tasks,
    "pascal_context": pascal_context.TASKS,
}
KINDS = {
    "classes": Task("c", "classes", ("no", "yes")),
    "segmentation": Task("s", "segmentation", ("a", "b", "c")),
    **{kind: Task(kind, kind) for kind in ("depth", "normals", "saliency", "edges")},
}


def batch(kind, seed=0):
    """What a head gives, and targets, some of them without a value."""
    random = torch.Generator().manual_seed(seed)
    if kind == "classes":
        return torch.randn(6, 2, generator=random), torch.randint(2, (6,), generator=random)
    output = torch.randn(2, {"normals": 3, "segmentation": 3}.get(kind, 1), 4, 4, generator=random)
    if kind == "segmentation":
        return output, torch.randint(-1, 3, (2, 4, 4), generator=random).to(torch.int8)
    if kind in ("saliency", "edges"):
        return output, torch.randint(-1, 2, (2, 1, 4, 4), generator=random).float()
    target = torch.randn(output.shape, generator=random)
    target[..., 0] = 0
    return output, target


def test_all_kinds_are_covered():
    assert set(KINDS) == set(CHANNELS)


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("segmentation", dense.segmentation_loss),
        ("depth", dense.depth_loss),
        ("normals", dense.normals_loss),
        ("saliency", dense.balanced_cross_entropy),
        ("edges", lambda output, target: dense.balanced_cross_entropy(output, target, 0.95)),
    ],
)
def test_losses_of_dense_kinds(kind, expected):
    output, target = batch(kind)
    loss = task_loss(KINDS[kind], output.requires_grad_(), target)
    assert loss == expected(output, target)
    loss.backward()
    assert output.grad.isfinite().all()
    assert output.grad.any()


def test_cross_entropy_of_classes_by_hand():
    output = torch.tensor([[0.0, math.log(3)], [0.0, 0.0]])
    loss = task_loss(KINDS["classes"], output, torch.tensor([1, 0], dtype=torch.int8))
    assert loss.item() == pytest.approx((-math.log(3 / 4) + math.log(2)) / 2)


def test_scores_are_those_of_the_kind_with_shares_in_percent():
    results = {}
    for kind, task in KINDS.items():
        score = task_metric(task)
        for seed in range(2):
            score.update(*batch(kind, seed))
        results[kind] = score.compute()
        assert results[kind] == score.compute()
    assert {kind: set(result) for kind, result in results.items()} == {
        "classes": {"accuracy", "error"},
        "segmentation": {"miou", "pixel_accuracy"},
        "depth": {"absolute_error", "relative_error"},
        "normals": {"mean", "median", "within_11.25", "within_22.5", "within_30"},
        "saliency": {"max_f", "miou"},
        "edges": {"ods_f_approximate"},
    }
    known = {name for result in results.values() for name in result}
    errors = {"error", "absolute_error", "relative_error", "mean", "median"}
    assert known & errors == errors == LOWER_IS_BETTER
    right = sum(int((o.argmax(1) == t).sum()) for o, t in (batch("classes", s) for s in range(2)))
    assert results["classes"]["accuracy"] == pytest.approx(100 * right / 12)
    assert results["classes"]["error"] == pytest.approx(100 - 100 * right / 12)
    error = torch.cat([(o - t)[t != 0].abs() for o, t in (batch("depth", s) for s in range(2))])
    assert results["depth"]["absolute_error"] == pytest.approx(error.mean().item(), rel=1e-5)


def test_better_is_what_the_sign_says():
    for kind, task in KINDS.items():
        good, bad = task_metric(task), task_metric(task)
        output, target = batch(kind)
        perfect = {
            "classes": lambda t: nn.functional.one_hot(t).float(),
            "segmentation": lambda t: nn.functional.one_hot(t.long().clamp(min=0)).movedim(-1, 1),
            "saliency": lambda t: 10 * (2 * t - 1),
            "edges": lambda t: 10 * (2 * t - 1),
        }.get(kind, lambda t: t)(target)
        good.update(perfect, target)
        bad.update(output, target)
        for name, value in good.compute().items():
            other = bad.compute()[name]
            assert value < other if name in LOWER_IS_BETTER else value > other, name
            assert value == pytest.approx(0 if name in LOWER_IS_BETTER else 100, abs=0.1), name


def test_scores_of_maps_are_those_after_the_sigmoid():
    task = KINDS["saliency"]
    score = task_metric(task)
    # Probabilities 0.4875 and 0.5125: a threshold of 0.5 lies between them, none between -0.05 and
    # 0.05, the lowest being 0.2.
    score.update(torch.tensor([-0.05, 0.05]).view(1, 1, 1, 2), torch.tensor([[[[0.0, 1.0]]]]))
    assert score.compute() == {"max_f": pytest.approx(100), "miou": 100}


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match=r"output must have shape \(3, 2\). Found \(3, 5\)"):
        task_loss(KINDS["classes"], torch.zeros(3, 5), torch.zeros(3))
    with pytest.raises(ValueError, match=r"target must have shape \('any',\). Found \(3, 1\)"):
        task_loss(KINDS["classes"], torch.zeros(3, 2), torch.zeros(3, 1))
    for kind in set(KINDS) - {"classes"}:
        output, target = batch(kind)
        with pytest.raises(ValueError, match="must have shape"):
            task_loss(KINDS[kind], output[..., :2], target)
    with pytest.raises(ValueError, match="Found none so far"):
        task_metric(KINDS["classes"]).compute()


def test_heads_fit_their_kinds():
    for kind, task in KINDS.items():
        output, target = batch(kind)
        if kind == "classes":
            found = task_head(task, 5)(torch.randn(6, 5))
            assert found.shape == output.shape
            continue
        head = task_head(task, 4)
        assert [type(part) for part in head] == [nn.Conv2d, nn.Conv2d]
        assert [part.weight.shape[2:] for part in head] == [(3, 3), (1, 1)]
        assert not any(part.bias.any() for part in head)
        assert head(torch.randn(2, 4, 4, 4)).shape == output.shape
        decoder = task_head(task, 8, low_channels=2).eval()
        assert isinstance(decoder, Decoder)
        assert decoder(torch.randn(2, 8, 1, 1)).shape == output.shape
        assert task_loss(task, decoder(torch.randn(2, 8, 1, 1)), target).isfinite()


def test_heads_for_all_tasks_take_their_sizes_from_the_trunk():
    heads = task_heads(cityscapes.DATA.tasks, SegNet(3, 2))
    assert list(heads) == ["segmentation", "depth"]
    assert heads["segmentation"][1].weight.shape == (7, 2, 1, 1)
    assert heads["depth"][1].weight.shape == (1, 2, 1, 1)


def test_attention_is_each_tasks_own_and_drawn_anew():
    torch.manual_seed(0)
    network = MTAN(1, 1)
    chosen = "segnet.decoder.4.0.bn"
    trunk = split_trunk(network, [chosen], ["one", "two", "three"])
    assert set(trunk.layers) == {*network.attention_layers, chosen}
    name = "encoder_attention.0.conv1"
    first, second, third = (trunk.trunk_of(task).get_submodule(name).weight for task in trunk.tasks)
    assert torch.equal(first, network.get_submodule(name).weight)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)


def test_a_trunk_without_attention_is_split_as_ever():
    torch.manual_seed(0)
    network = SegNet(1, 1)
    layers = ["decoder.4.1.conv"]
    state = torch.get_rng_state()
    ours = split_trunk(network, layers, ["one", "two"], own_statistics=True)
    assert torch.equal(torch.get_rng_state(), state)
    theirs = split(network, layers, ["one", "two"], own_statistics=True)
    assert ours.layers == theirs.layers
    assert list(ours.state_dict()) == list(theirs.state_dict())


def test_columns_are_those_of_the_tables_and_metrics_those_of_the_scores():
    tables = {"multi_fashion_mnist": "4_1", "celeba": "4_2", "cityscapes": "4_3", "nyuv2": "4_5",
              "pascal_context": "4_4"}  # fmt: skip
    metrics = {}
    for kind, task in KINDS.items():
        score = task_metric(task)
        score.update(*batch(kind))
        metrics[kind] = set(score.compute())
    for data, number in tables.items():
        columns = {c for names in TABLE_COLUMNS[data].values() for c in names.values()}
        rest = {"base_method", "variant", "delta_m", "params_mb"}
        assert set(thesis_table(number).columns) == columns | rest
        kinds = {task.name: task.kind for task in TASKS[data]}
        for task, names in TABLE_COLUMNS[data].items():
            assert set(names) <= metrics[kinds[task]]


def row_of(data, row):
    """A printed row as the results of a run."""
    return {
        task: {metric: row[column] for metric, column in names.items()}
        for task, names in TABLE_COLUMNS[data].items()
    }


@pytest.mark.parametrize(("data", "number"), [("pascal_context", "4_4"), ("cityscapes", "4_3")])
def test_printed_improvements_follow_from_their_rows(data, number):
    rows = [
        row for row in thesis_table(number).to_dict("records") if row["base_method"] != "PCGrad"
    ]
    alone = row_of(data, rows[0])
    for row in rows[1:]:
        found = table_improvement(data, row_of(data, row), alone)
        # Depth errors of CityScapes are rounded by up to 0.4 % of 0.0128, and make a quarter.
        assert found == pytest.approx(row["delta_m"], abs=0.3 if data == "cityscapes" else 0.02)


def test_what_is_not_in_the_table_does_not_count():
    rows = thesis_table("4_4").to_dict("records")
    alone, run = row_of("pascal_context", rows[0]), row_of("pascal_context", rows[1])
    before = table_improvement("pascal_context", run, alone)
    more = {**run, "edges": {"ods_f_approximate": 3.0}}
    more["saliency"] = {**run["saliency"], "max_f": 1.0}
    assert table_improvement("pascal_context", more, alone) == before


def test_missing_results_are_named():
    run = {"digit": {"accuracy": 1.0}, "item": {"error": 1.0}}
    with pytest.raises(
        ValueError, match="single_task must have the metrics accuracy of item. Found"
    ):
        table_improvement("multi_fashion_mnist", {**run, "item": {"accuracy": 2.0}}, run)
    with pytest.raises(ValueError, match="results must have the metrics error of 5_o_Clock_Shadow"):
        table_improvement("celeba", {}, {})
    with pytest.raises(ValueError, match="data must be one of multi_fashion_mnist, .*='coco'"):
        table_improvement("coco", {}, {})
