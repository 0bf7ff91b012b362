"""What the lesson shows of a long record: it is drawn, and every question has its claim."""

from types import SimpleNamespace

import matplotlib.pyplot as plt
import pytest

from experiments.run.chapter_source import code_cells
from tests.chapters import CHAPTERS
from tests.experiments.mtl.made import Made

CELLS = [cell.source for cell in code_cells(CHAPTERS / "recon.py")]
FIRST = next(i for i, source in enumerate(CELLS) if "import committed_record" in source)
LAST = next(i for i, source in enumerate(CELLS) if "questions = {" in source)


@pytest.mark.parametrize(("kept", "words"), [(True, "Yes: +6.1"), (False, "still being")])
def test_the_long_run_of_the_lesson(kept, words, monkeypatch):
    record, glued, drawn = Made().record if kept else None, {}, []
    monkeypatch.setattr("experiments.run.results.committed_record", lambda *_: record)
    names = {
        "P": SimpleNamespace(run_dir=""),
        "glue": lambda name, text, **_: glued.update({name: text}),
        "save_figure": lambda figure, *_: drawn.append(figure),
    }
    for source in CELLS[FIRST : LAST + 1]:
        exec(source, names)  # noqa: S102 - our own lesson
    plt.close("all")
    assert set(glued) == {"recon-long", "recon-long-random"}
    assert words in glued["recon-long"]
    assert len(drawn) == kept
