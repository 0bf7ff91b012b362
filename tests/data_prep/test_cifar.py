"""CIFAR-100: a small one in the exact format on disk, and pickles that must not be obeyed."""

import hashlib
import io
import os
import pickle
import tarfile
from dataclasses import replace

import numpy as np
import pytest
import torch

from data_prep import DataError, checksums, cifar100, is_current, load
from data_prep.cifar100 import CifarFormatError, cifar_class_names, cifar_split, unpickle
from data_prep.common.errors import PrepareError
from tests.data_prep.python2_pickle import cifar_files, dumps

SPACE = 1 << 20


def archive_of(files):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"cifar-100-python/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()


def md5_of(files):
    return {
        f"cifar-100-python/{name}": hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in files.items()
    }


def prepare(root, files, url="http://127.0.0.1:9/small.tar.gz"):
    return replace(cifar100.DATA, url=url, md5=md5_of(files), space=SPACE).prepare(root)


@pytest.fixture
def files():
    return cifar_files()


@pytest.fixture
def root(files, tmp_path):
    """A data root with the small set prepared from an archive placed by hand."""
    (tmp_path / "cifar100").mkdir()
    (tmp_path / "cifar100" / "small.tar.gz").write_bytes(archive_of(files))
    prepare(tmp_path, files)
    return tmp_path


def test_images_labels_and_names_are_those_in_the_files(root):
    random = np.random.RandomState(0)
    for split, number in (("train", 12), ("test", 8)):
        labels = random.randint(0, 100, number)
        pixels = random.randint(0, 256, (number, 3072))
        loaded = load("cifar100", split, root)
        assert loaded.labels.tolist() == labels.tolist()
        # A row is the red plane, then the green, then the blue, each row by row.
        assert loaded.images.shape == (number, 3, 32, 32)
        assert loaded.images[3, 1, 2, 5].item() == pixels[3, 1024 + 2 * 32 + 5]
        assert loaded.class_names[42] == "fine 42"


def test_torchvision_reads_the_same_from_the_same_folder(root, files):
    from torchvision.datasets import CIFAR100

    md5 = {name.rpartition("/")[2]: digest for name, digest in md5_of(files).items()}

    class Small(CIFAR100):
        train_list = (("train", md5["train"]),)
        test_list = (("test", md5["test"]),)
        meta = {**CIFAR100.meta, "md5": md5["meta"]}  # noqa: RUF012

    theirs, ours = Small(root / "cifar100", train=True), load("cifar100", "train", root)
    assert torch.equal(torch.from_numpy(theirs.data).permute(0, 3, 1, 2), ours.images)
    assert theirs.targets == ours.labels.tolist()
    assert tuple(theirs.classes) == ours.class_names


def test_the_files_asked_for_are_torchvisions():
    md5 = cifar100.DATA.known_md5()
    assert set(md5) == {f"cifar-100-python/{name}" for name in ("train", "test", "meta")}
    assert all(len(digest) == 32 for digest in md5.values())
    assert cifar100.DATA.address().endswith("cifar-100-python.tar.gz")


def test_the_archive_is_downloaded_where_none_is_there(files, web, tmp_path):
    web.files["/small.tar.gz"] = archive_of(files)
    folder = prepare(tmp_path, files, f"{web.url}/small.tar.gz")
    assert sorted(path.name for path in folder.iterdir()) == ["cifar-100-python", "manifest.json"]
    assert is_current("cifar100", tmp_path)
    prepare(tmp_path, files, f"{web.url}/small.tar.gz")
    assert web.requests == ["/small.tar.gz"]


def test_unpacked_files_in_torchvisions_place_are_taken(files, tmp_path):
    (tmp_path / "cifar-100-python").mkdir()
    for name, content in files.items():
        (tmp_path / "cifar-100-python" / name).write_bytes(content)
    prepare(tmp_path, files)
    assert len(load("cifar100", "test", tmp_path)) == 8


def test_an_altered_archive_is_refused_and_the_way_by_hand_told(files, web, tmp_path):
    altered = {**files, "test": files["test"][:-1] + b"?"}
    web.files["/small.tar.gz"] = archive_of(altered)
    with pytest.raises(PrepareError) as caught:
        prepare(tmp_path, files, f"{web.url}/small.tar.gz")
    message = str(caught.value)
    assert "small.tar.gz: there is none" in message
    assert "its cifar-100-python/test has MD5" in message
    assert f"put small.tar.gz into {tmp_path / 'cifar100'}" in message
    assert not is_current("cifar100", tmp_path)


def test_checksums_are_those_of_the_files(root, files):
    assert checksums("cifar100", root) == {
        f"cifar-100-python/{name}": hashlib.sha256(content).hexdigest()
        for name, content in files.items()
    }


def test_loading_what_was_not_prepared_names_the_command(tmp_path):
    with pytest.raises(DataError, match=r"not prepared(.|\n)*python -m data_prep\.cifar100"):
        load("cifar100", "train", tmp_path)
    (tmp_path / "cifar100").mkdir()
    (tmp_path / "cifar100" / "manifest.json").write_text('{"files": {}}')
    with pytest.raises(DataError, match=r"does not list(.|\n)*python -m data_prep\.cifar100"):
        load("cifar100", "train", tmp_path)


def test_a_file_altered_after_preparing_is_not_unpickled(root, monkeypatch):
    path = root / "cifar100" / "cifar-100-python" / "train"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="altered: its SHA-256"):
        load("cifar100", "train", root)


def test_a_file_of_another_format_is_a_data_error(tmp_path, files):
    files = {**files, "train": dumps({"data": "nothing"})}
    (tmp_path / "cifar-100-python").mkdir()
    for name, content in files.items():
        (tmp_path / "cifar-100-python" / name).write_bytes(content)
    prepare(tmp_path, files)
    with pytest.raises(DataError, match="'data' must be an array of bytes"):
        load("cifar100", "train", tmp_path)


class Evil:
    """Runs a command when it is unpickled by an obedient unpickler."""

    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_that_calls_something_is_refused_before_the_call(tmp_path):
    content = pickle.dumps({"data": Evil(f"touch {tmp_path / 'done'}")}, protocol=2)
    with pytest.raises(CifarFormatError, match=r"asks for (posix|nt)\.system"):
        unpickle(content)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "name",
    [
        b"cnumpy\nload\n",
        b"cnumpy.core.multiarray\nfromfile\n",
        b"cbuiltins\neval\n",
        b"c__builtin__\ngetattr\n",
        b"cnumpy\nndarray.tofile\n",
    ],
)
def test_other_names_are_refused(name):
    with pytest.raises(CifarFormatError, match="is not allowed"):
        unpickle(b"\x80\x02" + name + b".")


def test_arrays_of_objects_are_refused():
    with pytest.raises(CifarFormatError, match="element type 'O8' is not allowed"):
        unpickle(b"\x80\x02cnumpy\ndtype\n(U\x02O8K\x00K\x01tR.")
    with pytest.raises(CifarFormatError, match="an array of type .* is not allowed"):
        unpickle(b"\x80\x02cnumpy.core.multiarray\n_reconstruct\n(cnumpy\ndtype\n(K\x00tU\x01btR.")


def test_what_is_read_does_not_change_numpys_own_type(files):
    unpickle(files["train"])
    assert np.dtype(np.uint8).isnative
    assert np.dtype("u1") == np.arange(3, dtype=np.uint8).dtype


@pytest.mark.parametrize("keep", [0, 1, 50, 500])
def test_a_pickle_cut_short_is_told(files, keep):
    with pytest.raises(CifarFormatError, match="cannot be unpickled"):
        unpickle(files["train"][:keep])


def test_contents_that_do_not_fit_together_are_told():
    data = np.zeros((2, 3072), dtype=np.uint8)
    for entries, message in (
        ({}, "'data' must be an array"),
        ({"data": np.zeros((2, 4), dtype=np.uint8)}, "must have 3072 columns. Found 4"),
        ({"data": data}, "'fine_labels' must be a list of integers"),
        ({"data": data, "fine_labels": ["1", "2"]}, "'fine_labels' must be a list of integers"),
        ({"data": data, "fine_labels": [1]}, "found 1 labels for 2 images"),
    ):
        with pytest.raises(CifarFormatError, match=message):
            cifar_split(dumps(entries))
    with pytest.raises(CifarFormatError, match="must hold a dictionary. Found list"):
        unpickle(dumps([1, 2]))
    with pytest.raises(CifarFormatError, match="must be a list of names"):
        cifar_class_names(dumps({"fine_label_names": [1]}))
