"""The code of the chapters at the smoke size, in this process and on the strict device."""

import matplotlib.pyplot as plt
import pytest
import yaml

from experiments.run.chapter_source import code_cells
from tests.chapter_parameters import CHAPTERS
from tests.strict_device import recorded

SOURCES = [
    path.relative_to(CHAPTERS).with_suffix("").as_posix() for path in sorted(CHAPTERS.rglob("*.py"))
]


@pytest.mark.slow
@pytest.mark.parametrize("chapter", SOURCES)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_the_chapter_runs(chapter, strict, monkeypatch, data_folder, request):
    if not data_folder.is_dir():
        pytest.skip("the data are not prepared")
    monkeypatch.chdir(request.config.rootpath)
    monkeypatch.setenv("KTLIB_WORKERS", "1")  # other processes would not have the device
    monkeypatch.setattr("ktlib.device.choose_device", lambda _name="auto": strict)
    smoke = CHAPTERS / f"params/{chapter}.smoke.yaml"
    values = yaml.safe_load(smoke.read_text(encoding="utf-8"))
    names = {"__name__": "chapter", "display": print}
    with recorded() as record:
        for cell in code_cells(CHAPTERS / f"{chapter}.py"):
            exec(compile(cell.source, f"{chapter}, cell {cell.number}", "exec"), names)  # noqa: S102
            if "parameters" in cell.tags:
                names |= values | {"profile": "smoke", "device": "cpu"}
    assert record.reads  # else it did not compute there
    plt.close("all")
