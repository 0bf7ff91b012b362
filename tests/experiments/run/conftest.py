"""A small project with one chapter, for the tests of the core."""

import sys
from typing import Annotated

import pytest
from pydantic import Field, model_validator

from experiments.run.parameters import ChapterParameters
from experiments.run.results import RunRecord

HEADER = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

"""

CHAPTER = (
    HEADER
    + """\
# %% [markdown]
# # A toy chapter

# %% tags=["parameters"]
seeds = [0, 1]  # repetitions
device = "cpu"  # where to compute
precision = "auto"  # of products
profile = "cpu"  # set of values
run_dir = ""  # folder of the run
noise_bound = 0.01  # half the width of the box: thesis, 0.01
noise_draws = 2  # draws per batch

# %%
from toykit.model import ToyParameters

from experiments.run.parameters import check_parameters

parameters = check_parameters(globals(), ToyParameters)

# %% [markdown]
# Text.

# %%
accuracy = noise_bound * noise_draws

# %% tags=["figure"]
print(accuracy)  # a figure
"""
)

PACKAGE = {
    "__init__.py": '"""A package."""\n',
    "model.py": "from toykit import shared\n"
    "from pydantic import PositiveFloat, PositiveInt\n"
    "from experiments.run.parameters import ChapterParameters\n"
    "class ToyParameters(ChapterParameters):\n"
    "    noise_bound: PositiveFloat\n    noise_draws: PositiveInt\n",
    "shared.py": "from toykit.deep import maths\n",
    "deep/__init__.py": "from toykit.deep import setup\n",
    "deep/setup.py": "",
    "deep/maths.py": '"""Sums."""\n\n\n'
    'def double(x):\n    """Twice."""\n    return 2 * x  # exact\n',
    "plots.py": "from toykit import colours\n",
    "colours.py": "",
    "unused.py": "",
}


class ToyParameters(ChapterParameters):
    """Parameters of the toy chapter."""

    noise_bound: Annotated[float, Field(gt=0, description="half the width of the box")]
    noise_draws: Annotated[int, Field(ge=1, le=64, description="draws per batch")]

    @model_validator(mode="after")
    def _one_draw_per_seed(self):
        if self.noise_draws < len(self.seeds):
            raise ValueError("`noise_draws` must be at least the number of `seeds`")
        return self


@pytest.fixture
def values():
    """Values of all parameters of the toy chapter."""
    return {
        "seeds": [0, 1],
        "device": "cpu",
        "precision": "auto",
        "profile": "cpu",
        "run_dir": "",
        "noise_bound": 0.01,
        "noise_draws": 2,
    }


@pytest.fixture
def toy_model():
    return ToyParameters


@pytest.fixture
def toy_parameters(values):
    return ToyParameters(**values)


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project folder with a chapter and a package ``toykit``; it is the current folder."""
    (tmp_path / "pyproject.toml").write_text('[project]\nname = "knowledge-transfer-lib"\n')
    (tmp_path / "results").mkdir()
    (tmp_path / "chapters").mkdir()
    (tmp_path / "chapters" / "toy.py").write_text(CHAPTER)
    for name, text in PACKAGE.items():
        path = tmp_path / "toykit" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    # A copy that another test imported lies in another folder.
    for name in [name for name in sys.modules if name.partition(".")[0] == "toykit"]:
        monkeypatch.delitem(sys.modules, name)
    return tmp_path


@pytest.fixture
def chapter(project):
    return project / "chapters" / "toy.py"


@pytest.fixture
def rewrite():
    """Replace a text in a file; the text must be there."""

    def replace(path, old, new):
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new))

    return replace


@pytest.fixture
def record(project, toy_parameters):
    record = RunRecord.start("toy", toy_parameters, {"pairs/images.npy": "ab" * 32})
    record.metric("accuracy", 0.5)
    record.table("sessions", [{"seed": 0, "session": 1, "accuracy": 0.5, "note": None}])
    return record
