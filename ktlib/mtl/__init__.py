"""Multi-task learning: which layers of a network conflict, and what to do about it.

A few lines on a network of your own::

    trunk = split(backbone, ["layer1.0.conv1"], tasks=["left", "right"])
    features = trunk(images)                        # {"left": ..., "right": ...}
    trunk.shared_parameters(), trunk.task_parameters("left")
"""

from ktlib.mtl.layers import layers_of
from ktlib.mtl.split import SplitTrunk, forward_flops, parameter_megabytes, split

__all__ = ["SplitTrunk", "forward_flops", "layers_of", "parameter_megabytes", "split"]
