"""The lists of the TOPIC protocol: those in the package, placed ones, and damaged ones."""

import shutil

import pytest

from data_prep import DataError
from data_prep.common.topic import (
    PROTOCOLS,
    image_key,
    read_topic_lists,
    topic_keys,
    topic_lists,
)
from tests.data_prep.small_photographs import CUB, MINI, cub_files, mini_files, unpack

# A line as the files of the repository have it, from a key.
LINE = {
    "cifar100": lambda key: key,
    "mini_imagenet": lambda key: f"MINI-ImageNet/train/{key[:9]}/{key}",
    "cub200": lambda key: f"CUB_200_2011/images/{key[:3]}.A_bird/A_Bird_{key[4:]}.jpg",
}


def place(root, name, base=None):
    """Write the package's lists in the form of the repository; returns their folder."""
    folder = root / "topic" / name
    folder.mkdir(parents=True)
    for session, keys in enumerate(topic_lists(name, root / "none").few_shot, start=2):
        lines = [LINE[name](key) for key in keys]
        (folder / f"session_{session}.txt").write_text("\n".join(lines) + "\n")
    if base is not None:
        (folder / "session_1.txt").write_text("\n".join(LINE[name](key) for key in base))
    return folder


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_lists_in_the_package_have_the_sizes_of_the_protocol(name, tmp_path):
    lists = topic_lists(name, tmp_path)
    protocol = PROTOCOLS[name]
    assert lists.base is None
    assert len(lists.few_shot) == protocol.sessions
    assert all(len(keys) == protocol.ways * protocol.shots for keys in lists.few_shot)
    everything = [key for keys in lists.few_shot for key in keys]
    assert len(set(everything)) == len(everything)
    assert all(image_key(name, LINE[name](key)) == key for key in everything)
    classes = {"cifar100": 100, "mini_imagenet": 100, "cub200": 200}[name]
    assert protocol.base_classes + protocol.sessions * protocol.ways == classes


def test_first_and_last_images_are_those_of_the_repository(tmp_path):
    cifar, mini, cub = (topic_lists(name, tmp_path).few_shot for name in PROTOCOLS)
    assert cifar[0][:6] == ("29774", "33344", "4815", "6772", "48317", "29918")
    assert cifar[-1][-1] == "47507"
    assert (mini[0][0], mini[-1][-1]) == ("n0354414300000811.jpg", "n1313361300001231.jpg")
    assert (cub[0][0], cub[-1][-1]) == ("101/0081_96148", "200/0032_190592")


def test_classes_of_a_few_shot_session_lie_in_blocks_of_five_images(tmp_path):
    for name, length in (("mini_imagenet", 9), ("cub200", 3)):
        for keys in topic_lists(name, tmp_path).few_shot:
            blocks = [{key[:length] for key in keys[i : i + 5]} for i in range(0, len(keys), 5)]
            assert all(len(block) == 1 for block in blocks)
            assert len(set.union(*blocks)) == len(blocks)
    numbers = [int(k[:3]) for keys in topic_lists("cub200", tmp_path).few_shot for k in keys]
    assert numbers == [label for label in range(101, 201) for _ in range(5)]


@pytest.mark.parametrize("name", PROTOCOLS)
def test_placed_lists_are_the_same_and_may_bring_the_base_session(name, tmp_path):
    packaged = topic_lists(name, tmp_path)
    folder = place(tmp_path, name)
    assert topic_lists(name, tmp_path) == packaged
    base = {
        "cifar100": [str(i) for i in range(30_000)],
        "mini_imagenet": [f"n{i:016d}.jpg" for i in range(30_000)],
        "cub200": [f"001/{i:04d}_7" for i in range(3_000)],
    }[name]
    shutil.rmtree(folder)
    place(tmp_path, name, base)
    assert topic_lists(name, tmp_path).base == tuple(base)


DAMAGES = {
    "missing": "session_3.txt is missing",
    "cut": "session_3.txt has 24 lines and should have 25",
    "longer": "session_3.txt has 26 lines and should have 25",
    "cut line": "session_3.txt is damaged in line 25: an image of mini_imagenet must be named",
    "altered": "session_3.txt is not the one of the protocol: line 2 names n0377554600000892.jpg, "
    "not n0377554600000891.jpg",
    "binary": "session_3.txt cannot be read",
    "base cut": "session_1.txt has 1 lines and should have 30000",
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_placed_list_that_is_damaged_is_told(case, tmp_path):
    folder = place(tmp_path, "mini_imagenet")
    path = folder / "session_3.txt"
    text = path.read_text()
    if case == "missing":
        path.unlink()
    elif case == "base cut":
        (folder / "session_1.txt").write_text("n0000000000000001.jpg\n")
    elif case == "binary":
        path.write_bytes(b"\xff\xfe")
    else:
        changed = {
            "cut": "\n".join(text.splitlines()[:-1]),
            "longer": text + text.splitlines()[0],
            "cut line": text[:-10],
            "altered": text.replace("0891.jpg", "0892.jpg"),
        }[case]
        path.write_text(changed)
    with pytest.raises(DataError, match=DAMAGES[case]) as caught:
        topic_lists("mini_imagenet", tmp_path)
    assert f"remove the folder {folder}" in str(caught.value)


def test_lists_of_another_choice_are_read_where_asked_for(tmp_path):
    folder = place(tmp_path, "cifar100")
    (folder / "session_2.txt").write_text("\r\n".join(str(i) for i in range(25)))
    with pytest.raises(DataError, match="line 1 names 0, not 29774"):
        topic_lists("cifar100", tmp_path)
    lists = read_topic_lists("cifar100", folder)
    assert lists.few_shot[0] == tuple(str(i) for i in range(25))


def test_keys_are_in_the_order_of_the_images(tmp_path):
    unpack(mini_files(), tmp_path / "miniimagenet")
    MINI.prepare(tmp_path)
    unpack(cub_files(), tmp_path / "CUB_200_2011")
    CUB.prepare(tmp_path)
    assert topic_keys("mini_imagenet", tmp_path)[3:5] == [
        "n0153282900000014.jpg",
        "n0155899300000005.jpg",
    ]
    assert topic_keys("cub200", tmp_path) == [
        "001/0001_37", "001/0003_111", "001/0005_185", "002/0007_259", "002/0009_333",
    ]  # fmt: skip
    assert topic_keys("cifar100", tmp_path) is None


def test_unknown_data_sets_and_names_are_refused(tmp_path):
    for ask in (topic_lists, topic_keys, read_topic_lists):
        with pytest.raises(ValueError, match="name must be one of cifar100, mini_imagenet, cub200"):
            ask("pairs", tmp_path)
    with pytest.raises(DataError, match="not prepared"):
        topic_keys("cub200", tmp_path)
    wrong = {
        "cifar100": ["-1", "²", ""],
        "mini_imagenet": ["n01.jpg", "MINI-ImageNet/train/n03544143/"],
        "cub200": ["CUB_200_2011/images/x.jpg", "101/0081_96148"],
    }
    for name, entry in ((name, entry) for name, entries in wrong.items() for entry in entries):
        with pytest.raises(ValueError, match=f"an image of {name} must be"):
            image_key(name, entry)
