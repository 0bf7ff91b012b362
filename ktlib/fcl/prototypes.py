"""Class prototypes and the nearest-class-mean classifier (thesis, chapter 3, equation 3.7)."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ktlib.checks import as_labels, widened


def class_means(embeddings: Tensor, labels: Tensor, classes: Tensor | None = None) -> Tensor:
    """Prototype ``p_c`` of each class: the mean of its embeddings.

    Args:
        embeddings: ``(n, dim)``; gradients flow through the means, which are float32 for
            embeddings of half precision.
        labels: ``(n,)`` integers.
        classes: ``(k,)`` classes, in the order of the result; by default those present, sorted.

    Returns:
        ``(k, dim)``.

    Raises:
        ValueError: if one of ``classes`` has no embedding.

    Example:
        >>> class_means(torch.tensor([[0.0, 2.0], [2.0, 0.0], [5.0, 5.0]]), torch.tensor([1, 1, 4]))
        tensor([[1., 1.],
                [5., 5.]])
    """
    embeddings, labels = widened(embeddings), as_labels(labels, embeddings.device)
    given = classes is not None
    classes = labels.unique() if classes is None else as_labels(classes, labels.device)
    membership = (classes[:, None] == labels[None, :]).to(embeddings.dtype)  # (k, n)
    counts = membership.sum(dim=1)
    if given and bool((counts == 0).any()):  # a GPU waits for the answer
        missing = classes[counts == 0].tolist()
        raise ValueError(f"labels must hold every one of the classes. Found none of {missing}.")
    return (membership @ embeddings) / counts[:, None]


def normalise_prototypes(prototypes: Tensor) -> Tensor:
    """Prototypes ``(k, dim)`` scaled to norm 1 (thesis, prototype normalisation, PN).

    With prototypes of one norm, the nearest one in Euclidean distance is the one with the largest
    inner product, because ``||f - p||^2 = ||f||^2 - 2 f.p + ||p||^2`` and the first and the last
    term no longer depend on the class. The common norm therefore does not matter.

    Example:
        >>> normalise_prototypes(torch.tensor([[3.0, 4.0]]))
        tensor([[0.6000, 0.8000]])
    """
    return F.normalize(prototypes, dim=1)


def nearest_class_mean(embeddings: Tensor, prototypes: Tensor) -> Tensor:
    """Row of the prototype at the smallest Euclidean distance.

    It has the smallest squared distance, too, which the authors' released code compares.

    Args:
        embeddings: ``(n, dim)``.
        prototypes: ``(k, dim)``.

    Returns:
        ``(n,)`` row numbers of ``prototypes``.

    Example:
        >>> nearest_class_mean(torch.tensor([[0.9, 0.0]]), torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
        tensor([1])
    """
    return torch.cdist(widened(embeddings), widened(prototypes)).argmin(dim=1)


def few_shot_loss(
    embeddings: Tensor, targets: Tensor, prototypes: Tensor, *, squared: bool = False
) -> Tensor:
    """Cross-entropy of a softmax over negative Euclidean distances (thesis, equation 3.7).

    Args:
        embeddings: ``(n, dim)``.
        targets: ``(n,)`` row of each example's class in ``prototypes``.
        prototypes: ``(k, dim)`` of all classes seen so far.
        squared: square the distances, as in the authors' released code. The gradient then grows
            with the distances.

    Returns:
        Scalar mean over the examples.

    Example:
        >>> prototypes = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        >>> few_shot_loss(torch.zeros(1, 2), torch.tensor([0]), prototypes)  # log 2
        tensor(0.6931)
    """
    distances = torch.cdist(widened(embeddings), widened(prototypes))  # (n, k)
    return F.cross_entropy(-(distances.square() if squared else distances), targets)
