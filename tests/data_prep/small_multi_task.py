"""Small multi-task sets in the exact layouts on disk of their publishers."""

import io
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
from PIL import Image
from scipy.io import savemat

from data_prep import celeba, cityscapes, nyuv2, pascal_context
from data_prep.celeba import ATTRIBUTES
from tests.data_prep.small_photographs import jpeg

NUMBERS = {"train": 3, "test": 2}
SMALL_PASCAL = replace(pascal_context.DATA, numbers={"train": 2, "test": 1})
FACES = (0, 0, 1, 0, 2, 1, 0)  # the split of each: train, valid, test
CELEBA = replace(celeba.DATA, numbers={"train": 4, "valid": 2, "test": 1}, md5={}, space=1 << 20)


def npy(values):
    content = io.BytesIO()
    np.save(content, values)
    return content.getvalue()


def small_numpy_set(data, size, numbers=NUMBERS):
    """CityScapes or NYUv2 with smaller and fewer images."""
    rows, decode = data.rows, data.decode  # partial functions, see `numpy_set`
    return replace(
        data,
        numbers=numbers,
        rows=partial(rows.func, rows.args[0], numbers),
        decode=partial(decode.func, data.tasks, size),
    )


def numpy_files(name, size=(4, 6), numbers=NUMBERS):
    """From path to content: small images, as the prepared CityScapes or NYUv2 has them."""
    random = np.random.RandomState(0)
    files = {}
    for part, split in (("train", "train"), ("val", "test")):
        for i in range(numbers[split]):
            label = random.randint(-1, 7, size).astype(np.float32)
            files[f"{part}/image/{i}.npy"] = npy(random.rand(*size, 3).astype(np.float32))
            files[f"{part}/depth/{i}.npy"] = npy(random.rand(*size, 1).astype(np.float32))
            if name == "cityscapes":
                files[f"{part}/label_7/{i}.npy"] = npy(label)
            else:
                files[f"{part}/label/{i}.npy"] = npy(label)
                files[f"{part}/normal/{i}.npy"] = npy(random.randn(*size, 3))
    return files


SMALL_CITYSCAPES = small_numpy_set(cityscapes.DATA, (4, 6))
SMALL_NYUV2 = small_numpy_set(nyuv2.DATA, (4, 6))


def mat(**variables):
    content = io.BytesIO()
    savemat(content, variables)
    return content.getvalue()


def png(values, mode):
    content = io.BytesIO()
    picture = Image.fromarray(values.astype(np.uint8), "RGB" if mode == "RGB" else "L")
    if mode == "P":
        picture = picture.copy()
        indexed = Image.frombytes("P", picture.size, picture.tobytes())
        indexed.putpalette([value for i in range(256) for value in (i, 255 - i, 7)])
        picture = indexed
    picture.save(content, "PNG")
    return content.getvalue()


def structures(**columns):
    """MATLAB's array of structures (1, n), one column of values per field."""
    number = len(next(iter(columns.values())))
    array = np.zeros((1, number), dtype=[(name, object) for name in columns])
    for name, values in columns.items():
        for i, value in enumerate(values):
            array[0, i][name] = value
    return array


def anno(name, things):
    """The file of the objects in an image: (class, number, mask, {part: mask}) for each."""
    parts = [
        structures(part_name=list(own), mask=list(own.values())) if own else np.zeros((0, 0))
        for *_, own in things
    ]
    names, numbers, masks, _ = zip(*things, strict=True)
    objects = {"class": list(names), "class_ind": list(numbers), "mask": list(masks)}
    return mat(anno={"imname": name, "objects": structures(**objects, parts=parts)})


PHOTOGRAPHS = {"2008_000008": (6, 9), "2008_000015": (8, 5), "2008_000002": (5, 7)}


def pascal_files(photographs=PHOTOGRAPHS, test=1):
    """From path in ``PASCAL_MT`` to content: images to train with and the last ones to test."""
    lines = [f"{name}\n" for name in photographs]
    files = {
        "ImageSets/Context/train.txt": "".join(lines[:-test]).encode(),
        "ImageSets/Context/val.txt": "".join(lines[-test:]).encode(),
    }
    for i, (name, size) in enumerate(photographs.items()):
        random = np.random.RandomState(i)
        files[f"JPEGImages/{name}.jpg"] = jpeg(*size, i)
        classes = random.randint(0, 21, size)
        classes[0, 0] = 255
        folder = "VOC12" if i == 1 else "pascal-context"
        files[f"semseg/{folder}/{name}.png"] = png(classes, "P")
        # The left two columns are floor (158), which has normals, the rest is grass (187).
        labels = np.full(size, 187, dtype=np.uint16)
        labels[:, :2] = 158
        files[f"pascal-context/trainval/{name}.mat"] = mat(LabelMap=labels)
        files[f"normals_distill/{name}.png"] = png(random.randint(0, 256, (*size, 3)), "RGB")
        files[f"sal_distill/{name}.png"] = png(127 + random.randint(0, 2, size), "L")
        whole, head, foot = (np.zeros(size, dtype=np.uint8) for _ in range(3))
        whole[:4], head[0], foot[3, 3:] = 1, 1, 1
        dog = ("dog", 12, whole, {"head": head})
        person = ("person", 15, whole, {"hair": head, "rfoot": foot})
        hidden = ("person", 15, whole, {})
        things = {0: [dog, person, hidden], 1: [dog], 2: [person]}[i % 3]
        files[f"human_parts/{name}.mat"] = anno(name, things)
    return files


def celeba_files(splits=FACES):
    """From path to content: the two lists as published, with their spaces, and the faces."""
    random = np.random.RandomState(0)
    names = [f"{number:06d}.jpg" for number in range(1, len(splits) + 1)]
    lines = [f"{len(names)}", " ".join(ATTRIBUTES) + " "]
    files = {}
    for i, name in enumerate(names):
        lines.append(f"{name} " + " ".join(f"{v:2d}" for v in random.choice([-1, 1], 40)))
        files[f"img_align_celeba/{name}"] = jpeg(218, 178, i)
    parts = [f"{name} {part}" for name, part in zip(names, splits, strict=True)]
    files["list_attr_celeba.txt"] = ("\r\n".join(lines) + "\r\n").encode()
    files["list_eval_partition.txt"] = ("\n".join(parts) + "\n").encode()
    return files


def zipped(files):
    """An archive of the files."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, values in files.items():
            archive.writestr(name, values)
    return content.getvalue()
