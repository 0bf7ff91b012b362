"""Four idx files like those of MNIST, only smaller."""

import hashlib
from dataclasses import dataclass

import numpy as np

from data_prep.idx_sets import mirror_sources, prepare_idx_set
from data_prep.reading.files import FileFacts
from data_prep.reading.idx import encode_idx

NAMES = tuple(
    f"{split}-{kind}-ubyte"
    for split in ("train", "t10k")
    for kind in ("images-idx3", "labels-idx1")
)


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
        return prepare_idx_set(
            "mnist", root, self.facts, lambda _: mirror_sources(mirrors, self.archives, self.facts)
        )

    def is_whole(self, root):
        """Whether every file in ``root`` has its right content and nothing else lies around."""
        folder = root / "mnist"
        found = {path.name: path for path in folder.iterdir()}
        right = all(found[name].read_bytes() == content for name, content in self.content.items())
        return right and set(found) == {*self.content, "manifest.json"}


def facts_of(content):
    return FileFacts(len(content), hashlib.sha256(content).hexdigest())


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
