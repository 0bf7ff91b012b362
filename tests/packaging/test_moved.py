"""Names of modules of version 0.1 lead to where they are now."""

import importlib
import importlib.util

import pytest

import ktlib
from ktlib._moved import MOVED


def test_this_is_gone_with_version_0_3():
    assert ktlib.__version__.startswith("0.2.")


@pytest.mark.parametrize("old", MOVED)
def test_old_name_says_where_it_is(old):
    with pytest.raises(ImportError) as error:
        importlib.import_module(old)
    assert old in str(error.value)
    assert MOVED[old] in str(error.value)
    assert importlib.util.find_spec(MOVED[old]) is not None


def test_what_was_in_it_is_found_by_its_package():
    with pytest.raises(ImportError, match=r"experiments\.fcl\.baselines"):
        importlib.import_module("ktlib.fcl.methods.icarl")
    with pytest.raises(ImportError, match=r"experiments\.fcl\.figures"):
        __import__("ktlib.fcl", fromlist=["report"])


def test_unknown_name_is_as_unknown_as_ever():
    with pytest.raises(ModuleNotFoundError, match=r"^No module named 'ktlib\.nothing'$"):
        importlib.import_module("ktlib.nothing")
