"""The wheel holds ktlib alone, and works with what its metadata asks for."""

import ast
import re
import shutil
import sys
import zipfile
from email.parser import Parser

import pytest

import ktlib
from tests.packaging.conftest import Environment, run
from tests.paths import ROOT

pytestmark = pytest.mark.slow

IMPORT_ALL = """
import importlib, pkgutil, sys
import ktlib
assert "torch" not in sys.modules, "import ktlib is not free"
for module in pkgutil.walk_packages(ktlib.__path__, "ktlib."):
    importlib.import_module(module.name)
print(sorted({name.partition(".")[0] for name in sys.modules}))
"""
# What costs seconds or belongs to an extra, so that no module may import it at its top.
HEAVY = {"IPython", "matplotlib", "pandas", "peft", "safetensors", "sklearn", "transformers"}
ADAPTERS = """
import torch
from ktlib.cpeft import LoraBackbone
encoder = torch.nn.Sequential()
encoder.add_module("key", torch.nn.Linear(4, 4))
encoder.dim = 4
try:
    print(LoraBackbone(encoder, layers=["key"], rank=2).layers)
except ImportError as error:
    print(error)
"""
SOLVERS = """
from ktlib.mtl import aggregator
for name, options in (("upgrad", {}), ("nashmtl", {"n_tasks": 2})):
    try:
        aggregator(name, **options)
    except ImportError as error:
        print(error)
"""


@pytest.fixture(scope="module")
def metadata(wheel):
    """What the wheel says of itself."""
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        return Parser().parsestr(archive.read(name).decode())


def imported(environment):
    return set(ast.literal_eval(environment.run(IMPORT_ALL)))


def test_wheel_holds_ktlib_alone(wheel):
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    tops = {name.partition("/")[0] for name in names}
    assert tops == {"ktlib", f"knowledge_transfer_lib-{ktlib.__version__}.dist-info"}
    ours = {file.relative_to(ROOT).as_posix() for file in (ROOT / "ktlib").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == ours
    assert "ktlib/py.typed" in names


def test_metadata_names_package_version_and_extras(metadata):
    assert metadata["Name"] == ktlib.DISTRIBUTION
    assert metadata["Version"] == ktlib.__version__
    assert set(metadata.get_all("Provides-Extra")) == {"lora", "solvers"}


def test_clean_install(wheel, tmp_path):
    """Every module imports with the core dependencies; a missing extra is named, and then works."""
    environment = Environment(tmp_path / "environment")
    environment.install(wheel)
    assert imported(environment) & HEAVY == set()
    assert f"{ktlib.DISTRIBUTION}[lora]" in environment.run(ADAPTERS)
    environment.install(f"{wheel}[lora]")
    assert imported(environment) & HEAVY == set()
    assert "key" in environment.run(ADAPTERS)
    assert environment.run(SOLVERS).count(f"{ktlib.DISTRIBUTION}[solvers]") == 2
    environment.install(f"{wheel}[solvers]")
    assert imported(environment) & HEAVY == set()
    assert environment.run(SOLVERS).strip() == ""
    shutil.rmtree(environment.folder)  # gigabytes, or links to them


def test_wheel_installs_with_pip(wheel, tmp_path):
    options = ["--no-index", "--no-deps", "--disable-pip-version-check"]
    run(sys.executable, "-m", "pip", "install", *options, "--target", tmp_path, wheel)
    assert (tmp_path / "ktlib" / "fcl" / "f2m.py").exists()


@pytest.mark.parametrize("path", ["README.md", "book/rerun.md", "book/api/index.md"])
def test_documents_install_what_there_is(path, wheel, metadata):
    text = (ROOT / path).read_text(encoding="utf-8")
    asked = re.findall(r"pip install \"?([\w.-]+?)(?:\[([\w,-]+)\])?[\"`\s]", text)
    assert asked or path == "book/rerun.md"
    for name, extras in asked:
        # A cluster's plugin for Snakemake is the one thing that the project does not bring.
        assert name in {metadata["Name"], wheel.name, ".", "snakemake-executor-plugin-slurm"}
        assert set(filter(None, extras.split(","))) <= set(metadata.get_all("Provides-Extra"))
