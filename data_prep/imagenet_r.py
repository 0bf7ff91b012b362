"""ImageNet-R, 30,000 renditions of 200 classes of ImageNet: ``python -m data_prep.imagenet_r``.

Art, cartoons, sculptures and so on (Hendrycks et al., ICCV 2021), ``imagenet-r/<wnid>/*.jpg``. It
was made to test with, and so it has no split. Continual learning trains on 80 % of it, as
DualPrompt (Wang et al., ECCV 2022) did first: 24,000 images for training and 6,000 for testing,
drawn at random. Such draws differ from one code to the next. The one here is fixed for good: it
follows from :data:`SEED` and the names of the files, class by class, on every machine.

The archive is recognised by its MD5. Its authors print none: the one here is what public loaders of
the set agree on. An unpacked folder is recognised by its 200 class folders, the number of images,
and every one of them being whole. The arrays made of them (4.5 GB) are recorded in the manifest
with their SHA-256, which the loader compares.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence

from data_prep.common.command import main
from data_prep.common.photograph_sets import PhotographSet
from data_prep.common.photographs import Listing, ListingError

# One image in so many is for testing.
SHARE = 5
SEED = 0
# The classes that its authors list in github.com/hendrycks/imagenet-r (eval.py), in rising order.
WNIDS = (
    "n01443537", "n01484850", "n01494475", "n01498041", "n01514859", "n01518878", "n01531178",
    "n01534433", "n01614925", "n01616318", "n01630670", "n01632777", "n01644373", "n01677366",
    "n01694178", "n01748264", "n01770393", "n01774750", "n01784675", "n01806143", "n01820546",
    "n01833805", "n01843383", "n01847000", "n01855672", "n01860187", "n01882714", "n01910747",
    "n01944390", "n01983481", "n01986214", "n02007558", "n02009912", "n02051845", "n02056570",
    "n02066245", "n02071294", "n02077923", "n02085620", "n02086240", "n02088094", "n02088238",
    "n02088364", "n02088466", "n02091032", "n02091134", "n02092339", "n02094433", "n02096585",
    "n02097298", "n02098286", "n02099601", "n02099712", "n02102318", "n02106030", "n02106166",
    "n02106550", "n02106662", "n02108089", "n02108915", "n02109525", "n02110185", "n02110341",
    "n02110958", "n02112018", "n02112137", "n02113023", "n02113624", "n02113799", "n02114367",
    "n02117135", "n02119022", "n02123045", "n02128385", "n02128757", "n02129165", "n02129604",
    "n02130308", "n02134084", "n02138441", "n02165456", "n02190166", "n02206856", "n02219486",
    "n02226429", "n02233338", "n02236044", "n02268443", "n02279972", "n02317335", "n02325366",
    "n02346627", "n02356798", "n02363005", "n02364673", "n02391049", "n02395406", "n02398521",
    "n02410509", "n02423022", "n02437616", "n02445715", "n02447366", "n02480495", "n02480855",
    "n02481823", "n02483362", "n02486410", "n02510455", "n02526121", "n02607072", "n02655020",
    "n02672831", "n02701002", "n02749479", "n02769748", "n02793495", "n02797295", "n02802426",
    "n02808440", "n02814860", "n02823750", "n02841315", "n02843684", "n02883205", "n02906734",
    "n02909870", "n02939185", "n02948072", "n02950826", "n02951358", "n02966193", "n02980441",
    "n02992529", "n03124170", "n03272010", "n03345487", "n03372029", "n03424325", "n03452741",
    "n03467068", "n03481172", "n03494278", "n03495258", "n03498962", "n03594945", "n03602883",
    "n03630383", "n03649909", "n03676483", "n03710193", "n03773504", "n03775071", "n03888257",
    "n03930630", "n03947888", "n04086273", "n04118538", "n04133789", "n04141076", "n04146614",
    "n04147183", "n04192698", "n04254680", "n04266014", "n04275548", "n04310018", "n04325704",
    "n04347754", "n04389033", "n04409515", "n04465501", "n04487394", "n04522168", "n04536866",
    "n04552348", "n04591713", "n07614500", "n07693725", "n07695742", "n07697313", "n07697537",
    "n07714571", "n07714990", "n07718472", "n07720875", "n07734744", "n07742313", "n07745940",
    "n07749582", "n07753275", "n07753592", "n07768694", "n07873807", "n07880968", "n07920052",
    "n09472597", "n09835506", "n10565667", "n12267677",
)  # fmt: skip


def parse(
    _: Mapping[str, str], paths: Sequence[str], wnids: Sequence[str] = WNIDS
) -> dict[str, Listing]:
    """The listing of each split, from the paths of all files; hidden ones are left by a Mac."""
    return split_photographs(
        (path for path in paths if not path.rpartition("/")[2].startswith(".")), wnids
    )


def split_photographs(
    paths: Iterable[str], wnids: Sequence[str] = WNIDS, seed: int = SEED
) -> dict[str, Listing]:
    """The images of both splits, in the order of their classes and names.

    Of ``n`` images in all, ``n // 5`` are for testing. A class of ``m`` gives ``m // 5`` of them,
    and one more where the remainder is among the largest (of equal ones, that of the earlier
    class), until all are found. Which images of a class these are follows from the SHA-256 of
    ``"<seed> <path>"``: the smallest ones.

    Args:
        paths: ``<wnid>/<file>`` of every image, in any order.
        wnids: The classes; they are numbered in this order.
        seed: Another one gives another split.

    Returns:
        From "train" and "test" to their images, named by their paths.

    Raises:
        ListingError: a class has no images, an image belongs to no class, or a path comes twice.
    """
    members: dict[str, list[str]] = {wnid: [] for wnid in wnids}
    for path in sorted(paths):
        wnid, _, file = path.partition("/")
        if wnid not in members or not file or "/" in file:
            rule = "must lie in the folder of one of the classes"
            raise ListingError(f"an image {rule}. Found {path!r}")
        members[wnid].append(path)
    empty = [wnid for wnid, images in members.items() if not images]
    if empty:
        found = f"{len(empty)} of {len(members)} class folders are missing or empty"
        raise ListingError(f"{found}, the first one is {empty[0]}")
    chosen: dict[str, tuple[list[str], list[int]]] = {"train": ([], []), "test": ([], [])}
    sizes = _test_sizes([len(images) for images in members.values()])
    for label, (images, size) in enumerate(zip(members.values(), sizes, strict=True)):
        drawn = set(sorted(images, key=lambda path: _digest(seed, path))[:size])
        for path in images:
            names, labels = chosen["test" if path in drawn else "train"]
            names.append(path)
            labels.append(label)
    return {
        split: Listing(tuple(names), tuple(labels), tuple(wnids))
        for split, (names, labels) in chosen.items()
    }


def _test_sizes(sizes: Sequence[int]) -> list[int]:
    """How many images each class of these sizes gives to the test split."""
    shares = [size // SHARE for size in sizes]
    missing = sum(sizes) // SHARE - sum(shares)
    order = sorted(range(len(sizes)), key=lambda label: -(sizes[label] % SHARE))
    for label in order[:missing]:
        shares[label] += 1
    return shares


def _digest(seed: int, path: str) -> str:
    return hashlib.sha256(f"{seed} {path}".encode()).hexdigest()


DATA = PhotographSet(
    name="imagenet_r",
    folder="imagenet-r",
    parse=parse,
    numbers={"train": 24_000, "test": 6_000},
    classes=len(WNIDS),
    # As its authors handle it: the shorter side to 256 pixels, then the middle 224x224.
    side=224,
    resize=256,
    # The arrays (4.5 GB); the archive and what it unpacks to (2.2 GB each) are there for a while.
    space=9_100_000_000,
    archives=("imagenet-r.tar",),
    url="https://people.eecs.berkeley.edu/~hendrycks/imagenet-r.tar",
    md5="a61312130a589d0ca1a8fca1f2bd3337",
    way="get {data.archives[0]} (MD5 {data.md5}) from {data.url}",
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
