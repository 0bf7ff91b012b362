import copy

import pytest
import torch
from torch import nn

from experiments.fcl.baselines import F2M, NearestMean, run_learner
from experiments.fcl.baselines.ewc import EWCInBox, diagonal_fisher, mean_squared_gradients
from ktlib.fcl import SessionVariant, class_means, split_network
from ktlib.fcl.evaluation import embed
from ktlib.testing import assert_step_updates

SETTINGS = {"epochs": 3, "lr": 0.5}


def learner(split, **settings):
    generator = torch.Generator().manual_seed(4)
    return EWCInBox(split, generator=generator, **{"penalty": 1.0, "bound": 0.05} | settings)


def cost(method):
    """What the penalty is, before its weight: 1/2 sum F (phi - phi*)^2."""
    terms = [
        (method.fisher[name] * (p.detach() - method.region.center[name]).square()).sum()
        for name, p in method.split.tuned.items()
    ]
    return 0.5 * float(torch.stack(terms).sum())


def test_step_by_hand():
    """Centre 1, now 4, lr 0.5, penalty 3, F 2: (4 + 0.5 * 3 * 2 * 1) / (1 + 0.5 * 3 * 2) = 7/4.

    With F 0 nothing moves.
    """
    split = split_network(nn.Sequential(nn.Linear(2, 1, bias=False)), ["0"])
    nn.init.ones_(split.network[0].weight)
    method = learner(split, penalty=3.0, epochs=1, lr=0.5)
    method.fisher = {"0.weight": torch.tensor([[2.0, 0.0]])}
    nn.init.constant_(split.network[0].weight, 4.0)
    method.step_back()
    assert split.network[0].weight.tolist() == [[1.75, 4.0]]


def test_step_ends_at_the_minimum_of_penalty_and_distance(problem, split, images_of):
    """There the gradient of lr * penalty / 2 * F (phi - phi*)^2 + 1/2 (phi - phi_before)^2 is 0."""
    method = learner(split, penalty=1e4, lr=0.3, epochs=1)
    method.start(*images_of(1))
    before = {}
    with torch.no_grad():
        for name, parameter in split.tuned.items():
            parameter.add_(torch.randn_like(parameter), alpha=0.01)
            before[name] = parameter.clone()
    method.step_back()
    for name, parameter in split.tuned.items():
        shift = parameter - method.region.center[name]
        slope = 0.3 * 1e4 * method.fisher[name] * shift + parameter - before[name]
        assert slope.abs().max() < 1e-5
        assert not torch.equal(parameter, before[name])


def test_squared_gradients_by_hand():
    """Weight 1, prototypes 0 and 4, images 1 and 3: the loss is log(1 + e^(d_own - d_other)).

    Image 1, class 0: distances 1 and 3; gradient 2 s(-2) * 1. Image 3, class 0: distances 3 and 1;
    gradient 2 s(2) * 3, with s the logistic function.
    """
    network = nn.Sequential(nn.Linear(1, 1, bias=False))
    nn.init.ones_(network[0].weight)
    split = split_network(network, ["0"])
    found = mean_squared_gradients(
        split,
        torch.tensor([[1.0], [3.0]]),
        torch.tensor([0, 0]),
        torch.tensor([[0.0], [4.0]]),
    )
    s = torch.sigmoid(torch.tensor([-2.0, 2.0]))
    expected = ((2 * s[0] * 1) ** 2 + (2 * s[1] * 3) ** 2) / 2
    assert torch.allclose(found["0.weight"].squeeze(), expected)


def test_fisher_is_that_of_the_model_whatever_the_labels(batch, split):
    """Many draws come near the exact expectation over the labels."""
    split.network.eval()
    features = embed(split.prefix, batch[0])
    prototypes = class_means(embed(split.tail, features), batch[1])
    probabilities = (-torch.cdist(embed(split.tail, features), prototypes)).softmax(dim=1)
    exact = torch.zeros(())
    for k in range(3):
        for i in range(len(features)):
            one = mean_squared_gradients(
                split, features[i : i + 1], torch.tensor([k], device=features.device), prototypes
            )
            exact = exact + probabilities[i, k].cpu() * sum(f.sum().cpu() for f in one.values())
    generator = torch.Generator().manual_seed(0)
    draws = [
        sum(
            f.sum()
            for f in diagonal_fisher(split, features, prototypes, generator=generator).values()
        )
        for _ in range(20)
    ]
    assert torch.stack(draws).mean().item() == pytest.approx(
        (exact / len(features)).item(), rel=0.1
    )


def test_a_session_moves_the_tuned_weights_only(problem, split):
    sessions, images, labels, *_ = problem
    method = learner(split, **SETTINGS)
    base, new = sessions[0].train, sessions[1].train
    method.start(images[base], labels[base])
    state = split.network.state_dict(keep_vars=True)
    assert_step_updates(
        lambda: method.learn(images[new], labels[new]),
        split.tuned,
        {name: tensor for name, tensor in state.items() if name not in split.tuned},
    )


def test_without_penalty_it_is_f2m_bit_for_bit(problem, split):
    other = copy.deepcopy(split)
    settings = SETTINGS | {"bound": 0.001, "session": SessionVariant(momentum=0.5)}
    results = run_learner(learner(split, penalty=0.0, **settings), *problem)
    assert results == run_learner(F2M(other, **settings), *problem)
    assert all(torch.equal(split.tuned[name], other.tuned[name]) for name in split.tuned)


def test_an_empty_box_is_the_frozen_network(problem, split):
    frozen = run_learner(NearestMean(copy.deepcopy(split)), *problem)
    assert run_learner(learner(split, bound=0.0, **SETTINGS), *problem) == frozen


def test_a_large_penalty_is_the_frozen_network(problem, split):
    """All weights that anything depends on, whatever the rate: it cannot diverge."""
    frozen = run_learner(NearestMean(copy.deepcopy(split)), *problem)
    method = learner(split, penalty=1e30, bound=1.0, epochs=5, lr=1.0)
    assert run_learner(method, *problem) == frozen
    for name, parameter in split.tuned.items():
        matters = method.fisher[name] > 1e-20
        assert matters.any()
        assert torch.equal(parameter[matters], method.region.center[name][matters])


@pytest.mark.parametrize("penalty", [1e3, 1e6])
def test_the_penalty_holds_the_weights_that_matter(penalty, problem, split):
    """Along the Fisher information the penalised run ends nearer to the centre, also beyond 1."""
    costs = []
    for weight in (0.0, penalty / 100, penalty):
        method = learner(copy.deepcopy(split), penalty=weight, bound=1.0, epochs=10, lr=0.05)
        run_learner(method, *problem)
        costs.append(cost(method))
    assert 0 < costs[2] < costs[1] < costs[0]
    strength = max(float(fisher.max()) for fisher in method.fisher.values()) * 0.05 * penalty
    assert strength > 2 or penalty < 1e6  # gradient steps on the penalty would diverge


def test_facts_of_each_session(problem, split, images_of):
    """With one Fisher information f for all weights, the first step goes back by s / (1 + s)."""
    norms = []
    for penalty in (0.0, 6.0):
        method = learner(copy.deepcopy(split), penalty=penalty, bound=1.0, epochs=2, lr=0.5)
        method.start(*images_of(1))
        method.fisher = {name: torch.ones_like(f) for name, f in method.fisher.items()}
        method.learn(*images_of(2))
        norms.append(method.gradients[0])
        method.learn(*images_of(3))
        assert len(method.gradients) == 2
    assert norms[0]["data"] == norms[1]["data"] > 0
    assert norms[0]["penalty"] == 0
    assert norms[1]["penalty"] == pytest.approx(norms[1]["data"] * 3 / 4, rel=1e-3)


def test_equal_seeds_give_equal_runs(problem, split):
    methods = [learner(copy.deepcopy(split), **SETTINGS, fisher_images=7) for _ in range(2)]
    assert run_learner(methods[0], *problem) == run_learner(methods[1], *problem)
    for name, fisher in methods[0].fisher.items():
        assert torch.equal(fisher, methods[1].fisher[name])
        assert bool((fisher >= 0).all())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"penalty": -1.0}, "penalty must be a finite number >= 0. Found penalty=-1.0."),
        ({"penalty": float("inf")}, "penalty must be a finite number >= 0. Found penalty=inf."),
        ({"fisher_images": 0}, "fisher_images must be at least 1"),
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": 0.0}, "lr must be above 0. Found lr=0.0."),
    ],
)
def test_wrong_settings_are_refused(split, wrong, message):
    with pytest.raises(ValueError, match=message):
        learner(split, **SETTINGS | wrong)


def test_a_loss_that_is_not_finite_is_reported(problem, split):
    with pytest.raises(FloatingPointError, match="method 'ewc_wide', session 2: .* lower the lr"):
        run_learner(learner(split, bound=1e30, epochs=3, lr=1e30), *problem)
