"""The statements behind InfLoRA, each derived in a few lines and checked with numbers.

Every function returns rows with ``statement``, ``left`` and ``right`` (its two sides, or their
norms), ``difference`` (``left - right``, or the norm of the difference of two matrices) and
``holds``; further entries say where. All is computed in float64 on the CPU with random data, and
follows from ``seed``.

Symbols: an adapted layer computes ``(W + s B A) x`` with ``A`` (r, d) fixed and ``B`` (m, r)
trained from zero; ``G`` is the gradient of the loss with respect to the layer's weight; ``P`` is
the orthogonal projector onto the space kept for old tasks, ``P = M M^T``, and ``D`` the update of
the weight in one task. ``||.||`` is the Frobenius norm of a matrix, ``||.||_2`` its largest
singular value, and ``rms`` the root mean square over inputs.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from ktlib.checks import require_at_least
from ktlib.cpeft.drift import drift_rows
from ktlib.cpeft.gpm import DualGPM
from ktlib.cpeft.inflora import design_down
from ktlib.cpeft.inputs import InputMoment
from ktlib.seeding import generator

Row = dict[str, Any]
Design = Literal["inflora", "without memory", "sequential"]
DESIGNS: tuple[Design, ...] = ("inflora", "without memory", "sequential")
"""``A`` from the new inputs outside the memory, from all new inputs, or random and trained."""

EXACT = 1e-10
"""Relative difference up to which two sides count as equal."""


def row_space_steps(
    seed: int, *, size: int = 12, outputs: int = 8, rank: int = 3, steps: int = 20
) -> list[Row]:
    r"""Training B with A fixed is training W inside the row space of A.

    The chain rule gives the gradient with respect to ``B``: since the weight is ``W + s B A``,

        dL/dB = s G A^T.

    One step of gradient descent with rate ``eta`` moves ``B`` by ``-eta s G A^T``, and so the
    weight by ``s (-eta s G A^T) A``:

        W  <-  W - eta s^2 G A^T A.

    That is a step on ``W`` whose gradient has been multiplied by ``s^2 A^T A``. If the rows of
    ``A`` are orthonormal, ``A^T A`` is the orthogonal projector onto their span, and the step is
    one of projected gradient descent with rate ``eta s^2``. InfLoRA's rows are orthonormal divided
    by sqrt(3), which makes the rate ``eta s^2 / 3``. ``G`` depends on the weight only, not on how
    it came about; therefore the statement holds for every step of a run.

    Another optimiser, such as Adam, takes other steps. Their sum still is ``s B A``, which has
    its rows in the row space of ``A``, whatever ``B`` is. Only this is needed for what follows.

    Args:
        seed: decides the data, the weights and ``A``.
        size: ``d``, inputs of the layer.
        outputs: ``m``, its outputs: the classes of a softmax regression.
        rank: ``r``.
        steps: of gradient descent and of Adam.
    """
    rng = generator(seed, "row space")
    inputs, weight = _normal(rng, 64, size), _normal(rng, outputs, size) / size**0.5
    labels = torch.randint(outputs, (64,), generator=rng)
    scale, rate = 2.0, 0.1

    def gradient(at: Tensor) -> Tensor:
        at = at.detach().requires_grad_()
        return torch.autograd.grad(F.cross_entropy(inputs @ at.T, labels), at)[0]

    def gradient_of_up(up: Tensor, down: Tensor) -> Tensor:
        up = up.detach().requires_grad_()
        loss = F.cross_entropy(inputs @ (weight + scale * up @ down).T, labels)
        return torch.autograd.grad(loss, up)[0]

    zero, free = torch.zeros(outputs, rank, dtype=torch.float64), _normal(rng, rank, size)
    orthonormal = torch.linalg.qr(free.T).Q.T
    rows = []
    found = gradient_of_up(zero, free)
    rows.append(_equal("dL/dB = s G A^T", found, scale * gradient(weight) @ free.T, seed=seed))
    moved = scale * (zero - rate * found) @ free
    expected = -rate * scale**2 * gradient(weight) @ free.T @ free
    rows.append(_equal("one step on B moves W by -eta s^2 G A^T A", moved, expected, seed=seed))
    moved = -rate * scale**2 * gradient_of_up(zero, orthonormal) @ orthonormal / scale
    expected = -rate * scale**2 * gradient(weight) @ _projector(orthonormal.T)
    statement = "orthonormal rows: it is a step along the projected gradient"
    rows.append(_equal(statement, moved, expected, seed=seed))
    up, whole = zero, weight
    for _ in range(steps):
        up = up - rate * gradient_of_up(up, free)
        whole = whole - rate * scale**2 * gradient(whole) @ free.T @ free
    statement = f"after {steps} steps both ways lead to one weight"
    rows.append(_equal(statement, weight + scale * up @ free, whole, seed=seed))
    (adam,) = _trained([weight], [free], inputs, labels, steps=steps, loss=F.cross_entropy)
    update = adam - weight
    statement = "Adam: the update stays in the row space of A"
    rows.append(_equal(statement, update, update @ _projector(free.T), seed=seed))
    return rows


def gradient_span(
    seed: int, *, size: int = 20, hidden: int = 16, outputs: int = 5, images: int = 8
) -> list[Row]:
    r"""The gradient of a linear layer has its rows in the span of the layer's inputs.

    A layer with output ``z_i = W x_i`` for the inputs ``x_1, ..., x_n`` of a batch enters the loss
    through these outputs only. With ``delta_i`` the gradient of the loss with respect to ``z_i``,

        G = sum_i delta_i x_i^T,

    so each row of ``G`` is a combination of the inputs. Two consequences. An update that is to
    lower the loss of a *new* task needs rows in the span of the new inputs: elsewhere the gradient
    is zero. And the gradient of the loss of an *old* task lies in the span of the old inputs: an
    update orthogonal to these does not change that loss, to first order or any other, as
    ``D x = 0`` for each of them.

    Checked in every layer of a network of three layers, ``tanh`` between them, with fewer images
    than inputs: ``right`` is the gradient projected onto the span of the layer's inputs.

    Args:
        seed: decides the data and the weights.
        size: inputs of the network.
        hidden: width of both hidden layers.
        outputs: classes.
        images: inputs ``n`` in the batch; fewer than ``size`` and ``hidden``.

    Raises:
        ValueError: the images could span all of an input space.
    """
    if images >= min(size, hidden):
        raise ValueError(
            f"images must be fewer than size={size} and hidden={hidden}. Found images={images}."
        )
    rng = generator(seed, "span")
    weights = [w.requires_grad_() for w in _network(rng, size, hidden, outputs)]
    labels = torch.randint(outputs, (images,), generator=rng)
    given, found = _pass(weights, _normal(rng, images, size))
    gradients = torch.autograd.grad(F.cross_entropy(found[-1], labels), weights)
    rows = []
    for layer, (gradient, inputs) in enumerate(zip(gradients, given, strict=True), 1):
        basis = torch.linalg.qr(inputs.detach().T).Q
        statement = "G = G projected onto the span of the inputs"
        rows.append(_equal(statement, gradient, gradient @ _projector(basis), seed=seed,
                           layer=layer))  # fmt: skip
    return rows


def linear_interference(
    seed: int,
    *,
    tasks: int = 4,
    size: int = 40,
    rank: int = 4,
    subspace: int = 6,
    images: int = 60,
    steps: int = 100,
    designs: Sequence[Design] = DESIGNS,
) -> list[Row]:
    r"""With threshold 1, tasks of a linear model do not interfere at all.

    Let the model be ``W x``, and let the inputs of old tasks span a space with projector ``P``.
    With threshold 1 the memory holds all of it: ``P x = x`` for every old input. The rows of ``A``
    for the next task are orthogonal to it, ``A P = 0``. Hence for every old input

        D x = s B A x = s B A P x = 0,

    whatever ``B`` the training finds. By induction over the tasks, the output for an input of task
    ``j`` is at the end what it was when task ``j`` was learned. The same holds for inputs that were
    never shown if they lie in the span of those that were.

    Each task here has its inputs in a random space of ``subspace`` dimensions and its own linear
    target. Half of its inputs are trained on, and the outputs of *all* of them are compared, those
    after the task with those after the last. ``left`` is the largest change of an output relative
    to the root mean square of the outputs. For ``"inflora"`` the statement is that it is below
    1e-10; for ``"without memory"``, where ``A`` is made from the new inputs with no regard to the
    old ones, and for ``"sequential"``, where ``A`` is random and trained as well, that it is above
    0.01: the design of ``A`` is what makes the difference. For each a row says that the tasks are
    learned: the largest loss after a task relative to that before it is below 1.

    Args:
        seed: decides the data, the first weights and the start of ``A``.
        tasks: how many.
        size: ``d``, inputs of the model.
        rank: ``r``, at most ``subspace``.
        subspace: dimensions of the inputs of one task.
        images: inputs of one task, half of them trained on.
        steps: of Adam, for each task.
        designs: which ways to choose ``A``.

    Raises:
        ValueError: the inputs of the tasks need more dimensions than there are.
    """
    if tasks * subspace > size:
        raise ValueError(
            f"size must be at least tasks x subspace = {tasks * subspace}. Found size={size}."
        )
    rng, outputs = generator(seed, "interference"), 6
    start = _normal(rng, outputs, size) / size**0.5  # (outputs, d)
    spaces = [_normal(rng, subspace, size) / subspace**0.5 for _ in range(tasks)]
    data = [_normal(rng, images, subspace) @ space for space in spaces]  # each (images, d)
    targets = [inputs @ _normal(rng, size, outputs) / size**0.5 for inputs in data]
    random = [math.sqrt(3 / size) * (2 * _uniform(rng, rank, size) - 1) for _ in range(tasks)]
    rows = []
    for design in designs:
        weight, memory = start, DualGPM(size)
        learned, losses = [], []
        for inputs, target, down in zip(data, targets, random, strict=True):
            shown, wanted = inputs[: images // 2], target[: images // 2]
            moment = InputMoment.of(shown)
            if design != "sequential":
                kept = memory if design == "inflora" else DualGPM(size)
                down = design_down(moment, kept, rank)  # noqa: PLW2901
            before = float(F.mse_loss(shown @ weight.T, wanted))
            (weight,) = _trained([weight], [down], shown, wanted, steps=steps,
                                 train_down=design == "sequential")  # fmt: skip
            memory.update(moment, 1.0)
            learned.append(inputs @ weight.T)
            losses.append(float(F.mse_loss(shown @ weight.T, wanted)) / before)
        for task, (inputs, then) in enumerate(zip(data[:-1], learned[:-1], strict=True), 1):
            moved = float((inputs @ weight.T - then).abs().max() / _rms(then, entries=True))
            if design == "inflora":
                rows.append(_below("old outputs stay", moved, EXACT, seed=seed, design=design,
                                   task=task))  # fmt: skip
            else:
                rows.append(_above("old outputs move", moved, 0.01, seed=seed, design=design,
                                   task=task))  # fmt: skip
        statement = "every task is learned: its loss falls"
        rows.append(_below(statement, max(losses), 1.0, seed=seed, design=design, task=tasks))
    return rows


def threshold_bound(
    seed: int,
    *,
    thresholds: Sequence[float] = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0),
    size: int = 40,
    old_size: int = 28,
    outputs: int = 6,
    rank: int = 4,
    images: int = 400,
    steps: int = 100,
) -> list[Row]:
    r"""With a threshold below 1, old outputs move by at most what the memory discarded.

    The rows of ``A`` are orthogonal to the memory, so ``D P = 0`` and ``D x = D (I - P) x``. The
    length of a product is at most the largest singular value times the length, and the mean square
    over the old inputs gives

        rms ||D x||  <=  ||D||_2 rms ||(I - P) x||.                                     (1)

    The last factor is known from the update of the memory: its square is the discarded share of the
    energy times the energy, and at most ``1 - threshold`` times the energy. Between the two
    sides lies one more bound. ``D x = D Q x`` with ``Q`` the projector onto the row space of ``A``,
    which has ``r`` dimensions only, not all that are free:

        rms ||D x||  <=  ||D||_2 rms ||Q x||  <=  ||D||_2 rms ||(I - P) x||.            (2)

    Each row is (1) for one threshold. ``looseness``, the right side divided by the left, is the
    product of ``by_rows``, how much of what was discarded lies outside the rows of ``A``, and
    ``by_norm``, how much less than ``||D||_2`` the update stretches what lies inside. ``promised``
    is the right side with ``1 - threshold`` for the discarded share. ``new_loss`` is the
    price of a high threshold: the loss of the new task after its training, relative to before.

    The old inputs fill ``old_size`` of ``size`` dimensions with a falling spectrum; the new inputs
    fill all of them, with a spectrum in directions of their own.

    Args:
        seed: decides the data and the first weight.
        thresholds: each in (0, 1].
        size: ``d``, inputs of the layer.
        old_size: dimensions of the old inputs; ``size - old_size`` stay free at threshold 1.
        outputs: ``m``.
        rank: ``r``, at most ``size - old_size``.
        images: inputs of each task.
        steps: of Adam.
    """
    rng = generator(seed, "threshold")
    falling = torch.arange(1, size + 1, dtype=torch.float64) ** -0.75
    axes = [torch.linalg.qr(_normal(rng, size, size)).Q for _ in range(2)]
    old = (_normal(rng, images, old_size) * falling[:old_size]) @ axes[0][:old_size]
    new = (_normal(rng, images, size) * falling) @ axes[1]
    weight = _normal(rng, outputs, size) / size**0.5
    wanted = new @ _normal(rng, size, outputs)
    moments = {"layer": InputMoment.of(old)}
    rows = []
    for threshold in thresholds:
        memory = DualGPM(size)
        memory.update(moments["layer"], threshold)
        down = design_down(InputMoment.of(new), memory, rank)
        (after,) = _trained([weight], [down], new, wanted, steps=steps)
        states = {"layer": weight}, {"layer": after}
        (drift,) = drift_rows(*states, moments, {"layer": memory})
        norm = float(torch.linalg.matrix_norm(after - weight, 2))
        by_rows = norm * _rms(old @ _projector(torch.linalg.qr(down.T).Q))
        moved, bound = drift["moved"], drift["outside"]
        # With threshold 1 both sides are rounding errors: their ratio would say nothing.
        exact = bound <= drift["resolution"]
        ratios = {
            "looseness": math.nan if exact else bound / moved,
            "by_rows": math.nan if exact else bound / by_rows,
            "by_norm": math.nan if exact else by_rows / moved,
        }
        losses = [float(F.mse_loss(new @ w.T, wanted)) for w in (weight, after)]
        rows.append(
            _below("rms ||D x|| <= ||D||_2 rms ||(I - P) x||", moved, bound,
                   slack=drift["resolution"], seed=seed, threshold=threshold)
            | {
                "promised": norm * math.sqrt((1 - threshold) * moments["layer"].energy),
                "old_rank": memory.old_rank,
                "relative": drift["relative"],
                "new_loss": losses[1] / losses[0],
            }
            | ratios
        )  # fmt: skip
    return rows


def network_drift(
    seed: int,
    *,
    thresholds: Sequence[tuple[float, float]] = (
        (0.8, 0.8),
        (0.95, 0.95),
        (0.99, 0.99),
        (0.95, 1.0),
        (1.0, 1.0),
    ),
    tasks: int = 3,
    size: int = 36,
    outputs: int = 4,
    rank: int = 3,
    images: int = 10,
    steps: int = 60,
) -> list[Row]:
    r"""In a deep network the inputs of later layers move, and the drift adds up over the layers.

    Let layer ``l`` compute ``z_l = W_l h_{l-1}`` and ``h_l = phi(z_l)``, with ``h_0`` the image and
    ``phi`` of Lipschitz constant 1 (``tanh``, ReLU), entry by entry. One task changes every ``W_l``
    to ``W_l' = W_l + D_l``. For an old image, primes mark what it then gives:

        z_l' - z_l = W_l' h_{l-1}' - W_l h_{l-1} = W_l' (h_{l-1}' - h_{l-1}) + D_l h_{l-1}.

    The first part is the drift that arrives, the second the drift that the layer adds, at the old
    input *as it was*. With ``D_l P_l = 0``, the triangle inequality for the root mean square over
    the old images, and ``||h' - h|| <= ||z' - z||``, the drift ``e_l = rms ||z_l' - z_l||`` obeys

        e_l  <=  ||W_l'||_2 e_{l-1}  +  ||D_l||_2 rms ||(I - P_l) h_{l-1}||,     e_0 = 0.   (1)

    Two statements follow at once. The layer's own bound, the second summand alone, does *not* bound
    the drift of layer 2 and later ones, unless nothing moves in front of them: with threshold 1 in
    layers 2 and 3 and a lower one in layer 1 it is zero in the second task, and the drift is not.
    And with threshold 1 in every layer all summands are zero for the images that the memory has
    seen: for these the network as a whole does not interfere, by induction over the layers. For
    other images of an old task it may, unless they lie in the span of those seen, in every layer.

    Over several tasks, (1) needs the old inputs as they are *before each task*, in the network that
    has moved since they were stored. Where the old images are gone, their residual is bounded by
    what was known of them. Let ``rho_l = rms ||(I - P_l) h_{l-1}||`` right after the task: its
    square is the share that the memory has on record as discarded, times the energy. Let
    ``E_{l-1}`` be the sum of the ``e_{l-1}`` of the tasks since then. The memory only grows, and a
    projector shortens, so the residual before the next task is at most ``rho_l + E_{l-1}``, and

        e_l  <=  ||W_l'||_2 e_{l-1}  +  ||D_l||_2 (rho_l + E_{l-1}).                        (2)

    (2) is computed from weights and records alone. Both sides of (1) and (2) are computed for the
    images of the first task, during each later task. The rows named ``own`` hold the layer's own
    bound against the drift; ``holds`` may be False there, and that is the point. Where both
    thresholds are 1, further rows have the drift of the last outputs from the first task to the
    last, relative to them: of the images seen, and of as many others of the same task.

    The bounds multiply the norms of all later layers: they are loose in deep networks. In a
    transformer, attention and layer norm stand between the linear layers; their Lipschitz constants
    are not 1, and that of attention is not even bounded on all inputs. There the bound of a layer
    is measured at its own inputs, by :func:`ktlib.cpeft.drift.drift_rows`.

    Args:
        seed: decides the data and the first weights.
        thresholds: pairs, for layer 1 and for the layers behind it, each in (0, 1]. In the rows:
            ``threshold`` and ``threshold_behind``.
        tasks: how many, at least 2.
        size: of the image and of both hidden layers.
        outputs: ``m``.
        rank: ``r``.
        images: of each task; together fewer than ``size``, or threshold 1 would leave no room.
        steps: of Adam, for each task.

    Raises:
        ValueError: fewer than 2 tasks, or the images of all tasks but the last leave fewer than
            ``rank`` dimensions free.
    """
    require_at_least("tasks", tasks, 2)
    if (tasks - 1) * images + rank > size:
        raise ValueError(
            f"size must be at least (tasks - 1) x images + rank = {(tasks - 1) * images + rank}. "
            f"Found size={size}."
        )
    rng = generator(seed, "network")
    start = _network(rng, size, size, outputs)
    centres = [2 * _normal(rng, size) for _ in range(tasks)]
    data = [centre + _normal(rng, images, size) for centre in centres]
    unseen = centres[0] + _normal(rng, images, size)
    targets = [_normal(rng, images, outputs) for _ in range(tasks)]
    rows: list[Row] = []
    for first, behind in thresholds:
        place = {"seed": seed, "threshold": first, "threshold_behind": behind}
        weights, memories = start, [DualGPM(w.shape[1]) for w in start]
        path = []
        for inputs, wanted in zip(data, targets, strict=True):
            given, _ = _pass(weights, inputs)
            downs = [
                design_down(InputMoment.of(x), memory, rank, on_full="shrink")
                for x, memory in zip(given, memories, strict=True)
            ]
            kept = copy.deepcopy(memories)
            weights = _trained(weights, downs, inputs, wanted, steps=steps)
            path.append((weights, kept))
            for layer, x in enumerate(_pass(weights, inputs)[0]):
                memories[layer].update(InputMoment.of(x), behind if layer else first)
        rows += _recursion(data[0], path, **place)
        if first == behind == 1:
            at_end = {**place, "task": tasks, "layer": len(start)}
            seen, other = (
                _rms(_pass(weights, old)[1][-1] - _pass(path[0][0], old)[1][-1])
                / _rms(_pass(path[0][0], old)[1][-1])
                for old in (data[0], unseen)
            )
            rows.append(_below("threshold 1: outputs of images seen stay", seen, EXACT, **at_end))
            rows.append(_above("threshold 1: those of others move", other, EXACT, **at_end))
    return rows


def _recursion(
    images: Tensor, path: Sequence[tuple[list[Tensor], list[DualGPM]]], **where: Any
) -> list[Row]:
    """The bounds (1) and (2) of :func:`network_drift` for the images of the first task.

    ``path`` has the weights after each task, and the memories that they were designed with.
    """
    depth = len(path[0][0])
    given, _ = _pass(path[0][0], images)
    # The memory as the first task left it is that with which the second one was designed.
    stored = [_rms(m.project_out(x)) for m, x in zip(path[1][1], given, strict=True)]
    arrived = [0.0] * (depth + 1)  # E_0, E_1, ...: drift bounds summed over the tasks so far
    rows = []
    for task, ((before, _), (after, memories)) in enumerate(pairwise(path), 2):
        given, old = _pass(before, images)
        _, new = _pass(after, images)
        measured_bound = stored_bound = 0.0
        added = [0.0]
        for layer in range(depth):
            norm = float(torch.linalg.matrix_norm(after[layer], 2))
            update = float(torch.linalg.matrix_norm(after[layer] - before[layer], 2))
            own = update * _rms(memories[layer].project_out(given[layer]))
            measured_bound = norm * measured_bound + own
            stored_bound = norm * stored_bound + update * (stored[layer] + arrived[layer])
            added.append(stored_bound)
            moved = _rms(new[layer] - old[layer])
            place = {**where, "task": task, "layer": layer + 1}
            for statement, bound in (
                ("own: drift <= ||D_l||_2 residual", own),
                ("(1): with the drift that arrives", measured_bound),
                ("(2): from weights and records", stored_bound),
            ):
                rows.append(_below(statement, moved, bound, slack=EXACT * _rms(old[layer]),
                                   **place))  # fmt: skip
        arrived = [sum(pair) for pair in zip(arrived, added, strict=True)]
    return rows


def _trained(
    weights: Sequence[Tensor],
    downs: Sequence[Tensor],
    inputs: Tensor,
    wanted: Tensor,
    *,
    steps: int,
    loss: Callable[[Tensor, Tensor], Tensor] = F.mse_loss,
    train_down: bool = False,
) -> list[Tensor]:
    """The weights ``W + B A`` after training ``B`` from zero with Adam, over all inputs at once."""
    downs = [down.clone().requires_grad_(train_down) for down in downs]
    ups = [
        w.new_zeros(len(w), len(a)).requires_grad_() for w, a in zip(weights, downs, strict=True)
    ]
    optimizer = torch.optim.Adam([*ups, *(downs if train_down else [])], lr=0.05)

    def merged() -> list[Tensor]:
        return [w + up @ down for w, up, down in zip(weights, ups, downs, strict=True)]

    for _ in range(steps):
        optimizer.zero_grad()
        torch.autograd.backward(loss(_pass(merged(), inputs)[1][-1], wanted))
        optimizer.step()
    return [weight.detach() for weight in merged()]


def _network(rng: torch.Generator, size: int, hidden: int, outputs: int) -> list[Tensor]:
    """Weights of three linear layers."""
    shapes = ((hidden, size), (hidden, hidden), (outputs, hidden))
    return [_normal(rng, *shape) / shape[1] ** 0.5 for shape in shapes]


def _pass(weights: Sequence[Tensor], images: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Inputs ``h_{l-1}`` and outputs ``z_l`` of all layers, ``(n, ...)``; tanh between layers."""
    given, found = [images], []
    for weight in weights:
        found.append(given[-1] @ weight.T)
        given.append(found[-1].tanh())
    return given[:-1], found


def _projector(basis: Tensor) -> Tensor:
    """The orthogonal projector onto the span of columns ``(d, k)`` that are independent."""
    orthonormal: Tensor = torch.linalg.qr(basis).Q
    return orthonormal @ orthonormal.T


def _normal(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.randn(shape, generator=rng, dtype=torch.float64)


def _uniform(rng: torch.Generator, *shape: int) -> Tensor:
    return torch.rand(shape, generator=rng, dtype=torch.float64)


def _rms(rows: Tensor, *, entries: bool = False) -> float:
    """Root mean square of the length of rows, or of single entries."""
    return float(rows.square().mean().sqrt() if entries else rows.square().sum(1).mean().sqrt())


def _equal(statement: str, left: Tensor, right: Tensor, **where: Any) -> Row:
    sides = float(left.detach().norm()), float(right.detach().norm())
    difference = float((left - right).detach().norm())
    return {
        **where,
        "statement": statement,
        "left": sides[0],
        "right": sides[1],
        "difference": difference,
        "holds": difference <= EXACT * max(sides),
    }


def _below(statement: str, left: float, right: float, slack: float = 0.0, **where: Any) -> Row:
    sides = {"left": left, "right": right, "difference": left - right}
    return {**where, "statement": statement, **sides, "holds": left <= right + slack}


def _above(statement: str, left: float, right: float, **where: Any) -> Row:
    sides = {"left": left, "right": right, "difference": left - right}
    return {**where, "statement": statement, **sides, "holds": left > right}
