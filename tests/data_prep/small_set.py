"""Four idx files like those of MNIST, only smaller."""

import hashlib
from dataclasses import dataclass, fields

import numpy as np

from data_prep import mnist
from data_prep.common.files import FileFacts
from data_prep.common.idx import encode_idx
from data_prep.common.idx_sets import FetchedIdxSet, mirror_sources

NAMES = tuple(
    f"{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)


@dataclass(frozen=True, kw_only=True)
class GivenSources(FetchedIdxSet):
    """MNIST with files and sources that a test gives."""

    given: object

    def sources(self, folder):
        return self.given(folder)


def with_sources(files, given):
    """MNIST made of ``files``, whose sources are those that ``given`` returns for its folder."""
    own = {field.name: getattr(mnist.DATA, field.name) for field in fields(mnist.DATA)}
    return GivenSources(**own | {"files": files}, given=given)


@dataclass(frozen=True)
class SmallSet:
    """Four idx files and what is known about them."""

    content: dict[str, bytes]

    @property
    def facts(self):
        """Size and SHA-256 of each file."""
        return {name: facts_of(content) for name, content in self.content.items()}

    @property
    def archives(self):
        """Names of the packed files."""
        return [f"{name}.gz" for name in self.content]

    def prepare(self, root, *mirrors):
        """Prepare the set in ``root`` from mirrors."""
        return with_sources(
            self.facts, lambda _: mirror_sources(mirrors, self.archives, self.facts)
        ).prepare(root)

    def is_whole(self, root):
        """Whether every file in ``root`` has its right content and nothing else lies around."""
        folder = root / "mnist"
        found = {path.name: path for path in folder.iterdir()}
        right = all(found[name].read_bytes() == content for name, content in self.content.items())
        return right and set(found) == {*self.content, "manifest.json"}


def facts_of(content):
    return FileFacts(len(content), hashlib.sha256(content).hexdigest())


def known_files(files):
    """Size and SHA-256 of each of some contents."""
    return {file: facts_of(content) for file, content in files.items()}


def write_files(folder, files):
    folder.mkdir()
    for file, content in files.items():
        (folder / file).write_bytes(content)


def small_content(seed=0, train=30, test=20):
    random = np.random.RandomState(seed)
    content = {}
    for name in NAMES:
        number = train if name.startswith("train") else test
        if "images" in name:
            values = random.randint(0, 256, (number, 28, 28)).astype(np.uint8)
        else:
            values = (np.arange(number) % 10).astype(np.uint8)
        content[name] = encode_idx(values)
    return content
