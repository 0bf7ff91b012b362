"""The small networks and data of the tests of ktlib.fcl."""

from tests.ktlib.fcl.conftest import batch, classifier, device, noise, split

__all__ = ["batch", "classifier", "device", "noise", "split"]
