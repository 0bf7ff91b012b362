"""How Multi-Fashion+MNIST is made: which images, which two labels, and always the same."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from data_prep import DataError, checksums, fashion_mnist, is_current, load, load_tasks, mnist
from data_prep import multi_fashion_mnist as form
from data_prep.common import overlaid
from data_prep.common.errors import PrepareError
from data_prep.common.files import FileFacts
from data_prep.common.idx import encode_idx
from data_prep.common.overlaid import SEED, build_images
from tests.data_prep.small_set import known_files, write_files

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


def test_each_image_has_the_labels_of_its_article_and_its_digit(built):
    images, labels = built
    assert (images.shape, labels.shape) == ((60, 36, 36), (60, 2))
    article, digit = sources_of(images, TRAIN)
    assert (labels[:, 0] == article % 10).all()
    assert (labels[:, 1] == digit // 3 % 10).all()


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


def test_the_brighter_value_wins_where_the_two_overlap():
    articles, digits = marked(2, ARTICLE, TRAIN), marked(2, DIGIT, TRAIN)
    articles[0][:, 10, 10], digits[0][:, 2, 2] = 9, 7
    articles[0][:, 20, 20], digits[0][:, 12, 12] = 7, 9
    images, _ = build_images(articles, digits, seed=0)
    assert (images[:, 10, 10] == 9).all()
    assert (images[:, 20, 20] == 9).all()
    assert (images[:, :8, 28:] == 0).all()
    assert (images[:, 28:, :8] == 0).all()


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


@pytest.fixture
def pinned(tmp_path, monkeypatch):
    """A data root with small sources, and the checksums of what must come out known."""
    made = {name: {} for name in ("mnist", "fashion_mnist", form.DATA.name)}
    for prefix, mark, number, split in (
        ("train", TRAIN, 30, "train"), ("t10k", TEST, 20, "test")
    ):  # fmt: skip
        digits, articles = marked(number, DIGIT, mark), marked(number, ARTICLE, mark)
        out = build_images(articles, digits, SEED[split])
        for name, arrays in zip(made, (digits, articles, out), strict=True):
            for array, kind in zip(arrays, ("images", "labels"), strict=True):
                made[name][f"{prefix}-{kind}-idx{array.ndim}-ubyte"] = encode_idx(array)
    originals = []
    for module in (fashion_mnist, mnist):
        files = made[module.DATA.name]
        originals.append(replace(module.DATA, files=known_files(files)))
        write_files(tmp_path / module.DATA.name, files)
    own = known_files(made[form.DATA.name])
    monkeypatch.setattr(form, "DATA", replace(form.DATA, files=own, originals=tuple(originals)))
    return tmp_path


def test_a_split_is_made_only_from_files_of_that_split(pinned):
    folder = form.DATA.prepare(pinned)
    assert is_current(form.DATA.name, pinned)
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["manifest.json", *form.DATA.files]
    )
    for split, mark, number in (("train", TRAIN, 60), ("test", TEST, 40)):
        loaded = load_tasks(form.DATA.name, split, pinned)
        assert len(loaded) == number
        article, digit = sources_of(loaded.images[:, 0].numpy(), mark)
        assert loaded.targets["item"].tolist() == (article % 10).tolist()
        assert loaded.targets["digit"].tolist() == (digit // 3 % 10).tolist()
        assert [task.name for task in loaded.tasks] == ["item", "digit"]
        assert loaded.tasks[0].class_names[7] == "Sneaker"


def test_a_second_run_builds_nothing_and_a_damaged_file_is_built_again(pinned, monkeypatch):
    folder = form.DATA.prepare(pinned)
    with monkeypatch.context() as patch:
        patch.delattr(overlaid, "build_images")
        form.DATA.prepare(pinned)
    path = folder / "t10k-labels-idx2-ubyte"
    before, other = path.read_bytes(), (folder / "train-images-idx3-ubyte").stat().st_mtime_ns
    path.write_bytes(before[:-1])
    with pytest.raises(DataError, match=r"damaged(.|\n)*python -m data_prep.multi_fashion_mnist"):
        load_tasks(form.DATA.name, "test", pinned)
    form.DATA.prepare(pinned)
    assert path.read_bytes() == before
    assert (folder / "train-images-idx3-ubyte").stat().st_mtime_ns == other


def test_another_result_than_the_pinned_one_is_refused_and_not_kept(pinned, monkeypatch):
    known = {name: FileFacts(k.size, "0" * 64) for name, k in form.DATA.files.items()}
    monkeypatch.setattr(form, "DATA", replace(form.DATA, files=known))
    with pytest.raises(PrepareError, match=r"images-idx3-ubyte has SHA-256 (.|\n)*of numpy"):
        form.DATA.prepare(pinned)
    assert list((pinned / form.DATA.name).iterdir()) == []


def test_its_loader_is_not_load():
    with pytest.raises(ValueError, match="Found name='multi_fashion_mnist', which load_tasks"):
        load("multi_fashion_mnist", "train")
    with pytest.raises(ValueError, match="split must be one of train, test. Found split='val'"):
        load_tasks("multi_fashion_mnist", "val")
    with pytest.raises(ValueError, match="Found name='pairs'"):
        load_tasks("pairs", "train")


def test_the_real_set_is_known_by_size_and_checksum():
    for file, known in form.DATA.files.items():
        number = 120_000 if file.startswith("train") else 20_000
        assert known.size == (16 + number * 36 * 36 if "images" in file else 12 + 2 * number)
        assert len(known.sha256) == 64
    assert checksums(form.DATA.name) == {
        file: known.sha256 for file, known in form.DATA.files.items()
    }


@pytest.mark.skipif(
    not all(is_current(name) for name in (form.DATA.name, "mnist", "fashion_mnist")),
    reason="the real set is not prepared here",
)
def test_the_real_test_split_shows_the_article_and_the_digit_of_its_labels():
    loaded = load_tasks(form.DATA.name, "test")
    images = loaded.images[:, 0].numpy()
    # The parts that the other image never covers: eight rows at the top and at the bottom.
    for name, part, rows, labels in (
        ("fashion_mnist", images[:, :8, :28], slice(0, 8), loaded.targets["item"]),
        ("mnist", images[:, 28:, 8:], slice(20, 28), loaded.targets["digit"]),
    ):
        source = load(name, "test")
        assert labels.bincount().tolist() == (2 * source.labels.bincount()).tolist()
        kinds = {}
        for strip, label in zip(
            source.images[:, 0, rows].numpy(), source.labels.tolist(), strict=True
        ):
            kinds.setdefault(strip.tobytes(), set()).add(label)
        pairs = zip(part, labels.tolist(), strict=True)
        assert all(label in kinds[strip.tobytes()] for strip, label in pairs)
