"""Every set of labelled images by its name: those of ``load``, and two larger ones.

ImageNet-R and DomainNet are for continual learning with a pre-trained model; no other part of the
book asks for them. They are not in ``data_prep.reading.load``: records of long runs name a digest
of the code behind them, which that module belongs to, and two more sets change none of their
numbers.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from data_prep.reading import loaders
from data_prep.reading.domainnet import rows_of_domain
from data_prep.reading.facts import PHOTOGRAPH_FILES
from data_prep.reading.labelled import LabelledImages
from data_prep.reading.loaders import _check_split, _load_photographs, _read_listing


def load_imagenet_r(split: str, root: Path | None = None) -> LabelledImages:
    """ImageNet-R: renditions of ImageNet's classes, 24,000 train and 6,000 test, 200 classes.

    Classes are named by their WordNet numbers. How the images are split is described in
    ``data_prep.reading.imagenet_r``; resizing and reading as for
    :func:`data_prep.reading.load_cub200`.

    Args:
        split: "train" or "test".
        root: The data root; None stands for :func:`data_prep.reading.data_root`.

    Raises:
        ValueError: an unknown split.
        DataError: the set has not been prepared, or a file is damaged.
    """
    return _load_photographs("imagenet_r", split, root)


def load_domainnet(
    split: str, root: Path | None = None, domain: str | None = None
) -> LabelledImages:
    """DomainNet: six domains, 409,832 train and 176,743 test images, 345 classes.

    Resizing and reading as for :func:`data_prep.reading.load_cub200`. The array of the train split
    has 62 GB, all of which is read to compare its SHA-256.

    Args:
        split: "train" or "test".
        root: The data root; None stands for :func:`data_prep.reading.data_root`.
        domain: One of ``data_prep.reading.domainnet.DOMAINS``; None for all of them, one after the
            other. The classes are the same for each.

    Raises:
        ValueError: an unknown split or domain.
        DataError: the set has not been prepared, or a file is damaged.
    """
    if domain is None:
        return _load_photographs("domainnet", split, root)
    rows = rows_of_domain(photograph_names("domainnet", split, root), domain)
    whole = _load_photographs("domainnet", split, root)
    return LabelledImages(whole.images[rows], whole.labels[rows], whole.class_names)


LARGE_SETS: dict[str, Callable[[str, Path | None], LabelledImages]] = {
    "imagenet_r": load_imagenet_r,
    "domainnet": load_domainnet,
}


def load_images(name: str, split: str, root: Path | None = None) -> LabelledImages:
    """One split of a set of labelled images.

    Args:
        name: A name that :func:`data_prep.reading.load` knows, "imagenet_r" or "domainnet".
        split: "train" or "test".
        root: The data root; None stands for :func:`data_prep.reading.data_root`.

    Raises:
        ValueError: an unknown name or split.
        DataError: as for :func:`data_prep.reading.load`.
    """
    if name in LARGE_SETS:
        return LARGE_SETS[name](split, root)
    return loaders.load(name, split, root)


def image_checksums(name: str, root: Path | None = None) -> dict[str, str]:
    """SHA-256 of each file of a set, for run records; see :func:`data_prep.reading.checksums`.

    Raises:
        ValueError: an unknown name.
        DataError: the set has not been prepared.
    """
    if name not in LARGE_SETS:
        return loaders.checksums(name, root)
    known = loaders.manifest_facts(name, PHOTOGRAPH_FILES, root)
    return {file: facts.sha256 for file, facts in known.items()}


def photograph_names(name: str, split: str, root: Path | None = None) -> tuple[str, ...]:
    """What the authors of a large set call each image, in the order of :func:`load_images`.

    Raises:
        ValueError: another data set, or an unknown split.
        DataError: the set has not been prepared, or its list is damaged.
    """
    if name not in LARGE_SETS:
        raise ValueError(f"name must be one of {', '.join(LARGE_SETS)}. Found name={name!r}.")
    _check_split(split)
    return _read_listing(name, split, root).names
