"""How images are laid over each other: which ones, which two labels, and always the same."""

import hashlib

import numpy as np
import pytest

from data_prep.common.overlaid import build_images

ARTICLE, DIGIT, TRAIN, TEST = 100, 200, 50, 60


def marked(number, kind, split):
    """Images that can be recognised under the other one: kind, split and number in a far corner."""
    images = np.zeros((number, 28, 28), dtype=np.uint8)
    row, columns = (0, slice(0, 3)) if kind == ARTICLE else (27, slice(25, 28))
    images[:, row, columns] = np.stack(
        [np.full(number, kind), np.full(number, split), np.arange(number)], axis=1
    )
    labels = np.arange(number) % 10 if kind == ARTICLE else np.arange(number) // 3 % 10
    return images, labels.astype(np.uint8)


def sources_of(images, split):
    """For each image the numbers of its article and its digit."""
    article, digit = images[:, 0, 0:3].astype(int), images[:, 35, 33:36].astype(int)
    assert (article[:, 0] == ARTICLE).all()
    assert (digit[:, 0] == DIGIT).all()
    assert (article[:, 1] == split).all()
    assert (digit[:, 1] == split).all()
    return article[:, 2], digit[:, 2]


@pytest.fixture
def built():
    return build_images(marked(30, ARTICLE, TRAIN), marked(30, DIGIT, TRAIN), seed=0)


def test_each_source_image_is_in_two_images_with_two_partners(built):
    article, digit = sources_of(built[0], TRAIN)
    assert np.bincount(article, minlength=30).tolist() == [2] * 30
    assert np.bincount(digit, minlength=30).tolist() == [2] * 30
    assert len(set(zip(article, digit, strict=True))) == 60


def test_two_blocks_of_rows_share_no_article_and_at_most_two_digits(built):
    article, digit = sources_of(built[0], TRAIN)
    for cut in (2, 20, 54):
        assert not set(article[:cut]) & set(article[cut:])
        assert len(set(digit[:cut]) & set(digit[cut:])) == 2


def test_the_partners_are_drawn_without_a_look_at_the_labels(built):
    article, digit = sources_of(built[0], TRAIN)
    other = build_images(
        marked(30, ARTICLE, TRAIN), (marked(30, DIGIT, TRAIN)[0], np.zeros(30, np.uint8)), seed=0
    )
    assert (other[0] == built[0]).all()
    assert article[::2].tolist() != sorted(article[::2])
    assert digit[::2].tolist() != sorted(digit[::2])


def test_the_construction_is_the_same_for_ever_and_follows_the_seed():
    arguments = marked(30, ARTICLE, TRAIN), marked(30, DIGIT, TRAIN)
    first, again, other = (build_images(*arguments, seed)[0] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()
    digest = hashlib.sha256(first.tobytes()).hexdigest()
    assert digest == "43e18ba1111e7954584cee076dd03ff8e90808d1a7fb5fa4788b1979b887784c"


@pytest.mark.parametrize(("articles", "digits"), [(30, 20), (1, 1)])
def test_unequal_or_too_few_sources_are_told(articles, digits):
    with pytest.raises(ValueError, match=f"equally many, .* Found {articles} and {digits}"):
        build_images(marked(articles, ARTICLE, TRAIN), marked(digits, DIGIT, TRAIN), seed=0)


# One set in both corners


def twice_marked(number):
    """Images that can be recognised in each corner: split and number where nothing covers them."""
    images = np.zeros((number, 28, 28), dtype=np.uint8)
    mark = np.stack([np.full(number, TRAIN), np.arange(number) + 1], axis=1)
    images[:, 0, 0:2] = images[:, 27, 26:28] = mark
    return images, (np.arange(number) // 3 % 10).astype(np.uint8)


def corners_of(images):
    """For each image the number of its source top left and bottom right."""
    first, second = images[:, 0, 0:2].astype(int), images[:, 35, 34:36].astype(int)
    assert (first[:, 0] == TRAIN).all()
    assert (second[:, 0] == TRAIN).all()
    return first[:, 1] - 1, second[:, 1] - 1


@pytest.fixture
def built_alone():
    return build_images(twice_marked(30), None, seed=0)


def test_order_and_partners_by_hand(built_alone):
    """Image i of the shuffled order meets i + 1 and i + 2, as if the order were a ring."""
    first, second = corners_of(built_alone[0])
    order = np.random.RandomState(0).permutation(30).tolist()
    assert first[::2].tolist() == first[1::2].tolist() == order
    assert second[::2].tolist() == [*order[1:], order[0]]
    assert second[1::2].tolist() == [*order[2:], *order[:2]]


@pytest.mark.parametrize("number", [5, 30])
def test_each_source_is_twice_in_each_corner_and_meets_nobody_twice(number):
    first, second = corners_of(build_images(twice_marked(number), None, seed=0)[0])
    assert np.bincount(first).tolist() == [2] * number
    assert np.bincount(second).tolist() == [2] * number
    assert (first != second).all()
    assert len({frozenset(pair) for pair in zip(first, second, strict=True)}) == 2 * number


def test_two_blocks_of_rows_share_at_most_four_sources(built_alone):
    first, second = corners_of(built_alone[0])
    for cut in (10, 20, 50):
        before, after = ({*first[rows], *second[rows]} for rows in (slice(cut), slice(cut, None)))
        assert before & after == {first[0], first[2], first[cut], first[cut + 2]}


def test_both_corners_are_kept_and_the_brighter_value_wins():
    images, labels = twice_marked(5)
    images[:, 10, 10], images[:, 2, 2] = 9, 7  # both at (10, 10) of the canvas
    images[:, 20, 20], images[:, 12, 12] = 7, 9
    laid, _ = build_images((images, labels), None, seed=0)
    assert (laid[:, 10, 10] == 9).all()
    assert (laid[:, 20, 20] == 9).all()
    assert (laid[:, 2, 2] == 7).all()
    assert (laid[:, 28, 28] == 7).all()
    assert (laid[:, :8, 28:] == 0).all()
    assert (laid[:, 28:, :8] == 0).all()


def test_the_construction_is_the_same_for_ever_and_looks_at_no_label():
    source = twice_marked(30)
    first, again, other, relabelled = (
        build_images(images, None, seed)[0]
        for images, seed in (
            (source, 0), (source, 0), (source, 1), ((source[0], np.zeros(30, np.uint8)), 0),
        )
    )  # fmt: skip
    assert (first == again).all()
    assert (first != other).any()
    assert (first == relabelled).all()
    digest = hashlib.sha256(first.tobytes()).hexdigest()
    assert digest == "0e1e5cd36b3cccbff229d23b64043ac281dced7804a4c2ea8c2e2ba1dd8943de"


def test_too_few_sources_are_told():
    with pytest.raises(ValueError, match="at least 5. Found 4 and 4"):
        build_images(twice_marked(4), None, seed=0)
