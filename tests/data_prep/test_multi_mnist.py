"""How MultiMNIST and Multi-Fashion are made: one set in both corners, and always the same."""

import hashlib
from dataclasses import replace

import numpy as np
import pytest

from data_prep import (
    DataError,
    checksums,
    data_root,
    fashion_mnist,
    is_current,
    load,
    load_tasks,
    mnist,
    multi_fashion,
    multi_fashion_mnist,
    multi_mnist,
)
from data_prep.common import overlaid
from data_prep.common.command import run_command
from data_prep.common.errors import PrepareError
from data_prep.common.files import FileFacts
from data_prep.common.idx import encode_idx
from data_prep.common.overlaid import SEED, build_images
from tests.data_prep.small_set import known_files, write_files

TRAIN, TEST = 50, 60
# From the set to the module that makes it, and to that of its source.
FORMS = {"multi_mnist": (multi_mnist, mnist), "multi_fashion": (multi_fashion, fashion_mnist)}


def marked(number, split):
    """Images that can be recognised in each corner: split and number where nothing covers them."""
    images = np.zeros((number, 28, 28), dtype=np.uint8)
    mark = np.stack([np.full(number, split), np.arange(number) + 1], axis=1)
    images[:, 0, 0:2] = images[:, 27, 26:28] = mark
    return images, (np.arange(number) // 3 % 10).astype(np.uint8)


def sources_of(images, split):
    """For each image the number of its source top left and bottom right."""
    first, second = images[:, 0, 0:2].astype(int), images[:, 35, 34:36].astype(int)
    assert (first[:, 0] == split).all()
    assert (second[:, 0] == split).all()
    return first[:, 1] - 1, second[:, 1] - 1


@pytest.fixture
def built():
    return build_images(marked(30, TRAIN), None, seed=0)


def test_each_image_has_the_labels_of_its_corners(built):
    images, labels = built
    assert (images.shape, labels.shape) == ((60, 36, 36), (60, 2))
    for column, source in zip(labels.T, sources_of(images, TRAIN), strict=True):
        assert column.tolist() == (source // 3 % 10).tolist()


def test_order_and_partners_by_hand(built):
    """Image i of the shuffled order meets i + 1 and i + 2, as if the order were a ring."""
    first, second = sources_of(built[0], TRAIN)
    order = np.random.RandomState(0).permutation(30).tolist()
    assert first[::2].tolist() == first[1::2].tolist() == order
    assert second[::2].tolist() == [*order[1:], order[0]]
    assert second[1::2].tolist() == [*order[2:], *order[:2]]


@pytest.mark.parametrize("number", [5, 30])
def test_each_source_is_twice_in_each_corner_and_meets_nobody_twice(number):
    first, second = sources_of(build_images(marked(number, TRAIN), None, seed=0)[0], TRAIN)
    assert np.bincount(first).tolist() == [2] * number
    assert np.bincount(second).tolist() == [2] * number
    assert (first != second).all()
    assert len({frozenset(pair) for pair in zip(first, second, strict=True)}) == 2 * number


def test_two_blocks_of_rows_share_at_most_four_sources(built):
    first, second = sources_of(built[0], TRAIN)
    for cut in (10, 20, 50):
        before, after = ({*first[rows], *second[rows]} for rows in (slice(cut), slice(cut, None)))
        assert before & after == {first[0], first[2], first[cut], first[cut + 2]}


def test_both_corners_are_kept_and_the_brighter_value_wins():
    images, labels = marked(5, TRAIN)
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
    source = marked(30, TRAIN)
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
        build_images(marked(4, TRAIN), None, seed=0)


@pytest.fixture(params=FORMS)
def pinned(request, tmp_path, monkeypatch):
    """A data root with a small source, and the checksums of what must come out known."""
    form, source = FORMS[request.param]
    made = {source.DATA.name: {}, form.DATA.name: {}}
    for prefix, mark, number, split in (
        ("train", TRAIN, 30, "train"), ("t10k", TEST, 20, "test")
    ):  # fmt: skip
        images = marked(number, mark)
        out = build_images(images, None, SEED[split])
        for name, arrays in zip(made, (images, out), strict=True):
            for array, kind in zip(arrays, ("images", "labels"), strict=True):
                made[name][f"{prefix}-{kind}-idx{array.ndim}-ubyte"] = encode_idx(array)
    original = replace(source.DATA, files=known_files(made[source.DATA.name]))
    write_files(tmp_path / source.DATA.name, made[source.DATA.name])
    own = known_files(made[form.DATA.name])
    monkeypatch.setattr(form, "DATA", replace(form.DATA, files=own, originals=(original,)))
    return form, tmp_path


def test_a_split_is_made_only_from_files_of_that_split_and_of_that_set(pinned):
    form, root = pinned
    folder = form.DATA.prepare(root)
    assert is_current(form.DATA.name, root)
    files = sorted(path.name for path in folder.iterdir())
    assert files == sorted(["manifest.json", *form.DATA.files])
    source = FORMS[form.DATA.name][1].DATA.name
    assert {path.name for path in root.iterdir() if path.is_dir()} == {source, form.DATA.name}
    for split, mark, number in (("train", TRAIN, 60), ("test", TEST, 40)):
        loaded = load_tasks(form.DATA.name, split, root)
        assert len(loaded) == number
        assert [task.name for task in loaded.tasks] == ["top_left", "bottom_right"]
        for task, numbers in zip(
            loaded.tasks, sources_of(loaded.images[:, 0].numpy(), mark), strict=True
        ):
            assert loaded.targets[task.name].tolist() == (numbers // 3 % 10).tolist()
            assert task.class_names == FORMS[form.DATA.name][1].DATA.class_names


def test_a_second_run_builds_nothing_and_a_damaged_file_is_built_again(pinned, monkeypatch):
    form, root = pinned
    folder = form.DATA.prepare(root)
    with monkeypatch.context() as patch:
        patch.delattr(overlaid, "build_images")
        form.DATA.prepare(root)
    path = folder / "t10k-images-idx3-ubyte"
    before, other = path.read_bytes(), (folder / "train-images-idx3-ubyte").stat().st_mtime_ns
    for content, word in ((before[:-1], "damaged"), (before[:-1] + b"\x07", "altered")):
        path.write_bytes(content)
        with pytest.raises(
            DataError, match=rf"{word}(.|\n)*python -m data_prep\.{form.DATA.name}$"
        ):
            load_tasks(form.DATA.name, "test", root)
        assert len(load_tasks(form.DATA.name, "train", root)) == 60
        form.DATA.prepare(root)
        assert path.read_bytes() == before
    assert (folder / "train-images-idx3-ubyte").stat().st_mtime_ns == other


def test_another_result_than_the_pinned_one_is_refused_and_not_kept(pinned, monkeypatch, capsys):
    form, root = pinned
    known = {name: FileFacts(k.size, "0" * 64) for name, k in form.DATA.files.items()}
    monkeypatch.setattr(form, "DATA", replace(form.DATA, files=known))
    with pytest.raises(PrepareError, match=r"images-idx3-ubyte has SHA-256 (.|\n)*of numpy"):
        form.DATA.prepare(root)
    assert list((root / form.DATA.name).iterdir()) == []
    assert run_command(form.DATA, ["--root", str(root)]) == 1
    assert f"{form.DATA.name}: The data set cannot be completed" in capsys.readouterr().err


@pytest.mark.parametrize("name", FORMS)
def test_a_set_that_is_not_there_and_wrong_names_are_told(name, tmp_path):
    with pytest.raises(DataError, match=rf"missing(.|\n)*python -m data_prep\.{name}$"):
        load_tasks(name, "train", tmp_path)
    with pytest.raises(ValueError, match=f"Found name='{name}', which load_tasks loads"):
        load(name, "train", tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, test. Found split='val'"):
        load_tasks(name, "val", tmp_path)


@pytest.mark.parametrize("name", FORMS)
def test_the_real_sets_are_known_by_size_and_checksum(name):
    known = FORMS[name][0].DATA.files
    for file, file_facts in known.items():
        number = 120_000 if file.startswith("train") else 20_000
        size = 16 + number * 36 * 36 if "images" in file else 12 + 2 * number
        assert file_facts.size == size
    assert checksums(name) == {file: file_facts.sha256 for file, file_facts in known.items()}
    modules = (multi_fashion_mnist, multi_fashion, multi_mnist)
    every = [one.sha256 for module in modules for one in module.DATA.files.values()]
    assert len(set(every)) == 12


@pytest.mark.parametrize("name", FORMS)
def test_the_real_test_split_shows_what_its_labels_name(name):
    source_name = FORMS[name][1].DATA.name
    if not all(is_current(one) for one in (name, source_name)):
        pytest.skip(f"the real set is not prepared in {data_root()}")
    loaded, source = load_tasks(name, "test"), load(source_name, "test")
    images = loaded.images[:, 0].numpy()
    # The parts that the other image never covers: eight rows at the top and at the bottom.
    for task, part, rows in (
        ("top_left", images[:, :8, :28], slice(0, 8)),
        ("bottom_right", images[:, 28:, 8:], slice(20, 28)),
    ):
        labels = loaded.targets[task]
        assert labels.bincount().tolist() == (2 * source.labels.bincount()).tolist()
        kinds = {}
        for strip, label in zip(
            source.images[:, 0, rows].numpy(), source.labels.tolist(), strict=True
        ):
            kinds.setdefault(strip.tobytes(), set()).add(label)
        pairs = zip(part, labels.tolist(), strict=True)
        assert all(label in kinds[strip.tobytes()] for strip, label in pairs)
    # What is drawn without a look at the labels is nearly independent: one in ten is alike.
    alike = (loaded.targets["top_left"] == loaded.targets["bottom_right"]).float().mean()
    assert 0.09 < float(alike) < 0.11
