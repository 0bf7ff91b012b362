"""Recognising a prepared file by what its manifest records, or by its form."""

import json

import pytest

from data_prep.common.checks import manifest_check
from data_prep.common.files import MANIFEST, DataError, sha256

FILE = "rows.txt"


def only_rows(path):
    """A form: the file begins with "rows"."""
    return None if path.read_text().startswith("rows") else "holds no rows"


@pytest.fixture
def prepared(tmp_path):
    """A folder whose manifest records a file that has not the form."""
    folder = tmp_path / "set"
    folder.mkdir()
    file = folder / FILE
    file.write_text("recorded")
    entry = {"bytes": file.stat().st_size, "sha256": sha256(file), "mtime_ns": 0}
    (folder / MANIFEST).write_text(json.dumps({"data_set": "set", "files": {FILE: entry}}))
    return folder


def test_a_recorded_file_is_recognised_by_its_checksum(prepared):
    check = manifest_check(prepared, FILE, only_rows)
    assert check(prepared / FILE) is None
    (prepared / FILE).write_text("rows and more")
    assert "bytes instead of" in check(prepared / FILE)


def test_a_file_elsewhere_is_recognised_by_its_form(prepared, tmp_path):
    """A fetched file is not the prepared one: what the manifest records says nothing about it."""
    check = manifest_check(prepared, FILE, only_rows)
    fetched = tmp_path / FILE
    fetched.write_text("rows and more")
    assert check(fetched) is None
    fetched.write_text("recorded")
    assert check(fetched) == "holds no rows"


def test_without_a_manifest_the_form_decides(prepared):
    (prepared / MANIFEST).unlink()
    check = manifest_check(prepared, FILE, only_rows)
    assert check(prepared / FILE) == "holds no rows"
    (prepared / FILE).unlink()
    assert check(prepared / FILE) == "is missing"


@pytest.mark.parametrize("error", [OSError, ValueError, DataError])
def test_an_error_of_the_form_is_something_wrong(tmp_path, error):
    def form(path):
        raise error("it is torn")

    (tmp_path / FILE).write_text("")
    check = manifest_check(tmp_path, FILE, form)
    assert check(tmp_path / FILE) == "is not as expected: it is torn"
