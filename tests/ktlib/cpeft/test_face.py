"""What ``ktlib.cpeft`` exports, and what it needs to be imported."""

import inspect
import pkgutil
import subprocess
import sys

import pytest

import ktlib.cpeft as face
from ktlib.cpeft.adapters import LoraBackbone

MODULES = [module.name for module in pkgutil.iter_modules(face.__path__)]
OPTIONAL = ["pandas", "safetensors", "peft", "transformers", "sklearn", "joblib"]


def test_every_public_name_has_an_example():
    assert len(face.__all__) <= 20
    for name in face.__all__:
        assert "Example:" in inspect.getdoc(getattr(face, name)), name


@pytest.mark.slow
def test_no_module_needs_an_optional_package_to_be_imported():
    code = f"""
import importlib, sys
for name in {OPTIONAL}:
    sys.modules[name] = None
for name in {MODULES}:
    importlib.import_module("ktlib.cpeft." + name)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_missing_extra_is_named(tiny_vit, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ImportError, match=r"peft.*\[lora\]"):
        LoraBackbone(tiny_vit, layers=["key"], rank=2)
