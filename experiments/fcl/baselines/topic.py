"""TOPIC: keep the topology of the embedding space, held by a neural gas.

Tao et al., "Few-Shot Class-Incremental Learning", CVPR 2020. After the base session a neural gas
(Martinetz and Schulten, 1991) is laid over the embeddings: nodes with a centroid, a variance and a
label, and edges between nodes that respond together (competitive Hebbian learning). In a session,
the classifier and the tuned weights are trained on the cross-entropy of the new shots, plus an
anchor loss that holds the nodes in place, plus a min-max loss that pulls shots to the node of their
own class and pushes that node away from its neighbours in the gas. Classification is by the linear
classifier, which gains one row per new class.

What could be checked, and where: 400 nodes for all data sets, initial centroids drawn from the
embeddings, the decay ``exp(-rank / 10)`` and the greatest age of an edge, 200, in the abstract of
the paper's supplement (as listed by bohrium.dp.tech); the anchor loss as a penalty on the shift of
nodes, the insertion of a node per new class, and the two sides of the min-max loss with its
neighbours given by the edges, in the captions of the paper's figures (as quoted in
``karthikraja95/academic-kickstart``, post FSIL). The authors' repository, ``xyutao/fscil``, holds
no code of the method. Not confirmed, from memory: weights 0.5 and 0.005, the step 0.02 of the gas,
the greatest distance between two nodes as margin, and the classifier's part in the predictions.

Simplifications:

- the image of a node (the one nearest to its centroid) stands for where the node is now; its anchor
  is where the embedding had this image when it was kept, not the centroid, so that the loss is 0 at
  the start;
- a kept image counts as an exemplar: only ``base_exemplars`` nodes per base class have one, and an
  anchor. The paper keeps one for each node;
- variances are bounded from below by a tenth of their mean, as a node that won few images has none;
- the anchor loss is averaged over nodes and entries, and the min-max loss over shots and pairs of
  neighbours, so that their weights depend neither on the number of nodes nor on the width of the
  network (with a sum over entries, weight 0.5 diverges at learning rates that suit the rest);
- the centroid of a new node is the mean of its shots, with gradients; old centroids stay.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from typing_extensions import override

from experiments.fcl.baselines.features import Features, embedded, prefix_features
from experiments.fcl.baselines.learner import Learner
from experiments.fcl.baselines.memory import Exemplars
from experiments.fcl.baselines.session_training import require_base_classes, require_rows
from ktlib.checks import require_at_least, require_finite, require_positive
from ktlib.fcl.evaluation import embed
from ktlib.fcl.protocol import positions_of
from ktlib.fcl.prototypes import class_means
from ktlib.fcl.split import SplitNetwork


class NeuralGas:
    """Nodes in the embedding space, and edges between nodes that respond to the same inputs.

    Args:
        centroids: ``(nodes, dim)``, copied.
        max_age: an edge older than this is removed.

    Attributes:
        centroids: ``(nodes, dim)``.
        ages: ``(nodes, nodes)`` symmetric; age of each edge, -1 where there is none.
        variances: ``(nodes, dim)``, from :meth:`describe`.
        labels: ``(nodes,)`` class numbers, from :meth:`describe`.
        images: ``(nodes,)`` row of the embedding nearest to each node, from :meth:`describe`.
        wins: ``(nodes,)`` embeddings that each node is nearest to, from :meth:`describe`.
    """

    def __init__(self, centroids: Tensor, max_age: int = 200) -> None:
        require_at_least("max_age", max_age, 0)
        if len(centroids) < 2:
            raise ValueError(f"a neural gas must have at least 2 nodes. Found {len(centroids)}.")
        self.centroids = centroids.detach().clone()
        self.max_age = max_age
        self.ages = torch.full((len(centroids),) * 2, -1, device=centroids.device)

    def connect(self, embedding: Tensor) -> Tensor:
        """Competitive Hebbian learning: join the two nodes nearest to ``(dim,)``.

        All other edges of the nearest node age by one; those too old go.

        Returns:
            ``(nodes,)`` the nodes from the nearest to the farthest.
        """
        order = (self.centroids - embedding).square().sum(dim=1).argsort(stable=True)
        first, second = order[0], order[1]
        aged = self.ages[first] + (self.ages[first] >= 0).int()
        aged[second] = 0
        aged[aged > self.max_age] = -1
        self.ages[first] = self.ages[:, first] = aged
        return order

    def adapt(self, embedding: Tensor, step: float, decay: float) -> None:
        """Join the nearest nodes and move all nodes by ``step * exp(-rank / decay)`` of the way."""
        order = self.connect(embedding)
        share = step * torch.exp(-torch.arange(len(order), device=order.device) / decay)
        self.centroids[order] += share[:, None] * (embedding - self.centroids[order])

    def describe(self, embeddings: Tensor, labels: Tensor) -> None:
        """Give each node its variance, label, image and number of wins.

        Args:
            embeddings: ``(n, dim)`` that the gas was laid over.
            labels: ``(n,)`` class numbers.
        """
        distances = torch.cdist(self.centroids, embeddings)  # (nodes, n)
        self.images = distances.argmin(dim=1)
        self.labels = labels[self.images]
        won = F.one_hot(distances.argmin(dim=0), len(self.centroids)).T.to(embeddings.dtype)
        self.wins = won.sum(dim=1).long()
        counts = won.sum(dim=1, keepdim=True).clamp(min=1)
        means = (won @ embeddings) / counts
        variances = ((won @ embeddings.square()) / counts - means.square()).clamp(min=0)
        floor = max(0.1 * float(variances.mean()), 1e-12)
        self.variances = variances.clamp(min=floor)

    def insert(self, centroid: Tensor, label: int) -> int:
        """Add a node ``(dim,)`` without edges, with the mean variance; return its number."""
        self.centroids = torch.cat([self.centroids, centroid.detach()[None]])
        self.ages = F.pad(self.ages, (0, 1, 0, 1), value=-1)
        self.variances = torch.cat([self.variances, self.variances.mean(dim=0, keepdim=True)])
        self.labels = torch.cat([self.labels, self.labels.new_tensor([label])])
        return len(self.centroids) - 1

    def neighbours(self, node: int) -> Tensor:
        """Numbers of the nodes that an edge joins to ``node``."""
        return (self.ages[node] >= 0).nonzero()[:, 0]

    def diameter(self) -> float:
        """Greatest distance between two nodes."""
        return float(torch.cdist(self.centroids, self.centroids).max())


def grow_gas(
    embeddings: Tensor,
    labels: Tensor,
    *,
    nodes: int,
    generator: torch.Generator,
    step: float = 0.02,
    decay: float = 10.0,
    max_age: int = 200,
    passes: int = 1,
) -> NeuralGas:
    """Lay a neural gas over embeddings, one embedding at a time in random order.

    Args:
        embeddings: ``(n, dim)``.
        labels: ``(n,)`` class numbers.
        nodes: number of nodes; as many as embeddings if there are fewer. The first ones start at an
            embedding of each class, so that every class has one while there are enough.
        generator: draws the initial centroids and the order.
        step: share of the way that the nearest node moves.
        decay: ranks after which this share has fallen by the factor e.
        max_age: see :class:`NeuralGas`.
        passes: passes over the embeddings.

    Raises:
        ValueError: if ``nodes`` is below 2, or ``passes`` is negative.
    """
    require_at_least("nodes", nodes, 2)
    require_at_least("passes", passes, 0)
    order = torch.randperm(len(embeddings), generator=generator, device=generator.device)
    shuffled = labels[order.to(labels.device)]
    # The first embedding of each class in the random order, then the others.
    first = [int((shuffled == label).nonzero()[0]) for label in labels.unique()]
    rest = [row for row in range(len(order)) if row not in set(first)]
    chosen = order[(first + rest)[:nodes]].to(embeddings.device)
    gas = NeuralGas(embeddings[chosen], max_age)
    for _ in range(passes):
        rows = torch.randperm(len(embeddings), generator=generator, device=generator.device)
        for row in rows.tolist():
            gas.adapt(embeddings[row], step, decay)
    gas.describe(embeddings, labels)
    return gas


@dataclass(frozen=True)
class TopicSettings:
    """Images kept, neural gas, and weights of TOPIC's losses.

    Attributes:
        base_exemplars: images kept per base class, each the anchor of one node. With 0 the anchor
            loss knows no base node and only holds those of earlier new classes.
        new_exemplars: images kept per new class; one of them is the anchor of the class's node.
        nodes: nodes laid over the base session.
        gas_step: see :func:`grow_gas`.
        gas_decay: see :func:`grow_gas`.
        max_age: see :func:`grow_gas`.
        gas_passes: see :func:`grow_gas`.
        anchor_weight: weight of the anchor loss.
        min_max_weight: weight of the min-max loss.
        margin: distance that the node of a new class should have from its neighbours; ``None``
            takes the greatest distance between two nodes of the base session.

    Raises:
        ValueError: if a weight is negative.
    """

    base_exemplars: int = 2
    new_exemplars: int = 5
    nodes: int = 400
    gas_step: float = 0.02
    gas_decay: float = 10.0
    max_age: int = 200
    gas_passes: int = 1
    anchor_weight: float = 0.5
    min_max_weight: float = 0.005
    margin: float | None = None

    def __post_init__(self) -> None:
        require_at_least("anchor_weight", self.anchor_weight, 0)
        require_at_least("min_max_weight", self.min_max_weight, 0)


class TOPIC(Learner):
    """Linear classifier and tuned weights, trained under the two losses of the neural gas.

    Args:
        split: network trained on the base session.
        classifier: linear layer that it was trained with; copied.
        base_classes: ``(k,)`` class number of each row of the classifier.
        epochs: full-batch steps per session.
        lr: learning rate of plain SGD, for the tuned weights and the classifier.
        generator: draws the gas and the rows of new classes.
        settings: by default those of the paper, as far as they are known.

    Attributes:
        gas: the neural gas, set by :meth:`start`.
        classes: ``(k,)`` classes seen so far.
        weight: ``(k, dim)`` of the present classifier; row ``i`` belongs to ``classes[i]``.
        bias: ``(k,)`` of the present classifier.

    Raises:
        ValueError: if ``base_classes`` and ``classifier`` do not fit, ``epochs`` is below 1, or
            ``lr`` is not above 0.
    """

    name: ClassVar[str] = "topic"

    def __init__(
        self,
        split: SplitNetwork,
        classifier: nn.Linear,
        base_classes: Tensor,
        *,
        epochs: int,
        lr: float,
        generator: torch.Generator,
        settings: TopicSettings | None = None,
    ) -> None:
        require_at_least("epochs", epochs, 1)
        require_positive("lr", lr)
        require_rows(classifier.out_features, base_classes)
        self.split = split
        self.weight = classifier.weight.detach().clone()
        self.bias = (
            torch.zeros_like(self.weight[:, 0])
            if classifier.bias is None
            else classifier.bias.detach().clone()
        )
        self.classes: Tensor = base_classes.to(self.weight.device)
        self.base_classes = self.classes
        self.epochs = epochs
        self.lr = lr
        self.generator = generator
        self.settings = settings or TopicSettings()
        self.kept = Exemplars(self.settings.base_exemplars, self.settings.new_exemplars)

    @override
    def start(self, images: Tensor, labels: Tensor) -> None:
        require_base_classes(labels, self.base_classes)
        embeddings, s = embed(self.split.network, images), self.settings
        self.gas = grow_gas(
            embeddings,
            labels,
            nodes=s.nodes,
            generator=self.generator,
            step=s.gas_step,
            decay=s.gas_decay,
            max_age=s.max_age,
            passes=s.gas_passes,
        )
        self.distance = self.gas.diameter() if s.margin is None else s.margin
        nodes = self._nodes_to_anchor()
        rows = self.gas.images[nodes]
        self.kept.add(images[rows], labels[rows], base=True)
        # Anchors: which kept image belongs to which node, and where the embedding had it.
        self.anchor_rows = torch.arange(len(nodes), device=rows.device)
        self.anchor_nodes = nodes
        self.anchors = embeddings[rows]

    def _nodes_to_anchor(self) -> Tensor:
        """Nodes of each base class with the most wins, within its budget; no image twice."""
        chosen: list[int] = []
        taken: set[int] = set()
        left = dict.fromkeys(self.base_classes.tolist(), self.kept.per_base_class)
        for node in self.gas.wins.argsort(descending=True, stable=True).tolist():
            image, label = int(self.gas.images[node]), int(self.gas.labels[node])
            if left.get(label, 0) > 0 and image not in taken:
                chosen.append(node)
                taken.add(image)
                left[label] -= 1
        return torch.tensor(chosen, dtype=torch.long, device=self.gas.labels.device)

    @override
    def learn(self, images: Tensor, labels: Tensor) -> None:
        new_classes = labels.unique()
        self._add_rows(new_classes)
        earlier = len(self.kept)
        joined, joined_labels = self.kept.joined_with(images, labels)
        embeddings = embed(self.split.network, images)
        means = class_means(embeddings, labels, new_classes)
        inserted = [
            self.gas.insert(mean, label)
            for mean, label in zip(means, new_classes.tolist(), strict=True)
        ]
        self._connect(embeddings)
        self._train(joined, joined_labels, new_classes, inserted)
        embeddings = embed(self.split.network, images)
        self.gas.centroids[inserted] = class_means(embeddings, labels, new_classes)
        self._connect(embeddings)
        self.kept.add_chosen(images, labels, base=False)
        self._anchor_new(earlier, inserted)

    def _connect(self, embeddings: Tensor) -> None:
        for embedding in embeddings:
            self.gas.connect(embedding)

    def _add_rows(self, new_classes: Tensor) -> None:
        """A row per new class, drawn like those of a fresh layer of this size."""
        dim = self.weight.shape[1]
        shape = (len(new_classes), dim + 1)
        drawn = torch.rand(shape, generator=self.generator, device=self.generator.device)
        drawn = ((2 * drawn - 1) * dim**-0.5).to(self.weight)
        self.weight = torch.cat([self.weight, drawn[:, :-1]])
        self.bias = torch.cat([self.bias, drawn[:, -1]])
        self.classes = torch.cat([self.classes, new_classes])

    def _train(
        self, images: Tensor, labels: Tensor, new_classes: Tensor, inserted: list[int]
    ) -> None:
        """Full-batch steps; kept images of base classes serve the anchor loss alone."""
        shots = ~torch.isin(labels, self.base_classes)
        current = torch.isin(labels, new_classes)
        targets = positions_of(labels[shots], self.classes)
        weight, bias = self.weight.requires_grad_(), self.bias.requires_grad_()
        trained = [*self.split.tuned.values(), weight, bias]
        variances = self.gas.variances[self.anchor_nodes]
        self.split.network.eval()
        with torch.no_grad():
            features = self.split.prefix(images)
        for step in range(1, self.epochs + 1):
            embeddings = self.split.tail_forward(features)  # (n, dim)
            loss = F.cross_entropy(F.linear(embeddings[shots], weight, bias), targets)
            loss = loss + self.settings.anchor_weight * anchor_loss(
                embeddings[self.anchor_rows], self.anchors, variances
            )
            means = class_means(embeddings[current], labels[current], new_classes)  # (new, dim)
            pairs, others = self._neighbour_pairs(inserted, means)
            loss = loss + self.settings.min_max_weight * min_max_loss(
                embeddings[current],
                means[torch.searchsorted(new_classes, labels[current])],
                means[pairs],
                others,
                self.distance,
            )
            gradients = torch.autograd.grad(require_finite(loss, step), trained)
            with torch.no_grad():
                for parameter, gradient in zip(trained, gradients, strict=True):
                    parameter.add_(gradient, alpha=-self.lr)
        self.weight, self.bias = weight.detach(), bias.detach()

    def _neighbour_pairs(self, inserted: list[int], means: Tensor) -> tuple[Tensor, Tensor]:
        """For each edge of a new node: the row of its mean, and the place of its other end.

        Returns:
            ``(pairs,)`` rows of ``means`` and ``(pairs, dim)``; ends that are new nodes themselves
            have gradients.
        """
        centroids = self.gas.centroids.index_copy(
            0, torch.tensor(inserted, device=means.device), means
        )
        rows, ends = [], []
        for row, node in enumerate(inserted):
            for other in self.gas.neighbours(node).tolist():
                if self.gas.labels[other] != self.gas.labels[node]:
                    rows.append(row)
                    ends.append(other)
        return (
            torch.tensor(rows, dtype=torch.long, device=means.device),
            centroids[torch.tensor(ends, dtype=torch.long, device=means.device)],
        )

    def _anchor_new(self, earlier: int, inserted: list[int]) -> None:
        """Give each new node the kept image nearest to it."""
        if len(self.kept) == earlier:
            return
        images, labels = self.kept.all()
        embeddings = embed(self.split.network, images[earlier:])
        rows = [
            int(
                (embeddings - self.gas.centroids[node])
                .norm(dim=1)
                .masked_fill(labels[earlier:] != self.gas.labels[node], float("inf"))
                .argmin()
            )
            for node in inserted
        ]
        added = torch.tensor(rows, device=labels.device)
        self.anchor_rows = torch.cat([self.anchor_rows, earlier + added])
        self.anchor_nodes = torch.cat([self.anchor_nodes, added.new_tensor(inserted)])
        self.anchors = torch.cat([self.anchors, embeddings[added]])

    @override
    def features(self, images: Tensor) -> Features:
        return prefix_features(self.split.prefix, images)

    @override
    def classify(self, features: Features) -> Tensor:
        scores = F.linear(embedded(self.split.tail, features), self.weight, self.bias)
        return self.classes.index_select(0, scores.argmax(dim=1))


def anchor_loss(now: Tensor, anchors: Tensor, variances: Tensor) -> Tensor:
    """Mean over nodes and entries of the squared shift over the variance.

    Per node this is the squared Mahalanobis distance over the number of entries.

    Args:
        now: ``(nodes, dim)`` embeddings of the nodes' images.
        anchors: ``(nodes, dim)`` the same when they were kept.
        variances: ``(nodes, dim)`` above 0; a node that varies much may move much.

    Returns:
        A scalar; 0 for no nodes.
    """
    squared = ((now - anchors).square() / variances).mean(dim=1)
    return squared.sum() / max(len(now), 1)


def min_max_loss(
    embeddings: Tensor, own: Tensor, nodes: Tensor, neighbours: Tensor, margin: float
) -> Tensor:
    """Pull shots to the nodes of their classes, and push these from nodes of other classes.

    Args:
        embeddings: ``(n, dim)`` shots of new classes.
        own: ``(n, dim)`` the node of each shot's class.
        nodes: ``(pairs, dim)`` the new node of each edge to a node of another class.
        neighbours: ``(pairs, dim)`` the other ends.
        margin: distance above which a pair is left alone.

    Returns:
        Mean distance of the shots, plus the mean of ``max(0, margin - distance)`` over the pairs.
    """
    pull: Tensor = (embeddings - own).norm(dim=1).mean()
    push: Tensor = (margin - (nodes - neighbours).norm(dim=1)).relu().sum() / max(len(nodes), 1)
    return pull + push
