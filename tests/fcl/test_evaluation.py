"""The protocol as it is played: what each session sees, and what is counted."""

import pytest
import torch
from torch import nn

from ktlib.fcl import embed, few_shot_sessions, run_sessions, split_network

NAMES = ["session", "accuracy", "base_accuracy", "new_accuracy"]


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


def play(line, test=None, **options):
    split, sessions, images, labels = line
    return run_sessions(split, sessions, images, labels, *(test or (images, labels)), **options)


def test_one_row_a_session(line):
    rows = play(line, normalise=False)
    assert [list(row) for row in rows] == [NAMES] * 3
    assert [row["session"] for row in rows] == [1, 2, 3]
    assert rows[0]["new_accuracy"] is None
    assert [row["accuracy"] for row in rows] == [100.0] * 3


def test_normalisation_is_used(line):
    """On a line all positive prototypes have one direction: normalised, they are one point."""
    assert play(line, normalise=True)[0]["accuracy"] == 50.0


def test_counts_by_hand(line):
    """Two base test images of four carry a wrong label, as do none of the new ones."""
    _, sessions, images, labels = line
    first, second = sessions[0].classes.tolist()
    chosen = torch.cat([s.train for s in sessions])
    test_images, test_labels = images[chosen], labels[chosen].clone()
    wrong = (test_labels == first).nonzero().squeeze(1)[:2]
    test_labels[wrong] = second
    rows = play(line, (test_images, test_labels), normalise=False)
    assert rows[0]["base_accuracy"] == rows[0]["accuracy"] == 75.0  # 8 base images
    assert rows[-1]["base_accuracy"] == 75.0
    assert rows[-1]["new_accuracy"] == 100.0
    assert rows[-1]["accuracy"] == pytest.approx(100 * 14 / 16)


def test_test_images_of_unseen_classes_do_not_count(line):
    _, sessions, images, labels = line
    unseen = ~torch.isin(labels, sessions[0].classes)
    changed = images.clone()
    changed[unseen] = 0.0
    assert play(line, (changed, labels), normalise=False)[0]["accuracy"] == 100.0


def test_later_sessions_see_new_shots_alone(line):
    """No base image after session 1, no test image ever."""
    _, sessions, images, labels = line
    seen = []

    def learn(shots, shot_labels, prototypes, base_classes):
        seen.append((shots, shot_labels))
        assert torch.equal(base_classes, sessions[0].classes)
        assert len(prototypes) == 2

    play(line, (images + 0.05, labels), learn=learn, normalise=False)
    kept = [torch.cat([s.train for s in sessions[1:n]]) for n in (2, 3)]
    for (shots, shot_labels), positions in zip(seen, kept, strict=True):
        assert torch.equal(shots, images[positions])
        assert torch.equal(shot_labels, labels[positions])
        assert not torch.isin(shot_labels, sessions[0].classes).any()


def test_base_prototypes_are_the_saved_ones_and_new_ones_follow_the_network(line):
    """Doubling the weight moves every embedding; base images then miss the saved prototypes."""
    split, *_ = line

    def double(*_):
        with torch.no_grad():
            split.network[0].weight.fill_(2.0)

    rows = play(line, learn=double, normalise=False)
    assert rows[0]["base_accuracy"] == 100.0
    assert rows[-1]["base_accuracy"] < 100.0
    assert rows[1]["new_accuracy"] == 100.0


def test_without_learning_nothing_moves(line):
    split, *_ = line
    before = {name: value.clone() for name, value in split.network.state_dict().items()}
    play(line)
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
