"""The protocol as it is played: what each session sees, and what is counted."""

import pytest
import torch
from torch import nn

from experiments.fcl.baselines import Finetune, NearestMean, nearest_mean, run_learner
from ktlib.fcl import embed, few_shot_sessions, split_network

NAMES = ["session", "accuracy", "base_accuracy", "new_accuracy", "harmonic"]


@pytest.fixture
def line():
    """Six classes on a line: class c has images c + 1 plus a small offset; identity network."""
    labels = torch.arange(6).repeat_interleave(4)
    images = (labels + 1.0)[:, None] + torch.tensor([0.0, 0.1, 0.2, 0.3]).repeat(6)[:, None]
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(network[0].weight)
    sessions = few_shot_sessions(
        labels, base_classes=2, sessions=2, ways=2, shots=2, class_seed=0, seed=0
    )
    return split_network(network, ["0"]), sessions, images, labels


@pytest.fixture
def learn_as(monkeypatch):
    """Put a function in the place of what `Finetune` does to the network in a session."""

    def put(learn):
        def learn_session(*given, facts, **options):
            facts |= {"data": 0.0, "penalty": 0.0, "proximal": 0.0}
            learn(*given, **options)

        monkeypatch.setattr(nearest_mean, "learn_session", learn_session)

    return put


def accuracies(line, test=None, method=NearestMean, **options):
    split, sessions, images, labels = line
    learner = method(split, **options)
    return run_learner(learner, sessions, images, labels, *(test or (images, labels))).rows


def test_one_row_a_session(line):
    rows = accuracies(line, normalise=False)
    assert [list(row) for row in rows] == [NAMES] * 3
    assert [row["session"] for row in rows] == [1, 2, 3]
    assert rows[0]["new_accuracy"] is None
    assert [row["accuracy"] for row in rows] == [100.0] * 3


@pytest.mark.parametrize(
    ("method", "options"), [(NearestMean, {}), (Finetune, {"epochs": 1, "lr": 1e-30})]
)
def test_normalisation_is_used(line, method, options):
    """On a line all positive prototypes have one direction: normalised, they are one point."""
    assert accuracies(line, method=method, **options)[0]["accuracy"] == 50.0
    assert accuracies(line, method=method, **options, normalise=False)[0]["accuracy"] == 100.0


def test_counts_by_hand(line):
    """Two base test images of four carry a wrong label, as do none of the new ones."""
    _, sessions, images, labels = line
    first, second = sessions[0].classes.tolist()
    chosen = torch.cat([s.train for s in sessions])
    test_images, test_labels = images[chosen], labels[chosen].clone()
    wrong = (test_labels == first).nonzero().squeeze(1)[:2]
    test_labels[wrong] = second
    rows = accuracies(line, (test_images, test_labels), normalise=False)
    assert rows[0]["base_accuracy"] == rows[0]["accuracy"] == 75.0  # 8 base images
    assert rows[-1]["base_accuracy"] == 75.0
    assert rows[-1]["new_accuracy"] == 100.0
    assert rows[-1]["accuracy"] == pytest.approx(100 * 14 / 16)


def test_test_images_of_unseen_classes_do_not_count(line):
    _, sessions, images, labels = line
    unseen = ~torch.isin(labels, sessions[0].classes)
    changed = images.clone()
    changed[unseen] = 0.0
    assert accuracies(line, (changed, labels), normalise=False)[0]["accuracy"] == 100.0


def test_later_sessions_see_new_shots_alone(line, learn_as):
    """No base image after session 1, no test image ever."""
    _, sessions, images, labels = line
    seen = []

    def learn(split, region, shots, shot_labels, prototypes, base_classes, **options):
        seen.append((shots, shot_labels, prototypes))
        assert torch.equal(base_classes, sessions[0].classes.sort().values)

    learn_as(learn)
    test = images + 0.05, labels
    accuracies(line, test, method=Finetune, epochs=1, lr=0.1, normalise=False)
    kept = [torch.cat([s.train for s in sessions[1:n]]) for n in (2, 3)]
    base = images[sessions[0].train], labels[sessions[0].train]
    means = [base[0][base[1] == label].mean() for label in sessions[0].classes.sort().values]
    for (shots, shot_labels, prototypes), positions in zip(seen, kept, strict=True):
        # No two images are equal here. Exemplars come in the order of their classes.
        order, expected = shots[:, 0].argsort(), positions[images[positions, 0].argsort()]
        assert torch.equal(shots[order], images[expected])
        assert torch.equal(shot_labels[order], labels[expected])
        assert not torch.isin(shot_labels, sessions[0].classes).any()
        torch.testing.assert_close(prototypes, torch.stack(means)[:, None])


def test_base_prototypes_are_the_saved_ones_and_new_ones_follow_the_network(line, learn_as):
    """Doubling the weight moves every embedding; base images then miss the saved prototypes."""
    split, *_ = line

    def double(*_, **options):
        with torch.no_grad():
            split.network[0].weight.fill_(2.0)

    learn_as(double)
    rows = accuracies(line, method=Finetune, epochs=1, lr=0.1, normalise=False)
    assert rows[0]["base_accuracy"] == 100.0
    assert rows[-1]["base_accuracy"] < 100.0
    assert rows[1]["new_accuracy"] == 100.0


def test_without_learning_nothing_moves(line):
    split, *_ = line
    before = {name: value.clone() for name, value in split.network.state_dict().items()}
    accuracies(line)
    after = split.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_embed_keeps_the_mode_and_needs_no_gradient():
    module = nn.Sequential(nn.Linear(2, 3), nn.Dropout(0.5)).train()
    images = torch.randn(7, 2)
    found = embed(module, images, batch_size=3)
    assert module.training
    assert not found.requires_grad
    torch.testing.assert_close(found, module[0](images))


def test_embedding_with_a_half_leaves_the_layers_of_the_network_in_their_mode(split, batch):
    """The halves share layers with the network, and a mode of their own."""
    split.network.eval()
    embed(split.tail, embed(split.prefix, batch[0]))
    assert not any(layer.training for layer in split.network.modules())
    split.network.train()
    split.network.bn1.eval()
    embed(split.network, batch[0])
    assert split.network.layer1.training
    assert not split.network.bn1.training
