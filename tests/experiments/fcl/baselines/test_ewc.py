import copy

import pytest
import torch
from torch import nn

from experiments.fcl.baselines import F2M, NearestMean, run_learner
from experiments.fcl.baselines.ewc import (
    EWCInBox,
    diagonal_fisher,
    ewc_penalty,
    mean_squared_gradients,
)
from ktlib.fcl import class_means, few_shot_loss, split_network
from ktlib.fcl.evaluation import embed
from ktlib.testing import assert_gradient_flow, assert_step_updates

SETTINGS = {"epochs": 3, "lr": 0.5}


def learner(split, **settings):
    generator = torch.Generator().manual_seed(4)
    return EWCInBox(split, generator=generator, **{"penalty": 1.0, "bound": 0.05} | settings)


def test_penalty_by_hand():
    """1/2 (2 * 1^2 + 10 * 2^2 + 4 * 0.5^2) = 21.5."""
    here = {"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([0.5])}
    there = {"a": torch.tensor([0.0, 1.0]), "b": torch.tensor([0.0])}
    fisher = {"a": torch.tensor([2.0, 10.0]), "b": torch.tensor([4.0])}
    assert ewc_penalty(here, there, fisher).item() == 21.5
    assert ewc_penalty(there, there, fisher).item() == 0.0


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


def test_each_term_reaches_the_tuned_weights_only(batch, split):
    split.network.eval()
    center = {name: p.detach() - 0.01 for name, p in split.tuned.items()}
    fisher = {name: torch.ones_like(p) for name, p in split.tuned.items()}
    with torch.no_grad():
        features = split.prefix(batch[0])

    def terms():
        embeddings = split.tail_forward(features)
        means = class_means(embeddings, batch[1])
        return {
            "few_shot": few_shot_loss(embeddings, batch[1], means),
            "penalty": ewc_penalty(split.tuned, center, fisher),
        }

    assert_gradient_flow(terms, split.tuned, dict(split.prefix.named_parameters()))


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
    results = run_learner(learner(split, penalty=0.0, bound=0.001, **SETTINGS), *problem)
    assert results == run_learner(F2M(other, bound=0.001, **SETTINGS), *problem)
    assert all(torch.equal(split.tuned[name], other.tuned[name]) for name in split.tuned)


def test_an_empty_box_is_the_frozen_network(problem, split):
    frozen = run_learner(NearestMean(copy.deepcopy(split)), *problem)
    assert run_learner(learner(split, bound=0.0, **SETTINGS), *problem) == frozen


def test_the_penalty_holds_the_weights_that_matter(problem, split):
    """Along the Fisher information the penalised run ends nearer to the centre."""

    def cost(penalty):
        method = learner(copy.deepcopy(split), penalty=penalty, bound=1.0, epochs=10, lr=0.05)
        run_learner(method, *problem)
        return ewc_penalty(method.split.tuned, method.region.center, method.fisher).item()

    assert 0 < cost(10.0) < cost(1.0) < cost(0.0)


def test_equal_seeds_give_equal_runs(problem, split):
    methods = [learner(copy.deepcopy(split), **SETTINGS, fisher_images=7) for _ in range(2)]
    assert run_learner(methods[0], *problem) == run_learner(methods[1], *problem)
    for name, fisher in methods[0].fisher.items():
        assert torch.equal(fisher, methods[1].fisher[name])
        assert bool((fisher >= 0).all())


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"penalty": -1.0}, "penalty must be at least 0. Found penalty=-1.0."),
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
        run_learner(learner(split, penalty=float("inf"), **SETTINGS), *problem)
