"""The TOPIC protocol: which training images the few-shot sessions use, as in the literature.

Tao et al. (CVPR 2020) fixed, for CIFAR-100, miniImageNet and CUB-200-2011, the images of every
session; later work keeps to them. The lists lie in ``data/index_list/<data set>/session_<k>.txt``
of github.com/xyutao/fscil, which states no licence, and were taken over by
github.com/icoz69/CEC-CVPR2021 (MIT). The short ones, sessions 2 and later, are facts of 900 lines
in all; ``topic_lists.csv`` beside this module holds them, shortened to what tells images apart.
The list of the base session names all training images of the first classes (30,000, 30,000 and
3,000 of them), so it is not needed; CEC does not read it for ordinary training either.

Who has the lists can place them in ``<data root>/topic/<data set>``; they are then compared.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from data_prep import image_names
from data_prep.common.files import DataError
from data_prep.common.root import data_root

PLACED = "topic"
PACKAGED = "topic_lists.csv"
CUB_PATH = re.compile(r"(?:CUB_200_2011/images/)?(\d{3})\.[^/]+/[^/]+?_(\d{4}_\d+)\.jpg")
MINI_PATH = re.compile(r"(?:MINI-ImageNet/train/n\d{8}/)?(n\d{16}\.jpg)")


@dataclass(frozen=True)
class TopicProtocol:
    """Sizes of the sessions.

    Attributes:
        base_classes: Classes of session 1, the first ones of the data set.
        base_images: Training images of session 1.
        sessions: Number of few-shot sessions after it.
        ways: New classes per few-shot session.
        shots: Training images per new class.
    """

    base_classes: int
    base_images: int
    sessions: int
    ways: int
    shots: int


PROTOCOLS = {
    "cifar100": TopicProtocol(60, 30_000, 8, 5, 5),
    "mini_imagenet": TopicProtocol(60, 30_000, 8, 5, 5),
    "cub200": TopicProtocol(100, 3_000, 10, 10, 5),
}


@dataclass(frozen=True)
class TopicLists:
    """The images of each session, by keys as :func:`topic_keys` gives them.

    Attributes:
        protocol: Sizes that the lists must have.
        base: Images of session 1; None stands for all images of the base classes.
        few_shot: Images of session 2, 3 and so on.
    """

    protocol: TopicProtocol
    base: tuple[str, ...] | None
    few_shot: tuple[tuple[str, ...], ...]


def topic_lists(name: str, root: Path | None = None) -> TopicLists:
    """The lists of a data set: the ones of this package, compared with placed ones.

    Args:
        name: "cifar100", "mini_imagenet" or "cub200".
        root: The data root; None stands for :func:`data_prep.data_root`. Where it has a
            folder ``topic/<name>``, that must hold ``session_2.txt`` and all later ones, equal to
            the lists in this package; its ``session_1.txt``, if there is one, becomes ``base``.

    Raises:
        ValueError: an unknown name.
        DataError: a placed list is missing, cut short, or differs.
    """
    packaged = _packaged(name)
    folder = (root or data_root()) / PLACED / name
    if not folder.is_dir():
        return packaged
    placed = read_topic_lists(name, folder)
    for session, (ours, theirs) in enumerate(
        zip(packaged.few_shot, placed.few_shot, strict=True), start=2
    ):
        for line, (expected, found) in enumerate(zip(ours, theirs, strict=True), start=1):
            if expected != found:
                raise _list_error(
                    folder / f"session_{session}.txt",
                    f"is not the one of the protocol: line {line} names {found}, not {expected}",
                )
    return placed


def read_topic_lists(name: str, folder: Path) -> TopicLists:
    """The lists in ``folder``, whatever images they choose.

    Args:
        name: "cifar100", "mini_imagenet" or "cub200"; tells the form of a line and the sizes.
        folder: Holds ``session_2.txt`` and all later ones, and perhaps ``session_1.txt``.

    Raises:
        ValueError: an unknown name.
        DataError: a list is missing, has another number of lines, or a line of another form.
    """
    protocol = _protocol(name)
    base = folder / "session_1.txt"
    few_shot = protocol.ways * protocol.shots
    return TopicLists(
        protocol,
        _read_list(name, base, protocol.base_images) if base.exists() else None,
        tuple(
            _read_list(name, folder / f"session_{session}.txt", few_shot)
            for session in range(2, protocol.sessions + 2)
        ),
    )


def topic_keys(name: str, root: Path | None = None) -> list[str] | None:
    """What the lists call each training image, in the order of ``load(name, "train", root)``.

    None for CIFAR-100, whose lists hold the positions themselves.

    Raises:
        ValueError: an unknown name, or a name of an image that does not have the usual form.
        DataError: the data set has not been prepared.
    """
    _protocol(name)
    if name == "cifar100":
        return None
    return [image_key(name, path) for path in image_names(name, "train", root)]


def image_key(name: str, entry: str) -> str:
    """The key of an image, from a line of a list or from its name in the data set.

    ``29774`` for CIFAR-100, ``n0354414300000811.jpg`` for miniImageNet and, for CUB-200-2011,
    number of the class and of the image, ``101/0081_96148``.

    Raises:
        ValueError: the entry does not have the form that it has in this data set.
    """
    if name == "cifar100":
        if entry.isascii() and entry.isdigit():
            return str(int(entry))
        raise ValueError(f"an image of {name} must be a number. Found {entry!r}.")
    if name == "mini_imagenet":
        match = MINI_PATH.fullmatch(entry)
        if match:
            return match[1]
    else:
        match = CUB_PATH.fullmatch(entry)
        if match:
            return f"{match[1]}/{match[2]}"
    raise ValueError(f"an image of {name} must be named as its authors did. Found {entry!r}.")


def _protocol(name: str) -> TopicProtocol:
    if name not in PROTOCOLS:
        raise ValueError(f"name must be one of {', '.join(PROTOCOLS)}. Found name={name!r}.")
    return PROTOCOLS[name]


def _read_list(name: str, path: Path, number: int) -> tuple[str, ...]:
    """The keys in one list, which must have ``number`` lines."""
    try:
        lines = path.read_text(encoding="utf-8").split()
    except FileNotFoundError:
        raise _list_error(path, "is missing") from None
    except (OSError, UnicodeDecodeError) as error:
        raise _list_error(path, f"cannot be read ({error})") from error
    keys = []
    for line, entry in enumerate(lines, start=1):
        try:
            keys.append(image_key(name, entry))
        except ValueError as error:
            raise _list_error(path, f"is damaged in line {line}: {error}") from error
    if len(keys) != number:
        raise _list_error(path, f"has {len(keys)} lines and should have {number}")
    return tuple(keys)


def _list_error(path: Path, problem: str) -> DataError:
    return DataError(
        f"The list {path} {problem}\nTo repair it, copy the lists from data/index_list of "
        f"github.com/icoz69/CEC-CVPR2021 again, or remove the folder {path.parent}: the package "
        f"has the lists of the few-shot sessions."
    )


def _packaged(name: str) -> TopicLists:
    """The few-shot lists in this package."""
    protocol = _protocol(name)
    sessions: list[list[str]] = [[] for _ in range(protocol.sessions)]
    with files("data_prep.common").joinpath(PACKAGED).open(encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["data_set"] == name:
                images = _expanded(name, row["group"], row["images"].split())
                sessions[int(row["session"]) - 2] += images
    return TopicLists(protocol, None, tuple(map(tuple, sessions)))


def _expanded(name: str, group: str, images: Sequence[str]) -> list[str]:
    """Keys from a line of the package's file, where ``group`` is the class (CIFAR-100: none)."""
    if name == "mini_imagenet":
        return [f"{group}{int(image):08d}.jpg" for image in images]
    if name == "cub200":
        return [f"{group}/{image}" for image in images]
    return list(images)
