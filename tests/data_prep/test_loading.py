"""Loading: verified on every read, clear about what is wrong, and never downloading."""

import hashlib
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep import (
    LABELLED_SETS,
    DataError,
    LabelledImages,
    checksums,
    data_root,
    digits,
    fashion_mnist,
    is_current,
    load,
    mnist,
    normalised,
    pairs,
)
from data_prep.common.idx import decode_idx, encode_idx
from tests.paths import ROOT

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


@pytest.fixture
def root(small_set, tmp_path, monkeypatch):
    """A data root with a small MNIST."""
    monkeypatch.setattr(mnist, "DATA", replace(mnist.DATA, files=small_set.facts))
    (tmp_path / "mnist").mkdir()
    for name, content in small_set.content.items():
        (tmp_path / "mnist" / name).write_bytes(content)
    return tmp_path


def test_what_is_loaded_is_what_the_files_hold(root, small_set):
    loaded = load("mnist", "train", root)
    assert loaded.images.dtype == torch.uint8
    assert loaded.labels.dtype == torch.int64
    assert loaded.images.shape == (30, 1, 28, 28)
    assert bytes(loaded.images.flatten().tolist()) == small_set.content[IMAGES][16:]
    assert loaded.labels.tolist() == list(small_set.content[LABELS][8:])
    assert loaded.class_names == tuple("0123456789")
    assert len(load("mnist", "test", root)) == 20


def test_loaded_images_may_be_changed_without_touching_the_file(root):
    load("mnist", "train", root).images.zero_()
    assert load("mnist", "train", root).images.any()


def test_a_missing_file_names_itself_and_the_command(root):
    (root / "mnist" / IMAGES).unlink()
    with pytest.raises(DataError) as caught:
        load("mnist", "train", root)
    assert f"{root / 'mnist' / IMAGES} is missing" in str(caught.value)
    assert str(caught.value).endswith("python -m data_prep.mnist")
    assert len(load("mnist", "test", root)) == 20  # the other split is whole


def test_a_file_cut_short_is_told(root):
    path = root / "mnist" / IMAGES
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="damaged: it has 23535 bytes and should have 23536"):
        load("mnist", "train", root)


def test_an_altered_file_is_told(root):
    path = root / "mnist" / LABELS
    path.write_bytes(path.read_bytes()[:-1] + b"\x05")
    with pytest.raises(DataError, match=f"{LABELS} is altered: its SHA-256"):
        load("mnist", "train", root)


def test_a_folder_in_place_of_a_file_is_told(root):
    (root / "mnist" / IMAGES).unlink()
    (root / "mnist" / IMAGES).mkdir()
    with pytest.raises(DataError, match="cannot be read"):
        load("mnist", "train", root)


def test_unknown_names_and_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of mnist, .* Found name='imagenet'\."):
        load("imagenet", "train")
    with pytest.raises(ValueError, match="Found name='imagenet'"):
        checksums("imagenet")
    for name in LABELLED_SETS:
        with pytest.raises(ValueError, match="split must be one of train, test. Found split='val'"):
            load(name, "val", tmp_path)


@pytest.mark.parametrize("data", [mnist.DATA, fashion_mnist.DATA, pairs.DATA])
def test_the_real_sets_are_known_by_size_and_checksum(data):
    name = data.name
    for file, known in data.files.items():
        number = {"train": {"pairs": 50_000}.get(name, 60_000), "t10k": 10_000}[file.split("-")[0]]
        pixels = {"pairs": 36 * 36}.get(name, 28 * 28)
        assert known.size == (16 + number * pixels if "images" in file else 8 + number)
        assert len(known.sha256) == 64
    assert checksums(name) == {file: f.sha256 for file, f in data.files.items()}


def test_torchvision_offers_the_files_that_are_expected():
    from torchvision.datasets import MNIST, FashionMNIST

    for offered, expected, names in (
        (MNIST, mnist.DATA.files, None),
        (FashionMNIST, fashion_mnist.DATA.files, fashion_mnist.DATA.class_names),
    ):
        assert [archive for archive, _ in offered.resources] == [f"{name}.gz" for name in expected]
        assert offered.mirrors
        assert names is None or tuple(offered.classes) == names


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_the_real_sets_load_where_they_are_prepared(name):
    if not is_current(name):
        pytest.skip(f"{name} is not prepared here")
    assert load(name, "train").images.shape == (60_000, 1, 28, 28)
    assert load(name, "test").labels.bincount().min() >= 892


def test_digits_need_no_file_and_are_split_by_class(tmp_path):
    train, test = load("digits", "train", tmp_path), load("digits", "test", tmp_path)
    assert (len(train), len(test)) == (1397, 400)
    assert test.labels.bincount().tolist() == [40] * 10
    assert train.images.shape[1:] == (1, 8, 8)
    assert train.images.max() == 255
    both = {image.numpy().tobytes() for image in train.images}
    assert not both & {image.numpy().tobytes() for image in test.images}
    assert list(tmp_path.iterdir()) == []


def test_the_split_of_the_digits_never_changes():
    test = load("digits", "test")
    content = test.images.numpy().tobytes() + test.labels.numpy().astype("<i8").tobytes()
    digest = hashlib.sha256(content).hexdigest()
    assert digest == "e9f99e0ad171a0a6c4c26ee2d2446bf1aeb0873b77879336f3486e9af5af3377"


def test_other_digits_than_expected_are_refused(monkeypatch, tmp_path):
    monkeypatch.setattr(digits, "DATA", digits.Digits(sha256="0" * 64))
    with pytest.raises(DataError, match="not the expected ones"):
        load("digits", "train")
    with pytest.raises(DataError, match="not the expected ones"):
        digits.DATA.prepare(tmp_path)


def test_preparing_the_digits_leaves_a_manifest(tmp_path):
    assert not is_current("digits", tmp_path)
    assert digits.prepare(tmp_path) == tmp_path / "digits"
    assert is_current("digits", tmp_path)
    before = (tmp_path / "digits" / "manifest.json").stat().st_mtime_ns
    digits.prepare(tmp_path)
    assert (tmp_path / "digits" / "manifest.json").stat().st_mtime_ns == before
    assert list(checksums("digits").values()) == [digits.SHA256]


def test_idx_files_survive_a_round_and_keep_their_header():
    values = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    content = encode_idx(values)
    assert content[:16].hex() == "00000803000000020000000300000004"
    assert (decode_idx(np.frombuffer(content, dtype=np.uint8)) == values).all()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must start with an idx header"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x00", "must start with an idx header"),
        (b"\x00\x00\x08\x03\x00\x00", "must hold 3 sizes. Found 6 bytes"),
        (b"\x00\x00\x08\x01\x00\x00\x00\x03ab", r"must hold \(3,\) values. Found 2"),
    ],
)
def test_content_that_is_no_idx_file_is_refused(content, message):
    with pytest.raises(ValueError, match=message):
        decode_idx(np.frombuffer(content, dtype=np.uint8))


def test_only_bytes_go_into_an_idx_file():
    with pytest.raises(ValueError, match="must have dtype uint8. Found float64"):
        encode_idx(np.zeros(3))


def small_images(number=4, channels=2):
    images = torch.arange(number * channels, dtype=torch.uint8).reshape(number, channels, 1, 1)
    return LabelledImages(images, torch.arange(number) % 3, ("a", "b", "c"))


def test_a_subset_keeps_order_and_names():
    images = small_images()
    for chosen in ([2, 0], torch.tensor([2, 0])):
        part = images.subset(chosen)
        assert part.images.flatten().tolist() == [4, 5, 0, 1]
        assert part.labels.tolist() == [2, 0]
        assert part.class_names == images.class_names
    assert len(images.subset(images.labels == 0)) == 2
    assert len(images.subset([])) == 0


def test_images_and_labels_must_belong_together():
    images, labels = torch.zeros(2, 1, 3, 3, dtype=torch.uint8), torch.tensor([0, 1])
    for bad, message in (
        ((images.float(), labels), "images must be torch.uint8 .* Found torch.float32"),
        ((images[0], labels), r"images must be .* Found torch.uint8 of shape \(1, 3, 3\)"),
        ((images, labels.int()), "labels must be torch.int64 .* Found torch.int32"),
        ((images, labels[:1]), "Found 1 labels for 2 images"),
        ((images, labels - 1), r"labels must lie in \[0, 2\). Found labels from -1 to 0"),
        ((images, labels + 1), r"labels must lie in \[0, 2\). Found labels from 1 to 2"),
    ):
        with pytest.raises(ValueError, match=message):
            LabelledImages(*bad, class_names=("a", "b"))


def test_normalised_values_by_hand():
    images = torch.tensor([[[[0, 255]], [[51, 102]]]], dtype=torch.uint8)
    same = normalised(images, 0.5, 0.25)
    assert same.dtype == torch.float32
    torch.testing.assert_close(same, torch.tensor([[[[-2.0, 2.0]], [[-1.2, -0.4]]]]))
    each = normalised(images, [0.0, 0.2], [1.0, 0.1])
    torch.testing.assert_close(each, torch.tensor([[[[0.0, 1.0]], [[0.0, 2.0]]]]))
    # Numbers from 0 to 1, as the files of CityScapes hold them, in either precision.
    for numbers in (images / 255, (images / 255).double()):
        kept = numbers.clone()
        torch.testing.assert_close(normalised(numbers, [0.0, 0.2], [1.0, 0.1]), each)
        assert torch.equal(numbers, kept)
    assert images.flatten().tolist() == [0, 255, 51, 102]


def test_normalising_refuses_what_cannot_be_meant():
    images = small_images().images
    with pytest.raises(ValueError, match="torch.uint8 or floating-point. Found torch.int64"):
        normalised(images.long(), 0.0, 1.0)
    for std in (0.0, -1.0, float("nan"), [1.0, 0.0]):
        with pytest.raises(ValueError, match="std must be positive. Found std="):
            normalised(images, 0.0, std)
    with pytest.raises(ValueError, match="mean must be one number or one for each of the 2 chann"):
        normalised(images, [0.0, 0.0, 0.0], 1.0)


def test_the_data_root_follows_the_environment_then_the_project_then_the_folder(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("KTLIB_DATA", str(tmp_path / "named"))
    assert data_root() == tmp_path / "named"
    monkeypatch.setenv("KTLIB_DATA", " ")
    monkeypatch.chdir(tmp_path)
    assert data_root() == ROOT / "data"
    monkeypatch.setattr("data_prep.common.root.HERE", tmp_path / "elsewhere.py")
    assert data_root() == tmp_path / "data"
    inside = tmp_path / "project" / "chapters" / "deep"
    inside.mkdir(parents=True)
    monkeypatch.chdir(inside)
    (inside / "pyproject.toml").write_text('[project]\nname = "other"\n')
    (inside.parent / "pyproject.toml").write_text("not toml")
    (tmp_path / "project" / "pyproject.toml").write_text(
        '[project]\nname = "knowledge-transfer-lib"\n'
    )
    assert data_root() == tmp_path / "project" / "data"
    monkeypatch.setenv("KTLIB_DATA", "relative")
    assert data_root() == inside / "relative"
    monkeypatch.setenv("KTLIB_DATA", "~/mine")
    assert data_root() == Path.home() / "mine"


def test_asking_whether_data_is_current_does_not_import_torch():
    program = (
        "import sys, data_prep; data_prep.is_current('pairs');"
        "readers = [m for m in sys.modules if m.startswith('data_prep.') and 'common' not in m];"
        "data_prep.checksums('pairs'); data_prep.checksums('digits');"
        "sys.exit(bool(readers) or 'torch' in sys.modules or 'sklearn' in sys.modules)"
    )
    root = ROOT
    assert subprocess.run([sys.executable, "-c", program], cwd=root, check=False).returncode == 0
