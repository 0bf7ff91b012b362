"""Archives are not trusted: names that lead out, links, oversize and damaged content."""

import gzip
import io
import tarfile

import pytest

from data_prep.common.archives import extract, gunzip
from data_prep.common.errors import SourceError


def archive_of(*members):
    """A tar.gz with (name, content) files; content None makes a symbolic link to /etc/passwd."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in members:
            member = tarfile.TarInfo(name)
            if content is None:
                member.type, member.linkname = tarfile.SYMTYPE, "/etc/passwd"
                tar.addfile(member)
            else:
                member.size = len(content)
                tar.addfile(member, io.BytesIO(content))
    buffer.seek(0)
    return buffer


def test_only_what_is_wanted_is_written_and_under_the_callers_name(tmp_path):
    archive = archive_of(("./data/a", b"first"), ("data/b", b"second"))
    extract(archive, {"data/a": tmp_path / "mine"}, limit=10)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine").read_bytes() == b"first"


@pytest.mark.parametrize(
    "name", ["../evil", "data/../../evil", "/evil", "..", "data\\..\\evil", "./../evil"]
)
def test_an_archive_with_a_name_that_leads_out_is_refused(tmp_path, name):
    inside = tmp_path / "inside"
    inside.mkdir()
    archive = archive_of((name, b"evil"), ("data/a", b"first"))
    with pytest.raises(SourceError, match="leads out of the folder"):
        extract(archive, {"data/a": inside / "a"}, limit=10)
    assert list(inside.iterdir()) == []
    assert [path.name for path in tmp_path.iterdir()] == ["inside"]


def test_a_link_is_not_taken_for_a_file(tmp_path):
    with pytest.raises(SourceError, match="'data/a' is not a file"):
        extract(archive_of(("data/a", None)), {"data/a": tmp_path / "a"}, limit=10)
    assert list(tmp_path.iterdir()) == []


def test_a_member_larger_than_expected_is_given_up(tmp_path):
    with pytest.raises(SourceError, match="larger than the 10 bytes"):
        extract(archive_of(("data/a", bytes(11))), {"data/a": tmp_path / "a"}, limit=10)


@pytest.mark.parametrize("keep", [0, 10, 60])
def test_a_damaged_archive_is_told(tmp_path, keep):
    content = archive_of(("data/a", bytes(range(256)) * 40)).getvalue()[:keep]
    with pytest.raises(SourceError, match="damaged"):
        extract(io.BytesIO(content), {"data/a": tmp_path / "a"}, limit=1 << 20)


def test_gunzip_refuses_damage_and_oversize(tmp_path):
    packed = tmp_path / "a.gz"
    packed.write_bytes(gzip.compress(bytes(1000)))
    gunzip(packed, tmp_path / "a", limit=1000)
    assert (tmp_path / "a").read_bytes() == bytes(1000)
    with pytest.raises(SourceError, match="larger than the 999 bytes"):
        gunzip(packed, tmp_path / "a", limit=999)
    packed.write_bytes(packed.read_bytes()[:-5])
    with pytest.raises(SourceError, match=r"a\.gz is damaged"):
        gunzip(packed, tmp_path / "a", limit=1000)
    packed.write_bytes(b"<html>Please log in</html>")
    with pytest.raises(SourceError, match=r"a\.gz is damaged"):
        gunzip(packed, tmp_path / "a", limit=1000)
