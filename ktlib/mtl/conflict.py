"""How much the gradients of tasks conflict on each layer: the search of Recon (thesis, 4.3).

Layer ``k`` has the conflict score of severity ``S``: the number of pairs of tasks whose gradients
on it have a cosine below ``S`` (equation 4.3), added up over the iterations of the search.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ktlib.mtl.gradients import (
    TaskGradients,
    TaskGramians,
    add_own,
    check_own,
    check_tasks,
    empty_rows,
    fill_row,
    gradients_of,
    gramian,
    independent,
    largest,
    no_autocast,
    not_finite,
    parameters_of,
    unclaimed_parameters,
)
from ktlib.mtl.graph_segments import segment_backward_graph
from ktlib.mtl.layers import layers_of
from ktlib.mtl.split import SplitTrunk

Layers: TypeAlias = Mapping[str, Sequence[nn.Parameter]]

# Every interval of the thesis's tables 4.11 to 4.14 ends at one of these.
SEVERITIES = (0.0, -0.01, -0.02, -0.03, -0.04, -0.06, -0.08, -0.1, -0.15)
BINS = tuple(k / 100 for k in range(-100, 101))


class ConflictMeter:
    """Counts conflicts at several severities at once, in passes that also serve the update.

    A pair of tasks counts on a layer where both have a gradient other than 0: the cosine of the
    others is not defined.

    Args:
        trunk: the network that the tasks share, of a :class:`ktlib.mtl.SplitTrunk` what is still
            shared; or its layers: name -> parameters, in the order of the network. Frozen
            parameters of a network are left out.
        severities: values ``S`` in ``(-1, 0]`` at which conflicts are counted.
        batch_norm: whether batch norms count as layers; their gradients are part of the update and
            of the cosine over all shared parameters either way.
        bins: edges of the histograms, rising from -1 to 1. A bin holds its lower edge, and the last
            one also 1: so the bins below ``S`` hold the conflicts of severity ``S``.
        task_pairs: whether each pair of tasks is counted by itself, too: see :meth:`pair_rows`.

    Attributes:
        layers: names of the layers, in the order of the network.
        observations: number of iterations counted.
        pairs: name of a layer -> number of pairs counted on it.

    Raises:
        ValueError: a severity lies elsewhere, the edges do not rise from -1 to 1, or the trunk has
            no parameters to train.

    Example:
        >>> layers = {name: [nn.Parameter(torch.ones(2))] for name in ("first", "second")}
        >>> first, second = layers["first"][0], layers["second"][0]
        >>> losses = {"a": first.sum() + second.sum(), "b": first.sum() - second.sum()}
        >>> meter = ConflictMeter(layers)
        >>> gradients = meter.observe(losses)
        >>> meter.scores(-0.1), meter.ranking(-0.1)
        ({'first': 0, 'second': 1}, ['second', 'first'])
    """

    def __init__(
        self,
        trunk: nn.Module | Layers,
        severities: Iterable[float] = SEVERITIES,
        *,
        batch_norm: bool = True,
        bins: Sequence[float] = BINS,
        task_pairs: bool = False,
    ) -> None:
        self.severities = tuple(dict.fromkeys(float(severity) for severity in severities))
        for severity in self.severities:
            if not -1 < severity <= 0:
                raise ValueError(f"severity must lie in (-1, 0]. Found severity={severity}.")
        self.bins = tuple(float(edge) for edge in bins)
        rises = all(low < high for low, high in itertools.pairwise(self.bins))
        if len(self.bins) < 2 or (self.bins[0], self.bins[-1]) != (-1, 1) or not rises:
            raise ValueError(f"bins must rise from -1 to 1. Found bins={self.bins}.")
        everything, counted = _layers(trunk, True), _layers(trunk, batch_norm)
        self._everything = {name: list(layer) for name, layer in everything.items() if layer}
        self._parameters = parameters_of(self._everything)
        self._owner = {p: name for name, layer in self._everything.items() for p in layer}
        if len(self._parameters) < sum(map(len, self._everything.values())):
            raise ValueError("trunk must hold each parameter in one layer. Found one in two.")
        if not self._parameters or not counted:
            raise ValueError("trunk must have layers whose parameters are trained. Found none.")
        self.layers = tuple(name for name in counted if name in self._everything)
        # The last row of each is for all shared parameters together.
        rows = len(self.layers) + 1
        self._conflicts = torch.zeros((rows, len(self.severities)), dtype=torch.int64)
        self._histograms = torch.zeros((rows, len(self.bins) - 1), dtype=torch.int64)
        self._angles = torch.zeros(rows, dtype=torch.float64)  # sums over pairs, in radians
        self._between: dict[tuple[str, str], Tensor] | None = {} if task_pairs else None
        self._own: dict[str, list[nn.Parameter]] = {}  # of all tasks that were seen
        self._unclaimed: tuple[tuple[str, nn.Parameter], ...] = ()
        self.observations = 0

    @property
    def pairs(self) -> dict[str, int]:
        """Number of pairs counted on every layer, over all iterations."""
        return dict(zip(self.layers, self._histograms[:-1].sum(dim=1).tolist(), strict=True))

    def observe(
        self,
        losses: Mapping[str, Tensor],
        *,
        task_parameters: Mapping[str, Iterable[nn.Parameter]] | None = None,
        retain_graph: bool = False,
        loss_scale: float | None = None,
    ) -> TaskGradients:
        """Count the conflicts of one iteration; the gradients are for its update.

        In float16, with a ``torch.amp.GradScaler``::

            scaled = {task: scaler.scale(loss) for task, loss in losses.items()}
            gradients = meter.observe(scaled, task_parameters=own, loss_scale=scaler.get_scale())
            apply_gradients(trunk, gradients, pcgrad)  # .grad is scaled again, for the next line
            scaler.step(optimizer)
            scaler.update()

        Where gradients overflow, nothing is counted and ``.grad`` is NaN: the scaler skips the step
        and lowers its factor.

        Args:
            losses: task -> its scalar loss; all from one forward pass of the trunk.
            task_parameters: task -> parameters of this task alone, such as those of its head.
            retain_graph: keep the graph for another backward pass.
            loss_scale: what the losses have been multiplied by.

        Raises:
            ValueError: as :func:`ktlib.mtl.gradients.task_gradients`.
            FloatingPointError: a gradient is not finite and no ``loss_scale`` is given; task and
                layer are named, and nothing of the iteration is counted.
        """
        mine = check_tasks(losses, self._parameters, task_parameters)
        gradients = gradients_of(losses, self._parameters, mine, retain_graph=retain_graph)
        gradients = replace(gradients, **self._tasks(losses, mine))
        if loss_scale is not None:
            gradients.matrix.div_(loss_scale)
            own = tuple((parameter, value / loss_scale) for parameter, value in gradients.own)
            gradients = replace(gradients, own=own, loss_scale=loss_scale)
        try:
            products = self._products(mine, self._parameters, gradients.matrix, gradients.own)
        except FloatingPointError:
            if loss_scale is None:
                raise
            return replace(gradients, loss_scale=math.nan)
        self.count(products, gradients.tasks)
        return gradients

    def observe_gramians(
        self,
        losses: Mapping[str, Tensor],
        *,
        task_parameters: Mapping[str, Iterable[nn.Parameter]] | None = None,
        retain_graph: bool = False,
    ) -> TaskGramians:
        """As :meth:`observe`, the gradients dropped as soon as they are not needed.

        The backward passes go through the graph in segments, all tasks through one segment before
        the first enters the next. Of a segment only inner products of the gradients are kept, and
        between two segments the gradients of the one tensor that everything passes. The numbers
        are the same, and so is the work; the memory is that of the largest segment. Where no tensor
        separates the graph (as with skip connections over the whole network), nothing is saved.

        :func:`ktlib.mtl.gradients.apply_gramians` makes an update of the result; it needs
        ``retain_graph=True``.
        """
        mine = check_tasks(losses, self._parameters, task_parameters)
        tasks = tuple(losses)
        found: dict[nn.Parameter, Tensor] = {}
        products: dict[str, Tensor] = {}
        segments = segment_backward_graph(losses, self._parameters)
        # What flows into a segment: first the losses themselves, then one tensor per task.
        entries: list[tuple[Any, Tensor | None]] = [(loss, None) for loss in losses.values()]
        with no_autocast(self._parameters[0].device):
            for segment in segments:
                first, last = segment is segments[0], segment is segments[-1]
                sizes = [parameter.numel() for parameter in segment.parameters]
                rows = empty_rows(len(tasks), segment.parameters, self._parameters)
                for row, task in enumerate(tasks):
                    output, flow = entries[row]
                    if not first and flow is None:  # nothing of this task comes so far down
                        rows[row].zero_()
                        continue
                    private = mine[task] if first else []
                    exits = [] if segment.exit is None else [segment.exit]
                    targets: list[Any] = [*segment.parameters, *private, *exits]
                    gradients = torch.autograd.grad(
                        [output],
                        targets,
                        None if flow is None else [flow],
                        retain_graph=retain_graph or not (last and row + 1 == len(tasks)),
                        allow_unused=True,
                    )
                    shared = gradients[: len(sizes)]
                    add_own(found, private, gradients[len(sizes) : len(sizes) + len(private)])
                    fill_row(rows[row], sizes, shared)
                    onward = None if last else gradients[-1]
                    if first and onward is None and all(value is None for value in shared):
                        raise independent(task)
                    entries[row] = (segment.exit, onward)
                    del gradients, shared, flow
                own = tuple(found.items()) if first else ()  # of heads, in front of the trunk
                for name, part in self._products(mine, segment.parameters, rows, own).items():
                    products[name] = products[name] + part if name in products else part
                del rows
        self.count(products, tasks)
        shared_products = torch.stack(list(products.values())).sum(dim=0)
        counted = {name: products[name] for name in self.layers}
        own = tuple(found.items())
        return TaskGramians(tasks, counted, shared_products, own=own, **self._tasks(losses, mine))

    def _tasks(
        self, losses: Mapping[str, Tensor], mine: dict[str, list[nn.Parameter]]
    ) -> dict[str, Any]:
        """What is absent and unclaimed in a step: see :class:`~ktlib.mtl.gradients.TaskStep`."""
        present = {parameter for own in mine.values() for parameter in own}
        known = {task: [id(p) for p in own] for task, own in self._own.items()}
        if any(known.get(task) != [id(p) for p in own] for task, own in mine.items()):
            self._unclaimed = unclaimed_parameters(losses, self._parameters, mine)
        self._own |= mine
        absent = (p for task, own in self._own.items() if task not in mine for p in own)
        return {
            "absent": tuple(p for p in absent if p not in present),
            "unclaimed": self._unclaimed,
        }

    def count(self, products: Mapping[str, Tensor], tasks: Sequence[str] = ()) -> None:
        """Count the conflicts of one iteration, given the inner products of its gradients.

        Args:
            products: every layer of the trunk, batch norms included -> ``(T, T)`` inner products.
            tasks: names of the T tasks, for ``task_pairs``.
        """
        total = torch.stack([products[name] for name in self._everything]).sum(dim=0)
        gramians = torch.stack([*(products[name] for name in self.layers), total])
        cosines, defined = pair_cosines(gramians)
        for column, severity in enumerate(self.severities):
            self._conflicts[:, column] += (defined & (cosines < severity)).sum(dim=1)
        edges = torch.tensor(self.bins[1:-1], dtype=torch.float64)
        bins = torch.bucketize(cosines, edges, right=True)
        self._histograms.scatter_add_(1, bins, defined.long())
        self._angles += torch.where(defined, cosines.acos(), 0.0).sum(dim=1)
        if self._between is not None:
            if len(tasks) != gramians.shape[-1]:
                raise ValueError(f"tasks must be {gramians.shape[-1]} names. Found {list(tasks)}.")
            names = sorted(tasks)  # one order of the names in every batch
            order = torch.tensor([list(tasks).index(name) for name in names])
            gramians = gramians[:, order][:, :, order]
            cosines, defined = pair_cosines(gramians)
            first, second = torch.triu_indices(len(names), len(names), offset=1)
            lengths = gramians.diagonal(dim1=-2, dim2=-1).log() / 2
            ratios = lengths[:, first] - lengths[:, second]
            values = [defined, cosines, gramians[:, first, second], ratios]
            values += [cosines < severity for severity in self.severities]
            counted = torch.stack([torch.where(defined, value, 0.0) for value in values], dim=-1)
            pairs = itertools.combinations(names, 2)
            self._add_pairs(dict(zip(pairs, counted.unbind(1), strict=True)))
        self.observations += 1

    def pair_rows(self, severity: float) -> list[dict[str, Any]]:
        """What was counted of each pair of tasks on each layer, and on all together (layer None).

        Returns:
            Rows with ``first`` and ``second`` task (by name), ``layer``, and of the iterations in
            which both had a gradient there: their number ``pairs``; ``conflicts`` of this severity;
            sum of the ``cosines``; mean ``inner_product``; ``norm_ratio``, the length of the first
            gradient over that of the second, as a geometric mean.

        Raises:
            ValueError: the meter was made without ``task_pairs``, or as :meth:`scores`.
        """
        if self._between is None:
            raise ValueError("the meter must be made with task_pairs=True. Found False.")
        column, rows = 4 + self._column(severity), []
        for (first, second), counted in self._between.items():
            for layer, values in zip((*self.layers, None), counted.tolist(), strict=True):
                pairs, cosines, products, ratios = values[:4]
                if pairs:
                    row = {"first": first, "second": second, "layer": layer, "pairs": int(pairs)}
                    row |= {"conflicts": int(values[column]), "cosines": cosines}
                    ratio = math.exp(ratios / pairs)
                    rows.append(row | {"inner_product": products / pairs, "norm_ratio": ratio})
        return rows

    def scores(self, severity: float) -> dict[str, int]:
        """Name of a layer -> its conflict score, in the order of the network.

        Raises:
            ValueError: conflicts of this severity were not counted.
        """
        column = self._conflicts[:-1, self._column(severity)]
        return dict(zip(self.layers, column.tolist(), strict=True))

    def mean_angles(self) -> dict[str, float]:
        """Name of a layer -> mean angle in degrees between the gradients of two tasks on it.

        The thesis (section 4.4.1) weighs the sum of these angles against the count of conflicts. A
        layer on which no pair was counted has NaN.
        """
        degrees = self._angles[:-1].rad2deg() / self._histograms[:-1].sum(dim=1)
        return dict(zip(self.layers, degrees.tolist(), strict=True))

    def shared_score(self, severity: float) -> int:
        """The same count for the gradients on all shared parameters together."""
        return int(self._conflicts[-1, self._column(severity)])

    def ranking(self, severity: float) -> list[str]:
        """The layers from the highest score to the lowest; equal ones in the network's order.

        Raises:
            ValueError: no conflict of this severity was counted on any layer.
        """
        scores = self.scores(severity)
        if not any(scores.values()):
            found = [s for s in self.severities if any(self.scores(s).values())]
            raise ValueError(
                f"there is nothing to rank: no conflict of severity {severity} in "
                f"{self.observations} steps. Found conflicts of severity {found or 'none'}."
            )
        return sorted(scores, key=lambda name: -scores[name])

    def histogram(self, layer: str | None = None) -> list[int]:
        """How many cosines fell in each of the bins, on one layer or on all shared parameters.

        Raises:
            ValueError: the layer is unknown.
        """
        if layer is not None and layer not in self.layers:
            raise ValueError(f"layer must be one of {list(self.layers)}. Found layer={layer!r}.")
        row = -1 if layer is None else self.layers.index(layer)
        counts: list[int] = self._histograms[row].tolist()
        return counts

    def merge(self, other: ConflictMeter) -> None:
        """Add the counts of another meter, such as those of another quarter of the search.

        Raises:
            ValueError: it counts other layers, severities or bins, or one counts pairs of tasks.
        """
        self._add(other.state_dict())

    def state_dict(self) -> dict[str, Any]:
        """All counts, with layers, severities and edges of bins."""
        return ({} if self._between is None else {"between": dict(self._between)}) | {
            "layers": list(self.layers),
            "severities": list(self.severities),
            "bins": list(self.bins),
            "observations": self.observations,
            "conflicts": self._conflicts.clone(),
            "histograms": self._histograms.clone(),
            "angles": self._angles.clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the counts by those of :meth:`state_dict`.

        Raises:
            ValueError: they are of other layers, severities or bins; nothing is changed.
        """
        self._check_state(state)
        self._conflicts.zero_()
        self._histograms.zero_()
        self._angles.zero_()
        self._between = None if self._between is None else {}
        self.observations = 0
        self._add(state)

    def _add(self, state: Mapping[str, Any]) -> None:
        self._check_state(state)
        self._conflicts += state["conflicts"]
        self._histograms += state["histograms"]
        self._angles += state["angles"]
        self._add_pairs(state.get("between", {}))
        self.observations += int(state["observations"])

    def _add_pairs(self, counted: Mapping[tuple[str, str], Tensor]) -> None:
        between = {} if self._between is None else self._between
        between.update({pair: part + between.get(pair, 0) for pair, part in counted.items()})

    def _check_state(self, state: Mapping[str, Any]) -> None:
        pairs = self._between is not None
        if pairs != ("between" in state):
            raise ValueError(f"task_pairs of the counts must be {pairs}. Found {not pairs}.")
        for name in ("layers", "severities", "bins"):
            own, given = list(getattr(self, name)), list(state[name])
            if own != given:
                raise ValueError(f"{name} of the counts must be {own}. Found {given}.")

    def _products(
        self,
        mine: Mapping[str, Sequence[nn.Parameter]],
        parameters: Sequence[nn.Parameter],
        rows: Tensor,
        own: Sequence[tuple[nn.Parameter, Tensor]],
    ) -> dict[str, Tensor]:
        """Inner products on each layer that has columns among the rows, as float64 on the CPU.

        Raises:
            FloatingPointError: these gradients or ``own`` ones are not finite.
        """
        widths: dict[str, int] = {}
        for parameter in parameters:  # in the order of the layers, so those of a layer are together
            name = self._owner[parameter]
            widths[name] = widths.get(name, 0) + parameter.numel()
        blocks = dict(zip(widths, rows.split(list(widths.values()), dim=1), strict=True))
        # One transfer for all layers: on a GPU each one waits for everything before it.
        bound = largest([value for _, value in own])
        sent = [gramian(block).flatten() for block in blocks.values()]
        sent += [] if bound is None else [bound.to(rows.device, torch.float64).view(1)]
        numbers = torch.cat([*sent, rows.new_empty(0, dtype=torch.float64)]).cpu()
        found = numbers[: len(blocks) * len(mine) ** 2].view(len(blocks), len(mine), len(mine))
        squares = found.diagonal(dim1=-2, dim2=-1)
        doubtful = (~squares.isfinite() | (squares < 1e-30)).any(dim=1)
        for index, (name, block) in enumerate(blocks.items()):
            if not doubtful[index]:
                continue
            if squares[index].isfinite().all():
                squared = zip(block, squares[index].tolist(), strict=True)
                entries = [row.any() for row, square in squared if square < 1e-30]
                if not torch.stack(entries).any():
                    continue  # the products of zeros are right in any precision
            else:
                for task, finite in zip(mine, block.isfinite().all(dim=1).tolist(), strict=True):
                    if not finite:
                        raise not_finite(task, f"layer {name!r}")
            # Finite, but too long or too short for their squares in float32.
            found[index] = gramian(block.double()).cpu()
        if bound is not None and not numbers[-1].isfinite():
            check_own(own, mine)
        return dict(zip(blocks, found, strict=True))

    def _column(self, severity: float) -> int:
        if severity not in self.severities:
            raise ValueError(
                f"severity must be one of {self.severities}, at which conflicts were counted. "
                f"Found severity={severity}."
            )
        return self.severities.index(severity)


def pair_cosines(gramians: Tensor) -> tuple[Tensor, Tensor]:
    """Cosines of all pairs of tasks ``i < j``.

    Args:
        gramians: ``(..., T, T)`` inner products.

    Returns:
        ``(..., pairs)`` the cosines in ``[-1, 1]``, and whether they are defined: both gradients
        are not 0. Where they are not, the cosine reads 0.
    """
    first, second = torch.triu_indices(gramians.shape[-1], gramians.shape[-1], offset=1)
    # The root of each factor first: their product could overflow.
    norms = gramians.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    lengths = norms[..., first] * norms[..., second]
    defined = lengths > 0
    cosines = gramians[..., first, second] / torch.where(defined, lengths, 1.0)
    return torch.where(defined, cosines, 0.0).clamp(-1, 1), defined


def _layers(trunk: nn.Module | Layers, batch_norm: bool) -> Layers:
    """The layers that the tasks share, those without batch norms if asked of a network."""
    if isinstance(trunk, SplitTrunk):
        return trunk.shared_layers(batch_norm)
    return layers_of(trunk, batch_norm) if isinstance(trunk, nn.Module) else trunk
