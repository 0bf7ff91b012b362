"""Learn which layers matter: stage 2 of ILA (thesis, 5.5 to 5.7)."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from typing import Any

import torch
from pydantic import JsonValue
from torch import Tensor, nn
from tqdm import tqdm

from ktlib import __version__
from ktlib.device import PrecisionName, compute_dtype
from ktlib.ila.checks import (
    Batch,
    Loss,
    batches_for,
    compute_loss,
    input_device,
    require_finite,
)
from ktlib.ila.gates import LayerGate, gates_of
from ktlib.ila.layers import (
    active_adapter,
    adapted_layers,
    left_out,
    norms_of_updates,
    some_of,
    without_update,
)
from ktlib.ila.ranking import LayerRanking, endings_of_other_modules
from ktlib.seeding import generator

BETAS = (0.9, 0.99)  # of AdamW, as everywhere in the thesis
EPSILON = 1e-8
PACKAGES = ("peft", "torch", "transformers")
SNAPSHOTS = 16


def rank_layers(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    base_state: Mapping[str, Tensor] | None = None,
    initial_score: float = 4.0,
    lr: float = 0.05,
    steps: int | None = None,
    penalty: float = 0.0,
    seed: int = 0,
    precision: PrecisionName = "auto",
    snapshot_every: int | None = None,
    loss: Loss | None = None,
    data: str = "",
    skip_unsupported: bool = False,
) -> LayerRanking:
    """Rank the layers that LoRA adapts by how much their updates matter for the loss.

    One score s_i per layer is learned; gamma_i = sigmoid(s_i) multiplies the update beta B_i A_i
    (5.5 to 5.7). A high score says that the loss would rise without the update. The model itself,
    LoRA included, is frozen, dropout is off, and at the end all of it is bit for bit as it was. It
    should be fine-tuned until its loss is stable first.

    A score below ``initial_score`` says that on these batches the loss falls with less of the
    update: it overshoots or harms. A warning says if half of the scores are such: the order among
    them is that of the least harm. Layers whose score no gradient reached, above all those without
    an update, keep the initial score and would outrank them: they come last, with a warning.

    AdamW trains the scores without the weight decay of the fine-tuning: that would pull every gamma
    towards 1/2 whether the layer matters or not, which (5.7) does not ask for.

    The standard errors say how far a score would vary with other batches from the same source: see
    :func:`standard_errors`. They matter: sigmoid' is 0.018 at s_0 = 4, but an adaptive optimiser
    gives small gradients the same steps as large ones, so that noise ranks the layers that matter
    little.

    Args:
        model: a transformers model with LoRA adapters of peft, one of them active; with ``loss``
            any model with such adapters.
        batches: dicts of ``input_ids``, ``attention_mask`` and ``labels``, each
            ``(batch, length)``; the thesis uses 128 of them.
        base_state: state dict before fine-tuning, for a model without adapters, see
            :func:`rank_layers_full`.
        initial_score: s_0, the same for all layers; the thesis studies 4, 2 and 1.
        lr: step size of AdamW. A score moves by at most about that much per step.
        steps: number of steps, one batch each. None goes through all batches once.
        penalty: lambda of ``lambda sum_i sigmoid(s_i)``, added to the loss in place of the
            constraint on gamma in (5.2), which (5.7) leaves out.
        seed: decides the order of the batches.
        precision: as in :func:`ktlib.device.autocast`.
        snapshot_every: steps between two entries of ``curve``; None keeps about 16. The initial
            and the final scores are always in it.
        loss: of the model and a batch, a scalar, for models that do not compute it themselves, such
            as a vision transformer with a head of its own; batches may then be anything. By default
            ``model(**batch).loss``.
        data: a note on the batches, for the provenance.
        skip_unsupported: with ``base_state``, leave trained experts, routers and the like as they
            are instead of refusing them; the provenance lists them as ``left_out``.

    Raises:
        ValueError: the model has no adapters, merged ones or others than plain LoRA; no layer has
            an update; a batch or parameter is bad; a layer's score cannot be learned because the
            model never uses it.
        FloatingPointError: a loss or gradient is not finite; step and batch are named.
        ImportError: peft is not installed.

    Example:
        >>> import peft
        >>> _ = torch.manual_seed(0)
        >>> config = peft.LoraConfig(r=1, target_modules=["0", "1"], init_lora_weights=False)
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1))
        >>> model = peft.get_peft_model(net, config)
        >>> batches = [torch.ones(4, 2), torch.zeros(4, 2)]
        >>> loss = lambda model, batch: (2 - model(batch)).square().mean()
        >>> sorted(rank_layers(model, batches, loss=loss).names)
        ['0', '1']
    """
    found = batches_for(model, batches, loss)
    options = _Options(initial_score, lr, steps, penalty, seed, precision, snapshot_every, loss)
    norms = norms_of_updates(model, base_state, skip_unsupported=skip_unsupported)
    with gates_of(model, base_state, initial_score, skip_unsupported=skip_unsupported) as gates:
        learned = _learn(model, gates, found, options)
    reached = learned.pop("reached")
    still = without_update({name: norms[name] * reached[name] for name in norms})
    below = sum(score < learned["curve"][0][name] for name, score in learned["scores"].items())
    if 2 * below >= len(norms) - len(still) and not penalty:
        warnings.warn(
            f"{below} of {len(norms)} scores are below the start, {initial_score}: on these batches"
            " the loss falls with less of these updates, which overshoot or harm.",
            stacklevel=2,
        )
    tuning = "lora" if base_state is None else "full"
    provenance = provenance_of(model, list(learned["scores"]), tuning, data)
    if base_state is not None and skip_unsupported:
        provenance["left_out"] = [*left_out(model, base_state)]
    return LayerRanking(
        **learned,
        without_update=still,
        settings={"method": "ila", **options.settings(len(found), input_device(model))},
        provenance=provenance,
    )


def rank_layers_full(
    model: nn.Module, base_state: Mapping[str, Tensor], batches: Iterable[Batch], **options: Any
) -> LayerRanking:
    """As :func:`rank_layers` for a model that was fine-tuned as a whole.

    Layers are all linear modules, with the update theta_t - theta_0 of weight and bias. Embeddings,
    norms and all else keep their fine-tuned values.

    Args:
        model: the fine-tuned transformers model, without adapters; with ``loss`` any model.
        base_state: state dict of the model before fine-tuning.
        batches: as in :func:`rank_layers`.
        **options: the other keyword arguments of :func:`rank_layers`.

    Raises:
        ValueError: the model has adapters; ``base_state`` does not fit it; as :func:`rank_layers`.
        FloatingPointError: as :func:`rank_layers`.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 1, bias=False))
        >>> _ = model[0].weight.data.fill_(1.0)
        >>> loss = lambda model, batch: -model(batch).mean()  # the larger the output, the better
        >>> ranking = rank_layers_full(
        ...     model, {"0.weight": torch.zeros(1, 2)}, [torch.ones(3, 2)], lr=0.5, loss=loss)
        >>> ranking.scores  # s_0 = 4, and one step of AdamW up
        {'0': 4.5}
    """
    return rank_layers(model, batches, base_state=base_state, **options)


@dataclass(frozen=True)
class _Options:
    """The checked parameters of stage 2."""

    initial_score: float
    lr: float
    steps: int | None
    penalty: float
    seed: int
    precision: PrecisionName
    snapshot_every: int | None
    loss: Loss | None = None

    def __post_init__(self) -> None:
        _require(math.isfinite(self.initial_score), "initial_score be finite", self.initial_score)
        _require(0 < self.lr < math.inf, "lr be positive", self.lr)
        _require(self.steps is None or self.steps >= 1, "steps be at least 1", self.steps)
        _require(0 <= self.penalty < math.inf, "penalty be at least 0", self.penalty)
        every = self.snapshot_every
        _require(every is None or every >= 1, "snapshot_every be at least 1", every)

    def order(self, batches: int) -> list[int]:
        """The batch of each step: all of them in random order, over and over."""
        order: list[int] = []
        steps, passes = self.steps or batches, 0
        while len(order) < steps:
            rng = generator(self.seed, "order of batches in stage 2 of ILA", passes)
            order += torch.randperm(batches, generator=rng).tolist()
            passes += 1
        return order[:steps]

    def snapshots(self, steps: int) -> set[int]:
        every = self.snapshot_every or max(1, steps // SNAPSHOTS)
        return {*range(0, steps + 1, every), steps}

    def settings(self, batches: int, device: torch.device) -> dict[str, JsonValue]:
        dtype = compute_dtype(device, self.precision)
        return {
            "initial_score": self.initial_score,
            "lr": self.lr,
            "betas": list(BETAS),
            "weight_decay": 0.0,
            "steps": self.steps or batches,
            "batches": batches,
            "penalty": self.penalty,
            "seed": self.seed,
            "precision": str(dtype).removeprefix("torch."),
        }


def _require(holds: bool, rule: str, value: object) -> None:
    if not holds:
        name, _, wanted = rule.partition(" ")
        raise ValueError(f"{name} must {wanted}. Found {name}={value!r}.")


def _learn(
    model: nn.Module,
    gates: Mapping[str, LayerGate],
    batches: Sequence[Any],
    options: _Options,
) -> dict[str, Any]:
    """Scores, standard errors, curve and losses; see :class:`~ktlib.ila.ranking.LayerRanking`."""
    names, scores = list(gates), [gate.score for gate in gates.values()]
    optimizer = torch.optim.AdamW(scores, lr=options.lr, betas=BETAS, eps=EPSILON, weight_decay=0.0)
    order = options.order(len(batches))
    snapshots = options.snapshots(len(order))
    curve = {0: dict(zip(names, _values(scores), strict=True))}
    losses, gradients, used = [], [], set()
    for step, number in enumerate(tqdm(order, desc="stage 2 of ILA", leave=False), start=1):
        place = f"step {step}, batch {number}"
        optimizer.zero_grad()
        value = _backward(model, gates, batches[number], options, place)
        losses.append(value)
        gradients.append(_gradients(gates, place))
        used |= {name for name, gate in gates.items() if gate.uses}
        optimizer.step()
        if step in snapshots:
            curve[step] = dict(zip(names, _values(scores), strict=True))
    unused = [name for name in names if name not in used]
    if unused:
        raise ValueError(
            "model must use every layer in its forward pass, through the layer's own modules. It "
            f"never used {some_of(unused)}: their scores cannot be learned."
        )
    steps = torch.tensor(gradients, dtype=torch.float64)
    errors = standard_errors(steps, order, options.lr)
    return {
        "reached": dict(zip(names, steps.abs().amax(dim=0).tolist(), strict=True)),
        "scores": dict(zip(names, _values(scores), strict=True)),
        "standard_errors": dict(zip(names, errors.tolist(), strict=True)) if len(errors) else {},
        "curve": curve,
        "losses": losses,
    }


def _backward(
    model: nn.Module,
    gates: Mapping[str, LayerGate],
    batch: Any,
    options: _Options,
    place: str,
) -> float:
    """Add the gradient of loss and penalty to the scores; return the loss without the penalty."""
    for gate in gates.values():
        gate.uses = 0
    loss = compute_loss(options.loss, model, batch, options.precision)
    value = require_finite(loss, place)
    if loss.requires_grad:
        loss.backward()
    # Reentrant checkpointing runs a block without gradients unless its input wants one.
    silent = [name for name, gate in gates.items() if gate.uses and gate.score.grad is None]
    if silent:
        raise ValueError(
            "model must let gradients reach every layer. None reaches the scores of "
            f"{some_of(silent)}. With reentrant gradient checkpointing, call "
            "model.enable_input_require_grads(), or enable checkpointing with use_reentrant=False."
        )
    for gate in gates.values():
        if gate.score.grad is None:  # an expert that this batch was not sent to
            gate.score.grad = torch.zeros_like(gate.score)
    if options.penalty:
        total = sum((gate.gamma().sum() for gate in gates.values()), torch.zeros(()))
        (options.penalty * total).backward()
    return value


def _gradients(gates: Mapping[str, LayerGate], place: str) -> list[float]:
    values = _values([gate.score.grad for gate in gates.values() if gate.score.grad is not None])
    bad = [name for name, value in zip(gates, values, strict=True) if value - value != 0]
    if bad:
        raise FloatingPointError(
            f"gradients of scores must be finite. Found others at {place} in {some_of(bad)}."
        )
    return values


def _values(scalars: Sequence[Tensor]) -> list[float]:
    device = scalars[0].device
    values: list[float] = torch.stack([scalar.detach().to(device) for scalar in scalars]).tolist()
    return values


def batch_contributions(
    gradients: Tensor, lr: float, betas: tuple[float, float] = BETAS, eps: float = EPSILON
) -> Tensor:
    """How much each step's gradient added to the scores through AdamW without weight decay.

    AdamW moves a score by ``lr m_t / (1 - beta_1^t) / (sqrt(v_t) + eps)`` at step t, where v_t is
    corrected for its start at 0. Each m_t is a sum over the gradients so far, so that the total
    change of a score is a sum over gradients, weighted by all later steps.

    Args:
        gradients: ``(steps, layers)``, in float64.
        lr: step size.
        betas: decay of the two averages.
        eps: added to the root of the second.

    Returns:
        ``(steps, layers)``; the sum over steps is the last score minus the first.
    """
    steps = torch.arange(1, len(gradients) + 1, dtype=gradients.dtype).unsqueeze(1)
    second = torch.zeros_like(gradients)
    average = torch.zeros_like(gradients[0])
    for step, gradient in enumerate(gradients):
        average = betas[1] * average + (1 - betas[1]) * gradient**2
        second[step] = average
    scale = (second / (1 - betas[1] ** steps)).sqrt() + eps
    weights = lr * (1 - betas[0]) / ((1 - betas[0] ** steps) * scale)
    for step in range(len(gradients) - 2, -1, -1):
        weights[step] += betas[0] * weights[step + 1]
    return -weights * gradients


def standard_errors(gradients: Tensor, order: Sequence[int], lr: float) -> Tensor:
    """Standard errors of learned scores over batches, from the gradients of the steps.

    A score is the initial one plus one contribution C_b per batch
    (:func:`batch_contributions`, summed over the passes). For B batches drawn independently, the
    variance of the sum is B times that of one contribution, which half the mean square of
    ``C_(b+1) - C_b`` estimates: neighbours in time, because the contributions drift as the scores
    move, and drift is not noise. The normaliser of AdamW and the scores at which the gradients were
    computed are taken as given.

    Args:
        gradients: ``(steps, layers)``, in float64.
        order: number of the batch of each step.
        lr: step size of AdamW.

    Returns:
        ``(layers,)``; empty for fewer than two batches.
    """
    rows = {number: row for row, number in enumerate(dict.fromkeys(order))}
    if len(rows) < 2:
        return gradients.new_zeros(0)
    by_batch = gradients.new_zeros(len(rows), gradients.shape[1])
    index = torch.tensor([rows[number] for number in order])
    by_batch.index_add_(0, index, batch_contributions(gradients, lr))
    variance = by_batch.diff(dim=0).square().mean(dim=0) / 2
    return (len(rows) * variance).sqrt()


def provenance_of(
    model: nn.Module, layers: list[str], tuning: str, data: str
) -> dict[str, JsonValue]:
    """Which model was ranked, on which data, with which package versions.

    Args:
        model: the model, with or without adapters.
        layers: names of its ranked layers.
        tuning: ``"lora"`` or ``"full"``.
        data: a note on the batches.
    """
    config = getattr(model, "config", None)
    get_base: Callable[[], nn.Module] | None = getattr(model, "get_base_model", None)
    base = get_base() if get_base is not None else model
    adapter: dict[str, JsonValue] = {}
    if tuning == "lora":
        adapted = adapted_layers(model)
        name = active_adapter(adapted)
        ranks = sorted({int(layer.r[name]) for layer in adapted.values()})
        scalings = sorted({float(layer.scaling[name]) for layer in adapted.values()})
        adapter = {"name": name, "ranks": [*ranks], "scalings": [*scalings]}
    return {
        "model": str(getattr(config, "_name_or_path", "") or ""),
        "class": type(base).__name__,
        "tuning": tuning,
        "layers": len(layers),
        "adapter": adapter,
        "data": data,
        "endings_of_other_modules": [*endings_of_other_modules(layers, model)],
        "packages": {"ktlib": __version__, **{n: version(n) for n in PACKAGES if find_spec(n)}},
    }
