"""Methods that make one update of the gradients of several tasks.

Aggregation itself is that of ``torchjd``, but for CAGrad of two tasks, which has a closed form. Its
methods differ in scale: some add the tasks up, some average them. Here all are on one scale, that
of the sum of losses, so that one learning rate serves them all: where the gradients of the tasks
are orthogonal and equally long, every method that does not set the length itself gives their sum
(CAGrad ``1 + c`` times it).

A task whose gradient is 0 is left out: MGDA, CAGrad, IMTL-G and Krum would let it decide about the
whole update. Where one task is left, the update is its gradient, and where none is, 0. ExcessMTL,
which remembers each task, and methods with an option for each (weights, preferences) get all.
"""

from __future__ import annotations

import inspect
import math
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ktlib import DISTRIBUTION
from ktlib.mtl.gradients import gramian
from ktlib.seeding import generator

if TYPE_CHECKING:
    from torchjd.aggregation import Aggregator

# Our names for the methods of the tables, and the classes behind them.
TABLE_IDS = {
    "joint": "Sum",
    "mgda": "MGDA",
    "pcgrad": "PCGrad",
    "graddrop": "GradDrop",
    "cagrad": "CAGrad",
    "upgrad": "UPGrad",
    "nashmtl": "NashMTL",
    "imtl_g": "IMTLG",
    "fairgrad": "FairGrad",
    "dualproj": "DualProj",
    "gradvac": "GradVac",
    "aligned_mtl": "AlignedMTL",
    "config": "ConFIG",
}

# torchjd's own tolerances of MGDA suit two or three tasks; at 40 the norm is far from least.
_DEFAULTS: dict[str, dict[str, Any]] = {
    "MGDA": {"epsilon": 1e-6, "max_iters": 2000},
    "CAGrad": {"c": 0.4},  # what its authors use on NYUv2
    "FairGrad": {"alpha": 2.0},  # what its authors' run script sets
}

# Their weights add up to 1, or to 1 for orthogonal gradients: times the number of tasks.
_AVERAGING = {
    *("AlignedMTL", "CAGrad", "DualProj", "ExcessMTL", "IMTLG", "Krum", "MGDA", "Mean"),
    *("Random", "TrimmedMean", "UPGrad"),
}

# Their weights do not depend on a common factor of the gradients. torchjd takes a small Gramian
# for zero (CAGrad then stops, UPGrad and DualProj no longer project), so it gets one of trace 1.
_SCALE_FREE = {
    *("AlignedMTL", "CAGrad", "DualProj", "GradVac", "IMTLG", "Krum", "MGDA", "PCGrad", "UPGrad"),
}


# Their weights do not depend on the other tasks, or they remember something of each task.
_EVERY_TASK = {"Constant", "ExcessMTL", "Mean", "Sum"}


class SumScale(nn.Module):
    """A torchjd aggregator on the scale of the sum of losses, with random numbers of its own.

    The weights of methods that only need inner products are computed in float64 on the CPU. Random
    methods leave the global generators alone; the state of their own stream is part of the
    ``state_dict``.

    Args:
        inner: the aggregator of torchjd.
        averages: multiply by the number of tasks.
        scale_free: the weights of ``inner`` do not depend on the length of the gradients.
        every_task: ``inner`` gets also tasks whose gradient is 0.
        factor: multiplies the result once more.
        stream: seeds the random numbers.
    """

    def __init__(
        self,
        inner: Aggregator,
        *,
        averages: bool,
        scale_free: bool,
        every_task: bool,
        factor: float,
        stream: torch.Generator,
    ) -> None:
        super().__init__()
        self.inner: Any = inner
        self.averages = averages
        self.scale_free = scale_free
        self.every_task = every_task
        self.factor = factor
        self.stream = stream

    @property
    def from_gramian(self) -> bool:
        """Whether inner products of the gradients are enough, without the gradients."""
        linear = type(self.inner).__name__ in ("Sum", "Mean", "Constant", "Random")
        return linear or hasattr(self.inner, "gramian_weighting")

    def forward(self, matrix: Tensor, /) -> Tensor:
        """``(T, n)`` gradients of the tasks -> ``(n,)`` the update's direction."""
        if matrix.dim() != 2:
            raise ValueError(f"matrix must have 2 dimensions. Found shape {tuple(matrix.shape)}.")
        with torch.no_grad():
            if hasattr(self.inner, "gramian_weighting"):
                combined: Tensor = self.weights(gramian(matrix)).to(matrix) @ matrix
                return combined
            rows, inner = matrix, self.inner
            kept = [True] if self.every_task else matrix.any(dim=1).tolist()
            if not self.every_task and sum(kept) < 2:
                return matrix.sum(dim=0) * self.factor
            if not all(kept):
                rows = matrix[kept]
                if type(inner).__name__ == "NashMTL":  # which is for a fixed number of tasks
                    inner = type(inner)(len(rows), inner.max_norm, 1, inner.optim_niter)
            with self._random_stream(matrix.device), warnings.catch_warnings():
                # NashMTL says at its first step how its solver works.
                warnings.filterwarnings("ignore", message="(?s).*not DPP", category=UserWarning)
                whole: Tensor = inner(rows)
            return whole * self._scale(len(rows))

    def weights(self, products: Tensor) -> Tensor:
        """The weight of every task in the update, from the inner products of their gradients.

        Args:
            products: ``(T, T)`` Gramian.

        Returns:
            ``(T,)`` in float64 on the CPU, on the scale of the sum of losses.

        Raises:
            ValueError: the method needs the gradients themselves.
        """
        if not self.from_gramian:
            raise ValueError(
                f"{self.inner} needs the gradients: their inner products are not enough."
            )
        products = products.detach().to("cpu", torch.float64)
        kept = products.diagonal() != 0  # also where it is not a number
        if not self.every_task and (kept.sum() < 2 or not kept.all()):
            weights = kept.double() * self.factor
            if kept.sum() > 1:
                weights[kept] = self.weights(products[kept][:, kept])
            return weights
        size = products.diagonal().sum()
        if self.scale_free and size > 0:
            products = products / size
        weighting: Any = getattr(self.inner, "gramian_weighting", None) or self.inner.weighting
        cagrad = type(self.inner).__name__ == "CAGrad"
        if cagrad and len(products) == 2:
            found = _cagrad_of_two(products, weighting.c, weighting.norm_eps)
        else:
            with torch.no_grad(), self._random_stream(products.device):
                found = weighting(products)
        if cagrad and weighting.c < 1 and not found.any():
            # torchjd stops where a mixture of the gradients is nearly 0. No further than c times
            # its length from the mean is the rule, and the mean itself keeps it.
            found = torch.full_like(found, 1 / len(found))
        return found * self._scale(len(products))

    def get_extra_state(self) -> Tensor:
        """The state of the random stream, for the ``state_dict``."""
        return self.stream.get_state()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on with the random stream of a ``state_dict``."""
        self.stream.set_state(state.cpu())

    def _scale(self, tasks: int) -> float:
        return self.factor * (tasks if self.averages else 1)

    @contextmanager
    def _random_stream(self, device: torch.device) -> Iterator[None]:
        """Let torchjd, which draws from the global generators, draw from our stream."""
        seed = int(torch.randint(2**62, (), generator=self.stream))
        devices = [] if device.type in ("cpu", "mps") else [device]  # Apple's cannot be forked
        # torch.manual_seed seeds the GPUs as well, also for numbers that are drawn on the CPU.
        manual_seed = (torch.default_generator if device.type == "cpu" else torch).manual_seed
        with torch.random.fork_rng(devices=devices, device_type=device.type):
            manual_seed(seed)
            yield

    def __repr__(self) -> str:
        return f"SumScale({self.inner!r})"

    def __str__(self) -> str:
        return str(self.inner)


def aggregators() -> list[str]:
    """The names that :func:`aggregator` takes: those of the tables, then torchjd's classes.

    Example:
        >>> aggregators()[:4]
        ['joint', 'mgda', 'pcgrad', 'graddrop']
    """
    return [*TABLE_IDS, *_torchjd_classes()]


def aggregator(name: str, *, seed: int = 0, scale: float = 1.0, **options: Any) -> SumScale:
    """A method that makes one update of the gradients of the tasks.

    Args:
        name: one of :func:`aggregators`, such as ``"joint"`` for the sum of the gradients,
            ``"mgda"``, ``"pcgrad"``, ``"cagrad"``, or a class of torchjd by its name.
        seed: of the random numbers of PCGrad, GradDrop, GradVac and Random.
        scale: multiplies the update. The released code of CAGrad divides by ``1 + c**2``, which
            its paper does not: ``scale=1 / (1 + c**2)`` gives that.
        **options: of the class of torchjd, such as ``c`` of CAGrad or ``n_tasks`` of NashMTL.
            Without them MGDA gets tolerances that hold at 40 tasks, CAGrad ``c=0.4``, FairGrad
            ``alpha=2``.

    The length of the update of NashMTL and FairGrad does not grow with the gradients; NashMTL
    clips it to ``max_norm``. PCD has that of its first task.

    Returns:
        A callable: ``(T, n)`` gradients of the tasks -> ``(n,)`` direction of the update.

    Raises:
        ValueError: the method is unknown, or it does not take these options.
        ImportError: the method needs the extra ``solvers``.

    Example:
        >>> conflicting = torch.tensor([[2.0, 0.0], [-1.0, 1.0]])
        >>> aggregator("joint")(conflicting), aggregator("pcgrad")(conflicting)
        (tensor([1., 1.]), tensor([1., 2.]))
    """
    classes = _torchjd_classes()
    class_name = TABLE_IDS.get(name, name)
    if class_name not in classes:
        raise ValueError(f"name must be one of {', '.join(aggregators())}. Found name={name!r}.")
    if not scale > 0:
        raise ValueError(f"scale must be above 0. Found scale={scale!r}.")
    kind = classes[class_name]
    given = _DEFAULTS.get(class_name, {}) | options
    try:
        inspect.signature(kind).bind(**given)
    except TypeError as error:
        raise ValueError(
            f"{name} takes the options {inspect.signature(kind)}. Found {given}: {error}."
        ) from error
    try:
        inner = kind(**given)
    except ImportError as error:
        install = f'pip install "{DISTRIBUTION}[solvers]"'
        raise ImportError(f"{name} needs packages that are missing: {install} ({error})") from error
    return SumScale(
        inner,
        averages=class_name in _AVERAGING,
        scale_free=class_name in _SCALE_FREE,
        every_task=class_name in _EVERY_TASK or any(isinstance(v, Tensor) for v in given.values()),
        factor=scale,
        stream=generator(seed, "aggregator"),
    )


def _torchjd_classes() -> dict[str, type[Aggregator]]:
    from torchjd import aggregation  # late: it imports cvxpy and SciPy, which takes seconds

    bases = ("Aggregator", "GramianWeightedAggregator", "WeightedAggregator")
    names = sorted(set(aggregation.__all__) - set(bases))
    kinds = {name: getattr(aggregation, name) for name in names}
    return {name: kind for name, kind in kinds.items() if issubclass(kind, aggregation.Aggregator)}


def _cagrad_of_two(products: Tensor, c: float, norm_eps: float) -> Tensor:
    """Weights of CAGrad for two tasks: its problem has one unknown, and a solution in closed form.

    Algorithm 1 of its paper minimises ``<g_w, g_0> + c |g_0| |g_w|`` over ``w`` in ``[0, 1]``, with
    ``g_0`` the mean and ``g_w = w g_1 + (1 - w) g_2``. The first term is linear, and ``|g_w|^2``
    is ``|g_1 - g_2|^2 (w - h)^2 + m`` with the point ``h`` of the line that is nearest to 0. So the
    slope is 0 in one place at most, or the minimum is at an end.

    Args:
        products: ``(2, 2)`` Gramian.
        c: distance from the mean, in lengths of the mean.
        norm_eps: a ``g_w`` no longer than this is 0.

    Returns:
        ``(2,)``, of sum 1 for ``c = 0``; zeros where ``g_w`` is 0.
    """
    (a, b), (_, d) = products.tolist()
    between = a - 2 * b + d  # |g_1 - g_2|^2
    slope = (a - d) / 2  # <g_1 - g_2, g_0>
    radius = c * math.sqrt(max(a + 2 * b + d, 0.0)) / 2  # c |g_0|
    surplus = radius**2 * between - slope**2
    if surplus > 0:
        least = max(a * d - b**2, 0.0)  # m |g_1 - g_2|^2; rounding can make it negative
        w = (d - b - slope * math.sqrt(least) / math.sqrt(surplus)) / between
        w = min(max(w, 0.0), 1.0)
    else:  # the linear term wins everywhere
        w = 0.0 if slope > 0 else 1.0
    mixture = products.new_tensor([w, 1 - w])
    length = (mixture @ products @ mixture).clamp_min(0).sqrt()
    if length <= norm_eps:
        return torch.zeros_like(mixture)
    return 0.5 + radius / length * mixture
