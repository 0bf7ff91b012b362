"""ImageNet-R: a small one in the layout of its archive, its split, and what is said on failure."""

import hashlib
import io
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from data_prep import DataError, checksums, image_names, imagenet_r, is_current, load
from data_prep.common.errors import PrepareError
from data_prep.common.photographs import ListingError
from data_prep.imagenet_r import WNIDS, parse, split_photographs
from tests.data_prep.small_photographs import jpeg, packed, unpack

CLOSED = "http://127.0.0.1:9/imagenet-r.tar"
CLASSES = WNIDS[:3]
KINDS = ("art", "cartoon", "embroidery", "graffiti", "misc", "origami", "sketch")
SMALL = replace(
    imagenet_r.DATA,
    numbers={"train": 12, "test": 3},
    classes=3,
    parse=partial(parse, wnids=CLASSES),
    space=1 << 20,
)


@pytest.fixture
def files():
    """7, 5 and 3 images of three classes."""
    made = {"README.txt": b"not needed"}
    for label, number in enumerate((7, 5, 3)):
        for image, kind in enumerate(KINDS[:number]):
            made[f"{CLASSES[label]}/{kind}_{image}.jpg"] = jpeg(
                230 + 10 * image, 224 + 30 * label, 10 * label + image, "L" if image == 2 else "RGB"
            )
    return made


@pytest.fixture
def archive(files):
    return packed(files, "imagenet-r", "w")


def prepare(root, archive=b"", url=CLOSED):
    md5 = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    return replace(SMALL, url=url, md5=md5).prepare(root)


def test_images_labels_and_names_are_those_of_the_files(files, tmp_path):
    unpack(files, tmp_path / "imagenet-r")
    prepare(tmp_path)
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    seen = []
    for split, number in (("train", 12), ("test", 3)):
        loaded = load("imagenet_r", split, tmp_path)
        names = image_names("imagenet_r", split, tmp_path)
        seen += names
        assert loaded.images.shape == (number, 3, 224, 224)
        assert loaded.class_names == CLASSES
        assert loaded.labels.tolist() == [CLASSES.index(name[:9]) for name in names]
        assert loaded.labels.tolist() == sorted(loaded.labels.tolist())
        for image, name in zip(loaded.images, names, strict=True):
            with Image.open(io.BytesIO(files[name])) as picture:
                cropped = usual(picture.convert("RGB"))
            assert torch.equal(image, torch.from_numpy(np.array(cropped)).permute(2, 0, 1))
    assert sorted(seen) == sorted(files)[1:]


def test_archive_folder_and_download_give_the_same(files, archive, web, tmp_path_factory):
    roots = [tmp_path_factory.mktemp("root") for _ in range(4)]
    (roots[0] / "imagenet-r.tar").write_bytes(archive)
    unpack({**files, f"{CLASSES[0]}/._art_0.jpg": b"left by a Mac"}, roots[1] / "imagenet-r")
    unpack(files, roots[2] / "imagenet_r" / "imagenet-r")
    web.files["/imagenet-r.tar"] = archive
    for root in roots:
        prepare(root, archive, f"{web.url}/imagenet-r.tar")
        assert is_current("imagenet_r", root)
    assert web.requests == ["/imagenet-r.tar"]
    assert len({tuple(checksums("imagenet_r", root).items()) for root in roots}) == 1
    assert len(list((roots[3] / "imagenet_r").iterdir())) == 5  # nothing of the archive is left


def test_without_a_source_the_way_by_hand_is_told(archive, web, tmp_path):
    web.files["/imagenet-r.tar"] = archive[:-1] + b"?"
    (tmp_path / "imagenet-r.tar").write_bytes(archive[:-20])
    with pytest.raises(PrepareError) as caught:
        prepare(tmp_path, archive, f"{web.url}/imagenet-r.tar")
    message = str(caught.value)
    md5 = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    for part in (f"{tmp_path / 'imagenet_r' / 'imagenet-r.tar'}: there is none",
                 f"{tmp_path / 'imagenet-r.tar'}: it has MD5",
                 f"{tmp_path / 'imagenet-r'}: there is no such folder",
                 f"{web.url}/imagenet-r.tar: it has MD5",
                 f"get imagenet-r.tar (MD5 {md5}) from {web.url}/imagenet-r.tar, put it into "
                 f"{tmp_path / 'imagenet_r'}, or unpack it", "imagenet_r again",
                 "12 for train and 3 for test of 3 classes"):  # fmt: skip
        assert part in message
    assert list((tmp_path / "imagenet_r").iterdir()) == []
    with pytest.raises(DataError, match=r"not prepared(.|\n)*python -m data_prep\.imagenet_r"):
        load("imagenet_r", "train", tmp_path)


def test_without_a_network_the_address_is_named_too(tmp_path):
    with pytest.raises(PrepareError, match=f"{CLOSED}: 127.0.0.1 cannot be reached"):
        prepare(tmp_path)


DAMAGES = {
    "missing class": f"imagenet-r: 1 of 3 class folders .*, the first one is {CLASSES[1]}",
    "cut image": f"its {CLASSES[0]}/art_0.jpg is damaged: it cannot be decoded",
    "image missing": "imagenet-r: its test split lists 2 photographs instead of 3",
    "split already": "must lie in the folder of one of the classes. Found 'train/n01443537'",
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_folder_is_told_and_leaves_nothing(files, tmp_path, case):
    if case == "missing class":
        files = {name: content for name, content in files.items() if CLASSES[1] not in name}
    elif case == "cut image":
        files[f"{CLASSES[0]}/art_0.jpg"] = files[f"{CLASSES[0]}/art_0.jpg"][:300]
    elif case == "image missing":
        del files[f"{CLASSES[0]}/misc_4.jpg"]
    else:
        files["train/n01443537"] = b""
    unpack(files, tmp_path / "imagenet-r")
    with pytest.raises(PrepareError, match=DAMAGES[case]):
        prepare(tmp_path)
    assert list((tmp_path / "imagenet_r").iterdir()) == []


def test_an_archive_that_leads_out_or_is_none_is_refused(files, tmp_path):
    archive = packed({**files, "../../escaped": b"x"}, "imagenet-r", "w")
    (tmp_path / "imagenet-r.tar").write_bytes(archive)
    with pytest.raises(PrepareError, match="the archive is refused: its member .* leads out"):
        prepare(tmp_path, archive)
    assert not (tmp_path.parent / "escaped").exists()
    (tmp_path / "imagenet-r.tar").write_bytes(b"no archive")
    with pytest.raises(PrepareError, match=r"imagenet-r\.tar: the archive is damaged"):
        prepare(tmp_path, b"no archive")


def test_one_image_in_five_of_each_class_is_for_testing_and_always_the_same():
    sizes = {"a": 7, "b": 5, "c": 13, "d": 4, "e": 6}
    paths = [f"{wnid}/{number}.jpg" for wnid, size in sizes.items() for number in range(size)]
    parts = split_photographs(paths, tuple(sizes))
    counts = [sum(name.startswith(wnid) for name in parts["test"].names) for wnid in sizes]
    # 35 images give 7; 1, 1, 2, 0 and 1 are sure, and the remainders are 2, 0, 3, 4 and 1.
    assert counts == [1, 1, 3, 1, 1]
    assert sorted(parts["train"].names + parts["test"].names) == sorted(paths)
    assert parts == split_photographs(reversed(paths), tuple(sizes))
    assert parts != split_photographs(paths, tuple(sizes), seed=1)
    # Fixed for good: records of runs depend on it.
    assert parts["test"].names == (
        "a/1.jpg",
        "b/2.jpg",
        "c/10.jpg",
        "c/4.jpg",
        "c/9.jpg",
        "d/1.jpg",
        "e/4.jpg",
    )


def test_paths_that_fit_no_class_are_told():
    with pytest.raises(ListingError, match=r"must lie in the folder of .* Found 'b/x/1.jpg'"):
        split_photographs(["a/1.jpg", "b/x/1.jpg"], ("a", "b"))
    with pytest.raises(ListingError, match="is listed twice"):
        split_photographs(["a/1.jpg", "a/1.jpg"], ("a",))
    with pytest.raises(ListingError, match="200 of 200 class folders are missing or empty"):
        split_photographs([])


def test_the_real_sizes_are_the_published_ones():
    real = imagenet_r.DATA
    assert real.numbers == {"train": 24_000, "test": 6_000}
    assert (real.classes, real.side, real.resize) == (200, 224, 256)
    assert list(WNIDS) == sorted(set(WNIDS))
