"""L2C, "learning to cooperate": a selector and an expert for each task, on one pre-trained model.

Zhang, Lu and Liu, 2025. Public are the abstract, a readme and a figure, neither code nor text.

*Stated there.* The selector is the pre-trained model with adapters ``p_0`` of its own and a head
over all classes seen; the largest logit among the classes of each task, and a softmax over tasks,
give ``g_k(x)``. Expert ``k`` is the same model with adapters ``p_k`` and a head, and gives class
probabilities ``f_k(x)``. The answer is ``sum g_k(x) f_k(x)`` over the K most probable experts. The
selector is trained first, as a class-incremental learner with the slow rate and the aligned head
of SLCA (Zhang et al., ICCV 2023) and HiDe-Prompt (Wang et al., NeurIPS 2023).

*Our reconstruction*, each part an option of :class:`L2CSettings`: what an expert knows of the
classes of others (``expert_classes``), how a new expert uses the old ones
(``start_from_old``), how the experts are made to agree (``consistency``), and all settings of the
alignment (``aligned``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ktlib.checks import ImagePool, require_at_least, require_positive
from ktlib.cpeft.encoders import device_of, encode, feature_dim
from ktlib.cpeft.heads import JoinedHead
from ktlib.cpeft.mixing import (
    Adapters,
    log_mixture,
    log_task_weights,
    mixed_adapters,
    require_temperature,
)
from ktlib.cpeft.statistics import ClassStatistics, align_head
from ktlib.cpeft.tasks import ClassTask
from ktlib.cpeft.training import LoraTraining, LossExtra, features_of, train_task
from ktlib.fcl.protocol import positions_of
from ktlib.seeding import generator

ExpertClasses = Literal["own", "seen"]

_LAST = 1000.0  # more than the logarithms of any two float32 differ by


@dataclass(frozen=True, kw_only=True)
class L2CSettings:
    """Settings of selector, experts and their cooperation in :class:`L2C`.

    Attributes:
        selector_lr: of the selector's adapters; slow, SLCA has a hundredth of the heads' rate.
        top_k: K; all experts if there are fewer, or by default.
        temperature: of the softmax over tasks, from 0 to infinity.
        start_from_old: whether a new expert starts from the old ones, mixed by the mean of ``g``
            over its images, see :func:`~ktlib.cpeft.mixing.mixed_adapters`; else as LoRA does.
        aligned: whether the selector's heads are aligned.
        consistency: weight of the divergence ``KL(y || f_k)`` on the new images, between the answer
            ``y`` of all experts, restricted to the new classes and scaled to sum to 1, and that of
            the new expert. No gradient goes through ``y``. The older experts take part with what
            they know of the new classes, each by ``g``: the surer the selector, the smaller the
            term.
        expert_classes: ``"own"``: an expert gives probability 0 to the classes of other tasks.
            ``"seen"``: it also knows those of later tasks.
        align_steps: of each alignment.
        align_lr: its first rate.
        align_per_class: pseudo-features of each class in a step.

    Raises:
        ValueError: a value outside its range, or ``consistency`` with ``expert_classes="own"``,
            where it has no effect: no other expert knows the new classes.

    Example:
        >>> L2CSettings(selector_lr=1e-5, top_k=2).temperature
        1.0
    """

    selector_lr: float
    top_k: int | None = None
    temperature: float = 1.0
    start_from_old: bool = True
    aligned: bool = True
    consistency: float = 0.0
    expert_classes: ExpertClasses = "seen"
    align_steps: int = 200
    align_lr: float = 0.01
    align_per_class: int = 16

    def __post_init__(self) -> None:
        for name, least in (("align_steps", 0), ("align_per_class", 1), ("consistency", 0)):
            require_at_least(name, getattr(self, name), least)
        for name in ("selector_lr", "align_lr"):
            require_positive(name, getattr(self, name))
        k = self.top_k
        if k is not None and (isinstance(k, bool) or not isinstance(k, int) or k < 1):
            raise ValueError(f"top_k must be an integer of at least 1, or None. Found {k!r}.")
        require_temperature(self.temperature)
        if self.expert_classes not in get_args(ExpertClasses):
            raise ValueError(
                f"expert_classes must be one of {get_args(ExpertClasses)}. "
                f"Found {self.expert_classes!r}."
            )
        if self.consistency and self.expert_classes == "own":
            raise ValueError(
                "consistency must be 0 with expert_classes='own', where no other "
                f"expert knows the new classes. Found {self.consistency!r}."
            )


class L2C:
    """A :class:`~ktlib.cpeft.tasks.ContinualLearner` with a selector and one expert for each task.

    A task is learned in three steps. No image is kept. Zhang, Lu and Liu, "Learning to cooperate",
    2025; see the module for what is reconstructed.

    1. *Selector.* Its adapters go on from where they were, at a slow rate; a head for the new
       classes is trained with them, and then the heads of all classes are aligned with Gaussian
       statistics. Statistics of older classes stay as they were estimated: the slow rate is what
       keeps them nearly right.
    2. *Older experts* (only with ``expert_classes="seen"``). Each embeds the new images, estimates
       the statistics of the new classes in its own, frozen feature space, gets columns for them,
       and its head is aligned. So expert ``k`` comes to know the classes of its own and of all
       later tasks; it never sees images of earlier ones and gives their classes probability 0.
    3. *New expert.* Adapters from the mixed old ones or anew, trained with a head on the new
       classes, then frozen.

    Args:
        backbone: encoder with ``dim`` features; copied once, for selector and all experts together.
        training: of experts and of the selector's heads. Stated: query, key, value of each block.
        settings: of the selector and of the cooperation.

    Attributes:
        selector_losses: task -> mean loss of each epoch.
        expert_losses: the same of its expert.
        start_weights: task -> weights of the old experts at its start; none for the first task.

    Raises:
        ValueError: as :class:`~ktlib.cpeft.adapters.LoraBackbone`; or a rank above the size of a
            layer with ``start_from_old``.

    Example:
        >>> from ktlib.cpeft import L2C, L2CSettings, LoraTraining, class_tasks
        >>> encoder = nn.Sequential(nn.Flatten(), nn.Linear(16, 8))
        >>> encoder.dim = 8
        >>> images, labels = torch.rand(12, 1, 4, 4), torch.arange(12) % 4
        >>> training = LoraTraining(layers=["1"], rank=2, epochs=1, batch_size=4, lr=0.01, seed=0)
        >>> learner = L2C(encoder, training, L2CSettings(selector_lr=1e-4, align_steps=5))
        >>> for task in class_tasks(labels, classes=range(4), tasks=2):
        ...     learner.learn(task, images, labels)
        >>> learner.task_probabilities(images).shape
        torch.Size([12, 2])
    """

    def __init__(self, backbone: nn.Module, training: LoraTraining, settings: L2CSettings) -> None:
        self.dim = feature_dim(backbone)
        self.training, self.settings = training, settings
        self._network = training.adapted(backbone)
        smallest = min(min(self._network.linear(n).weight.shape) for n in self._network.layers)
        if settings.start_from_old and training.rank > smallest:
            raise ValueError(
                f"rank must be at most {smallest}, the size of the smallest adapted "
                f"layer, with start_from_old=True. Found rank={training.rank}."
            )
        self._selector: Adapters = self._network.adapters()
        self._selector_head = self._new_head()
        self._selector_statistics = ClassStatistics(self.dim)
        self._experts: list[Adapters] = []
        self._heads: list[JoinedHead] = []
        self._statistics: list[ClassStatistics] = []
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
        labels = task.labels_from(labels, self.classes)
        if self.settings.aligned or self.settings.expert_classes == "seen":
            _require_covariances(task, labels)
        weights = self._weights_of_old(images, task.train) if self._experts else None
        self._learn_selector(task, images, labels)
        seen = len(self._experts) if self.settings.expert_classes == "seen" else 0
        old = [self._update_old_expert(i, task, images, labels) for i in range(1, seen + 1)]
        self._learn_expert(task, images, labels, weights, old)

    @torch.no_grad()
    def expert_outputs(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Outputs of selector and experts, before K and temperature.

        Args:
            images: ``(n, channels, height, width)``.

        Returns:
            ``(n, tasks)`` the selector's largest logit among the classes of each task, and
            ``(n, tasks, classes)`` the logarithm of the experts' probabilities, minus infinity for
            classes that an expert does not know.

        Raises:
            ValueError: no task has been learned yet.
        """
        task_logits = self._task_logits(self._features(self._selector, images))  # (n, tasks)
        experts = [self._log_probabilities(i + 1, images) for i in range(len(self._heads))]
        return task_logits, torch.stack(experts, dim=1)  # (n, tasks, classes)

    def scores(self, images: Tensor) -> Tensor:
        """``(n, classes)`` logarithm of the aggregated probabilities, for the K most probable.

        Classes that none of the K knows come after all others, in the order that all experts
        together give them: probability 0 in single precision, but a prediction with a given task
        is still possible.

        Args:
            images: ``(n, channels, height, width)``.
        """
        task_logits, experts = self.expert_outputs(images)
        top_k, temperature = self.settings.top_k, self.settings.temperature
        top_k = None if top_k is None else min(top_k, len(self._experts))
        weights = log_task_weights(task_logits, top_k=top_k, temperature=temperature)
        chosen = log_mixture(weights, experts)  # (n, classes)
        everyone = log_mixture(log_task_weights(task_logits), experts)  # (n, classes)
        return torch.where(chosen.isneginf(), everyone - _LAST, chosen)

    def task_probabilities(self, images: Tensor) -> Tensor:
        """``g_k(x)`` of all tasks, ``(n, tasks)``, for images ``(n, channels, height, width)``."""
        return self._log_weights(self._features(self._selector, images)).exp()

    def expert_probabilities(self, images: Tensor) -> Tensor:
        """``f_k(x)``, ``(n, tasks, classes)``; 0 for classes that an expert does not know."""
        return self.expert_outputs(images)[1].exp()

    def predict_with_task_id(self, images: Tensor, task: int) -> Tensor:
        """``(n,)`` class numbers, by the expert of the given task among its own classes.

        Args:
            images: ``(n, channels, height, width)``.
            task: its number, from 1.

        Raises:
            ValueError: ``task`` has not been learned.
        """
        if not 1 <= task <= len(self._experts):
            tasks = len(self._experts)
            raise ValueError(f"task must lie in 1 to {tasks}, the tasks so far. Found {task!r}.")
        head = self._heads[task - 1]
        with torch.no_grad():
            features = self._features(self._experts[task - 1], images)  # (n, dim)
            scores = head.of_task(1, features)  # (n, classes of the task)
        return head.classes[head.task_of == 1][scores.argmax(dim=1)]

    # Selector ----------------------------------------------------------------------------------

    def _learn_selector(self, task: ClassTask, images: ImagePool, labels: Tensor) -> None:
        head, network = self._selector_head, self._network
        number = head.add(task.classes, self.training.seed)
        network.load_adapters(self._selector)
        slow = {"params": network.trained(), "lr": self.settings.selector_lr}
        fast = {"params": list(head.head(number).parameters()), "lr": self.training.lr}
        self.selector_losses[number] = self._train(
            head.head(number),
            [slow, fast],
            task,
            images,
            labels,
            generator(self.training.seed, "selector", number),
        )
        self._selector = network.adapters()
        if self.settings.aligned:
            features = self._training_features(images, task.train)
            self._selector_statistics.add(features, labels[task.train])
            if number > 1:
                self._align(head, self._selector_statistics, "selector", number)

    def _task_logits(self, features: Tensor) -> Tensor:
        """``(n, tasks)`` largest logit of each task's classes, from the selector's features."""
        if not len(self._selector_head.classes):
            raise ValueError("L2C must have learned at least one task. Found none.")
        logits, task_of = self._selector_head(features), self._selector_head.task_of
        tasks = range(1, int(task_of.max()) + 1)
        return torch.stack([logits[:, task_of == task].amax(dim=1) for task in tasks], dim=1)

    @torch.no_grad()
    def _log_weights(self, features: Tensor) -> Tensor:
        logits = self._task_logits(features)  # (n, tasks)
        return log_task_weights(logits, temperature=self.settings.temperature)

    def _weights_of_old(self, images: ImagePool, rows: Tensor) -> Tensor:
        """``(tasks so far,)`` mean of ``g`` over images, by the selector as it is now."""
        self._network.load_adapters(self._selector)
        features = self._training_features(images, rows)  # (m, dim)
        return self._log_weights(features).exp().mean(dim=0)

    # Experts -----------------------------------------------------------------------------------

    def _update_old_expert(
        self, number: int, task: ClassTask, images: ImagePool, labels: Tensor
    ) -> Tensor:
        """Let an older expert learn the classes of a new task from their statistics.

        Returns:
            ``(m, k)`` the logarithm of its probabilities of the new classes on the new images.
        """
        self._network.load_adapters(self._experts[number - 1])
        features = self._training_features(images, task.train)  # (m, dim)
        head, statistics = self._heads[number - 1], self._statistics[number - 1]
        statistics.add(features, labels[task.train])
        head.add(task.classes, self.training.seed)
        self._align(head, statistics, f"expert {number}", task.number)
        with torch.no_grad():
            known: Tensor = head(features).log_softmax(dim=1)  # (m, classes of the expert)
        return known[:, -len(task.classes) :]

    def _learn_expert(
        self,
        task: ClassTask,
        images: ImagePool,
        labels: Tensor,
        weights: Tensor | None,
        old: Sequence[Tensor],
    ) -> None:
        number, network = len(self._experts) + 1, self._network
        seed = self.training.seed
        extra = self._consistency_term(images, task, len(labels), old)
        network.start(_seed(seed, "expert", number))
        if self.settings.start_from_old and weights is not None:
            network.load_adapters(mixed_adapters(self._experts, weights))
            self.start_weights[number] = weights.tolist()
        head = self._new_head()
        head.add(task.classes, _seed(seed, "expert head", number))
        both = {"params": [*network.trained(), *head.parameters()], "lr": self.training.lr}
        self.expert_losses[number] = self._train(
            head, [both], task, images, labels, generator(seed, "expert", number), extra
        )
        self._experts.append(network.adapters())
        self._heads.append(head)
        if self.settings.expert_classes == "seen":
            self._statistics.append(ClassStatistics(self.dim))
            features = self._training_features(images, task.train)
            self._statistics[-1].add(features, labels[task.train])

    def _consistency_term(
        self, images: ImagePool, task: ClassTask, count: int, old: Sequence[Tensor]
    ) -> LossExtra | None:
        """The term of the loss of a batch, of ``count`` images.

        ``old`` holds what :meth:`_update_old_expert` returns, one tensor for each old expert.
        """
        consistency = self.settings.consistency
        if not (consistency and old):
            return None
        self._network.load_adapters(self._selector)
        log_weights = self._log_weights(self._training_features(images, task.train))  # (m, tasks)
        others = log_mixture(log_weights[:, :-1], torch.stack(list(old), dim=1))  # (m, k)
        places = torch.full((count,), -1)  # image -> its row in these two
        places[task.train] = torch.arange(len(task.train))

        def term(rows: Tensor, scores: Tensor) -> Tensor:
            batch = places[rows.cpu()].to(scores.device)  # (b,)
            single = scores.log_softmax(dim=1)  # (b, k)
            own = log_weights[batch, -1:] + single.detach()  # (b, k)
            together = torch.logaddexp(others[batch], own).log_softmax(dim=1)  # (b, k)
            divergence = F.kl_div(single, together, reduction="batchmean", log_target=True)
            return consistency * divergence

        return term

    def _log_probabilities(self, number: int, images: Tensor) -> Tensor:
        """``(n, classes)`` of an expert."""
        head = self._heads[number - 1]
        logits: Tensor = head(self._features(self._experts[number - 1], images))
        known = logits.log_softmax(dim=1)  # (n, classes of the expert)
        columns = positions_of(head.classes, self._selector_head.classes)
        everything = known.new_full((len(known), len(self._selector_head.classes)), -math.inf)
        everything[:, columns] = known
        return everything  # (n, classes)

    # Both --------------------------------------------------------------------------------------

    def _new_head(self) -> JoinedHead:
        return JoinedHead(self.dim).to(device_of(self._network))

    def _training_features(self, images: ImagePool, rows: Tensor) -> Tensor:
        """``(m, dim)`` with the adapters as they are, batch by batch."""
        return features_of(self._network, images, rows, self.training.batch_size)

    @torch.no_grad()
    def _features(self, adapters: Adapters, images: Tensor) -> Tensor:
        self._network.load_adapters(adapters)
        return encode(self._network, images)

    def _train(
        self,
        head: nn.Module,
        groups: list[dict[str, Any]],
        task: ClassTask,
        images: ImagePool,
        labels: Tensor,
        rng: torch.Generator,
        loss_extra: LossExtra | None = None,
    ) -> list[float]:
        targets = positions_of(labels, task.classes)
        return train_task(
            self._network,
            head,
            groups,
            images,
            targets,
            task.train,
            self.training,
            rng=rng,
            loss_extra=loss_extra,
        )

    def _align(self, head: JoinedHead, statistics: ClassStatistics, who: str, number: int) -> None:
        s, seed = self.settings, _seed(self.training.seed, who, number)
        align_head(
            head,
            statistics,
            steps=s.align_steps,
            lr=s.align_lr,
            per_class=s.align_per_class,
            seed=seed,
        )


def _seed(seed: int, who: str, number: int) -> int:
    """A seed of its own for each purpose, for what takes a seed and no generator."""
    return int(torch.randint(2**31, (), generator=generator(seed, who, number)))


def _require_covariances(task: ClassTask, labels: Tensor) -> None:
    own = labels[task.train]
    few = [label for label in task.classes.tolist() if int((own == label).sum()) < 2]
    if few:
        raise ValueError(
            f"task {task.number} must have at least two training images of each "
            f"class. Found fewer of the classes {few}."
        )
