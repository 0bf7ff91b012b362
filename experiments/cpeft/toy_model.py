r"""Isolation or cooperation of experts: what the choice costs, in a few lines, and checks of them.

The bound in the paper on L2C is not public; what follows is our own derivation of the trade-off
that its abstract states. An image ``x`` of class ``y`` belongs to the task ``t``. The selector
gives the weights ``g_k(x)``, expert ``k`` gives ``f_k(y|x)``, the answer is ``sum_k g_k f_k``.

**One expert.** The selector's favourite is wrong with probability ``m`` (routing error). Let
``a_own`` be the accuracy of the chosen expert where it is the right one, ``a_wrong`` its accuracy
where it is not. By the law of total probability ``a = (1 - m) a_own + m a_wrong``: isolation pays
for each misrouted image in full, unless the wrong expert happens to know better.

**Several experts.** Take any set S of experts and ``g(S) = sum_{k in S} g_k``. Leaving out
non-negative terms, and then Jensen's inequality for the convex ``-log``, give

    -log sum_k g_k f_k(y)  <=  -log g(S)  +  sum_{k in S} g_k/g(S) (-log f_k(y)).          (*)

The first term is what routing errors cost, and falls as S grows; the second is the mean loss of
those who answer, and rises as S takes in experts that know less. ``S = {t}`` is isolation: the loss
of the right expert and ``-log g_t``, next to nothing if the selector is sure and right, without
bound if it errs. ``S`` = all is cooperation: no cost of routing errors, but the mean loss of all,
low only where the experts agree. Isolation is therefore best where the selector is sure and right,
cooperation where the experts agree or the selector errs. (*) holds for every S at once: the loss is
never above the lower of the two.

**A toy model** with an exact answer. Of T experts each votes for the true class or for its one
rival, independently: the right expert is right with probability ``p``, each other with ``q``,
``1/2 <= q <= p < 1``. The selector's favourite is the right expert with probability ``c``, and the
selector knows that: at temperature 1 it gives the favourite the weight ``c`` and the others
``(1 - c)/(T - 1)`` each. At temperature ``tau`` the favourite then weighs

    v = (c (T - 1) / (1 - c))^(1/tau)

times as much as another. In a vote with ``d`` of the ``K - 1`` others against the favourite, it is
overruled iff ``d > (v + K - 1)/2``. With ``v > T - 1`` never: that is isolation. Whether the
favourite should stand even if all others are against it is decided by the posterior odds

    [c p (1-q)^(T-1) + (1-c) q (1-p) (1-q)^(T-2)] : [c (1-p) q^(T-1) + (1-c) (1-q) p q^(T-2)]

Both sides are linear in ``c``, so that there is one critical confidence, see
:func:`critical_confidence`. The odds grow with the number ``s`` of others that agree with the
favourite: with ``x = s/(T - 1)``, up to a factor that grows with ``s``, they are

    [c p + (1-c)(p x + q (1-p)/(1-q) (1-x))] : [c (1-p) + (1-c)(p (1-q)/q (1-x) + (1-p) x)]

whose left side does not fall in ``x`` and whose right side does not rise, as ``p >= q``. Hence
**isolation is the best of all rules that know the votes and the favourite iff the confidence is at
least critical**. The critical confidence is 1/2 with two experts, or with others that only guess
(``q = 1/2``); otherwise it is above 1/2, and above 1 where many know enough. But the calibrated
weights of temperature 1 isolate from ``c = 1/2`` on, as ``v > T - 1`` there. Between 1/2 and the
critical confidence the best temperature is therefore above 1: a selector that knows how often it is
right does not know by this how much the others know together.

Checks are rows ``statement``, ``left`` and ``right`` side, their ``difference``, and ``holds``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from experiments.cpeft.expert_outputs import ExpertOutputs
from ktlib.checks import require_at_least
from ktlib.cpeft.mixing import log_task_weights, require_temperature
from ktlib.seeding import generator

ROUNDING = 1e-5  # of outputs in single precision
EXACT = 1e-12  # what double precision leaves of an identity
TIE = 1e-6
STANDARD_ERRORS = 4.0  # chance leaves them once in 16,000 times


def isolation_identity(outputs: ExpertOutputs) -> list[dict[str, Any]]:
    """``a = (1 - m) a_own + m a_wrong`` on given images, as one row.

    Returns:
        The row, with the accuracy for K = 1 on the left, and further ``misallocated``, ``own`` and
        ``wrong`` for ``m``, ``a_own`` and ``a_wrong``. All in percent, the last two None where
        there are no such images.
    """
    wrong = (outputs.selected != outputs.tasks).double()
    chosen = outputs.log_probabilities[torch.arange(len(wrong)), outputs.selected - 1]
    correct = (outputs.classes[chosen.argmax(dim=1)] == outputs.labels).double()
    share = float(wrong.mean())
    own = _mean(correct, 1 - wrong)
    other = _mean(correct, wrong)
    right = 100 * ((1 - share) * own + share * other)
    left = outputs.accuracy(1, 1.0)
    parts = {
        "misallocated": 100 * share,
        "own": 100 * own if share < 1 else None,
        "wrong": 100 * other if share > 0 else None,
    }
    statement = "accuracy of one expert = (1 - m) a_own + m a_wrong"
    return [_row(statement, left, right, abs(left - right) <= 1e-9) | parts]


def log_loss_bounds(outputs: ExpertOutputs, *, temperature: float = 1.0) -> list[dict[str, Any]]:
    """The bound (*) on the log loss of all experts together, for three sets S.

    Args:
        outputs: of a learner, or made by hand.
        temperature: of the softmax over tasks, above 0 (a weight of 0 leaves no bound).

    Returns:
        A row for each S: the right expert alone; the experts that know the class; all experts. Each
        over the images where the bound is finite, which needs that all of S know the class, and
        left out if there are none. ``left`` and ``right`` are means in nats, ``holds`` says whether
        the bound holds for every single image.

    Raises:
        ValueError: ``temperature`` is not above 0.
    """
    require_temperature(temperature)
    if temperature == 0:
        raise ValueError("temperature must be above 0. Found 0.")
    rows = torch.arange(len(outputs.labels))
    columns = (outputs.labels[:, None] == outputs.classes).int().argmax(dim=1)
    own = torch.zeros_like(outputs.task_logits, dtype=torch.bool)
    own[rows, outputs.tasks - 1] = True
    log_weights = log_task_weights(outputs.task_logits.double(), temperature=temperature)
    log_values = outputs.log_probabilities[rows, :, columns].double()
    knows = log_values.isfinite()
    loss = -torch.logsumexp(log_weights + log_values, dim=1)
    sets = [
        ("the right expert", own, knows[own]),
        ("the experts that know the class", knows, knows.any(dim=1)),
        ("all experts", torch.ones_like(knows), knows.all(dim=1)),
    ]
    found = []
    for name, members, images in sets:
        if not bool(images.any()):
            continue
        bound = _bound(log_weights[images], log_values[images], members[images])
        left = loss[images]
        holds = bool((left <= bound + ROUNDING).all())
        statement = f"log loss <= bound with S = {name}"
        found.append(_row(statement, float(left.mean()), float(bound.mean()), holds))
    return found


def critical_confidence(*, experts: int, p_right: float, p_other: float) -> float:
    """Confidence from which on isolation is best in the toy model; above 1: never.

    Args:
        experts: T, at least 2.
        p_right: accuracy p of the right expert.
        p_other: accuracy q of each other one.

    Raises:
        ValueError: unless ``experts >= 2`` and ``1/2 <= p_other <= p_right < 1``; or both are 1/2,
            where every rule is as good as another.
    """
    _require_model(experts, p_right, p_other)
    if p_right == 0.5:
        raise ValueError("p_right must be above 1/2: otherwise every expert guesses. Found 0.5.")
    if p_right == p_other:  # all experts are alike: the selector adds nothing
        return 0.0 if experts == 2 else math.inf
    sure, unsure = (
        _for_favourite(experts, c, p_right, p_other) - _against(experts, c, p_right, p_other)
        for c in (1.0, 0.0)
    )
    return -unsure / (sure - unsure)


def isolating_temperature(*, experts: int, confidence: float) -> float:
    """Temperature of the toy model below which the favourite is never overruled.

    It solves ``v = T - 1``; infinity with two experts, of which the favourite always weighs more.

    Args:
        experts: T.
        confidence: c, from ``1/T`` to below 1.

    Raises:
        ValueError: one of them out of range.
    """
    gap = _gap(experts, confidence)
    return math.inf if experts == 2 else gap / math.log(experts - 1)


def toy_accuracy(
    top_k: int,
    temperature: float,
    *,
    experts: int,
    confidence: float,
    p_right: float,
    p_other: float,
) -> float:
    """Accuracy of the K most probable experts in the toy model, exactly. Ties count half.

    Args:
        top_k: K, from 1 to ``experts``; the other experts tie and are drawn at random.
        temperature: ``tau``, from 0 to infinity.
        experts: T.
        confidence: c, from ``1/T`` to below 1.
        p_right: p.
        p_other: q.

    Returns:
        Between 0 and 1.

    Raises:
        ValueError: one of them out of range.
    """
    _require_model(experts, p_right, p_other)
    if not 1 <= top_k <= experts:
        raise ValueError(f"top_k must lie in 1 to {experts}, the experts. Found {top_k!r}.")
    weight = _favourite_weight(_gap(experts, confidence), temperature)
    others = top_k - 1
    present = others / (experts - 1)  # chance that the right expert is among the K, if not first
    plain = _binomial(others, p_other)
    mixed = [0.0] * (others + 1)
    if others:
        for count, chance in enumerate(_binomial(others - 1, p_other)):
            mixed[count] += (1 - p_right) * chance
            mixed[count + 1] += p_right * chance
    accuracy = 0.0
    for right in range(others + 1):
        unselected = present * mixed[right] + (1 - present) * plain[right]
        for votes, sure, unsure in ((True, p_right, p_other), (False, 1 - p_right, 1 - p_other)):
            chance = confidence * sure * plain[right] + (1 - confidence) * unsure * unselected
            lead = (weight if votes else -weight) + right - (others - right)
            accuracy += chance * (0.5 if abs(lead) < TIE else float(lead > 0))
    return float(accuracy)


def toy_grid(
    top_ks: Sequence[int], temperatures: Sequence[float], **model: Any
) -> list[dict[str, Any]]:
    """Rows ``top``, ``temperature``, ``accuracy`` in percent, as :meth:`ExpertOutputs.grid` has.

    Args:
        top_ks: numbers K.
        temperatures: of the softmax.
        model: ``experts``, ``confidence``, ``p_right``, ``p_other`` of :func:`toy_accuracy`.
    """
    return [
        {"top": k, "temperature": tau, "accuracy": 100 * toy_accuracy(k, tau, **model)}
        for k in top_ks
        for tau in temperatures
    ]


def toy_expert_outputs(
    images: int, *, experts: int, confidence: float, p_right: float, p_other: float, seed: int
) -> ExpertOutputs:
    """Images drawn from the toy model, as if a learner had answered.

    Every task has two classes, the true one and its rival; the true class of an image of task k is
    ``2 (k - 1)``. Every expert knows all classes, and votes with all its mass. The
    selector ranks the other experts at random: their logits differ by less than 1e-9.

    Args:
        images: how many.
        experts: T.
        confidence: c.
        p_right: p.
        p_other: q.
        seed: decides the draws.

    Raises:
        ValueError: a number out of range.
    """
    require_at_least("images", images, 1)
    _require_model(experts, p_right, p_other)
    gap = _gap(experts, confidence)
    draws = generator(seed, "tiny model")
    tasks = torch.randint(experts, (images,), generator=draws)
    away = torch.randint(1, experts, (images,), generator=draws)
    found = torch.rand(images, generator=draws, dtype=torch.float64) < confidence
    favourite = torch.where(found, tasks, (tasks + away) % experts)
    chance = torch.full((images, experts), p_other, dtype=torch.float64)
    chance[torch.arange(images), tasks] = p_right
    votes = torch.rand(images, experts, generator=draws, dtype=torch.float64) < chance
    task_logits = 1e-9 * torch.rand(images, experts, generator=draws, dtype=torch.float64)
    task_logits[torch.arange(images), favourite] = max(gap, 2e-9)
    voted = 2 * tasks[:, None] + (~votes).long()
    log_probabilities = torch.full((images, experts, 2 * experts), -math.inf, dtype=torch.float64)
    log_probabilities.scatter_(2, voted[:, :, None], 0.0)
    task_of = torch.arange(experts).repeat_interleave(2) + 1
    return ExpertOutputs(
        task_logits, log_probabilities, 2 * tasks, torch.arange(2 * experts), task_of
    )


def simulated_accuracy(
    outputs: ExpertOutputs, top_k: int | None, temperature: float
) -> tuple[float, float]:
    """Accuracy where ties count half, and its standard error; both between 0 and 1.

    Args:
        outputs: from :func:`toy_expert_outputs`.
        top_k: K.
        temperature: of the softmax.
    """
    together = outputs.aggregate(top_k, temperature)  # (n, classes)
    right = together.gather(
        1, (outputs.labels[:, None] == outputs.classes).int().argmax(1)[:, None]
    )
    best = together.amax(dim=1, keepdim=True)
    tied = ((best - together).abs() < TIE).sum(dim=1, keepdim=True)
    score = torch.where(best - right < TIE, 1.0 / tied, 0.0)
    return float(score.mean()), float(score.std(correction=0) / math.sqrt(len(score)))


def toy_model_checks(
    *,
    experts: int,
    confidence: float,
    p_right: float,
    p_other: float,
    top_ks: Sequence[int],
    temperatures: Sequence[float],
    images: int,
    seed: int,
) -> list[dict[str, Any]]:
    """The statements on the toy model, each as a row.

    Args:
        experts: T, at least 3.
        confidence: c.
        p_right: p.
        p_other: q, below p.
        top_ks: numbers K to simulate.
        temperatures: to simulate.
        images: of the simulation.
        seed: of the simulation.

    Returns:
        Rows; accuracies lie between 0 and 1.

    Raises:
        ValueError: a number out of range.
    """
    require_at_least("experts", experts, 3)
    if p_right == p_other:
        raise ValueError(f"p_other must be below p_right={p_right!r}. Found p_other={p_other!r}.")
    model: dict[str, Any] = {"experts": experts, "p_right": p_right, "p_other": p_other}
    critical = critical_confidence(**model)
    rows = [_row("critical confidence >= 1/2", critical, 0.5, critical >= 0.5 - EXACT)]
    if critical < 1:
        alone, together = _isolated_and_overruled(critical, **model)
        same = abs(alone - together) <= EXACT
        rows.append(_row("at it, one expert = overruled by all others", alone, together, same))
    alone = toy_accuracy(1, 1.0, confidence=confidence, **model)
    grid = toy_grid(top_ks, temperatures, confidence=confidence, **model)
    best = max([alone, *(row["accuracy"] / 100 for row in grid)])
    if confidence >= critical:
        rows.append(
            _row("c >= critical: nothing beats one expert", best, alone, best <= alone + EXACT)
        )
    else:
        _, together = _isolated_and_overruled(confidence, **model)
        rows.append(_row("c < critical: all experts beat one", together, alone, together > alone))
    outputs = toy_expert_outputs(images, confidence=confidence, seed=seed, **model)
    for row in grid:
        top_k, tau = row["top"], row["temperature"]
        found, error = simulated_accuracy(outputs, top_k, tau)
        exact = row["accuracy"] / 100
        holds = abs(found - exact) <= STANDARD_ERRORS * error + EXACT
        rows.append(
            _row(f"formula = simulation, K = {top_k}, temperature {tau:g}", exact, found, holds)
        )
    return rows


def _isolated_and_overruled(
    confidence: float, *, experts: int, p_right: float, p_other: float
) -> tuple[float, float]:
    """Accuracy of the favourite alone, and where only all others together overrule it."""
    against = _against(experts, confidence, p_right, p_other)
    stand = _for_favourite(experts, confidence, p_right, p_other)
    alone = confidence * p_right + (1 - confidence) * p_other
    return alone, alone + against - stand


def _for_favourite(experts: int, confidence: float, p_right: float, p_other: float) -> float:
    """Chance that the favourite is right and all others are wrong."""
    all_wrong = (1 - p_other) ** (experts - 2)
    return all_wrong * (
        confidence * p_right * (1 - p_other) + (1 - confidence) * p_other * (1 - p_right)
    )


def _against(experts: int, confidence: float, p_right: float, p_other: float) -> float:
    """Chance that the favourite is wrong and all others are right."""
    all_right = p_other ** (experts - 2)
    return all_right * (
        confidence * (1 - p_right) * p_other + (1 - confidence) * (1 - p_other) * p_right
    )


def _gap(experts: int, confidence: float) -> float:
    """By how much the favourite's logit exceeds the others': ``log(c (T - 1) / (1 - c))``."""
    require_at_least("experts", experts, 2)
    if not 1 / experts <= confidence < 1:
        raise ValueError(
            f"confidence must be at least 1/experts = {1 / experts:g} and below 1. "
            f"Found {confidence!r}."
        )
    return max(0.0, math.log(confidence * (experts - 1) / (1 - confidence)))


def _favourite_weight(gap: float, temperature: float) -> float:
    require_temperature(temperature)
    if gap == 0:
        return 1.0
    return math.inf if temperature == 0 else math.exp(min(gap / temperature, 700.0))


def _require_model(experts: int, p_right: float, p_other: float) -> None:
    require_at_least("experts", experts, 2)
    if not 0.5 <= p_other <= p_right < 1:
        raise ValueError(
            "p_right and p_other must satisfy 1/2 <= p_other <= p_right < 1. "
            f"Found p_right={p_right!r}, p_other={p_other!r}."
        )


def _bound(log_weights: Tensor, log_values: Tensor, members: Tensor) -> Tensor:
    """The right side of (*), ``(n,)``, for a set of experts of each image, ``(n, tasks)``."""
    inside = log_weights.masked_fill(~members, -math.inf)
    shares = inside.softmax(dim=1)
    losses = torch.where(members, -log_values, 0.0)
    return -torch.logsumexp(inside, dim=1) + (shares * losses).sum(dim=1)


def _binomial(trials: int, chance: float) -> list[float]:
    """Probability of each number of successes, from none to all."""
    return [
        math.comb(trials, count) * chance**count * (1 - chance) ** (trials - count)
        for count in range(trials + 1)
    ]


def _mean(values: Tensor, weights: Tensor) -> float:
    """Weighted mean; 0 where no weight is."""
    total = float(weights.sum())
    return float((values * weights).sum()) / total if total else 0.0


def _row(statement: str, left: float, right: float, holds: bool) -> dict[str, Any]:
    sides = {"left": left, "right": right, "difference": left - right}
    return {"statement": statement, **sides, "holds": holds}
