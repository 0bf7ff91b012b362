"""Transfer of knowledge without forgetting or conflict: methods for PyTorch models of your own.

Four parts, each explained in a chapter of the book that comes with this package:

- ``ktlib.fcl``: few-shot continual learning by flat minima (F2M);
- ``ktlib.mtl``: conflicts between the gradients of tasks, and layers of their own (Recon);
- ``ktlib.ila``: which layers matter when a language model is fine-tuned (ILA);
- ``ktlib.cpeft``: continual learning of a pre-trained model by small adapters (InfLoRA, L2C).

Beside them ``ktlib.device`` chooses where to compute and in which precision, ``ktlib.seeding``
makes random streams that follow from a seed and a purpose, ``ktlib.testing`` checks that a method
trains what it says it trains, and ``ktlib.checks`` has what several parts check.

Nothing of PyTorch is imported here, so that ``import ktlib`` costs nothing. ``ktlib.ila`` and
``ktlib.cpeft`` need the extra ``lora`` when they work on adapters.
"""

import sys

from ktlib._moved import Moved

__all__ = ["DISTRIBUTION", "__version__"]

DISTRIBUTION = "knowledge-transfer-lib"  # name on a package index, where `ktlib` is another project
__version__ = "0.2.0"

sys.meta_path.append(Moved())
