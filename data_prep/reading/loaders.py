"""Loading prepared data: checked on every read, never downloaded."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from data_prep.reading import cifar, facts
from data_prep.reading.files import FileFacts, data_error, read_manifest, read_verified
from data_prep.reading.idx import decode_idx
from data_prep.reading.labelled import LabelledImages
from data_prep.reading.root import data_root

if TYPE_CHECKING:
    from data_prep.reading.photographs import Listing


def load(name: str, split: str, root: Path | None = None) -> LabelledImages:
    """One split of a data set.

    Args:
        name: "mnist", "fashion_mnist", "pairs", "digits", "cifar100", "mini_imagenet" or
            "cub200".
        split: "train" or "test".
        root: The data root; None stands for :func:`data_root`.

    Raises:
        ValueError: an unknown name or split, or a set with several targets for each image.
        DataError: a file is missing or damaged; the message names the command that repairs it.
    """
    loaders: dict[str, Callable[[str, Path | None], LabelledImages]] = {
        "mnist": load_mnist,
        "fashion_mnist": load_fashion_mnist,
        "pairs": load_pairs,
        "digits": load_digits,
        "cifar100": load_cifar100,
        "mini_imagenet": load_mini_imagenet,
        "cub200": load_cub200,
    }
    _check_name(name)
    _check_split(split)
    if name not in loaders:
        rule = f"name must be a set with one label for each image: {', '.join(loaders)}"
        raise ValueError(f"{rule}. Found name={name!r}, which load_tasks loads.")
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
    from data_prep.reading.digits import digits_split  # scikit-learn takes a second to import

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
    expected = manifest_facts("cifar100", cifar.FILES, root)
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


def load_mini_imagenet(split: str, root: Path | None = None) -> LabelledImages:
    """miniImageNet: colour photographs, 84x84, 50,000 train and 10,000 test images, 100 classes.

    Classes are named by their WordNet numbers. The images stay on the disk until they are used,
    and so memory holds only what is used; changes to them never reach the file. Arguments and
    errors as in :func:`load`.
    """
    return _load_photographs("mini_imagenet", split, root)


def load_cub200(split: str, root: Path | None = None) -> LabelledImages:
    """CUB-200-2011: photographs of birds, 5,994 train and 5,794 test images, 200 classes.

    Resized so that the shorter side has 256 pixels, of which the middle 224x224 is kept. As with
    :func:`load_mini_imagenet` the images stay on the disk until they are used. Arguments and
    errors as in :func:`load`.
    """
    return _load_photographs("cub200", split, root)


def image_names(name: str, split: str, root: Path | None = None) -> tuple[str, ...]:
    """What the authors of miniImageNet or CUB-200-2011 call each image, in the order of `load`.

    Raises:
        ValueError: another data set, or an unknown split.
        DataError: the set has not been prepared, or its list is damaged.
    """
    if name not in facts.PHOTOGRAPHS:
        known = ", ".join(facts.PHOTOGRAPHS)
        raise ValueError(f"name must be one of {known}. Found name={name!r}.")
    _check_split(split)
    return _read_listing(name, split, root).names


def checksums(name: str, root: Path | None = None) -> dict[str, str]:
    """SHA-256 of each file of a data set, for run records.

    The loaders accept only files with these checksums, so what was loaded had them. Reads no data
    file. For "digits" it is the checksum of the arrays that scikit-learn brings along.

    Raises:
        ValueError: an unknown name.
        DataError: CIFAR-100, miniImageNet or CUB-200-2011 has not been prepared.
    """
    _check_name(name)
    if name == "digits":
        from data_prep.reading.digits import SHA256

        return {"scikit-learn digits": SHA256}
    if name == "cifar100":
        expected = manifest_facts(name, cifar.FILES, root)
    elif name in facts.MULTI_TASK and name not in facts.IDX_FILES:
        return {"all files": _digest_of_all(manifest_facts(name, None, root))}
    elif name in facts.PHOTOGRAPHS:
        expected = manifest_facts(name, facts.PHOTOGRAPH_FILES, root)
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


def _load_photographs(name: str, split: str, root: Path | None) -> LabelledImages:
    """One split of a set of photographs, from the arrays that ``data_prep`` made."""
    from data_prep.reading.photographs import map_images  # Pillow, only where it is needed

    _check_split(split)
    folder = (root or data_root()) / name
    listing = _read_listing(name, split, root)
    file = facts.PHOTOGRAPH_SPLITS[split][0]
    images = map_images(folder / file, manifest_facts(name, (file,), root)[file], name)
    if len(images) != len(listing.names):
        problem = f"{folder / file} holds {len(images)} images for {len(listing.names)} names."
        raise data_error(name, problem)
    return _labelled(images, np.array(listing.labels, dtype=np.int64), listing.class_names)


def _read_listing(name: str, split: str, root: Path | None) -> Listing:
    """Names and classes of one split of a set of photographs."""
    from data_prep.reading.photographs import read_listing

    folder = (root or data_root()) / name
    file = facts.PHOTOGRAPH_SPLITS[split][1]
    return read_listing(folder / file, manifest_facts(name, (file,), root)[file], name)


def manifest_facts(
    name: str, files: tuple[str, ...] | None, root: Path | None
) -> dict[str, FileFacts]:
    """Size and SHA-256 that the manifest of a set records for ``files``; None stands for all.

    Raises:
        DataError: there is no manifest, or it does not list them.
    """
    folder = (root or data_root()) / name
    manifest = read_manifest(folder)
    if manifest is None:
        raise data_error(name, f"Data set {name} is not prepared: {folder} holds no manifest.")
    try:
        recorded = {
            f: manifest["files"][f] for f in (manifest["files"] if files is None else files)
        }
        return {f: FileFacts(int(r["bytes"]), str(r["sha256"])) for f, r in recorded.items()}
    except (KeyError, TypeError, ValueError):
        listed = "its files" if files is None else files
        raise data_error(name, f"The manifest in {folder} does not list {listed}.") from None


def _digest_of_all(known: Mapping[str, FileFacts]) -> str:
    """SHA-256 of the lines ``checksum  file`` in the order of the files' names."""
    lines = "".join(f"{known[file].sha256}  {file}\n" for file in sorted(known))
    return hashlib.sha256(lines.encode()).hexdigest()


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
