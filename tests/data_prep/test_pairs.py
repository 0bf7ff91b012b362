"""How the pairs are made: which images, which label, which file, and always the same."""

import hashlib
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pytest

from data_prep import fashion_mnist, is_current, load, mnist, pairs
from data_prep.common.errors import PrepareError
from data_prep.common.files import FileFacts
from data_prep.common.idx import encode_idx
from data_prep.common.idx_sets import overlay
from data_prep.pairs import build_pairs
from tests.data_prep.small_set import known_files, write_files

ARTICLE, DIGIT, TRAIN, TEST = 1, 2, 50, 60


def marked(per_kind, kind_of_image, split):
    """Ten kinds of images that can be recognised in a pair: the number stands in a corner.

    An article's corner (rows 0 to 7) is never covered by a digit, a digit's corner (rows 20 to
    27) never by an article.
    """
    number = 10 * per_kind
    images = np.zeros((number, 28, 28), dtype=np.uint8)
    rows = slice(0, 1) if kind_of_image == ARTICLE else slice(27, 28)
    index = np.arange(number)
    columns = slice(0, 4) if kind_of_image == ARTICLE else slice(24, 28)
    images[:, rows, columns] = np.stack(
        [np.full(number, kind_of_image), np.full(number, split), index // 256, index % 256], axis=1
    )[:, None]
    return images, (index % 10).astype(np.uint8)


def sources_of(images):
    """For each pair (article's split, article's number, digit's split, digit's number)."""
    article, digit = images[:, 0, 0:4].astype(int), images[:, 35, 32:36].astype(int)
    assert (article[:, 0] == ARTICLE).all()
    assert (digit[:, 0] == DIGIT).all()
    return (
        article[:, 1], article[:, 2] * 256 + article[:, 3],
        digit[:, 1], digit[:, 2] * 256 + digit[:, 3],
    )  # fmt: skip


@pytest.fixture
def built():
    """Three images per class; thirty of each kind are just enough for using each once."""
    return build_pairs(marked(30, ARTICLE, TRAIN), marked(30, DIGIT, TRAIN), per_class=3, seed=0)


def test_the_class_is_ten_times_the_item_plus_the_digit(built):
    images, labels = built
    _, article, _, digit = sources_of(images)
    assert (labels == 10 * (article % 10) + digit % 10).all()
    assert labels.tolist() == [label for label in range(100) for _ in range(3)]
    assert pairs.DATA.class_names[77] == "Sneaker 7"
    assert pairs.DATA.class_names[0] == "T-shirt/top 0"
    assert len(set(pairs.DATA.class_names)) == 100


def test_each_source_image_is_used_at_most_once_where_there_are_enough(built):
    _, article, _, digit = sources_of(built[0])
    assert len(set(article)) == 300
    assert len(set(digit)) == 300


def test_where_there_are_too_few_an_image_comes_back_only_in_another_class():
    images, labels = build_pairs(
        marked(30, ARTICLE, TEST), marked(26, DIGIT, TEST), per_class=3, seed=0
    )
    _, article, _, digit = sources_of(images)
    assert len(set(article)) == 300
    assert np.unique(digit, return_counts=True)[1].max() == 2
    for label in range(100):
        assert len(set(digit[labels == label])) == 3


def test_the_article_is_top_left_the_digit_bottom_right_and_the_brighter_value_wins():
    article = np.array([[[9, 1], [2, 7]]], dtype=np.uint8)
    digit = np.array([[[5, 3], [4, 6]]], dtype=np.uint8)
    out = np.full((1, 3, 3), 255, dtype=np.uint8)
    overlay(article, digit, out=out)
    assert out[0].tolist() == [[9, 1, 0], [2, 7, 3], [0, 4, 6]]


def test_the_canvas_is_36_by_36_and_both_images_are_whole():
    articles, digits = marked(3, ARTICLE, TRAIN), marked(3, DIGIT, TRAIN)
    articles[0][:, 27, 27] = 99  # in the overlap, brighter than the digit's 0 there
    digits[0][:, 0, 0] = 88
    images, _ = build_pairs(articles, digits, per_class=1, seed=0)
    assert images.shape == (100, 36, 36)
    assert (images[:, 27, 27] == 99).all()
    assert (images[:, 8, 8] == 88).all()
    assert (images[:, :8, 28:] == 0).all()
    assert (images[:, 28:, :8] == 0).all()


def test_the_construction_is_the_same_for_ever_and_follows_the_seed():
    arguments = marked(30, ARTICLE, TRAIN), marked(30, DIGIT, TRAIN), 3
    first, again, other = (build_pairs(*arguments, seed)[0] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    digest = hashlib.sha256(first.tobytes()).hexdigest()
    assert digest == "c109aa088d6eb1527c9c97bf5be1c052c79d877e1d38fda862869b83aeac271e"


def test_too_few_source_images_are_told():
    with pytest.raises(ValueError, match="at least per_class=4 images of each kind. Found 3"):
        build_pairs(marked(30, ARTICLE, TRAIN), marked(3, DIGIT, TRAIN), per_class=4, seed=0)


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """A data root with small marked sources, and the checksums of what must come out known."""
    made = {"fashion_mnist": {}, "mnist": {}, "pairs": {}}
    for prefix, mark, per_kind, split, per_class in (
        ("train", TRAIN, 20, "train", 2), ("t10k", TEST, 10, "test", 1)
    ):  # fmt: skip
        articles, digits = marked(per_kind, ARTICLE, mark), marked(per_kind, DIGIT, mark)
        out = build_pairs(articles, digits, per_class, pairs.SEED[split])
        for files, arrays in zip(made.values(), (articles, digits, out), strict=True):
            for array, kind in zip(arrays, ("images-idx3", "labels-idx1"), strict=True):
                files[f"{prefix}-{kind}-ubyte"] = encode_idx(array)
    originals = []
    for module in (fashion_mnist, mnist):
        files = made[module.DATA.name]
        originals.append(replace(module.DATA, files=known_files(files)))
        write_files(tmp_path / module.DATA.name, files)
    own = known_files(made["pairs"])
    small = replace(
        pairs.DATA, files=own, originals=tuple(originals), per_class={"train": 2, "test": 1}
    )
    monkeypatch.setattr(pairs, "DATA", small)
    return tmp_path


def test_a_split_is_made_only_from_files_of_that_split(pinned):
    pairs.DATA.prepare(pinned)
    for split, mark, number in (("train", TRAIN, 200), ("test", TEST, 100)):
        loaded = load("pairs", split, pinned)
        assert len(loaded) == number
        article_split, article, digit_split, digit = sources_of(loaded.images[:, 0].numpy())
        assert set(article_split) == {mark}
        assert set(digit_split) == {mark}
        assert loaded.labels.tolist() == (10 * (article % 10) + digit % 10).tolist()


def test_a_second_run_builds_nothing_and_a_damaged_file_is_built_again(pinned, monkeypatch):
    folder = pairs.DATA.prepare(pinned)
    assert is_current("pairs", pinned)
    with monkeypatch.context() as patch:
        patch.delattr(pairs, "build_pairs")
        pairs.DATA.prepare(pinned)
    path = folder / "t10k-images-idx3-ubyte"
    before = path.read_bytes()
    path.write_bytes(before[:-1])
    pairs.DATA.prepare(pinned)
    assert path.read_bytes() == before


def test_another_result_than_the_pinned_one_is_refused_and_not_kept(pinned, monkeypatch):
    known = {name: FileFacts(size, "0" * 64) for name, (size, _) in pairs.DATA.files.items()}
    monkeypatch.setattr(pairs, "DATA", replace(pairs.DATA, files=known))
    with pytest.raises(PrepareError, match=r"train-images-idx3-ubyte has SHA-256 (.|\n)* numpy"):
        pairs.DATA.prepare(pinned)
    assert list((pinned / "pairs").iterdir()) == []


@pytest.mark.skipif(
    not all(is_current(name) for name in ("pairs", "mnist", "fashion_mnist")),
    reason="the real pairs are not prepared here",
)
@pytest.mark.parametrize(("split", "per_class"), [("train", 500), ("test", 100)])
def test_the_real_pairs_show_the_article_and_the_digit_of_their_class(split, per_class):
    loaded = load("pairs", split)
    assert loaded.labels.bincount().tolist() == [per_class] * 100
    images, labels = loaded.images[:, 0].numpy(), loaded.labels.numpy()
    # The parts that the other image never covers: eight rows at the top and at the bottom.
    top, bottom = images[:, :8, :28], images[:, 28:, 8:]
    for name, part, rows, kind in (
        ("fashion_mnist", top, slice(0, 8), labels // 10),
        ("mnist", bottom, slice(20, 28), labels % 10),
    ):
        source = load(name, split)
        kinds = defaultdict(set)
        for strip, label in zip(
            source.images[:, 0, rows].numpy(), source.labels.tolist(), strict=True
        ):
            kinds[strip.tobytes()].add(label)
        assert all(k in kinds[strip.tobytes()] for strip, k in zip(part, kind, strict=True))
