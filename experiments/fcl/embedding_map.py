"""Embeddings before and after learning, in one flat map: what moved, and where to."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class EmbeddingMap:
    """Two sets of embeddings of the same images on one plane.

    Attributes:
        before: ``(n, 2)`` coordinates before learning, in float64.
        after: ``(n, 2)`` coordinates after learning; row ``i`` is the image of row ``i`` before.
        explained: share of the variance along each of the two axes, between 0 and 1, for PCA;
            ``None`` for t-SNE, which has no such share.
    """

    before: NDArray[np.float64]
    after: NDArray[np.float64]
    explained: tuple[float, float] | None


def project(
    embeddings_before: Tensor | NDArray[np.floating],
    embeddings_after: Tensor | NDArray[np.floating],
    *,
    method: Literal["pca", "tsne"] = "pca",
    random_state: int = 0,
    perplexity: float = 30.0,
) -> EmbeddingMap:
    """Draw one map of the embeddings before and after, so that a point that stayed is seen to stay.

    Two maps made one by one could not be compared: each would choose axes of its own.

    - ``"pca"`` is a linear map, the same for both sets. Arrows between the two are comparable in
      length and direction, and none is longer on the map than among the embeddings.
    - ``"tsne"`` keeps close points close (van der Maaten and Hinton, 2008). It shows clusters; the
      length of an arrow on it, and the distance between clusters, have no unit.

    Args:
        embeddings_before: ``(n, dim)``.
        embeddings_after: ``(n, dim)`` of the same images in the same order.
        method: ``"pca"`` or ``"tsne"``.
        random_state: seed of t-SNE. It starts from a PCA, which is drawn for many rows alone: up to
            about 500 the map is the same for every seed. ``"pca"`` draws nothing.
        perplexity: about how many neighbours t-SNE keeps close; it must be below the number of
            different rows, which is at most ``2 n``.

    Raises:
        ValueError: for another method, embeddings that do not fit together, have fewer than two
            dimensions, are not finite or all alike, or a perplexity that is out of its range.
    """
    from sklearn.decomposition import PCA  # takes a second
    from sklearn.manifold import TSNE

    if method not in ("pca", "tsne"):
        raise ValueError(f"method must be 'pca' or 'tsne'. Found method={method!r}.")
    before, after = _rows(embeddings_before), _rows(embeddings_after)
    if before.shape != after.shape:
        raise ValueError(
            "embeddings_before and embeddings_after must have one shape (n, dim), a row per image. "
            f"Found {before.shape} and {after.shape}."
        )
    if before.ndim != 2 or before.shape[0] < 1 or before.shape[1] < 2:
        raise ValueError(
            "embeddings must have the shape (n, dim) with n >= 1 and dim >= 2. "
            f"Found {before.shape}."
        )
    rows = np.concatenate([before, after])
    if not np.isfinite(rows).all():
        raise ValueError("embeddings must be finite numbers. Found nan or infinity among them.")
    if (rows == rows[0]).all():
        raise ValueError("embeddings must differ somewhere. Found the same row everywhere.")
    explained = None
    if method == "pca":
        # The full solver draws nothing, and scikit-learn fixes the sign of each axis: the largest
        # weight of a dimension in it is positive.
        pca = PCA(n_components=2, svd_solver="full")
        places = pca.fit_transform(rows)
        explained = (
            float(pca.explained_variance_ratio_[0]),
            float(pca.explained_variance_ratio_[1]),
        )
    else:
        # Rows that are exactly alike, as a frozen network gives them, are placed once: the tree of
        # scikit-learn's t-SNE leaves out the push between such twins, and clusters come out blurred
        # (the divergence it reports is then negative, which no divergence is).
        distinct, place_of = np.unique(rows, axis=0, return_inverse=True)
        if not 0 < perplexity < len(distinct):
            raise ValueError(
                f"perplexity must be above 0 and below {len(distinct)}, the number of different "
                f"rows before and after together. Found perplexity={perplexity!r}."
            )
        tsne = TSNE(n_components=2, perplexity=perplexity, random_state=random_state)
        places = tsne.fit_transform(distinct).astype(np.float64)[place_of.ravel()]
    return EmbeddingMap(places[: len(before)], places[len(before) :], explained)


def _rows(embeddings: Tensor | NDArray[np.floating]) -> NDArray[np.float64]:
    if isinstance(embeddings, torch.Tensor):
        embeddings = embeddings.detach().cpu().numpy()
    return np.asarray(embeddings, dtype=np.float64)
