"""DomainNet: a small one in the layout of its archives and lists, and what is said on failure."""

import io
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from data_prep import DataError, checksums, domainnet, image_names, is_current, load
from data_prep.common.errors import PrepareError
from data_prep.common.photographs import ListingError
from data_prep.domainnet import DOMAINS, TEXTS, parse_lists
from tests.data_prep.small_photographs import jpeg, unpack

CLASSES = ("aircraft_carrier", "airplane")
SMALL = replace(domainnet.DATA, numbers={"train": 18, "test": 12}, classes=2, space=1 << 20)


def drawing(seed):
    """A drawing in black and white as a PNG file, like those of quickdraw."""
    random = np.random.RandomState(seed)
    content = io.BytesIO()
    Image.fromarray(random.randint(0, 2, (225, 240)).astype(bool)).save(content, "PNG")
    return content.getvalue()


@pytest.fixture
def files():
    """Of each domain and class two train images, or one in the second class, and one to test."""
    made = {}
    for place, domain in enumerate(DOMAINS):
        lines = {"train": [], "test": []}
        for label, name in enumerate(CLASSES):
            for number, split in ((1, "train"), (2, "test"), (3, "train")):
                if (label, number) == (1, 3):
                    continue
                if domain == "quickdraw":
                    path, content = f"{domain}/{name}/46{number}.png", drawing(number)
                else:
                    path = f"{domain}/{name}/{domain}_{label:03d}_{number:06d}.jpg"
                    content = jpeg(230 + 20 * number, 260, 10 * place + number)
                made[path] = content
                lines[split].append(f"{path} {label}")
        for split, listed in lines.items():
            made[f"{domain}_{split}.txt"] = ("\n".join(listed) + "\n").encode()
    return made


def prepare(root):
    return SMALL.prepare(root)


@pytest.fixture
def root(files, tmp_path):
    unpack(files, tmp_path / "DomainNet")
    prepare(tmp_path)
    return tmp_path


def test_images_labels_and_names_are_those_of_the_lists(files, root):
    usual = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224)])
    for split, number in (("train", 18), ("test", 12)):
        loaded = load("domainnet", split, root)
        names = image_names("domainnet", split, root)
        assert loaded.images.shape == (number, 3, 224, 224)
        assert loaded.class_names == CLASSES
        lines = b"".join(files[f"{domain}_{split}.txt"] for domain in DOMAINS).decode()
        found = zip(names, loaded.labels.tolist(), strict=True)
        assert [f"{name} {label}" for name, label in found] == lines.splitlines()
        for image, name in zip(loaded.images, names, strict=True):
            with Image.open(io.BytesIO(files[name])) as picture:
                cropped = usual(picture.convert("RGB"))
            assert torch.equal(image, torch.from_numpy(np.array(cropped)).permute(2, 0, 1))


def test_one_domain_is_a_part_of_all(root):
    whole = domainnet.load("train", root)
    parts = [domainnet.load("train", root, domain) for domain in DOMAINS]
    assert [len(part) for part in parts] == [3] * 6
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert {part.class_names for part in parts} == {CLASSES}
    with pytest.raises(ValueError, match=r"domain must be one of clipart, .* Found domain='photo'"):
        domainnet.load("train", root, "photo")
    with pytest.raises(ValueError, match="split must be one of train, test"):
        domainnet.load("val", root, "real")


def test_the_folder_may_lie_in_three_places(files, root, tmp_path_factory):
    within, beside = tmp_path_factory.mktemp("within"), tmp_path_factory.mktemp("beside")
    unpack(files, within / "domainnet" / "DomainNet")
    unpack(files, beside / "domainnet")
    for other in (within, beside):
        prepare(other)
        assert is_current("domainnet", other)
        assert checksums("domainnet", other) == checksums("domainnet", root)


def test_without_the_folder_the_way_by_hand_is_told(tmp_path):
    with pytest.raises(PrepareError) as caught:
        prepare(tmp_path)
    message = str(caught.value)
    for part in (f"{tmp_path / 'DomainNet'}: there is no such folder", "ai.bu.edu/M3SDA",
                 f"put the lists into {tmp_path / 'domainnet' / 'DomainNet'}", "clipart_train.txt",
                 "the folders clipart, infograph, painting, quickdraw, real, sketch",
                 "18 for train and 12 for test of 2 classes",
                 "python -m data_prep.domainnet"):  # fmt: skip
        assert part in message
    with pytest.raises(DataError, match=r"not prepared(.|\n)*python -m data_prep\.domainnet"):
        load("domainnet", "test", tmp_path)


DAMAGES = {
    "missing list": r"its sketch_test\.txt is missing",
    "cut list": "its train split lists 16 photographs instead of 18",
    "missing image": r"1 of 18 train photographs are missing, the first one is real/airplane/real_",
    "missing class": r"3 of 18 train photographs are missing, the first one is quickdraw/airc",
    "cut image": r"its painting/airplane/painting_001_000002\.jpg is damaged: it cannot be decoded",
    "both": r"the photograph real/airplane/real_001_000001\.jpg is in both splits",
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_folder_is_told_and_leaves_nothing(files, tmp_path, case):
    if case == "missing list":
        del files["sketch_test.txt"]
    elif case == "cut list":
        files["real_train.txt"] = files["real_train.txt"].splitlines()[0]
    elif case == "missing image":
        del files["real/airplane/real_001_000001.jpg"]
    elif case == "missing class":
        for name in [name for name in files if name.startswith("quickdraw/")]:
            del files[name]
    elif case == "cut image":
        name = "painting/airplane/painting_001_000002.jpg"
        files[name] = files[name][:300]
    else:
        train, test = (files[f"real_{split}.txt"].splitlines() for split in ("train", "test"))
        files["real_test.txt"] = b"\n".join([test[0], train[2]])
    unpack(files, tmp_path / "DomainNet")
    with pytest.raises(PrepareError, match=rf"{tmp_path / 'DomainNet'}: .*{DAMAGES[case]}"):
        prepare(tmp_path)
    assert not (tmp_path / "domainnet" / "manifest.json").exists()


def test_lists_that_are_in_doubt_are_told(files):
    texts = {name: files[name].decode() for name in TEXTS}
    for text, change, message in (
        ("real_train.txt", "sketch/airplane/a.jpg 1",
         "line 1 of real_train.txt must be 'real/<class>/<file> <label>'. Found 'sketch/"),
        ("real_train.txt", "real/airplane/a.jpg", "line 1 of real_train.txt must be"),
        ("real_train.txt", "real/airplane/a.jpg -1", "line 1 of real_train.txt must be"),
        ("real_train.txt", "real/a.jpg 1", "line 1 of real_train.txt must be"),
        ("real_train.txt", "real/../a.jpg 1", "leads out of its folder with 'real/../a.jpg'"),
        ("clipart_test.txt", "clipart/airplane/a.jpg 0",
         "line 1 of clipart_test.txt gives class 0 a second name, 'airplane' beside 'aircraft_"),
        ("clipart_test.txt", "clipart/airplane/a.jpg 2", "without a gap, each once"),
        ("clipart_test.txt", "clipart/axe/a.jpg 3", "without a gap, each once"),
        ("real_test.txt", "real/airplane/a.jpg 1\nreal/airplane/a.jpg 1", "is listed twice"),
    ):  # fmt: skip
        with pytest.raises(ListingError, match=message):
            parse_lists({**texts, text: change})


def test_the_real_sizes_are_the_published_ones():
    real = domainnet.DATA
    assert sum(real.numbers.values()) == 586_575
    assert (real.classes, real.side, real.resize) == (345, 224, 256)
