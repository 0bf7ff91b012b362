"""The examples in the docstrings of ktlib give what stands below them."""

import doctest
import importlib
import pkgutil

import pytest

import ktlib

MODULES = [module.name for module in pkgutil.walk_packages(ktlib.__path__, "ktlib.")]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    failed, _ = doctest.testmod(importlib.import_module(name), optionflags=options)
    assert failed == 0
