"""RotoGrad: what is rotated, what is scaled, and that it is the library's."""

import copy
import pickle

import pytest
import torch
from pytorch_optimizer.optimizer import rotograd as library
from torch import nn
from torch.nn.utils.parametrizations import orthogonal

from experiments.mtl.architectures.rotograd import RotoGrad
from experiments.mtl.network import MultiTaskNetwork
from ktlib.mtl import forward_flops, layers_of, split

TASKS = ("left", "right")


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def trunk():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


def network(layers=(), tasks=TASKS):
    return MultiTaskNetwork(
        split(trunk(), layers, tasks), {task: nn.Linear(4, 2) for task in tasks}
    )


def loss_of(output, i):
    return (i + 1) * (output - i).square().mean()


def losses_of(outputs):
    return {task: loss_of(output, i) for i, (task, output) in enumerate(outputs.items())}


def optimiser_of(model, lr=0.05, rotation_lr=0.5):
    groups = [
        {"params": model.network_parameters()},
        {"params": model.rotation_parameters(), "lr": rotation_lr},
    ]
    return torch.optim.SGD(groups, lr=lr)


def train(model, batches, optimiser):
    for batch in batches:
        optimiser.zero_grad()
        model.backward(losses_of(model(batch)))
        optimiser.step()


def batches(count, seed=1):
    return list(torch.randn(count, 6, 3, generator=torch.Generator().manual_seed(seed)))


def test_at_first_it_is_the_network_itself():
    inner = network()
    model = RotoGrad(inner, feature_dim=4)
    batch = batches(1)[0]
    for mode in (True, False):
        for task, output in model.train(mode)(batch).items():
            torch.testing.assert_close(output, inner(batch)[task])
    assert list(inner.state_dict()) == list(network().state_dict())
    assert model.own_parameters() == inner.own_parameters()
    assert model.shared_layers() == inner.shared_layers()


@pytest.mark.parametrize("layers", [[], ["2"]])
def test_the_rotations_are_exact_where_the_network_is_in_half_precision(layers):
    model, batch = RotoGrad(network(layers), feature_dim=4), batches(1)[0]
    exact = copy.deepcopy(model)
    exact.backward(losses_of(exact(batch)))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        losses = losses_of(model(batch))
    assert {features.dtype for features in model.features(batch).values()} == {torch.float32}
    model.backward(losses)
    for mine, expected in zip(model.parameters(), exact.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, expected.grad, rtol=0.05, atol=0.02)


@pytest.mark.parametrize("layers", [[], ["2"], ["0", "2"]])
def test_gradients_of_the_first_step_by_hand(layers):
    """All tasks weigh the same: gradients on the features get the mean of their lengths."""
    inner = network(layers)
    model = RotoGrad(copy.deepcopy(inner), feature_dim=4)
    batch = batches(1)[0]
    model.backward(losses_of(model(batch)))
    features = inner.features(batch)
    losses = losses_of({task: inner.output(task, features[task]) for task in TASKS})
    gradients = {
        task: torch.autograd.grad(losses[task], features[task], retain_graph=True)[0]
        for task in TASKS
    }
    length = sum(g.norm() for g in gradients.values()) / 2
    for task in TASKS:
        features[task].backward(length * gradients[task] / gradients[task].norm(),
                                retain_graph=True)  # fmt: skip
    for name, parameter in inner.trunk.named_parameters():
        found = model.network.trunk.get_parameter(name).grad
        torch.testing.assert_close(found, parameter.grad, msg=name)
    for i, task in enumerate(TASKS):
        inner.heads[task].zero_grad()
        loss_of(inner(batch)[task], i).backward()
        for mine, theirs in zip(
            model.network.heads[task].parameters(), inner.heads[task].parameters(), strict=True
        ):
            torch.testing.assert_close(mine.grad, theirs.grad)


def test_it_is_the_librarys(monkeypatch):
    """Rotations, trunk and heads after steps on both sides of the burn-in."""

    def with_torch(module, name, triv):
        assert triv == "expm"
        orthogonal(module, name, orthogonal_map="matrix_exp")

    monkeypatch.setattr(library, "HAS_GEOTORCH", True)
    monkeypatch.setattr(library, "orthogonal", with_torch, raising=False)
    model = RotoGrad(MultiTaskNetwork(trunk(), dict(network().heads)), feature_dim=4, burn_in=3)
    backbone = copy.deepcopy(model.network.trunk)
    heads = [copy.deepcopy(model.network.heads[task]) for task in TASKS]
    theirs = library.RotoGrad(backbone, list(heads), 4, burn_in_period=3)
    groups = [
        {"params": [*theirs.backbone.parameters(), *(p for h in heads for p in h.parameters())]},
        {"params": list(theirs.parameters()), "lr": 0.5},
    ]
    optimiser = torch.optim.SGD(groups, lr=0.05)
    train(model, batches(6), optimiser_of(model))
    for batch in batches(6):
        optimiser.zero_grad()
        theirs.backward([loss_of(output, i) for i, output in enumerate(theirs(batch))])
        optimiser.step()
    for task, expected in zip(TASKS, theirs.rotation, strict=True):
        torch.testing.assert_close(model.rotation(task), expected)
        assert not torch.allclose(expected, torch.eye(4), atol=1e-3)
    pairs = zip(model.network.trunk.parameters(), backbone.parameters(), strict=True)
    for mine, other in pairs:
        torch.testing.assert_close(mine, other)


def test_rotations_stay_rotations():
    model = RotoGrad(network(), feature_dim=4)
    train(model, batches(8), optimiser_of(model, rotation_lr=200.0))
    for task in TASKS:
        turn = model.rotation(task)
        torch.testing.assert_close(turn @ turn.T, torch.eye(4), rtol=0, atol=1e-5)
        assert turn.det().item() == pytest.approx(1.0, abs=1e-4)
        assert not torch.allclose(turn, torch.eye(4), atol=1e-2)


class Along(nn.Module):
    """A head whose output falls along a direction: its gradient is the same everywhere."""

    def __init__(self, direction):
        super().__init__()
        self.register_buffer("direction", torch.tensor(direction))

    def forward(self, features):
        return features @ self.direction


def test_gradients_that_point_apart_turn_towards_each_other():
    directions = {"left": [1.0, 0.2, 0.0], "right": [-1.0, 0.2, 0.0]}
    inner = MultiTaskNetwork(
        nn.Linear(3, 3), {task: Along(direction) for task, direction in directions.items()}
    )
    model = RotoGrad(inner, feature_dim=3)
    optimiser = torch.optim.Adam(model.rotation_parameters(), lr=0.1)

    def cosine():
        turned = [model.rotation(task).T @ inner.heads[task].direction for task in TASKS]
        return torch.cosine_similarity(*turned, dim=0).item()

    before = cosine()
    assert before < -0.9
    for batch in batches(40):
        optimiser.zero_grad()
        model.backward({task: output.sum() for task, output in model(batch).items()})
        optimiser.step()
    assert cosine() > 0.9


def test_only_the_first_features_are_rotated_if_so_asked():
    model = RotoGrad(network(), feature_dim=4, rotated=2)
    assert [tuple(p.shape) for p in model.rotation_parameters()] == [(2, 2), (2, 2)]
    train(model, batches(3), optimiser_of(model, rotation_lr=200.0))
    batch = batches(1)[0]
    plain, turned = model.eval().network.features(batch)["left"], model.features(batch)["left"]
    assert torch.equal(plain[:, 2:], turned[:, 2:])
    assert not torch.allclose(plain[:, :2], turned[:, :2], atol=1e-3)


def test_losses_do_not_train_the_rotations_nor_reach_the_trunk_by_themselves():
    model = RotoGrad(network(), feature_dim=4)
    sum(losses_of(model(batches(1)[0])).values()).backward()
    assert all(p.grad is None for p in model.rotation_parameters())
    assert all(p.grad is None for p in model.network.trunk.parameters())
    assert all(p.grad is not None for p in model.network.heads.parameters())
    sum(losses_of(model.eval()(batches(1)[0])).values()).backward()
    assert all(p.grad is not None for p in model.network.trunk.parameters())


def test_backward_leaves_every_gradient_and_parameters_are_listed_once():
    model = RotoGrad(network(["2"]), feature_dim=4)
    model.backward(losses_of(model(batches(1)[0])))
    assert all(p.grad is not None for p in model.parameters())
    groups = [*model.network_parameters(), *model.rotation_parameters()]
    assert len({id(p) for p in groups}) == len(groups) == len(list(model.parameters()))
    copy.deepcopy(model)  # nothing of the step is left that could not be copied
    assert forward_flops(model, batches(1)[0]) > 0


def test_training_goes_on_from_a_state_dict_as_if_uninterrupted():
    model = RotoGrad(network(["0"]), feature_dim=4, burn_in=3)
    train(model, batches(2), optimiser_of(model))
    resumed = RotoGrad(network(["0"]), feature_dim=4, burn_in=3)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    for one in (model, resumed):
        train(one, batches(4, seed=2), optimiser_of(one))
    for mine, theirs in zip(model.parameters(), resumed.parameters(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("way", ["pickle", "deepcopy"])
@pytest.mark.parametrize("training", [True, False])
def test_a_copy_goes_on_as_the_original(way, training):
    model = RotoGrad(network(["2"]), feature_dim=4, rotated=3, burn_in=2)
    train(model, batches(3), optimiser_of(model))
    model.train(training)
    copied = {"pickle": lambda: pickle.loads(pickle.dumps(model))}  # noqa: S301 - our own
    again = copied.get(way, lambda: copy.deepcopy(model))()
    assert (again.training, again.rotations.training) == (training, training)
    assert again.rotations.burn_in_period == 2
    for one in (model, again):
        one.train()
        train(one, batches(2, seed=3), optimiser_of(one))
    states = model.state_dict(), again.state_dict()
    tensors = {name for name, value in states[0].items() if isinstance(value, torch.Tensor)}
    assert len(tensors) > 5
    assert all(torch.equal(states[0][name], states[1][name]) for name in tensors)
    assert again.network.trunk is not model.network.trunk


def test_layers_of_the_split_stay_apart():
    model = RotoGrad(network(layers_of(trunk())), feature_dim=4)
    model.backward(losses_of(model(batches(1)[0])))
    assert model.shared_layers() == {}
    gradients = [p.grad for task in TASKS for p in model.network.trunk.task_parameters(task)]
    assert len(gradients) == 8
    assert all(g.any() for g in gradients)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"feature_dim": 4, "rotated": 5}, "rotated must lie in 1 to 4. Found rotated=5"),
        ({"feature_dim": 4, "rotated": 0}, "rotated must lie in 1 to 4. Found rotated=0"),
        ({"feature_dim": 4, "burn_in": 0}, "burn_in must be at least 1. Found burn_in=0"),
    ],
)
def test_wrong_numbers_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        RotoGrad(network(), **options)


def test_wrong_use_is_refused():
    with pytest.raises(ValueError, match=r"at least 2 tasks. Found \['only'\]"):
        RotoGrad(network(tasks=["only"]), feature_dim=4)
    batch = batches(1)[0]
    with pytest.raises(ValueError, match=r"shape \(batch, 3\). Found \(6, 4\) for task 'left'"):
        RotoGrad(network(), feature_dim=3)(batch)
    model = RotoGrad(network(), feature_dim=4)
    with pytest.raises(RuntimeError, match="must follow a forward pass in training mode"):
        model.backward(losses_of(model.eval()(batch)))
    losses = losses_of(model.train()(batch))
    with pytest.raises(
        ValueError, match=r"losses must be of \['left', 'right'\]. Found \['left'\]"
    ):
        model.backward({"left": losses["left"]})
    free = {task: model.network.heads[task].bias.sum() for task in TASKS}
    with pytest.raises(RuntimeError, match="must depend on the features. Found 2 not to"):
        model.backward(free)
