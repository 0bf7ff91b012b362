"""One step of training on every data set of the thesis: files, loader, network, search, update."""

import math

import pytest
import torch

from data_prep import celeba, cityscapes, load_tasks, nyuv2, open_tasks, pascal_context
from experiments.models.backbones import backbone_for
from experiments.mtl.tasks import (
    TABLE_COLUMNS,
    split_trunk,
    table_improvement,
    task_heads,
    task_loss,
    task_metric,
)
from ktlib.mtl import aggregator, apply_gradients
from ktlib.mtl.conflict import ConflictMeter
from tests.data_prep.small_multi_task import (
    CELEBA,
    SMALL_PASCAL,
    celeba_files,
    numpy_files,
    pascal_files,
    small_numpy_set,
)
from tests.data_prep.small_photographs import unpack

SIDE = 32


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """All sets on the disk, checked and recorded by data_prep as real ones are."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        for module in (cityscapes, nyuv2):
            small = small_numpy_set(module.DATA, (SIDE, SIDE))
            patch.setattr(module, "DATA", small)
            unpack(numpy_files(small.name, (SIDE, SIDE)), root / small.name)
            small.prepare(root)
        patch.setattr(pascal_context, "DATA", SMALL_PASCAL)
        unpack(pascal_files(), root / "pascal_context")
        SMALL_PASCAL.prepare(root)
        unpack(celeba_files(), root / "celeba")
        patch.setattr(celeba, "DATA", CELEBA)
        CELEBA.prepare(root)
        yield root


def loaded(data, split, root):
    """Images as numbers from 0 to 1, and targets."""
    if data == "pascal_context":
        both = open_tasks(data, split, root).in_memory(size=(SIDE, SIDE))
    else:
        both = load_tasks(data, split, root)
    images = both.images / 255 if both.images.dtype == torch.uint8 else both.images
    return both.tasks, images, both.targets


def length(tensors):
    return math.sqrt(sum(tensor.double().square().sum().item() for tensor in tensors))


CASES = {
    "celeba, resnet18": ("celeba", 40, ["layer4.1.conv2", "layer4.1.bn2"]),
    "cityscapes, segnet": ("cityscapes", 2, ["encoder.0.0.bn", "decoder.4.1.conv"]),
    "cityscapes, mtan": ("cityscapes", 2, ["segnet.decoder.4.0.bn", "decoder_passes.4.conv"]),
    "nyuv2, segnet": ("nyuv2", 3, ["decoder.4.1.bn"]),
    "nyuv2, mtan": ("nyuv2", 3, ["segnet.encoder.0.0.conv"]),
    "pascal_context, mobilenet_v2": ("pascal_context", 4, ["features.0.1", "aspp.projection.1"]),
    "pascal_context, mobilenet_v2, 5 tasks": ("pascal_context", 5, ["features.17.conv.2"]),
}


@pytest.mark.parametrize("case", CASES)
def test_a_step(case, root):
    data, number, layers = CASES[case]
    every_task, images, targets = loaded(data, "train", root)
    tasks = every_task[:number]
    names = [task.name for task in tasks]
    torch.manual_seed(0)
    trunk = split_trunk(backbone_for(data, case.split(", ")[1], 4), layers, names)
    assert trunk.shares_prefix
    assert set(layers) <= set(trunk.layers)
    heads = task_heads(tasks, trunk.trunk_of(names[0]))
    shared = trunk.shared_layers()
    own = {name: [*trunk.task_parameters(name), *heads[name].parameters()] for name in names}
    parameters = [*trunk.parameters(), *heads.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.02)

    def outputs(given):
        features = trunk(given)
        return {name: heads[name](features[name]) for name in names}

    def losses():
        found = outputs(images)
        return {task.name: task_loss(task, found[task.name], targets[task.name]) for task in tasks}

    meter, history = ConflictMeter(shared, (0.0,)), []
    for method in ("joint", "pcgrad"):
        before = losses()
        total = sum(before.values())
        expected = torch.autograd.grad(total, parameters, retain_graph=True, allow_unused=True)
        history.append(total.item())
        gradients = meter.observe(before, task_parameters=own)
        optimizer.zero_grad()
        apply_gradients(shared, gradients, aggregator(method, seed=0))
        if method == "joint":
            # Batch norms over few values magnify rounding: not number by number.
            off = [p.grad - gradient for p, gradient in zip(parameters, expected, strict=True)]
            assert length(off) < 1e-3 * length(expected)
        assert all(parameter.grad.isfinite().all() for parameter in parameters)
        optimizer.step()
    with torch.no_grad():
        history.append(sum(losses().values()).item())
    assert all(math.isfinite(value) for value in history)
    assert len(set(history)) == 3
    pairs = number * (number - 1) // 2
    assert meter.observations == 2
    assert max(meter.pairs.values()) == 2 * pairs
    assert 0 <= max(meter.scores(0.0).values()) <= 2 * pairs

    _, images, targets = loaded(data, "test", root)
    trunk.eval()
    heads.eval()
    with torch.no_grad():
        found = outputs(images)
    results = {}
    for task in tasks:
        score = task_metric(task)
        score.update(found[task.name], targets[task.name])
        results[task.name] = score.compute()
        assert all(math.isfinite(value) and value >= 0 for value in results[task.name].values())
    alone = {name: dict.fromkeys(result, 50.0) for name, result in results.items()}
    assert set(TABLE_COLUMNS[data]) <= set(results)
    assert math.isfinite(table_improvement(data, results, alone))
