"""The lines of README and docstrings run on models of one's own, and train what they say."""

import copy
import inspect
import re
import textwrap
from collections import OrderedDict
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import ktlib.fcl
import ktlib.mtl
from experiments.ila.adapters import with_lora
from experiments.models.language import tiny_language_model
from experiments.run.chapter_source import code_cells
from tests.book.test_documents import blocks
from tests.paths import ROOT

FEW_SHOT, MULTI_TASK, LANGUAGE, CONTINUAL = blocks(ROOT / "README.md", "python")
SGD = partial(torch.optim.SGD, lr=0.05, momentum=0.9, weight_decay=1e-3)
ADAM = partial(torch.optim.AdamW, lr=0.01)
optimisers = pytest.mark.parametrize("make", [SGD, ADAM], ids=["sgd", "adam"])


def literal(documented):
    """The code in a docstring."""
    found = re.search(r"::\n\n((?: {4}.*\n|\n)+)", f"{inspect.getdoc(documented)}\n")
    return textwrap.dedent(found[1])


def chapter(name):
    """The loop over batches in a cell of a chapter."""
    cells = code_cells(ROOT / "chapters" / f"{name}.py")
    (loop,) = (cell.source for cell in cells if "for images, labels in batches:" in cell.source)
    return loop


FLOAT16 = """
meter, pcgrad, scaler = ConflictMeter(trunk), aggregator("pcgrad"), torch.amp.GradScaler("cpu")
for images, labels in batches:
    optimizer.zero_grad()
    losses = {task: loss(heads[task](trunk(images)), labels[task]) for task in labels}
    own = {task: heads[task].parameters() for task in losses}
"""
FEW_SHOT_LOOPS = {"README": FEW_SHOT, "docstring": literal(ktlib.fcl)}
MULTI_TASK_LOOPS = {
    "README": MULTI_TASK,
    "docstring": literal(ktlib.mtl),
    "chapter": chapter("recon"),
    "float16": FLOAT16 + textwrap.indent(literal(ktlib.mtl.ConflictMeter.observe), "    "),
}


def state(module):
    return [p.detach().clone() for p in module.parameters()]


def moved(module, before):
    """Whether all of its parameters moved; None if some did."""
    each = {not torch.equal(p, old) for p, old in zip(module.parameters(), before, strict=True)}
    return each.pop() if len(each) == 1 else None


def convolutional(count):
    layers = [nn.Conv2d(1 if i == 0 else 4, 4, 3, padding=1) for i in range(count)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten())


@optimisers
@pytest.mark.parametrize("loop", FEW_SHOT_LOOPS)
def test_f2m_on_a_network_of_ones_own(loop, make):
    torch.manual_seed(0)
    network, classifier = convolutional(5), nn.Linear(4, 3)
    images, labels = torch.rand(6, 1, 8, 8), torch.arange(6) % 3

    def batches():
        for _ in range(3):
            before = state(network), state(classifier)
            yield images, labels
            assert moved(network, before[0])
            assert moved(classifier, before[1])

    names = vars(ktlib.fcl) | {
        "network": network, "backbone": network, "classifier": classifier, "images": images,
        "shots": images, "shot_labels": labels + 3, "base_labels": torch.arange(3),
        "prototypes": torch.randn(3, 4), "noise": torch.Generator().manual_seed(0),
        "batches": batches(), "optimizer": make([*network.parameters(), *classifier.parameters()]),
    }  # fmt: skip
    exec(FEW_SHOT_LOOPS[loop], names)  # noqa: S102 - our own document
    assert names["split"].shares_prefix
    assert names["region"].contains()
    with torch.no_grad():
        network[4].weight.add_(1)
    assert not names["region"].contains()
    names["region"].clamp_()
    assert names["region"].contains()
    assert loop != "README" or names["flat"].indicator >= 0


@optimisers
@pytest.mark.parametrize("loop", MULTI_TASK_LOOPS)
def test_a_task_without_labels_in_a_batch_keeps_its_head(loop, make):
    """Also with momentum and weight decay, of the batches before."""
    torch.manual_seed(0)
    trunk = convolutional(3)
    heads = {task: nn.Linear(4, 3) for task in ("left", "right", "up")}
    everything = [p for module in (trunk, *heads.values()) for p in module.parameters()]

    def batches():
        for present in (["left", "right", "up"], ["left", "up"], ["up", "right"], list(heads)):
            before = state(trunk), {task: state(head) for task, head in heads.items()}
            labels = {task: torch.randint(3, (6,)) for task in present}
            yield torch.rand(6, 1, 8, 8), labels
            assert moved(trunk, before[0])
            for task, head in heads.items():
                assert moved(head, before[1][task]) == (task in present), task

    names = vars(ktlib.mtl) | {
        "torch": torch, "copy": copy, "trunk": trunk, "heads": heads, "loss": F.cross_entropy,
        "batches": batches(), "optimizer": make(everything),
    }  # fmt: skip
    exec(MULTI_TASK_LOOPS[loop], names)  # noqa: S102 - our own document
    assert names["meter"].observations == 4
    if loop != "float16":
        assert names["network"].layers
        assert names["network"].shares_prefix
        assert set(names["network"](names["images"])) == set(heads)
    if loop == "README":
        assert {(row["first"], row["second"]) for row in names["pairs"]} == {
            ("left", "right"), ("left", "up"), ("right", "up")
        }  # fmt: skip


@optimisers
def test_ila_on_a_language_model_of_ones_own(tmp_path, monkeypatch, make):
    tokens = torch.arange(24).reshape(2, 12)
    batch = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens), "labels": tokens}
    names = {"model": with_lora(tiny_language_model()[0], rank=2, seed=0), "batches": [batch] * 3}
    model = names["model"]
    optimizer = make([p for p in model.parameters() if p.requires_grad])

    def train():
        for _ in range(2):
            optimizer.zero_grad()
            model(**batch).loss.backward()
            optimizer.step()

    train()
    monkeypatch.chdir(tmp_path)
    exec(LANGUAGE, names)  # noqa: S102 - our own document
    count = len(names["ranking"].names)
    assert len(names["config"].target_modules) == round(0.3 * count)
    assert len(names["frozen"]) == count - round(0.75 * count)
    before = copy.deepcopy(model.state_dict())
    train()
    for name, parameter in model.named_parameters():
        frozen = "lora" not in name or any(f"{layer}.lora" in name for layer in names["frozen"])
        assert torch.equal(parameter, before[name]) == frozen, name


def test_many_tasks_on_an_encoder_of_ones_own():
    parts = {"flat": nn.Flatten(), "key": nn.Linear(64, 64), "act": nn.Tanh()}
    encoder = nn.Sequential(OrderedDict(parts, value=nn.Linear(64, 8)))
    encoder.dim = 8
    labels = torch.arange(120) % 10
    pool = F.one_hot(labels, 64).float().reshape(-1, 1, 8, 8)
    pool += 0.01 * torch.randn(120, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    names = {"images": pool, "labels": labels, "test_images": pool, "test_labels": labels}
    names["encoder"] = encoder
    exec(CONTINUAL, names)  # noqa: S102 - our own document
    assert len(names["rows"]) == 15
