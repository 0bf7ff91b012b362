"""Small sets of photographs in the exact layouts of miniImageNet, CUB-200-2011 and two others."""

import io
import tarfile
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image

from data_prep import cub200, domainnet, imagenet_r, mini_imagenet
from data_prep.domainnet import DOMAINS

WNIDS = ("n01532829", "n01558993", "n01704323")
SPACE = 1 << 20
MINI = replace(
    mini_imagenet.DATA,
    numbers={"train": 12, "test": 6},
    classes=3,
    per_class={"train": 4, "test": 2},
    space=SPACE,
)
SPECIES = ("001.Black_footed_Albatross", "002.Laysan_Albatross")
CUB = replace(cub200.DATA, numbers={"train": 5, "test": 4}, classes=2, space=SPACE)

RENDERED = imagenet_r.WNIDS[:3]
KINDS = ("art", "cartoon", "embroidery", "graffiti", "misc", "origami", "sketch")
IMAGENET_R = replace(
    imagenet_r.DATA,
    numbers={"train": 12, "test": 3},
    classes=3,
    parse=partial(imagenet_r.parse, wnids=RENDERED),
    space=SPACE,
)
DRAWN = ("aircraft_carrier", "airplane")
DOMAINNET = replace(domainnet.DATA, numbers={"train": 18, "test": 12}, classes=2, space=SPACE)


def jpeg(height, width, seed, mode="RGB"):
    """A smooth random picture as a JPEG file."""
    random = np.random.RandomState(seed)
    rough = Image.fromarray(random.randint(0, 256, (4, 4, 3)).astype(np.uint8))
    content = io.BytesIO()
    picture = rough.resize((width, height), Image.Resampling.BICUBIC).convert(mode)
    picture.save(content, "JPEG", quality=90)
    return content.getvalue()


def mini_files(size=84, wnids=WNIDS, train=(5, 6, 10, 14)):
    """From path in the folder ``miniimagenet`` to content: 4 train and 2 test images a class."""
    files = {}
    for split, numbers in (("train", train), ("test", (7, 28))):
        lines = ["filename,label"]
        for wnid in wnids:
            for number in numbers:
                name = f"{wnid}{number:08d}.jpg"
                lines.append(f"{name},{wnid}")
                files[f"images/{name}"] = jpeg(size, size + 16 * (number % 2), number)
        files[f"split/{split}.csv"] = ("\n".join(lines) + "\n").encode()
    return files


def cub_files():
    """From path in the folder ``CUB_200_2011`` to content: 9 photographs of two species."""
    shapes = [(300, 400), (500, 333), (224, 224), (260, 256), (128, 228)]
    images, labels, splits = [], [], []
    files = {"README": b"not needed"}
    for number in range(1, 10):
        label = 1 + (number > 5)
        bird = SPECIES[label - 1][4:]
        path = f"{SPECIES[label - 1]}/{bird}_{number:04d}_{number * 37}.jpg"
        mode = "L" if number == 4 else "RGB"
        files[f"images/{path}"] = jpeg(*shapes[number % len(shapes)], number, mode)
        images.append(f"{number} {path}")
        labels.append(f"{number} {label}")
        splits.append(f"{number} {number % 2}")
    texts = {
        "images.txt": images,
        "image_class_labels.txt": labels,
        "train_test_split.txt": splits,
        "classes.txt": [f"{i} {name}" for i, name in enumerate(SPECIES, start=1)],
    }
    files.update({name: ("\n".join(lines) + "\n").encode() for name, lines in texts.items()})
    return files


def imagenet_r_files():
    """7, 5 and 3 images of three classes."""
    made = {"README.txt": b"not needed"}
    for label, number in enumerate((7, 5, 3)):
        for image, kind in enumerate(KINDS[:number]):
            made[f"{RENDERED[label]}/{kind}_{image}.jpg"] = jpeg(
                230 + 10 * image, 224 + 30 * label, 10 * label + image, "L" if image == 2 else "RGB"
            )
    return made


def drawing(seed):
    """A drawing in black and white as a PNG file, like those of quickdraw."""
    random = np.random.RandomState(seed)
    content = io.BytesIO()
    Image.fromarray(random.randint(0, 2, (225, 240)).astype(bool)).save(content, "PNG")
    return content.getvalue()


def domainnet_files():
    """Of each domain and class two train images, or one in the second class, and one to test."""
    made = {}
    for place, domain in enumerate(DOMAINS):
        lines = {"train": [], "test": []}
        for label, name in enumerate(DRAWN):
            for number, split in ((1, "train"), (2, "test"), (3, "train")):
                if (label, number) == (1, 3):
                    continue
                if domain == "quickdraw":
                    path, content = f"{domain}/{name}/46{number}.png", drawing(number)
                else:
                    path = f"{domain}/{name}/{domain}_{label:03d}_{number:06d}.jpg"
                    content = jpeg(230 + 20 * number, 260, 10 * place + number)
                made[path] = content
                lines[split].append(f"{path} {label}")
        for split, listed in lines.items():
            made[f"{domain}_{split}.txt"] = ("\n".join(listed) + "\n").encode()
    return made


def unpack(files, folder):
    """Write the files below ``folder``."""
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def packed(files, folder, mode="w:gz"):
    """An archive of the files, in a folder of its own."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return buffer.getvalue()
