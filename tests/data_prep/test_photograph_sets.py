"""Sets of photographs: small ones in the exact layouts on disk, and what damage brings."""

import hashlib
import io
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from data_prep import (
    DataError,
    checksums,
    cub200,
    domainnet,
    image_names,
    imagenet_r,
    is_current,
    load,
    mini_imagenet,
)
from data_prep.common.errors import PrepareError
from data_prep.common.photographs import ListingError
from data_prep.cub200 import TEXTS, parse_texts
from data_prep.domainnet import DOMAINS, parse_lists
from data_prep.imagenet_r import WNIDS as ALL_RENDERED
from data_prep.imagenet_r import split_photographs
from tests.data_prep.small_photographs import (
    CUB,
    DOMAINNET,
    DRAWN,
    IMAGENET_R,
    MINI,
    RENDERED,
    SPECIES,
    WNIDS,
    cub_files,
    domainnet_files,
    imagenet_r_files,
    mini_files,
    packed,
    unpack,
)

SETS = {data.name: data for data in (MINI, CUB, IMAGENET_R, DOMAINNET)}
FILES = {
    "mini_imagenet": mini_files,
    "cub200": cub_files,
    "imagenet_r": imagenet_r_files,
    "domainnet": domainnet_files,
}
CLASSES = {
    "mini_imagenet": WNIDS, "cub200": SPECIES, "imagenet_r": RENDERED, "domainnet": DRAWN
}  # fmt: skip


@pytest.fixture(params=SETS)
def name(request):
    return request.param


def packed_set(data, files):
    """An archive in the form in which its publisher packs it."""
    return packed(files, data.folder, "w:gz" if data.archives[-1].endswith("gz") else "w")


def md5_of(content):
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


def rows_of(name, files, split):
    """Names and class numbers in the order of the publisher's lists; ImageNet-R has none."""
    if name == "mini_imagenet":
        lines = files[f"split/{split}.csv"].decode().splitlines()[1:]
        return [(line[:21], WNIDS.index(line[-9:])) for line in lines]
    if name == "cub200":
        lines = [line.split() for line in files["images.txt"].decode().splitlines()]
        return [(p, int(int(n) > 5)) for n, p in lines if int(n) % 2 == (split == "train")]
    lists = b"".join(files[f"{domain}_{split}.txt"] for domain in DOMAINS).decode()
    return [(line[:-2], int(line[-1])) for line in lists.splitlines()]


def test_images_labels_and_names_are_those_of_the_files(name, tmp_path):
    data, files = SETS[name], FILES[name]()
    unpack(files, tmp_path / data.folder)
    data.prepare(tmp_path)
    resize = list(data.resize) if isinstance(data.resize, tuple) else data.resize
    usual = transforms.Compose([transforms.Resize(resize), transforms.CenterCrop(data.side)])
    seen = []
    for split, number in data.numbers.items():
        loaded, names = load(name, split, tmp_path), image_names(name, split, tmp_path)
        assert loaded.images.shape == (number, 3, data.side, data.side)
        assert loaded.class_names == CLASSES[name]
        rows = list(zip(names, loaded.labels.tolist(), strict=True))
        if name == "imagenet_r":
            assert rows == sorted((name, RENDERED.index(name[:9])) for name in names)
            seen += names
        else:
            assert rows == rows_of(name, files, split)
        for image, photograph in zip(loaded.images, names, strict=True):
            path = photograph if data.images == "." else f"{data.images}/{photograph}"
            with Image.open(io.BytesIO(files[path])) as picture:
                colour = picture.convert("RGB")
            cropped = colour if colour.size == (data.side, data.side) else usual(colour)
            assert torch.equal(image, torch.from_numpy(np.array(cropped)).permute(2, 0, 1))
    assert name != "imagenet_r" or sorted(seen) == sorted(files)[1:]


def test_archive_folder_and_download_give_the_same(name, web, tmp_path_factory):
    data, files = SETS[name], FILES[name]()
    places = [data.folder, f"{name}/{data.folder}", *([name] if data.flat else [])]
    roots = [tmp_path_factory.mktemp("root") for _ in places]
    for root, place in zip(roots, places, strict=True):
        unpack(files, root / place)
    if name == "imagenet_r":
        unpack({f"{RENDERED[0]}/._art_0.jpg": b"left by a Mac"}, roots[0] / data.folder)
    if data.archives:
        archive = packed_set(data, files)
        for place in (data.archives[-1], f"{name}/{data.archives[-1]}"):
            roots.append(tmp_path_factory.mktemp("root"))
            unpack({place: archive}, roots[-1])
        if data.url:
            data = replace(data, url=f"{web.url}/{data.archives[0]}", md5=md5_of(archive))
            web.files[f"/{data.archives[0]}"] = archive
            roots.append(tmp_path_factory.mktemp("root"))
    for root in roots:
        data.prepare(root)
        assert is_current(name, root)
    assert len({tuple(checksums(name, root).items()) for root in roots}) == 1
    asked = [f"/{data.archives[0]}"] if data.url else []
    assert web.requests == asked
    if data.url:
        assert len(list((roots[-1] / name).iterdir())) == 5  # nothing of the archive is left
        data.prepare(roots[-1])
        assert web.requests == asked


def test_every_failure_is_listed_and_the_way_by_hand_told(name, web, tmp_path):
    data = SETS[name]
    parts = [f"{tmp_path / data.folder}: there is no such folder",
             f"python -m data_prep.{name} again",
             f"{data.numbers['train']} for train and {data.numbers['test']} for test"]  # fmt: skip
    if data.archives:
        archive = packed_set(data, FILES[name]())
        (tmp_path / name).mkdir()
        (tmp_path / name / data.archives[0]).write_bytes(archive[: len(archive) // 2])
        parts.append(f"{tmp_path / data.archives[0]}: there is none")
        parts.append(f"put it into {tmp_path / name}")
    if data.url:
        data = replace(data, url=f"{web.url}/{data.archives[0]}", md5=md5_of(archive))
        web.files[f"/{data.archives[0]}"] = archive[:-1] + b"?"
        parts.append(f"get {data.archives[0]} (MD5 {data.md5}) from {data.url}")
        parts.append(f"{tmp_path / name / data.archives[0]}: it has MD5")
        parts.append(f"{data.url}: it has MD5")
    parts += {
        "mini_imagenet": ["split/train.csv, split/test.csv and images/*.jpg"],
        "domainnet": ["ai.bu.edu/M3SDA", f"put the lists into {tmp_path / name / data.folder}",
                      "the folders clipart, infograph, painting, quickdraw, real, sketch"],
    }.get(name, [])  # fmt: skip
    with pytest.raises(PrepareError) as caught:
        data.prepare(tmp_path)
    for part in parts:
        assert part in str(caught.value)
    assert {path.name for path in (tmp_path / name).iterdir()} <= set(data.archives)
    with pytest.raises(DataError, match=rf"not prepared(.|\n)*python -m data_prep\.{name}"):
        load(name, "test", tmp_path)
    if data.url:
        closed = "http://127.0.0.1:9/some.tar"
        with pytest.raises(PrepareError, match=f"{closed}: 127.0.0.1 cannot be reached"):
            replace(data, url=closed).prepare(tmp_path)


def lines_changed(change):
    """What a change of its lines makes of a text."""
    return lambda content: "\n".join(change(content.decode().splitlines())).encode()


PHOTOGRAPH = f"images/{WNIDS[1]}00000010.jpg"
BIRD = "images/002.Laysan_Albatross/Laysan_Albatross_0006_222.jpg"
RENDITION = f"{RENDERED[0]}/art_0.jpg"
# The set, which paths are changed, how (None: removed), and what is told.
DAMAGES = {
    "cut photograph": (
        "mini_imagenet", PHOTOGRAPH, lambda content: content[:-200],
        rf"its {PHOTOGRAPH} is damaged: it cannot be decoded \(.*trunc",
    ),
    "no photograph": (
        "mini_imagenet", PHOTOGRAPH, lambda _: b"<html>not found</html>",
        rf"its {PHOTOGRAPH} is damaged: it cannot be decoded \(cannot",
    ),
    "missing photograph": (
        "mini_imagenet", PHOTOGRAPH, None,
        "1 of 12 train photographs are missing, the first one is images/n0155",
    ),
    "missing csv": ("mini_imagenet", "split/train.csv", None, r"its split/train\.csv is missing"),
    "cut csv": (
        "mini_imagenet", "split/train.csv", lines_changed(lambda lines: lines[:-1]),
        "its train split lists 11 photographs instead of 12",
    ),
    "cut line": (
        "mini_imagenet", "split/train.csv",
        lines_changed(lambda lines: [*lines[:-1], lines[-1][:12]]),
        r"its line 13 must hold the name of a file and a class\. Found 'n01704323000'",
    ),
    "other header": (
        "mini_imagenet", "split/train.csv", lines_changed(lambda lines: ["name,label", *lines[1:]]),
        "its first line must be filename,label",
    ),
    "unbalanced": (
        "mini_imagenet", "split/train.csv",
        lines_changed(lambda lines: [*lines[:4], lines[4][:-9] + WNIDS[1], *lines[5:]]),
        "its train split has 3 photographs of n01532829 instead of 4",
    ),
    "twice": (
        "mini_imagenet", "split/train.csv", lines_changed(lambda lines: [*lines[:-1], lines[-2]]),
        r"the image n0170432300000010\.jpg is listed twice",
    ),
    "in both csv": (
        "mini_imagenet", "split/train.csv",
        lines_changed(
            lambda lines: [lines[0], f"{WNIDS[0]}00000007.jpg,{WNIDS[0]}", *lines[2:]]
        ),
        r"the photograph n0153282900000007\.jpg is in both splits",
    ),
    "other order": (
        "mini_imagenet", "split/train.csv",
        lines_changed(lambda lines: [lines[0], *lines[5:9], *lines[1:5], *lines[9:]]),
        "its two splits do not name the same classes in the same order",
    ),
    "way out": (
        "mini_imagenet", "split/train.csv",
        lines_changed(lambda lines: [*lines[:-1], f"../x.jpg,{WNIDS[2]}"]),
        r"its line 13 must hold the name of a file and a class\. Found '../x\.jpg",
    ),
    "cut bird": ("cub200", BIRD, lambda content: content[:300], f"its {BIRD} is damaged: it"),
    "missing bird": (
        "cub200", BIRD, None, f"test photographs are missing, the first one is {BIRD}",
    ),
    "missing text": ("cub200", "classes.txt", None, "its classes.txt is missing"),
    "fewer": (
        "cub200", r"images.txt|image_class_labels.txt|train_test_split.txt",
        lambda content: b"\n".join(content.splitlines()[:-1]),
        "its train split lists 4 photographs instead of 5",
    ),
    "missing class": (
        "imagenet_r", f"{RENDERED[1]}/.*", None,
        f"1 of 3 class folders .*, the first one is {RENDERED[1]}",
    ),
    "cut rendition": (
        "imagenet_r", RENDITION, lambda content: content[:300],
        f"its {RENDITION} is damaged: it cannot be decoded",
    ),
    "missing rendition": (
        "imagenet_r", f"{RENDERED[0]}/misc_4.jpg", None,
        "its test split lists 2 photographs instead of 3",
    ),
    "missing list": ("domainnet", "sketch_test.txt", None, r"its sketch_test\.txt is missing"),
    "cut list": (
        "domainnet", "real_train.txt", lambda content: content.splitlines()[0],
        "its train split lists 16 photographs instead of 18",
    ),
    "missing image": (
        "domainnet", "real/airplane/real_001_000001.jpg", None,
        "1 of 18 train photographs are missing, the first one is real/airplane/real_",
    ),
    "missing domain": (
        "domainnet", "quickdraw/.*", None,
        "3 of 18 train photographs are missing, the first one is quickdraw/airc",
    ),
    "cut image": (
        "domainnet", "painting/airplane/painting_001_000002.jpg", lambda content: content[:300],
        r"its painting/airplane/painting_001_000002\.jpg is damaged: it cannot be decoded",
    ),
    "in both splits": (
        "domainnet", "real_test.txt",
        lambda content: content.splitlines()[0] + b"\nreal/airplane/real_001_000001.jpg 1",
        r"the photograph real/airplane/real_001_000001\.jpg is in both splits",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_folder_is_told_and_leaves_nothing(case, tmp_path):
    name, paths, change, message = DAMAGES[case]
    data, files = SETS[name], FILES[name]()
    for path in [path for path in files if re.fullmatch(paths, path)]:
        content = files.pop(path)
        if change:
            files[path] = change(content)
    unpack(files, tmp_path / data.folder)
    data = replace(data, url=None)
    with pytest.raises(PrepareError, match=rf"{tmp_path / data.folder}: .*{message}"):
        data.prepare(tmp_path)
    left = [path.name for path in (tmp_path / name).iterdir()]  # a split that is whole may be there
    assert "manifest.json" not in left
    assert not any(file.startswith(".incoming") for file in left)


@pytest.mark.parametrize("name", ["cub200", "imagenet_r"])
def test_an_archive_that_leads_out_or_is_none_is_refused(name, tmp_path):
    data = replace(SETS[name], url=None, md5=None)
    archive = packed_set(data, {**FILES[name](), "../../escaped": b"x"})
    (tmp_path / data.archives[0]).write_bytes(archive)
    with pytest.raises(PrepareError, match="the archive is refused: its member .* leads out"):
        data.prepare(tmp_path)
    assert not (tmp_path / "escaped").exists()
    assert not (tmp_path.parent / "escaped").exists()
    (tmp_path / data.archives[0]).write_bytes(b"no archive")
    with pytest.raises(PrepareError, match=rf"{data.archives[0]}: the archive is damaged"):
        data.prepare(tmp_path)


def test_the_real_sizes_and_archives_are_the_published_ones():
    real = [module.DATA for module in (mini_imagenet, cub200, imagenet_r, domainnet)]
    assert [sum(data.numbers.values()) for data in real] == [60_000, 11_788, 30_000, 586_575]
    assert [data.classes for data in real] == [100, 200, 200, 345]
    assert [(data.side, data.resize) for data in real] == [(84, (92, 92)), *[(224, 256)] * 3]
    assert cub200.DATA.md5 == "97eceeb196236b17998738112f37df78"
    assert list(ALL_RENDERED) == sorted(set(ALL_RENDERED))


def test_one_domain_is_a_part_of_all(tmp_path):
    unpack(domainnet_files(), tmp_path / "DomainNet")
    DOMAINNET.prepare(tmp_path)
    whole = domainnet.load("train", tmp_path)
    parts = [domainnet.load("train", tmp_path, domain) for domain in DOMAINS]
    assert [len(part) for part in parts] == [3] * 6
    assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
    assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
    assert {part.class_names for part in parts} == {DRAWN}
    with pytest.raises(ValueError, match=r"domain must be one of clipart, .* Found domain='photo'"):
        domainnet.load("train", tmp_path, "photo")
    with pytest.raises(ValueError, match="split must be one of train, test"):
        domainnet.load("val", tmp_path, "real")


def test_lists_that_are_in_doubt_are_told():
    files = domainnet_files()
    texts = {name: files[name].decode() for name in DOMAINNET.texts}
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


def test_texts_that_do_not_fit_together_are_told():
    files = cub_files()
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
