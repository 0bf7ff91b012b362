"""L2C, "learning to cooperate": a selector and an expert for each task, on one pre-trained model.

Zhang, Lu and Liu, 2025. Public are the abstract, a readme and a figure, neither code nor text.

*Stated there.* The selector is the pre-trained model with adapters ``p_0`` of its own and a head
over all classes seen; the largest logit among the classes of each task, and a softmax over tasks,
give ``g_k(x)``. Expert ``k`` is the same model with adapters ``p_k`` and a head, and gives class
probabilities ``f_k(x)``. The answer is ``sum g_k(x) f_k(x)`` over the K most probable experts. The
selector is trained first, as a class-incremental learner with the slow rate and the aligned head
of SLCA (Zhang et al., ICCV 2023) and HiDe-Prompt (Wang et al., NeurIPS 2023).

*Our reconstruction*, each to be switched off by an argument of :class:`L2C`: what an expert knows
of the classes of others (``expert_classes``), how a new expert uses the old ones
(``start_from_old``), how the experts are made to agree (``consistency``), and all settings of the
alignment (``aligned``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktlib.checks import ImagePool, require_at_least, require_positive
from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.heads import JoinedHead, feature_dim
from ktlib.cpeft.statistics import ClassStatistics, align_head
from ktlib.cpeft.tasks import ClassTask
from ktlib.cpeft.training import features_of, train_task
from ktlib.fcl.protocol import positions_of
from ktlib.seeding import generator

ExpertClasses = Literal["own", "seen"]
Adapters = Mapping[str, Tensor]

_LAST = 1000.0  # more than the logarithm of any two float32 differ by
_START = 1 / math.sqrt(3)  # length of a row of A as LoRA draws it, about


def log_task_weights(
    task_logits: Tensor, *, top: int | None = None, temperature: float = 1.0
) -> Tensor:
    """Logarithm of the weights of the experts: a softmax over the K most probable tasks.

    L2C leaves the weights of the K experts as they are; here they are scaled to sum to 1, which
    changes no prediction and makes the aggregated answer a distribution.

    Args:
        task_logits: ``(n, tasks)`` the largest logit among the classes of each task.
        top: K, by default all. Of tasks that tie, the earlier ones count.
        temperature: that the logits are divided by. 0 and infinity stand for the limits: the most
            probable task alone, and equal weights.

    Returns:
        ``(n, tasks)``; minus infinity outside the K.

    Raises:
        ValueError: ``top`` does not lie in 1 to ``tasks``, or ``temperature`` is below 0.
    """
    tasks = task_logits.shape[1]
    top = tasks if top is None else top
    if isinstance(top, bool) or not isinstance(top, int) or not 1 <= top <= tasks:
        raise ValueError(f"top must be an integer from 1 to {tasks}, the tasks. Found {top!r}.")
    require_temperature(temperature)
    order = task_logits.argsort(dim=1, descending=True, stable=True)
    chosen = torch.zeros_like(task_logits, dtype=torch.bool).scatter(1, order[:, :top], True)
    below = task_logits - task_logits.amax(dim=1, keepdim=True)
    # A gap of 0 stays 0 at any temperature, 0 included.
    scaled = torch.where(below == 0, 0.0, below / temperature)
    return scaled.masked_fill(~chosen, -math.inf).log_softmax(dim=1)


def log_mixture(log_weights: Tensor, log_probabilities: Tensor) -> Tensor:
    """Logarithm of ``sum_k g_k f_k``.

    Args:
        log_weights: ``(n, tasks)``, as :func:`log_task_weights` gives them.
        log_probabilities: ``(n, tasks, classes)`` of the experts; minus infinity where an expert
            does not know a class.

    Returns:
        ``(n, classes)``.
    """
    return torch.logsumexp(log_weights[:, :, None] + log_probabilities, dim=1)


def require_temperature(temperature: float) -> None:
    """Refuse what is no temperature of a softmax: infinity is one, and so is 0."""
    if math.isnan(temperature) or temperature < 0:
        raise ValueError(
            f"temperature must be at least 0, infinity included. Found {temperature!r}."
        )


class L2C:
    """A :class:`~ktlib.cpeft.tasks.ContinualLearner` with a selector and one expert for each task.

    A task is learned in three steps. No image is kept.

    1. *Selector.* Its adapters go on from where they were, at a slow rate; a head for the new
       classes is trained with them, and then the heads of all classes are aligned with Gaussian
       statistics. Statistics of older classes stay as they were noted: the slow rate is what keeps
       them nearly right.
    2. *Older experts* (only with ``expert_classes="seen"``). Each embeds the new images, notes the
       statistics of the new classes in its own, frozen feature space, gets columns for them, and
       its head is aligned. So expert ``k`` comes to know the classes of its own and of all later
       tasks; of earlier ones no image is there for it any more, and it gives them probability 0.
    3. *New expert.* Adapters from the mixed old ones or anew, trained with a head on the new
       classes, then frozen.

    Args:
        backbone: encoder with ``dim`` features; copied once, for selector and all experts together.
        layers: which linear layers are adapted, as in
            :class:`~ktlib.cpeft.adapters.LoraBackbone`; stated: query, key, value of each block.
        rank: of each update.
        epochs: passes over each task, of the selector and of the expert.
        batch_size: images in a step.
        lr: of the experts and of the selector's heads.
        seed: decides adapters, heads, the order of the images and pseudo-features.
        scale: factor of an update ``B A``.
        selector_lr: of the selector's adapters; slow, SLCA has a hundredth of the heads' rate.
        top: K; all experts if there are fewer, or by default.
        temperature: of the softmax over tasks, from 0 to infinity.
        start_from_old: whether a new expert starts from the old ones, mixed by the mean of ``g``
            over its images, see :func:`mixed_adapters`; else as LoRA does.
        aligned: whether the selector's heads are aligned.
        consistency: weight of the divergence ``KL(y || f_k)`` on the new images, between the answer
            ``y`` of all experts, restricted to the new classes and scaled to sum to 1, and that of
            the new expert. No gradient goes through ``y``. The older experts take part with what
            they know of the new classes, each by ``g``: the surer the selector, the smaller the
            term.
        expert_classes: ``"own"``: an expert gives probability 0 to the classes of other tasks.
            ``"seen"``: it knows those of later tasks, too.
        align_steps: of each alignment.
        align_lr: its first rate.
        align_per_class: pseudo-features of each class in a step.

    Attributes:
        selector_losses: task -> mean loss of each epoch.
        expert_losses: the same of its expert.
        start_weights: task -> weights of the old experts at its start; none for the first task.

    Raises:
        ValueError: an argument outside its range, or ``consistency`` with ``expert_classes="own"``,
            where it is zero: nobody else knows the new classes.
    """

    def __init__(
        self,
        backbone: nn.Module,
        *,
        layers: Sequence[str],
        rank: int,
        epochs: int,
        batch_size: int,
        lr: float,
        seed: int,
        scale: float = 1.0,
        selector_lr: float,
        top: int | None = None,
        temperature: float = 1.0,
        start_from_old: bool = True,
        aligned: bool = True,
        consistency: float = 0.0,
        expert_classes: ExpertClasses = "seen",
        align_steps: int = 200,
        align_lr: float = 0.01,
        align_per_class: int = 16,
    ) -> None:
        for name, least in (("epochs", epochs), ("batch_size", batch_size)):
            require_at_least(name, least, 1)
        require_at_least("align_steps", align_steps, 0)
        require_at_least("align_per_class", align_per_class, 1)
        for name, rate in (("lr", lr), ("selector_lr", selector_lr), ("align_lr", align_lr)):
            require_positive(name, rate)
        if top is not None and (isinstance(top, bool) or not isinstance(top, int) or top < 1):
            raise ValueError(f"top must be an integer of at least 1, or None. Found {top!r}.")
        require_temperature(temperature)
        require_at_least("consistency", consistency, 0)
        if expert_classes not in get_args(ExpertClasses):
            raise ValueError(
                f"expert_classes must be one of {get_args(ExpertClasses)}. "
                f"Found {expert_classes!r}."
            )
        if consistency and expert_classes == "own":
            raise ValueError(
                "consistency must be 0 with expert_classes='own', where no other expert knows the "
                f"new classes. Found {consistency!r}."
            )
        dim = feature_dim(backbone)
        self._network = LoraBackbone(backbone, layers=layers, rank=rank, scale=scale, seed=seed)
        smallest = min(min(self._network.linear(n).weight.shape) for n in self._network.layers)
        if start_from_old and rank > smallest:
            raise ValueError(
                f"rank must be at most {smallest}, the size of the smallest adapted layer, with "
                f"start_from_old=True. Found rank={rank}."
            )
        self._selector: Adapters = self._network.adapters()
        self._selector_head = self._new_head(dim)
        self._selector_statistics = ClassStatistics(dim)
        self._experts: list[Adapters] = []
        self._heads: list[JoinedHead] = []
        self._statistics: list[ClassStatistics] = []
        self.dim, self.epochs, self.batch_size, self.lr = dim, epochs, batch_size, lr
        self.seed, self.selector_lr, self.top, self.temperature = (
            seed,
            selector_lr,
            top,
            temperature,
        )
        self.start_from_old, self.aligned, self.consistency = start_from_old, aligned, consistency
        self.expert_classes = expert_classes
        self._align: dict[str, Any] = {
            "steps": align_steps,
            "lr": align_lr,
            "per_class": align_per_class,
        }
        self.selector_losses: dict[int, list[float]] = {}
        self.expert_losses: dict[int, list[float]] = {}
        self.start_weights: dict[int, list[float]] = {}

    @property
    def classes(self) -> Tensor:
        """``(k,)`` classes learned so far, in the order of the columns, on the CPU."""
        return self._selector_head.classes.cpu()

    @property
    def task_of(self) -> Tensor:
        """``(k,)`` the task of each of them, from 1, on the CPU."""
        return self._selector_head.task_of.cpu()

    def learn(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        """Learn one task, see the class.

        Raises:
            ValueError: a class that was learned before, or one with fewer than two images, of which
                no covariance can be estimated.
            FloatingPointError: a loss is no longer finite.
        """
        labels = labels.cpu()
        if self.aligned or self.expert_classes == "seen":
            _require_covariances(task, labels)
        weights = self._weights_of_old(images, task.train) if self._experts else None
        self._learn_selector(task, images, labels)
        old = [
            self._teach(number, task, images, labels)
            for number in range(1, len(self._experts) + 1)
            if self.expert_classes == "seen"
        ]
        self._learn_expert(task, images, labels, weights, old)

    @torch.no_grad()
    def answer(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """What selector and experts say, before K and temperature.

        Args:
            images: ``(n, channels, height, width)``.

        Returns:
            ``(n, tasks)`` the selector's largest logit among the classes of each task, and
            ``(n, tasks, classes)`` the logarithm of the experts' probabilities, minus infinity for
            classes that an expert does not know.

        Raises:
            ValueError: no task was learned yet.
        """
        task_logits = self._task_logits(self._features(self._selector, images))
        experts = [
            self._log_probabilities(number + 1, images) for number in range(len(self._heads))
        ]
        return task_logits, torch.stack(experts, dim=1)

    def scores(self, images: Tensor) -> Tensor:
        """``(n, classes)`` logarithm of the aggregated probabilities, for the K most probable.

        Classes that none of the K knows come after all others, in the order that all experts
        together give them: probability 0 in single precision, but a learner that is told such a
        task still has an answer.

        Args:
            images: ``(n, channels, height, width)``.
        """
        task_logits, experts = self.answer(images)
        top = None if self.top is None else min(self.top, len(self._experts))
        weights = log_task_weights(task_logits, top=top, temperature=self.temperature)
        chosen = log_mixture(weights, experts)
        everyone = log_mixture(log_task_weights(task_logits), experts)
        return torch.where(chosen.isneginf(), everyone - _LAST, chosen)

    def task_probabilities(self, images: Tensor) -> Tensor:
        """``g_k(x)`` of all tasks, ``(n, tasks)``, for images ``(n, channels, height, width)``."""
        return self._log_weights(self._features(self._selector, images)).exp()

    def expert_probabilities(self, images: Tensor) -> Tensor:
        """``f_k(x)``, ``(n, tasks, classes)``; 0 for classes that an expert does not know."""
        return self.answer(images)[1].exp()

    def predict_told(self, images: Tensor, task: int) -> Tensor:
        """``(n,)`` class numbers, by the expert of a task among its own classes.

        Args:
            images: ``(n, channels, height, width)``.
            task: its number, from 1.

        Raises:
            ValueError: there is no such task.
        """
        if not 1 <= task <= len(self._experts):
            raise ValueError(
                f"task must lie in 1 to {len(self._experts)}, the tasks so far. Found {task!r}."
            )
        head = self._heads[task - 1]
        with torch.no_grad():
            scores = head.of_task(1, self._features(self._experts[task - 1], images))
        return head.classes[head.task_of == 1][scores.argmax(dim=1)]

    # Selector ----------------------------------------------------------------------------------

    def _learn_selector(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        head, network = self._selector_head, self._network
        number = head.add(task.classes, self.seed)
        network.load_adapters(self._selector)
        self.selector_losses[number] = self._train(
            lambda features: head.of_task(number, features),
            [
                {"params": network.trained(), "lr": self.selector_lr},
                {"params": list(head.head(number).parameters()), "lr": self.lr},
            ],
            task,
            images,
            labels,
            generator(self.seed, "selector", number),
        )
        self._selector = network.adapters()
        if self.aligned:
            features = features_of(network, images, task.train, self.batch_size)
            self._selector_statistics.add(features, labels[task.train])
            if number > 1:
                self._aligned(head, self._selector_statistics, "selector", number)

    def _task_logits(self, features: Tensor) -> Tensor:
        """``(n, tasks)`` largest logit of each task's classes, from the selector's features."""
        if not len(self._selector_head.classes):
            raise ValueError("L2C must have learned at least one task. Found none.")
        logits, task_of = self._selector_head(features), self._selector_head.task_of
        tasks = range(1, int(task_of.max()) + 1)
        return torch.stack([logits[:, task_of == task].amax(dim=1) for task in tasks], dim=1)

    @torch.no_grad()
    def _log_weights(self, features: Tensor) -> Tensor:
        return log_task_weights(self._task_logits(features), temperature=self.temperature)

    def _weights_of_old(self, images: ImagePool, rows: Tensor) -> Tensor:
        """``(tasks so far,)`` mean of ``g`` over images, by the selector as it is now."""
        self._network.load_adapters(self._selector)
        features = features_of(self._network, images, rows, self.batch_size)
        return self._log_weights(features).exp().mean(dim=0)

    # Experts -----------------------------------------------------------------------------------

    def _teach(self, number: int, task: ClassTask, images: ImagePool, labels: Tensor) -> Tensor:
        """An older expert learns the classes of a new task from their statistics.

        Returns:
            ``(m, k)`` the logarithm of its probabilities of the new classes on the new images.
        """
        self._network.load_adapters(self._experts[number - 1])
        features = features_of(self._network, images, task.train, self.batch_size)
        head, statistics = self._heads[number - 1], self._statistics[number - 1]
        statistics.add(features, labels[task.train])
        head.add(task.classes, self.seed)
        self._aligned(head, statistics, f"expert {number}", task.number)
        with torch.no_grad():
            new: Tensor = head(features).log_softmax(dim=1)[:, -len(task.classes) :]
        return new

    def _learn_expert(
        self,
        task: ClassTask,
        images: ImagePool,
        labels: Tensor,
        weights: Tensor | None,
        old: Sequence[Tensor],
    ) -> None:
        number, network = len(self._experts) + 1, self._network
        extra = self._consistency_term(images, task, len(labels), old)
        network.start(_seed(self.seed, "expert", number))
        if self.start_from_old and weights is not None:
            network.load_adapters(mixed_adapters(self._experts, weights))
            self.start_weights[number] = weights.tolist()
        head = self._new_head(self.dim)
        head.add(task.classes, _seed(self.seed, "expert head", number))
        self.expert_losses[number] = self._train(
            head,
            [{"params": [*network.trained(), *head.parameters()], "lr": self.lr}],
            task,
            images,
            labels,
            generator(self.seed, "expert", number),
            extra,
        )
        self._experts.append(network.adapters())
        self._heads.append(head)
        if self.expert_classes == "seen":
            self._statistics.append(ClassStatistics(self.dim))
            features = features_of(network, images, task.train, self.batch_size)
            self._statistics[-1].add(features, labels[task.train])

    def _consistency_term(
        self, images: ImagePool, task: ClassTask, count: int, old: Sequence[Tensor]
    ) -> Callable[[Tensor, Tensor], Tensor] | None:
        """The term of the loss of a batch, of ``count`` images; ``old`` from :meth:`_teach`."""
        if not (self.consistency and old):
            return None
        self._network.load_adapters(self._selector)
        features = features_of(self._network, images, task.train, self.batch_size)
        log_weights = self._log_weights(features)
        others = log_mixture(log_weights[:, :-1], torch.stack(list(old), dim=1))
        places = torch.full((count,), -1)
        places[task.train] = torch.arange(len(task.train))

        def term(rows: Tensor, scores: Tensor) -> Tensor:
            asked = places[rows.cpu()].to(scores.device)
            single = scores.log_softmax(dim=1)
            own = log_weights[asked, -1:] + single.detach()
            together = torch.logaddexp(others[asked], own).log_softmax(dim=1)
            divergence = F.kl_div(single, together, reduction="batchmean", log_target=True)
            return self.consistency * divergence

        return term

    def _log_probabilities(self, number: int, images: Tensor) -> Tensor:
        """``(n, classes)`` of an expert."""
        head = self._heads[number - 1]
        logits: Tensor = head(self._features(self._experts[number - 1], images))
        known = logits.log_softmax(dim=1)
        columns = positions_of(head.classes, self._selector_head.classes)
        everything = known.new_full((len(known), len(self._selector_head.classes)), -math.inf)
        everything[:, columns] = known
        return everything

    # Both --------------------------------------------------------------------------------------

    def _new_head(self, dim: int) -> JoinedHead:
        return JoinedHead(dim).to(next(self._network.parameters()).device)

    @torch.no_grad()
    def _features(self, adapters: Adapters, images: Tensor) -> Tensor:
        self._network.load_adapters(adapters)
        features: Tensor = self._network(images.to(next(self._network.parameters()).device))
        return features

    def _train(
        self,
        head_scores: Callable[[Tensor], Tensor],
        groups: list[dict[str, Any]],
        task: ClassTask,
        images: ImagePool,
        labels: Tensor,
        batches: torch.Generator,
        loss_extra: Callable[[Tensor, Tensor], Tensor] | None = None,
    ) -> list[float]:
        return train_task(
            self._network,
            head_scores,
            groups,
            images,
            positions_of(labels, task.classes.cpu()),
            task.train,
            epochs=self.epochs,
            batch_size=self.batch_size,
            lr=self.lr,
            generator=batches,
            loss_extra=loss_extra,
        )

    def _aligned(
        self, head: JoinedHead, statistics: ClassStatistics, who: str, number: int
    ) -> None:
        align_head(head, statistics, seed=_seed(self.seed, who, number), **self._align)


def mixed_adapters(experts: Sequence[Adapters], weights: Tensor) -> dict[str, Tensor]:
    """Adapters whose update is the weighted mean of those of experts, as nearly as the rank allows.

    What an expert adds to a layer is the product ``B_k A_k``, so it is products that are mixed: to
    mix ``B`` and ``A`` each for itself would bring in ``B_j A_k``, which belongs to no expert, and
    differs between adapters that do the same. The mean of products has a higher rank; the nearest
    matrix of the given rank is its truncated singular value decomposition ``U S V^T`` (Eckart and
    Young). It is split as ``A = V^T / sqrt(3)`` and ``B = sqrt(3) U S``: rows of ``A`` then are
    about as long as LoRA draws them, also where the singular value is 0 and the direction is free.

    Args:
        experts: adapters as :meth:`~ktlib.cpeft.adapters.LoraBackbone.adapters` gives them.
        weights: ``(experts,)``, not negative.

    Returns:
        Adapters of the same names and shapes.

    Raises:
        ValueError: no experts, weights of another number or negative, or a rank larger than a
            layer.
    """
    if not experts or weights.shape != (len(experts),) or bool((weights < 0).any()):
        raise ValueError(
            f"weights must be {len(experts)} numbers >= 0, one an expert, of at least one. "
            f"Found {weights.tolist()}."
        )
    shares = weights.tolist()
    mixed: dict[str, Tensor] = {}
    for name in experts[0]:
        if not name.endswith(".down"):
            continue
        layer = name.removesuffix(".down")
        # In double precision, which Apple's GPU lacks.
        down = torch.cat([adapters[name].cpu().double() for adapters in experts])
        ups = [adapters[f"{layer}.up"].cpu().double() for adapters in experts]
        up = torch.cat([weight * one for weight, one in zip(shares, ups, strict=True)], dim=1)
        rank = len(experts[0][name])
        if rank > min(len(up), down.shape[1]):
            raise ValueError(
                f"rank must be at most {min(len(up), down.shape[1])}, the size of {layer}, to mix "
                f"adapters. Found rank={rank}."
            )
        # up @ down has the same singular values as the small matrix between the orthogonal factors.
        left, between = torch.linalg.qr(up)
        right, other = torch.linalg.qr(down.T)
        u, s, vt = torch.linalg.svd(between @ other.T)
        mixed[name] = (_START * (vt @ right.T)[:rank]).to(experts[0][name])
        mixed[f"{layer}.up"] = ((left @ u)[:, :rank] * s[:rank] / _START).to(experts[0][name])
    return mixed


def _seed(seed: int, who: str, number: int) -> int:
    """A seed of its own for each purpose, for what takes a seed and no generator."""
    return int(torch.randint(2**31, (), generator=generator(seed, who, number)))


def _require_covariances(task: ClassTask, labels: Tensor) -> None:
    own = labels[task.train]
    few = [label for label in task.classes.tolist() if int((own == label).sum()) < 2]
    if few:
        raise ValueError(
            f"task {task.number} must have at least two training images of each class. Found fewer "
            f"of {few}."
        )
