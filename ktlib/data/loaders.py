"""Loading prepared data: checked on every read, never downloaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ktlib.data import cifar, facts
from ktlib.data.files import FileFacts, data_error, read_manifest, read_verified
from ktlib.data.idx import decode_idx
from ktlib.data.labelled import LabelledImages
from ktlib.data.root import data_root


def load(name: str, split: str, root: Path | None = None) -> LabelledImages:
    """One split of a data set.

    Args:
        name: "mnist", "fashion_mnist", "pairs", "digits" or "cifar100".
        split: "train" or "test".
        root: The data root; None stands for :func:`data_root`.

    Raises:
        ValueError: an unknown name or split.
        DataError: a file is missing or damaged; the message names the command that repairs it.
    """
    loaders: dict[str, Callable[[str, Path | None], LabelledImages]] = {
        "mnist": load_mnist,
        "fashion_mnist": load_fashion_mnist,
        "pairs": load_pairs,
        "digits": load_digits,
        "cifar100": load_cifar100,
    }
    _check_name(name)
    return loaders[name](split, root)


def load_mnist(split: str, root: Path | None = None) -> LabelledImages:
    """MNIST: handwritten digits, 28x28, 60,000 train and 10,000 test images, 10 classes.

    Arguments and errors as in :func:`load`.
    """
    return _load_idx("mnist", split, root)


def load_fashion_mnist(split: str, root: Path | None = None) -> LabelledImages:
    """Fashion-MNIST: articles of clothing in the sizes of MNIST, 10 classes.

    Arguments and errors as in :func:`load`.
    """
    return _load_idx("fashion_mnist", split, root)


def load_pairs(split: str, root: Path | None = None) -> LabelledImages:
    """Fashion x MNIST pairs: one article and one digit on 36x36, class ``10 * item + digit``.

    100 classes with 500 train and 100 test images each, ordered by class. How they are made is
    described in ``data_prep.pairs``. Arguments and errors as in :func:`load`.
    """
    return _load_idx("pairs", split, root)


def load_digits(split: str, root: Path | None = None) -> LabelledImages:  # noqa: ARG001
    """scikit-learn's digits, 8x8, 1,397 train and 400 test images, 10 classes.

    They come with scikit-learn, so ``root`` is not looked at. Errors as in :func:`load`.
    """
    from ktlib.data.digits import digits_split  # scikit-learn takes a second to import

    _check_split(split)
    images, labels = digits_split(split)
    return _labelled(images, labels, facts.DIGIT_NAMES)


def load_cifar100(split: str, root: Path | None = None) -> LabelledImages:
    """CIFAR-100: colour photographs, 32x32, 50,000 train and 10,000 test images, 100 classes.

    Reads torchvision's files in ``<root>/cifar100/cifar-100-python``, checked against the
    manifest that ``data_prep.cifar100`` wrote after verifying them. Arguments and errors as in
    :func:`load`.
    """
    _check_split(split)
    expected = _manifest_facts("cifar100", cifar.FILES, root)
    folder = (root or data_root()) / "cifar100"
    content = {
        file: read_verified(folder / file, expected[file], "cifar100").tobytes()
        for file in (f"{cifar.FOLDER}/{split}", f"{cifar.FOLDER}/meta")
    }
    try:
        images, labels = cifar.cifar_split(content[f"{cifar.FOLDER}/{split}"])
        names = cifar.cifar_class_names(content[f"{cifar.FOLDER}/meta"])
        return _labelled(images, labels, names)
    except ValueError as error:
        problem = f"The CIFAR-100 files in {folder / cifar.FOLDER} are not as expected: {error}."
        raise data_error("cifar100", problem) from error


def checksums(name: str, root: Path | None = None) -> dict[str, str]:
    """SHA-256 of each file of a data set, for run records.

    The loaders accept only files with these checksums, so what was loaded had them. Reads no data
    file. For "digits" it is the checksum of the arrays that scikit-learn brings along.

    Raises:
        ValueError: an unknown name.
        DataError: CIFAR-100 has not been prepared.
    """
    _check_name(name)
    if name == "digits":
        from ktlib.data.digits import SHA256

        return {"scikit-learn digits": SHA256}
    if name == "cifar100":
        expected = _manifest_facts(name, cifar.FILES, root)
    else:
        expected = facts.IDX_FILES[name]
    return {file: known.sha256 for file, known in expected.items()}


def _load_idx(name: str, split: str, root: Path | None) -> LabelledImages:
    """One split of a data set that consists of four idx files."""
    _check_split(split)
    folder = (root or data_root()) / name
    prefix = facts.IDX_PREFIX[split]
    arrays = []
    for file in (f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"):
        content = read_verified(folder / file, facts.IDX_FILES[name][file], name)
        arrays.append(decode_idx(content))
    images, labels = arrays
    return _labelled(images[:, None], labels.astype(np.int64), facts.CLASS_NAMES[name])


def _manifest_facts(name: str, files: tuple[str, ...], root: Path | None) -> dict[str, FileFacts]:
    """Size and SHA-256 that the manifest records for ``files``."""
    folder = (root or data_root()) / name
    manifest = read_manifest(folder)
    if manifest is None:
        raise data_error(name, f"Data set {name} is not prepared: {folder} holds no manifest.")
    try:
        recorded = {file: manifest["files"][file] for file in files}
        return {f: FileFacts(int(r["bytes"]), str(r["sha256"])) for f, r in recorded.items()}
    except (KeyError, TypeError, ValueError):
        raise data_error(name, f"The manifest in {folder} does not list {files}.") from None


def _labelled(
    images: NDArray[np.uint8], labels: NDArray[np.int64], class_names: tuple[str, ...]
) -> LabelledImages:
    """Arrays as tensors; the memory is shared where the array is contiguous."""
    import torch  # here, so that reading manifests and checksums does not cost this import

    return LabelledImages(
        torch.from_numpy(np.ascontiguousarray(images)),
        torch.from_numpy(np.ascontiguousarray(labels)),
        class_names,
    )


def _check_name(name: str) -> None:
    if name not in facts.DATA_SETS:
        raise ValueError(f"name must be one of {', '.join(facts.DATA_SETS)}. Found name={name!r}.")


def _check_split(split: str) -> None:
    if split not in facts.SPLITS:
        raise ValueError(f"split must be 'train' or 'test'. Found split={split!r}.")
