"""CUB-200-2011: a small one in the exact layout of its archive, and what is said where it fails."""

import hashlib
import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from data_prep import checksums, cub200, image_names, is_current, load
from data_prep.common.errors import PrepareError
from data_prep.common.photographs import ListingError
from data_prep.cub200 import TEXTS, parse_texts
from tests.data_prep.small_photographs import CUB, SPECIES, cub_files, packed, unpack

CLOSED = "http://127.0.0.1:9/CUB_200_2011.tgz"


@pytest.fixture
def files():
    return cub_files()


@pytest.fixture
def archive(files):
    return packed(files, "CUB_200_2011")


def prepare(root, archive=b"", url=CLOSED):
    md5 = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    return replace(CUB, url=url, md5=md5).prepare(root)


def test_images_labels_and_names_are_those_of_the_archive(files, archive, tmp_path):
    (tmp_path / "cub200").mkdir()
    (tmp_path / "cub200" / "CUB_200_2011.tgz").write_bytes(archive)
    prepare(tmp_path, archive)
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    for split, numbers in (("train", [1, 3, 5, 7, 9]), ("test", [2, 4, 6, 8])):
        loaded = load("cub200", split, tmp_path)
        names = image_names("cub200", split, tmp_path)
        assert loaded.images.shape == (len(numbers), 3, 224, 224)
        assert loaded.labels.tolist() == [int(number > 5) for number in numbers]
        assert loaded.class_names == SPECIES
        assert [int(name.split("_")[-2]) for name in names] == numbers
        for image, name in zip(loaded.images, names, strict=True):
            with Image.open(io.BytesIO(files[f"images/{name}"])) as picture:
                colour = picture.convert("RGB")
                cropped = colour if colour.size == (224, 224) else usual(colour)
            assert torch.equal(image, torch.from_numpy(np.array(cropped)).permute(2, 0, 1))


def test_archive_beside_the_folder_download_and_folder_give_the_same(
    files, archive, web, tmp_path_factory
):
    roots = [tmp_path_factory.mktemp("root") for _ in range(4)]
    (roots[0] / "CUB_200_2011.tgz").write_bytes(archive)
    unpack(files, roots[1] / "CUB_200_2011")
    unpack(files, roots[2] / "cub200" / "CUB_200_2011")
    web.files["/CUB_200_2011.tgz"] = archive
    for root in roots:
        prepare(root, archive, f"{web.url}/CUB_200_2011.tgz")
        assert is_current("cub200", root)
    assert web.requests == ["/CUB_200_2011.tgz"]
    assert len({tuple(checksums("cub200", root).items()) for root in roots}) == 1
    assert len(list((roots[3] / "cub200").iterdir())) == 5  # nothing of the archive is left
    prepare(roots[3], archive, f"{web.url}/CUB_200_2011.tgz")
    assert len(web.requests) == 1


def test_every_failure_is_listed_and_the_way_by_hand_told(archive, web, tmp_path):
    (tmp_path / "cub200").mkdir()
    (tmp_path / "cub200" / "CUB_200_2011.tgz").write_bytes(archive[:-20])
    web.files["/CUB_200_2011.tgz"] = archive[:-1] + b"?"
    with pytest.raises(PrepareError) as caught:
        prepare(tmp_path, archive, f"{web.url}/CUB_200_2011.tgz")
    message = str(caught.value)
    md5 = hashlib.md5(archive, usedforsecurity=False).hexdigest()
    for part in (f"{tmp_path / 'cub200' / 'CUB_200_2011.tgz'}: it has MD5",
                 f"{tmp_path / 'CUB_200_2011.tgz'}: there is none",
                 f"{tmp_path / 'CUB_200_2011'}: there is no such folder",
                 f"{web.url}/CUB_200_2011.tgz: it has MD5",
                 f"get CUB_200_2011.tgz (MD5 {md5}) from", f"put it into {tmp_path / 'cub200'}",
                 "python -m data_prep.cub200"):  # fmt: skip
        assert part in message
    assert [path.name for path in (tmp_path / "cub200").iterdir()] == ["CUB_200_2011.tgz"]


def test_without_a_network_the_address_is_named_too(tmp_path):
    with pytest.raises(PrepareError, match=f"{CLOSED}: 127.0.0.1 cannot be reached"):
        prepare(tmp_path)


@pytest.mark.parametrize("case", ["cut photograph", "missing photograph", "missing text", "fewer"])
def test_a_damaged_folder_is_told(files, tmp_path, case):
    name = next(name for name in files if name.startswith("images/002"))
    message = {
        "cut photograph": f"its {name} is damaged: it cannot be decoded",
        "missing photograph": f"test photographs are missing, the first one is {name}",
        "missing text": "its classes.txt is missing",
        "fewer": "its train split lists 4 photographs instead of 5",
    }[case]
    if case == "cut photograph":
        files[name] = files[name][:300]
    elif case == "missing photograph":
        del files[name]
    elif case == "missing text":
        del files["classes.txt"]
    else:
        for text in TEXTS[:3]:
            files[text] = b"\n".join(files[text].splitlines()[:-1])
    unpack(files, tmp_path / "CUB_200_2011")
    with pytest.raises(PrepareError, match=message):
        prepare(tmp_path)
    assert not (tmp_path / "cub200" / "manifest.json").exists()


def test_an_archive_that_leads_out_of_its_folder_is_refused(files, tmp_path):
    archive = packed({**files, "../../escaped": b"x"}, "CUB_200_2011")
    (tmp_path / "CUB_200_2011.tgz").write_bytes(archive)
    with pytest.raises(PrepareError, match="the archive is refused: its member .* leads out"):
        prepare(tmp_path, archive)
    assert not (tmp_path / "escaped").exists()


def test_texts_that_do_not_fit_together_are_told(files):
    texts = {name: files[name].decode() for name in TEXTS}
    images = texts["images.txt"]
    for change, message in (
        ({"images.txt": images + "9 again.jpg\n"}, "images.txt has the number 9 twice"),
        ({"images.txt": images + "10\n"}, "line 10 of images.txt must be a number and a value"),
        ({"images.txt": images + "10 new.jpg\n"}, "only one of them has image 10"),
        ({"images.txt": images.replace("1 001.", "1 ../001.", 1)}, "leads out of its folder"),
        ({"images.txt": images.replace("1 001.", "1 /001.", 1)}, "leads out of its folder"),
        ({"train_test_split.txt": texts["train_test_split.txt"].replace("2 0", "2 2")},
         "must hold 0 or 1. Found '2'"),
        ({"image_class_labels.txt": texts["image_class_labels.txt"].replace("2 1", "2 3")},
         "gives image 2 the class '3'"),
        ({"classes.txt": "1 a\n3 b\n"}, "must number the classes from 1 without a gap"),
    ):  # fmt: skip
        with pytest.raises(ListingError, match=message):
            parse_texts({**texts, **change})


def test_the_real_sizes_and_the_archive_are_the_published_ones():
    real = cub200.DATA
    assert real.md5 == "97eceeb196236b17998738112f37df78"
    assert sum(real.numbers.values()) == 11_788
    assert (real.classes, real.side, real.resize) == (200, 224, 256)
