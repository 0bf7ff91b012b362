"""How the pairs are made: which images, which label, which file, and always the same."""

import hashlib

import numpy as np
import pytest

from data_prep import pairs
from data_prep.common.idx_sets import overlay
from data_prep.pairs import build_pairs

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
