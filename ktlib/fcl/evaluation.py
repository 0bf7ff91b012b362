"""Run the few-shot sessions one after the other and test after each."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from ktlib.fcl.protocol import Session
from ktlib.fcl.prototypes import class_means, nearest_class_mean, normalise_prototypes
from ktlib.fcl.split import SplitNetwork

LearnSession = Callable[[Tensor, Tensor, Tensor, Tensor], object]
"""``(images, labels, base_prototypes, base_classes)`` of one session -> changes the network."""


@torch.no_grad()
def embed(module: nn.Module, images: Tensor, batch_size: int = 500) -> Tensor:
    """Outputs of ``module`` in ``eval`` mode, ``(n, ...)``, batch by batch, without gradients.

    Afterwards each layer is in the mode it was in before, also where they were not all in the same:
    the halves of a :class:`~ktlib.fcl.SplitNetwork` share layers with a network that has a mode of
    its own.
    """
    modes = {layer: layer.training for layer in module.modules()}
    module.eval()
    try:
        return torch.cat([module(batch) for batch in images.split(batch_size)])
    finally:
        for layer, training in modes.items():
            layer.training = training


def run_sessions(
    split: SplitNetwork,
    sessions: Sequence[Session],
    images: Tensor,
    labels: Tensor,
    test_images: Tensor,
    test_labels: Tensor,
    *,
    learn: LearnSession | None = None,
    normalise: bool = True,
) -> list[dict[str, float | int | None]]:
    """Accuracies of the nearest-class-mean classifier after every session.

    Session 1 takes the network as it is (it has been trained) and saves the base prototypes; base
    images are not touched again. In every later session ``learn`` may change the tuned weights,
    given the shots of all new classes so far (5 per class at most are kept as exemplars: with 5
    shots, all of them); their prototypes are then computed anew. Tests always cover all classes
    seen so far.

    Args:
        split: the trained network; ``learn`` changes it in place.
        sessions: from :func:`ktlib.fcl.few_shot_sessions`.
        images: ``(n, ...)`` the training images that the sessions point into.
        labels: ``(n,)`` their classes.
        test_images: ``(m, ...)`` images never trained on. Those of unseen classes are left out.
        test_labels: ``(m,)`` their classes.
        learn: the method's session; ``None`` leaves the network frozen (the NCM baseline).
        normalise: scale all prototypes to one norm (PN).

    Returns:
        One row a session: ``session``, ``accuracy``, ``base_accuracy`` and ``new_accuracy``
        (``None`` in session 1), in percent.
    """
    base = sessions[0]
    base_classes = base.classes.to(labels.device)
    base_prototypes = class_means(
        embed(split.network, images[base.train]), labels[base.train], base_classes
    )
    # Everything in front of the tuned layers stays as it is: computed once for all sessions.
    test_features = embed(split.prefix, test_images)
    seen, prototypes, kept = base_classes, base_prototypes, base.train[:0]
    rows: list[dict[str, float | int | None]] = []
    for session in sessions:
        if session.number > 1:
            kept = torch.cat([kept, session.train])
            seen = torch.cat([seen, session.classes.to(seen)])
            if learn is not None:
                learn(images[kept], labels[kept], base_prototypes, base_classes)
            new_classes = seen[len(base_classes) :]
            new = class_means(embed(split.network, images[kept]), labels[kept], new_classes)
            prototypes = torch.cat([base_prototypes, new])
        tested = torch.isin(test_labels, seen)
        nearest = nearest_class_mean(
            embed(split.tail, test_features[tested]),
            normalise_prototypes(prototypes) if normalise else prototypes,
        )
        correct = seen[nearest] == test_labels[tested]
        is_base = torch.isin(test_labels[tested], base_classes)
        rows.append(
            {
                "session": session.number,
                "accuracy": _percent(correct),
                "base_accuracy": _percent(correct[is_base]),
                "new_accuracy": _percent(correct[~is_base]) if session.number > 1 else None,
            }
        )
    return rows


def _percent(correct: Tensor) -> float:
    return 100.0 * float(correct.double().mean())
