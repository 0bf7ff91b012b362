"""Files are written whole or not at all."""

import os

import pytest

from experiments.run.atomic import write_text


def test_writes_and_makes_the_folder(tmp_path):
    path = write_text(tmp_path / "new" / "file.txt", "text ± 1\n")
    assert path.read_bytes() == "text ± 1\n".encode()


def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = write_text(tmp_path / "file.txt", "old")

    def full_disk(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full_disk)
    with pytest.raises(OSError, match="No space left"):
        write_text(path, "new")
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    assert path.read_text() == "old"
