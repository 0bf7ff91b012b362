"""Multi-task learning: where the gradients of tasks conflict, and what to do about it.

For any network and any losses. The search for the layers that conflict takes part in training, and
the layers it finds become the tasks' own::

    meter = ConflictMeter(trunk)
    cagrad = aggregator("cagrad")                      # see aggregators()
    for images, labels in batches:
        optimizer.zero_grad()                          # a task without labels here stays as it is
        features = trunk(images)
        losses = {task: loss(heads[task](features), labels[task]) for task in labels}
        gradients = meter.observe(
            losses, task_parameters={t: heads[t].parameters() for t in losses}
        )
        apply_gradients(trunk, gradients, cagrad)      # writes .grad; also that of the heads
        optimizer.step()
    network = split(trunk, meter.ranking(-0.1)[:25], list(heads), example=images)
    features = network(images)                         # {task: its features}

Split the trunk as it was before training: Recon trains the new network from the start. It goes
into :func:`apply_gradients` and into a new meter as the trunk did, where only what is still shared
counts; ``network.task_parameters(task)`` belong to ``task_parameters``, beside
those of the head. :meth:`ConflictMeter.observe` says how to go on in float16, ``task_pairs=True``
which tasks conflict, and ``accumulate=True`` of :func:`apply_gradients` adds small batches up.
All of it runs in one process on one device: gradients that several processes average have no pairs
of tasks to compare any more.
"""

from ktlib.mtl.aggregation import aggregator, aggregators
from ktlib.mtl.conflict import ConflictMeter
from ktlib.mtl.cost import forward_flops, parameter_megabytes
from ktlib.mtl.gradients import apply_gradients, apply_gramians, task_gradients
from ktlib.mtl.layers import layers_of
from ktlib.mtl.metrics import (
    ranking_correlation,
    ranking_distance,
    relative_improvement,
    top_overlap,
)
from ktlib.mtl.split import SplitTrunk, split

__all__ = [
    "ConflictMeter",
    "SplitTrunk",
    "aggregator",
    "aggregators",
    "apply_gradients",
    "apply_gramians",
    "forward_flops",
    "layers_of",
    "parameter_megabytes",
    "ranking_correlation",
    "ranking_distance",
    "relative_improvement",
    "split",
    "task_gradients",
    "top_overlap",
]
