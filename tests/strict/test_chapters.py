"""The code of the chapters at the smoke size, in this process: on the strict device, on a GPU."""

import pkgutil
import sys
from importlib import import_module

import matplotlib.pyplot as plt
import pytest
import torch
import yaml

import experiments
from ktlib.device import choose_device
from tests.chapters import CHAPTERS, execute
from tests.strict_device import recorded

SOURCES = [
    path.relative_to(CHAPTERS).with_suffix("").as_posix() for path in sorted(CHAPTERS.rglob("*.py"))
]


CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")


@pytest.mark.slow
@pytest.mark.parametrize("device", ["strict", pytest.param("cuda", marks=[pytest.mark.gpu, CUDA])])
@pytest.mark.parametrize("chapter", SOURCES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_chapter_runs(chapter, device, monkeypatch, data_folder, request):
    if not data_folder.is_dir():
        pytest.skip("the data are not prepared")
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setenv("KTLIB_WORKERS", "1")  # other processes would not have the device
    if device == "strict":
        place = request.getfixturevalue("strict")
        for found in pkgutil.walk_packages(experiments.__path__, "experiments."):
            import_module(found.name)  # one that is imported later would keep what is put there
        usual = choose_device  # this module's own is among those that are replaced
        for module in list(sys.modules.values()):
            if vars(module).get("choose_device") is usual:
                monkeypatch.setattr(module, "choose_device", lambda _name="auto": place)
    else:
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.max_memory_allocated()
    source = CHAPTERS / f"{chapter}.py"
    smoke = CHAPTERS / f"params/{chapter}.smoke.yaml"
    values = yaml.safe_load(smoke.read_text(encoding="utf-8"))
    # With one seed the others run the same operations; ila_studies compares two.
    if chapter not in ("continual_peft", "ila_studies"):
        one = {name: 1 for name in ("ranked_seeds", "compared_seeds") if name in values}
        values |= one | {"seeds": values["seeds"][:1]}
    values |= {"profile": "smoke", "device": "cuda" if device == "cuda" else "cpu"}
    with recorded() as record:
        execute(chapter, values)
    there = record.reads if device == "strict" else torch.cuda.max_memory_allocated() > held
    assert there or "not used: small matrices on the CPU" in source.read_text(encoding="utf-8")
    plt.close("all")
