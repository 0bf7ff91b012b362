"""Training images that a method may keep, held to a budget per class."""

from __future__ import annotations

import torch
from torch import Tensor

from ktlib.checks import require_at_least


class Exemplars:
    """Images kept for later sessions, at most ``per_base_class`` or ``per_new_class`` each.

    The thesis allows F2M 0 images of a base class and 5 of a new one, iCaRL and LUCIR 2 of each.

    Args:
        per_base_class: budget of each class of session 1.
        per_new_class: budget of each later class.

    Raises:
        ValueError: if a budget is negative.
    """

    def __init__(self, per_base_class: int, per_new_class: int) -> None:
        require_at_least("per_base_class", per_base_class, 0)
        require_at_least("per_new_class", per_new_class, 0)
        self.per_base_class = per_base_class
        self.per_new_class = per_new_class
        self._images: list[Tensor] = []
        self._labels: list[Tensor] = []

    def __len__(self) -> int:
        return sum(len(labels) for labels in self._labels)

    def add(self, images: Tensor, labels: Tensor, *, base: bool) -> None:
        """Keep these images as they are.

        Args:
            images: ``(n, ...)``.
            labels: ``(n,)`` class numbers.
            base: whether the classes are those of session 1.

        Raises:
            ValueError: if a class would have more images than its budget; nothing is kept then.
        """
        budget = self.per_base_class if base else self.per_new_class
        for label in labels.unique().tolist():
            count = int((labels == label).sum()) + sum(
                int((kept == label).sum()) for kept in self._labels
            )
            if count > budget:
                kind = "base" if base else "new"
                raise ValueError(
                    f"at most {budget} exemplars of a {kind} class may be kept. "
                    f"Found {count} of class {label}."
                )
        if len(labels):
            self._images.append(images)
            self._labels.append(labels)

    def add_chosen(
        self, images: Tensor, labels: Tensor, embeddings: Tensor | None = None, *, base: bool
    ) -> None:
        """Keep as many images of each class as its budget allows.

        Args:
            images: ``(n, ...)``.
            labels: ``(n,)`` class numbers.
            embeddings: ``(n, dim)`` to choose by :func:`herding`; without them the first images of
                a class are kept, which are random ones, as sessions are drawn at random.
            base: whether the classes are those of session 1.
        """
        budget = self.per_base_class if base else self.per_new_class
        if budget == 0:
            return
        kept = []
        for label in labels.unique():
            own = (labels == label).nonzero().squeeze(1)
            chosen = own[:budget] if embeddings is None else own[herding(embeddings[own], budget)]
            kept.append(chosen)
        index = torch.cat(kept)
        self.add(images[index], labels[index], base=base)

    def all(self) -> tuple[Tensor, Tensor]:
        """Images and labels of everything kept.

        Raises:
            ValueError: if nothing was kept, as images of no shape cannot be given back.
        """
        if not self._labels:
            raise ValueError(
                "no exemplars are kept. The budget is "
                f"{self.per_base_class} per base class and {self.per_new_class} per new class."
            )
        return torch.cat(self._images), torch.cat(self._labels)

    def joined_with(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        """Everything kept, followed by the images given."""
        return torch.cat([*self._images, images]), torch.cat([*self._labels, labels])


def herding(embeddings: Tensor, count: int) -> Tensor:
    """Choose rows one by one so that the mean of those chosen stays near the mean of all.

    Rebuffi et al., "iCaRL", CVPR 2017, algorithm 4. The order matters: any first part of the result
    is what a smaller ``count`` would have chosen.

    Args:
        embeddings: ``(n, dim)`` of one class.
        count: number of rows; all if there are fewer.

    Returns:
        ``(min(count, n),)`` row numbers, none twice.
    """
    mean = embeddings.mean(dim=0)
    total = torch.zeros_like(mean)
    free = torch.ones(len(embeddings), dtype=torch.bool, device=embeddings.device)
    chosen: list[int] = []
    for k in range(1, min(count, len(embeddings)) + 1):
        gap = (mean - (total + embeddings) / k).norm(dim=1)
        row = int(gap.masked_fill(~free, float("inf")).argmin())
        chosen.append(row)
        free[row] = False
        total = total + embeddings[row]
    return torch.tensor(chosen, device=embeddings.device)
