"""miniImageNet: a small one in the exact layout on disk, and what is said where it is damaged."""

import hashlib
import io
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from data_prep import DataError, checksums, image_names, is_current, load
from data_prep.common import photographs, storage
from data_prep.common.errors import PrepareError
from data_prep.common.photographs import ListingError, decode_photograph
from data_prep.mini_imagenet import parse_split
from tests.data_prep.small_photographs import MINI, WNIDS, mini_files, packed, unpack

FILES = ["test-images.npy", "test.csv", "train-images.npy", "train.csv"]


def prepare(root, data=MINI):
    return data.prepare(root)


@pytest.fixture
def files():
    return mini_files()


@pytest.fixture
def root(files, tmp_path):
    """A data root with the small set prepared from the folder that the archive unpacks to."""
    unpack(files, tmp_path / "miniimagenet")
    prepare(tmp_path)
    return tmp_path


def decoded(content, transform):
    with Image.open(io.BytesIO(content)) as picture:
        return torch.from_numpy(np.array(transform(picture.convert("RGB")))).permute(2, 0, 1)


@pytest.mark.parametrize(("archive", "mode"), [("miniimagenet.tar", "w"),
                                               ("miniimagenet.tar.gz", "w:gz")])  # fmt: skip
def test_an_archive_gives_the_same_files_as_a_folder(root, files, tmp_path_factory, archive, mode):
    other = tmp_path_factory.mktemp("other")
    (other / "mini_imagenet").mkdir()
    (other / "mini_imagenet" / archive).write_bytes(packed(files, "miniimagenet", mode))
    folder = prepare(other)
    assert sorted(path.name for path in folder.iterdir()) == ["manifest.json", archive, *FILES]
    assert checksums("mini_imagenet", other) == checksums("mini_imagenet", root)


def test_preparing_again_changes_nothing_and_needs_no_photographs(root):
    assert is_current("mini_imagenet", root)
    folder = root / "mini_imagenet"
    before = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    (root / "miniimagenet").rename(root / "gone")
    assert prepare(root) == folder
    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == before


def test_checksums_are_those_of_the_files(root):
    folder = root / "mini_imagenet"
    assert checksums("mini_imagenet", root) == {
        name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in FILES
    }


def test_loaded_images_are_mapped_and_changes_do_not_reach_the_file(root):
    images = load("mini_imagenet", "train", root).images
    assert images.any()
    images.zero_()
    assert load("mini_imagenet", "train", root).images.any()


def test_a_damaged_archive_is_told_and_the_folder_beside_it_taken(files, tmp_path, capsys):
    unpack(files, tmp_path / "miniimagenet")
    (tmp_path / "mini_imagenet").mkdir()
    archive = packed(files, "miniimagenet", "w:gz")
    (tmp_path / "mini_imagenet" / "miniimagenet.tar.gz").write_bytes(archive[: len(archive) // 2])
    prepare(tmp_path)
    assert "from the unpacked folder" in capsys.readouterr().err
    (tmp_path / "miniimagenet").rename(tmp_path / "gone")
    (tmp_path / "mini_imagenet" / "train.csv").unlink()
    with pytest.raises(PrepareError, match=r"miniimagenet\.tar\.gz: .*was the archive cut short"):
        prepare(tmp_path)


def test_a_full_disk_is_told_and_leaves_nothing(files, tmp_path, monkeypatch):
    unpack(files, tmp_path / "miniimagenet")
    with pytest.raises(PrepareError, match="No space left"):
        prepare(tmp_path, replace(MINI, space=1 << 60))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("data_prep.common.photograph_sets.write_images", full)
    with pytest.raises(PrepareError, match="No space left"):
        prepare(tmp_path)
    assert list((tmp_path / "mini_imagenet").iterdir()) == []


ALTERED = {
    "cut": (lambda content: content[:-1], "damaged: it has 254143 bytes and should have 254144"),
    "altered": (lambda content: content[:-1] + bytes([content[-1] ^ 1]), "altered: its SHA-256"),
}


@pytest.mark.parametrize("case", ALTERED)
def test_an_altered_array_is_told_and_repaired_from_the_folder(root, case):
    path = root / "mini_imagenet" / "train-images.npy"
    whole = path.read_bytes()
    change, message = ALTERED[case]
    path.write_bytes(change(whole))
    with pytest.raises(DataError, match=rf"{message}(.|\n)*python -m data_prep\.mini_imagenet"):
        load("mini_imagenet", "train", root)
    assert len(load("mini_imagenet", "test", root)) == 6
    prepare(root)
    assert path.read_bytes() == whole


def test_an_array_altered_behind_its_old_time_is_still_found(root):
    path = root / "mini_imagenet" / "train-images.npy"
    whole, found = path.read_bytes(), path.stat()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    os.utime(path, ns=(found.st_atime_ns, found.st_mtime_ns))
    assert is_current("mini_imagenet", root)
    with pytest.raises(DataError, match="altered"):
        load("mini_imagenet", "train", root)
    prepare(root)
    assert path.read_bytes() == whole


def test_missing_files_name_themselves(root):
    (root / "mini_imagenet" / "train-images.npy").unlink()
    with pytest.raises(DataError, match=r"train-images\.npy is missing"):
        load("mini_imagenet", "train", root)
    (root / "mini_imagenet" / "train.csv").unlink()
    with pytest.raises(DataError, match=r"train\.csv is missing"):
        image_names("mini_imagenet", "train", root)
    (root / "mini_imagenet" / "manifest.json").unlink()
    with pytest.raises(DataError, match=r"not prepared(.|\n)*python -m data_prep\.mini_imagenet"):
        checksums("mini_imagenet", root)


def test_half_a_split_is_not_completed_from_other_photographs(root, files):
    lines = files["split/train.csv"].decode().splitlines()
    files["split/train.csv"] = "\n".join([lines[0], lines[2], lines[1], *lines[3:]]).encode()
    unpack(files, root / "miniimagenet")
    (root / "mini_imagenet" / "train-images.npy").unlink()
    with pytest.raises(PrepareError, match="it lists other photographs than .*train.csv did"):
        prepare(root)


def test_files_without_a_manifest_are_taken_for_what_they_are(root, monkeypatch):
    manifest = root / "mini_imagenet" / "manifest.json"
    before = manifest.read_text()
    manifest.unlink()
    (root / "miniimagenet").rename(root / "gone")
    prepare(root)
    assert manifest.read_text() == before
    manifest.unlink()
    (root / "mini_imagenet" / "test.csv").unlink()
    with pytest.raises(PrepareError, match=r"test-images\.npy stands alone, without test\.csv"):
        prepare(root)


def test_arrays_of_another_size_are_not_taken(root):
    (root / "mini_imagenet" / "manifest.json").unlink()
    (root / "miniimagenet").rename(root / "gone")
    with pytest.raises(
        PrepareError, match=r"has the shape \(12, 3, 84, 84\) instead of \(12, 3, 9"
    ):
        prepare(root, replace(MINI, side=90))


def test_an_array_that_does_not_fit_its_list_is_a_data_error(root):
    folder = root / "mini_imagenet"
    (folder / "test-images.npy").replace(folder / "train-images.npy")
    storage.write_manifest(folder, ["train-images.npy", "train.csv"])
    with pytest.raises(DataError, match=r"train-images\.npy holds 6 images for 12 names"):
        load("mini_imagenet", "train", root)


def test_files_of_another_format_are_data_errors(root):
    folder = root / "mini_imagenet"
    for content, message in ((np.zeros((2, 3, 4, 4)), r"must hold uint8 .* Found float64"),
                             (np.zeros((2, 4), dtype=np.uint8), r"Found uint8 of \(2, 4\)"),
                             (np.array([{}]), "must hold uint8")):  # fmt: skip
        np.save(folder / "train-images.npy", content)
        storage.write_manifest(folder, ["train-images.npy", "train.csv"])
        with pytest.raises(DataError, match=message):
            load("mini_imagenet", "train", root)
    (folder / "train.csv").write_text("name,label,class\na.jpg,1,b\n")
    storage.write_manifest(folder, ["train-images.npy", "train.csv"])
    with pytest.raises(DataError, match=r"train\.csv is not as expected: the classes must be numb"):
        load("mini_imagenet", "train", root)


def test_listings_survive_a_round_and_refuse_what_is_in_doubt():
    listing = parse_split("filename,label\nb1.jpg,b\na1.jpg,a\nb2.jpg,b\n")
    assert listing.labels == (0, 1, 0)  # in the order of appearance, as in CEC
    assert listing.class_names == ("b", "a")
    content = photographs.encode_listing(listing)
    assert content == "name,label,class\nb1.jpg,0,b\na1.jpg,1,a\nb2.jpg,0,b\n"
    assert photographs.decode_listing(content) == listing
    for bad, message in (
        ("", "the first line must be name,label,class"),
        ("name,label,class\na,0\n", "line 2 must hold"),
        ("name,label,class\na,-1,b\n", "line 2 must hold"),
        ("name,label,class\na,0,b\nc,0,d\n", "line 3 gives class 0 a second name, 'd'"),
        ("name,label,class\na,0,b\na,0,b\n", "the image a is listed twice"),
    ):
        with pytest.raises(ListingError, match=message):
            photographs.decode_listing(bad)
    for names, labels, message in ((("a",), (0, 0), "2 labels for 1 images"),
                                   (("a",), (1,), r"labels must lie in \[0, 1\)")):  # fmt: skip
        with pytest.raises(ListingError, match=message):
            photographs.Listing(names, labels, ("x",))


def test_images_are_written_only_as_announced(tmp_path):
    image = np.zeros((3, 2, 2), dtype=np.uint8)
    path = tmp_path / "images.npy"
    photographs.write_images(path, iter([image, image + 7]), 2, 2)
    assert np.load(path).tolist() == [image.tolist(), (image + 7).tolist()]
    with pytest.raises(ValueError, match="there must be 3 images. Found 1"):
        photographs.write_images(path, [image], 3, 2)
    with pytest.raises(ValueError, match="must be uint8 of shape .* Found float64"):
        photographs.write_images(path, [image.astype(float)], 1, 2)


def test_a_resize_that_is_too_small_is_refused(tmp_path):
    (tmp_path / "a.jpg").write_bytes(mini_files(size=50)[f"images/{WNIDS[0]}00000006.jpg"])
    with pytest.raises(ValueError, match="resize must give at least 84 pixels. Found 60x60"):
        decode_photograph(tmp_path / "a.jpg", 84, (60, 60))


def test_only_sets_of_photographs_have_names(tmp_path):
    with pytest.raises(ValueError, match="name must be one of mini_imagenet, cub200, .* Found"):
        image_names("mnist", "train", tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, test"):
        image_names("cub200", "val", tmp_path)
