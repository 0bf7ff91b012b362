"""The small networks of the tests of ktlib.mtl."""

from tests.ktlib.mtl.conftest import device, own_module

__all__ = ["device", "own_module"]
