"""Architectures that share less, or otherwise, than one trunk for all tasks.

They are what Recon is compared with, and each is a :class:`~ktlib.mtl.network.MultiTaskModule`:
whatever trains a :class:`~ktlib.mtl.network.MultiTaskNetwork` trains these.
"""

from ktlib.mtl.architectures.bmtas import BMTAS
from ktlib.mtl.architectures.branched import BranchedNetwork
from ktlib.mtl.architectures.cross_stitch import CrossStitch, stops_of_segnet
from ktlib.mtl.architectures.mmoe import MMoE

__all__ = ["BMTAS", "BranchedNetwork", "CrossStitch", "MMoE", "stops_of_segnet"]
