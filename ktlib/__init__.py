"""Knowledge transfer without forgetting or conflict: the package behind the book.

Nothing is imported here, so that ``import ktlib`` costs nothing and changes nothing. Take names
from the modules: ``ktlib.fcl`` (few-shot continual learning), ``data_prep.reading``,
``experiments.models``, and the shared tools ``device``, ``seeding``, ``parameters``, ``results``,
``provenance``, ``plotting``, ``progress`` and ``testing``.
"""

__version__ = "0.1.0"
DISTRIBUTION = "knowledge-transfer-lib"
"""Name on the package index; the import name is ``ktlib``."""
