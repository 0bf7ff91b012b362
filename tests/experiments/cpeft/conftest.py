"""The tiny transformer and images of the tests of ktlib.cpeft."""

from tests.ktlib.cpeft.conftest import device, tiny_data, tiny_vit

__all__ = ["device", "tiny_data", "tiny_vit"]
