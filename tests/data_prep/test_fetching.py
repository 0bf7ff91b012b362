"""Fetching a set of idx files: what arrives is whole and right, or nothing arrives."""

import errno
import gzip
import json
import os
import shutil
from types import SimpleNamespace

import pytest

from data_prep import is_current
from data_prep.common import chain, idx_sets, storage
from data_prep.common.command import run_command
from data_prep.common.errors import PrepareError
from data_prep.common.idx_sets import local_source
from tests.data_prep.small_set import with_sources

IMAGES = "train-images-idx3-ubyte"


def flip(path):
    """Change one byte and keep size and time, as a failing disk would."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_set_is_fetched_and_recorded(small_set, web, tmp_path, capsys):
    folder = small_set.prepare(tmp_path, web.offer("a", small_set.content))
    assert folder == tmp_path / "mnist"
    assert small_set.is_whole(tmp_path)
    assert is_current("mnist", tmp_path)
    recorded = json.loads((folder / "manifest.json").read_text())["files"]
    facts = {file: (entry["bytes"], entry["sha256"]) for file, entry in recorded.items()}
    assert facts == small_set.facts
    assert "waiting" not in capsys.readouterr().err


def test_a_manifest_that_says_the_same_is_left_alone(small_set, web, tmp_path):
    folder = small_set.prepare(tmp_path, web.offer("a", small_set.content))
    before = (folder / "manifest.json").stat()
    storage.write_manifest(folder, list(small_set.content))
    after = (folder / "manifest.json").stat()
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)


def test_a_second_run_asks_nobody_and_changes_nothing(small_set, web, tmp_path, capsys):
    mirror = web.offer("a", small_set.content)
    small_set.prepare(tmp_path, mirror)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "mnist").iterdir()}
    web.requests.clear()
    small_set.prepare(tmp_path, mirror)
    assert web.requests == []
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "mnist").iterdir()}
    assert "complete" in capsys.readouterr().err


def test_a_truncated_file_is_fetched_again(small_set, web, tmp_path, capsys):
    mirror = web.offer("a", small_set.content)
    path = small_set.prepare(tmp_path, mirror) / IMAGES
    path.write_bytes(path.read_bytes()[:-10])
    assert not is_current("mnist", tmp_path)
    web.requests.clear()
    small_set.prepare(tmp_path, mirror)
    assert web.requests == [f"/a/{IMAGES}.gz"]
    assert small_set.is_whole(tmp_path)
    assert "fetched again" in capsys.readouterr().err


def test_an_altered_file_is_fetched_again_even_where_size_and_time_are_right(
    small_set, web, tmp_path
):
    mirror = web.offer("a", small_set.content)
    flip(small_set.prepare(tmp_path, mirror) / IMAGES)
    assert is_current("mnist", tmp_path)  # the quick look cannot see it, preparing can
    web.requests.clear()
    small_set.prepare(tmp_path, mirror)
    assert web.requests == [f"/a/{IMAGES}.gz"]
    assert small_set.is_whole(tmp_path)


def test_a_missing_manifest_is_written_without_fetching(small_set, web, tmp_path):
    mirror = web.offer("a", small_set.content)
    (small_set.prepare(tmp_path, mirror) / "manifest.json").unlink()
    web.requests.clear()
    small_set.prepare(tmp_path, mirror)
    assert web.requests == []
    assert small_set.is_whole(tmp_path)


def test_a_wrong_file_from_one_mirror_is_taken_from_the_next(small_set, web, tmp_path):
    wrong = {**small_set.content, IMAGES: small_set.content[IMAGES][:-1] + b"?"}
    small_set.prepare(tmp_path, web.offer("a", wrong), web.offer("b", small_set.content))
    assert small_set.is_whole(tmp_path)
    # What the first mirror gave and was right is kept.
    assert [path for path in web.requests if path.startswith("/b")] == [f"/b/{IMAGES}.gz"]


def test_a_transfer_that_stops_half_way_moves_on_to_the_next_mirror(small_set, web, tmp_path):
    first, second = web.offer("a", small_set.content), web.offer("b", small_set.content)
    web.cut.add(f"/a/{IMAGES}.gz")
    small_set.prepare(tmp_path, first, second)
    assert small_set.is_whole(tmp_path)
    assert f"/b/{IMAGES}.gz" in web.requests


def test_when_every_source_fails_each_is_listed_and_how_to_do_it_by_hand(small_set, web, tmp_path):
    wrong = {name: content[:-1] + b"?" for name, content in small_set.content.items()}
    closed = "http://127.0.0.1:9/"
    web.offer("cut", small_set.content)
    web.cut.update(f"/cut/{name}.gz" for name in small_set.content)
    with pytest.raises(PrepareError) as caught:
        small_set.prepare(
            tmp_path, web.url + "/none/", closed, web.url + "/cut/", web.offer("wrong", wrong)
        )
    message = str(caught.value)
    for part in ("/none/: HTTP Error 404", f"{closed}: 127.0.0.1 cannot be reached",
                 "/cut/: the transfer stopped after", "/wrong/: its train-images"):  # fmt: skip
        assert part in message
    assert "python -m data_prep.mnist" in message
    assert str(tmp_path / "mnist") in message
    for name, facts in small_set.facts.items():
        assert f"{name}  SHA-256 {facts.sha256}" in message
    assert list((tmp_path / "mnist").iterdir()) == []


def from_local(small_set, root, *folders):
    return with_sources(
        small_set.facts, lambda folder: [local_source([folder, *folders], small_set.facts)]
    ).prepare(root)


def test_files_placed_by_hand_are_taken_packed_unpacked_and_from_torchvisions_folder(
    small_set, tmp_path
):
    folder, other = tmp_path / "mnist", tmp_path / "MNIST" / "raw"
    folder.mkdir()
    other.mkdir(parents=True)
    (first, *rest) = small_set.content.items()
    (folder / first[0]).write_bytes(first[1])
    (folder / f"{rest[0][0]}.gz").write_bytes(gzip.compress(rest[0][1]))
    (other / rest[1][0]).write_bytes(rest[1][1])
    (other / f"{rest[2][0]}.gz").write_bytes(gzip.compress(rest[2][1]))
    from_local(small_set, tmp_path, other)
    for name, content in small_set.content.items():
        assert (folder / name).read_bytes() == content


def test_a_damaged_file_placed_by_hand_is_named(small_set, tmp_path):
    folder = tmp_path / "mnist"
    folder.mkdir()
    for name, content in small_set.content.items():
        (folder / f"{name}.gz").write_bytes(gzip.compress(content))
    packed = folder / f"{IMAGES}.gz"
    packed.write_bytes(packed.read_bytes()[:100])
    with pytest.raises(PrepareError, match=rf"{IMAGES}\.gz.*damaged"):
        from_local(small_set, tmp_path)
    # The others were right and need not be placed again.
    assert (folder / "t10k-labels-idx1-ubyte").is_file()
    assert not (folder / IMAGES).exists()


def test_a_complete_set_needs_no_permission_to_write(small_set, web, tmp_path, monkeypatch):
    mirror = web.offer("a", small_set.content)
    small_set.prepare(tmp_path, mirror)

    def refuse(*_):
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(chain, "exclusive", refuse)
    assert small_set.prepare(tmp_path, mirror) == tmp_path / "mnist"


def status_and_message(capsys, prepare):
    status = run_command(SimpleNamespace(name="mnist", prepare=lambda _: prepare()), [])
    return status, capsys.readouterr().err.strip()


def test_a_root_that_cannot_be_a_folder_gives_one_clear_line(small_set, tmp_path, capsys):
    (tmp_path / "file").write_text("in the way")
    status, message = status_and_message(capsys, lambda: small_set.prepare(tmp_path / "file"))
    assert status == 1
    assert message.startswith("mnist: Cannot write the data to")
    assert "KTLIB_DATA" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("name", ["", IMAGES, "manifest.json"])
def test_what_is_in_the_way_is_named_before_anything_is_fetched(
    small_set, web, tmp_path, capsys, name
):
    """A file in place of the set's folder, a folder in place of a file."""
    path = tmp_path / "mnist" / name
    path.mkdir(parents=True)
    if not name:
        path.rmdir()
        path.touch()
    mirror = web.offer("a", small_set.content)
    status, message = status_and_message(capsys, lambda: small_set.prepare(tmp_path, mirror))
    assert status == 1
    kind = "a folder, and a file" if name else "a file, and the folder"
    assert f"mnist: {path} is {kind} of the data set belongs there. Move it away" in message
    assert web.requests == []
    path.rmdir() if name else path.unlink()
    small_set.prepare(tmp_path, mirror)
    assert small_set.is_whole(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_root_gives_one_clear_line(small_set, tmp_path, capsys):
    (tmp_path / "data").mkdir(mode=0o500)
    status, message = status_and_message(capsys, lambda: small_set.prepare(tmp_path / "data"))
    assert status == 1
    assert "Permission denied" in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS])
def test_a_refused_lock_file_gives_one_clear_line(small_set, tmp_path, capsys, monkeypatch, number):
    def refuse(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(storage, "FileLock", refuse)
    status, message = status_and_message(capsys, lambda: small_set.prepare(tmp_path))
    assert status == 1
    assert os.strerror(number) in message
    assert len(message.splitlines()) == 1


@pytest.mark.parametrize("where", ["gunzip", "place", "manifest"])
def test_a_full_disk_gives_one_clear_line_and_leaves_nothing_half_written(
    small_set, web, tmp_path, capsys, monkeypatch, where
):
    mirror = web.offer("a", small_set.content)

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    module, name = {
        "gunzip": (idx_sets, "gunzip"),
        "place": (chain, "place"),
        "manifest": (storage, "write_text"),
    }[where]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, full)
        status, message = status_and_message(capsys, lambda: small_set.prepare(tmp_path, mirror))
    assert status == 1
    assert "No space left" in message.splitlines()[-1]
    left = {path.name for path in (tmp_path / "mnist").iterdir()}
    assert left == (set(small_set.content) if where == "manifest" else set())
    small_set.prepare(tmp_path, mirror)
    assert small_set.is_whole(tmp_path)


def test_too_little_space_is_found_before_anything_is_fetched(
    small_set, web, tmp_path, monkeypatch
):
    mirror = web.offer("a", small_set.content)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(PrepareError, match=r"No space left .* MB are needed, 0 MB are free"):
        small_set.prepare(tmp_path, mirror)
    assert web.requests == []


def test_an_interruption_leaves_nothing_half_written(small_set, web, tmp_path, capsys, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(idx_sets, "gunzip", interrupt)
    mirror = web.offer("a", small_set.content)
    status, message = status_and_message(capsys, lambda: small_set.prepare(tmp_path, mirror))
    assert status == 130
    assert message.splitlines()[-1] == "mnist: interrupted; the next run continues"
    assert list((tmp_path / "mnist").iterdir()) == []


def test_is_current_needs_a_manifest_that_fits(small_set, web, tmp_path):
    assert not is_current("mnist", tmp_path)
    folder = small_set.prepare(tmp_path, web.offer("a", small_set.content))
    assert is_current("mnist", tmp_path)
    os.utime(folder / IMAGES)
    assert not is_current("mnist", tmp_path)
    whole = (folder / "manifest.json").read_text()
    for broken in ("", "[]", "{}", '{"files": {}}', '{"files": {"train-images-idx3-ubyte": 3}}'):
        (folder / "manifest.json").write_text(broken)
        assert not is_current("mnist", tmp_path)
    entries = json.loads(whole)
    del entries["files"][IMAGES]
    (folder / "manifest.json").write_text(json.dumps(entries))
    small_set.prepare(tmp_path)  # what no manifest lists is listed again
    assert json.loads((folder / "manifest.json").read_text())["files"].keys() == {*small_set.facts}
    with pytest.raises(ValueError, match="name must be one of .* Found name='cifar'"):
        is_current("cifar", tmp_path)
