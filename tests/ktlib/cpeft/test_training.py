"""Training on one task: what is trained, in which mode, and what stops it."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.heads import JoinedHead
from ktlib.cpeft.training import LoraTraining, features_of, train_task
from ktlib.seeding import generator

SETTINGS = {"layers": ["key"], "rank": 2, "epochs": 4, "batch_size": 20, "lr": 0.02, "seed": 0}


@pytest.fixture
def lora(tiny_vit):
    return LoraBackbone(tiny_vit, layers=["key", "value"], rank=2)


@pytest.fixture
def head(lora, device):
    joined = JoinedHead(lora.dim).to(device)
    joined.add(torch.arange(3), seed=0)
    return joined


def train(lora, head, data, rows=None, seed=0, parameters=None, loss_extra=None, **settings):
    rows = torch.arange(48) if rows is None else rows
    parameters = parameters or [*lora.trained(), *head.parameters()]
    return train_task(
        lora, head, parameters, data.images, data.labels, rows, LoraTraining(**SETTINGS | settings),
        rng=generator(seed, "batches"), loss_extra=loss_extra,
    )  # fmt: skip


def test_a_task_is_learned_by_adapters_and_head_alone(lora, head, tiny_data, device):
    backbone = {n: v.clone() for n, v in lora.state_dict().items() if "lora_" not in n}
    adapters = lora.adapters()
    history = train(lora, head, tiny_data)
    assert len(history) == 4
    assert history[-1] < 0.5 * history[0]
    scores = head(lora(tiny_data.test_images[:24].to(device)))
    assert (scores.argmax(1).cpu() == tiny_data.test_labels[:24]).float().mean() > 0.9
    assert all(torch.equal(lora.state_dict()[n], v) for n, v in backbone.items())
    assert not any(torch.equal(adapters[n], v) for n, v in lora.adapters().items())


def test_only_the_rows_are_seen_and_the_seed_decides_their_order(lora, head, tiny_data):
    seen = []

    class Watched:
        def __getitem__(self, rows):
            seen.append(rows)
            return tiny_data.images[rows]

    data = copy.copy(tiny_data)
    data.images = Watched()
    data.labels = torch.where(tiny_data.labels < 2, tiny_data.labels, -1)  # of no column
    rows = torch.arange(5, 30)
    first = train(copy.deepcopy(lora), copy.deepcopy(head), data, rows)
    assert [len(part) for part in seen[:4]] == [20, 5, 20, 5]
    assert torch.cat(seen[:2]).sort().values.tolist() == rows.tolist()
    assert not torch.equal(seen[0], seen[2])
    assert train(copy.deepcopy(lora), copy.deepcopy(head), data, rows) == first
    assert train(copy.deepcopy(lora), copy.deepcopy(head), data, rows, seed=1) != first


def test_the_first_loss_is_the_mean_cross_entropy_over_images(lora, head, tiny_data, device):
    """With batches of different sizes, at a learning rate that changes nothing."""
    history = train(lora, head, tiny_data, epochs=1, batch_size=32, lr=1e-12)
    scores = head(lora(tiny_data.images[:48].to(device)))
    expected = F.cross_entropy(scores, tiny_data.labels[:48].to(device)).item()
    assert history == [pytest.approx(expected, rel=1e-4)]


def test_every_rate_falls_to_zero_along_a_cosine(lora, head, tiny_data, monkeypatch):
    rates = []

    class Noting(torch.optim.Adam):
        def step(self, *given):
            rates.append([group["lr"] for group in self.param_groups])
            return super().step(*given)

    monkeypatch.setattr(torch.optim, "Adam", Noting)
    slow = {"params": lora.trained(), "lr": 0.04}
    groups = [slow, {"params": list(head.parameters())}]
    train(lora, head, tiny_data, epochs=2, batch_size=24, lr=0.4, parameters=groups)
    for group, first in enumerate((0.04, 0.4)):
        expected = [first, 0.8536 * first, first / 2, 0.1464 * first]
        assert [each[group] for each in rates] == pytest.approx(expected, rel=1e-3)


def test_a_further_term_gets_the_rows_of_the_batch_and_its_scores(lora, head, tiny_data):
    seen = []

    def term(rows, scores):
        seen.append((rows, tuple(scores.shape)))
        return 10 + 0 * scores.sum()

    plain = train(copy.deepcopy(lora), copy.deepcopy(head), tiny_data, epochs=1)
    more = train(lora, head, tiny_data, epochs=1, loss_extra=term)
    assert [shape for _, shape in seen] == [(20, 3), (20, 3), (8, 3)]
    assert torch.cat([rows for rows, _ in seen]).sort().values.tolist() == list(range(48))
    assert more[0] == pytest.approx(plain[0] + 10, rel=1e-5)


def test_there_is_no_dropout_and_norms_keep_their_statistics(tiny_data, device):
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.BatchNorm1d(8), nn.Dropout(0.9))
    network = network.to(device).train()
    head = nn.Linear(8, 3).to(device)
    train_task(
        network, head, list(head.parameters()), tiny_data.images, tiny_data.labels,
        torch.arange(48), LoraTraining(**SETTINGS), rng=generator(0, "x"),
    )  # fmt: skip
    assert not network.training
    assert not network[2].running_mean.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1. Found epochs=0"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0. Found lr=0.0"),
        ({"rows": torch.arange(0)}, "rows must be of images .* Found 0 rows"),
    ],
)
def test_bad_settings_are_told(lora, head, tiny_data, settings, message):
    with pytest.raises(ValueError, match=message):
        train(lora, head, tiny_data, **settings)


def test_images_of_another_task_are_refused(lora, head, tiny_data):
    tiny_data.labels[3] = -1
    with pytest.raises(ValueError, match="labels must be columns .* Found -1"):
        train(lora, head, tiny_data)


def test_a_loss_that_is_not_finite_stops_the_training(lora, head, tiny_data):
    with pytest.raises(FloatingPointError, match="nan in epoch 1 of 4: lower lr=0.02"):
        train(lora, head, tiny_data, loss_extra=lambda _, scores: scores.sum() * float("nan"))


def test_features_come_batch_by_batch_and_without_gradients(tiny_vit, tiny_data, device):
    rows = torch.tensor([5, 1, 90, 7, 40])
    found = features_of(tiny_vit, tiny_data.images, rows, batch_size=2)
    torch.testing.assert_close(found, tiny_vit(tiny_data.images[rows].to(device)).detach())
    assert not found.requires_grad
