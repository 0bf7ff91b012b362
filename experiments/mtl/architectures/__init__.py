"""Architectures that share less, or otherwise, than one trunk for all tasks.

They are what Recon is compared with, and each is a
:class:`~experiments.mtl.network.MultiTaskModule`: whatever trains a
:class:`~experiments.mtl.network.MultiTaskNetwork` trains these.
"""

from experiments.mtl.architectures.bmtas import BMTAS
from experiments.mtl.architectures.branched import BranchedNetwork
from experiments.mtl.architectures.cross_stitch import CrossStitch, stops_of_segnet
from experiments.mtl.architectures.mmoe import MMoE

__all__ = ["BMTAS", "BranchedNetwork", "CrossStitch", "MMoE", "stops_of_segnet"]
