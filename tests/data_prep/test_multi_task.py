"""Sets with several targets: small ones in the exact layouts on disk, and what damage brings."""

import hashlib
import io
import os
import pickle
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import ndimage
from torchvision import transforms

from data_prep import (
    DataError,
    MultiTaskImages,
    Task,
    celeba,
    checksums,
    cityscapes,
    is_current,
    load_tasks,
    nyuv2,
    open_tasks,
    pascal_context,
)
from data_prep.celeba import ATTRIBUTES, parse_lists
from data_prep.common.command import run_command
from data_prep.common.errors import PrepareError
from experiments.mtl.dense import segmentation_loss
from experiments.mtl.metrics import SegmentationMetric
from tests.data_prep.small_multi_task import (
    CELEBA,
    PHOTOGRAPHS,
    SMALL_CITYSCAPES,
    SMALL_NYUV2,
    SMALL_PASCAL,
    anno,
    celeba_files,
    mat,
    npy,
    numpy_files,
    pascal_files,
    png,
    zipped,
)
from tests.data_prep.small_photographs import jpeg, unpack

MODULES = {"cityscapes": cityscapes, "nyuv2": nyuv2, "pascal_context": pascal_context}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    """The sets of many files with few and small images."""
    for module, data in (
        (cityscapes, SMALL_CITYSCAPES), (nyuv2, SMALL_NYUV2), (pascal_context, SMALL_PASCAL)
    ):  # fmt: skip
        monkeypatch.setattr(module, "DATA", data)


def files_of(name):
    return pascal_files() if name == "pascal_context" else numpy_files(name)


def placed(name, root, files=None):
    unpack(files or files_of(name), root / name)
    return root


@pytest.fixture(params=MODULES)
def name(request):
    return request.param


def array(files, path):
    return np.load(io.BytesIO(files[path]))


@pytest.mark.parametrize("name", ["cityscapes", "nyuv2"])
def test_images_and_targets_are_those_of_the_numpy_files(name, tmp_path):
    files = numpy_files(name)
    MODULES[name].DATA.prepare(placed(name, tmp_path))
    label = {"cityscapes": "label_7", "nyuv2": "label"}[name]
    for split, part, number in (("train", "train", 3), ("test", "val", 2)):
        opened, loaded = open_tasks(name, split, tmp_path), load_tasks(name, split, tmp_path)
        assert len(opened) == len(loaded) == number
        assert loaded.images.shape == (number, 3, 4, 6)
        for row in range(number):
            image, targets = opened[row]
            expected = {"segmentation": array(files, f"{part}/{label}/{row}.npy")}
            expected["depth"] = array(files, f"{part}/depth/{row}.npy").transpose(2, 0, 1)
            if name == "nyuv2":
                normals = array(files, f"{part}/normal/{row}.npy").transpose(2, 0, 1)
                expected["normals"] = normals.astype(np.float32)
            assert (
                image.numpy() == array(files, f"{part}/image/{row}.npy").transpose(2, 0, 1)
            ).all()
            assert list(targets) == [task.name for task in opened.tasks] == list(expected)
            for task, values in expected.items():
                assert (targets[task].numpy() == values).all()
                assert torch.equal(targets[task], loaded[row][1][task])
    assert loaded.targets["segmentation"].min() == -1
    scores = torch.zeros(2, len(loaded.tasks[0].class_names), 4, 6)
    assert segmentation_loss(scores, loaded.targets["segmentation"]) > 0
    SegmentationMetric(scores.shape[1]).update(scores, loaded.targets["segmentation"])


def test_the_five_targets_of_pascal_context_are_those_of_its_files(tmp_path):
    files = pascal_files()
    pascal_context.DATA.prepare(placed("pascal_context", tmp_path))
    train, test = (open_tasks("pascal_context", split, tmp_path) for split in ("train", "test"))
    assert (len(train), len(test)) == (2, 1)
    for opened, row, name in ((train, 0, "2008_000008"), (train, 1, "2008_000015"),
                              (test, 0, "2008_000002")):  # fmt: skip
        image, targets = opened[row]
        size = PHOTOGRAPHS[name]
        with Image.open(io.BytesIO(files[f"JPEGImages/{name}.jpg"])) as picture:
            assert (image.permute(1, 2, 0).numpy() == np.array(picture)).all()
        folder = "VOC12" if name == "2008_000015" else "pascal-context"
        with Image.open(io.BytesIO(files[f"semseg/{folder}/{name}.png"])) as picture:
            classes = np.array(picture).astype(int)
        assert targets["segmentation"][0, 0] == -1
        classes[0, 0] = -1
        assert (targets["segmentation"].numpy() == classes).all()
        with Image.open(io.BytesIO(files[f"sal_distill/{name}.png"])) as picture:
            assert (targets["saliency"][0].numpy() == (np.array(picture) == 128)).all()
        with Image.open(io.BytesIO(files[f"normals_distill/{name}.png"])) as picture:
            normals = torch.from_numpy(np.array(picture)).permute(2, 0, 1) / 127.5 - 1
        torch.testing.assert_close(targets["normals"][:, :, :2], normals[:, :, :2])
        assert (targets["normals"][:, :, 2:] == 0).all()
        # Floor meets grass between the second and the third column: of the two, thinning keeps the
        # left one, but for the upper end, which goes with the right one.
        edges = torch.zeros(1, *size)
        edges[:, 1:, 1] = 1
        assert torch.equal(targets["edges"], edges)
    parts = torch.zeros(PHOTOGRAPHS["2008_000008"], dtype=torch.int8)
    parts[0], parts[3, 3:] = 1, 6  # the person's hair and foot, nothing of the dog
    assert torch.equal(train[0][1]["human_parts"], parts)
    assert (train[1][1]["human_parts"] == -1).all()


def test_thinning_by_hand():
    # Guo and Hall, first half: the right and the upper rim goes; second half: the lower left one.
    block = np.zeros((5, 6), dtype=bool)
    block[1:4, 1:5] = True
    expected = np.zeros((5, 6), dtype=bool)
    expected[2, 2:4] = True
    before = block.copy()
    assert (pascal_context.thinned(block) == expected).all()
    assert (block == before).all()
    # A pixel, a line, a slanted line and a crossing of lines are thin already.
    thin = np.zeros((9, 9), dtype=bool)
    thin[0, 8] = thin[8, :5] = True
    thin[range(3), range(3)] = True
    thin[5, 2:7] = thin[3:8, 4] = True
    thin[8, 4] = False
    assert (pascal_context.thinned(thin) == thin).all()
    for empty in (np.zeros((3, 4), dtype=bool), np.zeros((0, 4), dtype=bool)):
        assert not pascal_context.thinned(empty).any()


@pytest.mark.parametrize("seed", range(5))
def test_thinning_takes_away_and_leaves_together_what_hangs_together(seed):
    random = np.random.RandomState(seed)
    labels = np.kron(random.randint(0, 4, (6, 6)), np.ones((5, 5), dtype=int))
    lines = ndimage.laplace(labels, mode="mirror") != 0
    thin = pascal_context.thinned(lines)
    assert not (thin & ~lines).any()
    assert thin.sum() < 0.6 * lines.sum()
    assert (pascal_context.thinned(thin) == thin).all()
    together = np.ones((3, 3))
    parts, number = ndimage.label(lines, together)
    assert ndimage.label(thin, together)[1] == number
    assert set(parts[thin]) == set(range(1, number + 1))


def test_images_of_many_sizes_are_filled_up_with_what_has_no_value(tmp_path):
    pascal_context.DATA.prepare(placed("pascal_context", tmp_path))
    train = open_tasks("pascal_context", "train", tmp_path)
    with pytest.raises(ValueError, match=r"must have the size \(6, 9\). Found \(8, 5\) in row 1"):
        train.in_memory()
    with pytest.raises(ValueError, match=r"the size \(6, 9\) or less. Found \(8, 5\) in row 1"):
        train.in_memory(size=(6, 9))
    both = train.in_memory(size=(8, 9))
    assert both.images.shape == (2, 3, 8, 9)
    for row, (height, width) in enumerate(((6, 9), (8, 5))):
        image, targets = train[row]
        assert torch.equal(both.images[row, :, :height, :width], image)
        for task in both.tasks:
            own = both.targets[task.name][row]
            assert torch.equal(own[..., :height, :width], targets[task.name])
            empty = 0 if task.name == "normals" else -1
            assert (own[..., height:, :] == empty).all()
            assert (own[..., width:] == empty).all()
    assert train.in_memory([1]).images.shape == (1, 3, 8, 5)
    # Some of the images and tasks, still in their files; the set itself stays as it is.
    some = train.subset(torch.tensor([1])).with_tasks({"normals", "segmentation"})
    assert [task.name for task in some.tasks] == list(some[0][1]) == ["segmentation", "normals"]
    assert (len(some), len(train), len(train.tasks)) == (1, 2, 5)
    one, both = some.in_memory(), both.subset([1]).with_tasks({"segmentation", "normals"})
    assert torch.equal(one.images, both.images[..., :5])
    assert one.tasks == both.tasks
    assert torch.equal(one.targets["normals"], both.targets["normals"][..., :5])


def test_files_can_be_read_by_the_workers_of_a_loader(name, tmp_path):
    MODULES[name].DATA.prepare(placed(name, tmp_path))
    opened = open_tasks(name, "train", tmp_path)
    again = pickle.loads(pickle.dumps(opened))  # noqa: S301 - made in this line
    assert torch.equal(again[0][0], opened[0][0])
    batch, targets = next(iter(torch.utils.data.DataLoader(opened, batch_size=1)))
    assert torch.equal(batch[0], opened[0][0])
    assert list(targets) == [task.name for task in opened.tasks]


def test_preparing_again_changes_nothing(name, tmp_path, capsys):
    folder = MODULES[name].DATA.prepare(placed(name, tmp_path))
    assert is_current(name, tmp_path)
    before = (folder / "manifest.json").stat().st_mtime_ns
    assert MODULES[name].DATA.prepare(tmp_path) == folder
    assert (folder / "manifest.json").stat().st_mtime_ns == before
    assert "complete" in capsys.readouterr().err
    # A copy has other times: they are recorded, and nothing else changes.
    first = checksums(name, tmp_path)
    some = next(path for path in folder.rglob("0.npy" if name != "pascal_context" else "*.jpg"))
    os.utime(some, ns=(1, 1))
    assert not is_current(name, tmp_path)
    MODULES[name].DATA.prepare(tmp_path)
    assert is_current(name, tmp_path)
    assert checksums(name, tmp_path) == first
    assert len(first["all files"]) == 64


DAMAGES = {
    "missing": ("cityscapes", "val/depth/1.npy", None, "is missing"),
    "cut": ("cityscapes", "train/image/2.npy", npy(np.zeros((4, 6, 3)))[:-8], "it is no NumPy arr"),
    "empty": ("nyuv2", "train/image/2.npy", b"", "it is no NumPy array"),
    "pickle": ("nyuv2", "train/label/0.npy", npy(np.array([{}])), "it is no NumPy array"),
    "text": ("nyuv2", "train/label/0.npy", npy(np.array(["a"])), "it must hold numbers"),
    "shape": (
        "nyuv2", "val/normal/0.npy", npy(np.zeros((3, 4, 6))),
        r"it must have the shape \(4, 6, 3\). Found \(3, 4, 6\)",
    ),
    "flat depth": (
        "cityscapes", "val/depth/0.npy", npy(np.zeros((4, 6))),
        r"it must have the shape \(4, 6, 1\). Found \(4, 6\)",
    ),
    "not finite": ("nyuv2", "val/depth/0.npy", npy(np.full((4, 6, 1), np.nan)), "finite numbers"),
    "classes": (
        "cityscapes", "train/label_7/1.npy", npy(np.full((4, 6), 7.0)),
        r"integers in \[-1, 7\). Found values from 7.0 to 7.0",
    ),
    "fractions": ("nyuv2", "train/label/1.npy", npy(np.full((4, 6), 0.5)), "must be integers in"),
    "photograph": (
        "pascal_context", "JPEGImages/2008_000008.jpg", jpeg(6, 9, 0)[:300], "cannot be decoded",
    ),
    "other size": (
        "pascal_context", "JPEGImages/2008_000008.jpg", jpeg(9, 6, 0),
        r"human_parts/2008_000008.mat is not as expected: its masks must have the photograph's",
    ),
    "segmentation": (
        "pascal_context", "semseg/VOC12/2008_000015.png", png(np.full((8, 5), 21), "L"),
        r"integers in \[-1, 21\). Found values from 21 to 21",
    ),
    "no segmentation": (
        "pascal_context", "semseg/VOC12/2008_000015.png", None,
        "semseg/pascal-context/2008_000015.png is missing",
    ),
    "labels": (
        "pascal_context", "pascal-context/trainval/2008_000015.mat", mat(Other=1),
        "it has no variable LabelMap",
    ),
    "labels' size": (
        "pascal_context", "pascal-context/trainval/2008_000015.mat", mat(LabelMap=np.ones((2, 2))),
        r"it must have the photograph's size \(8, 5\). Found the shape \(2, 2\)",
    ),
    "no mat": ("pascal_context", "human_parts/2008_000002.mat", b"no", "it is no MATLAB file"),
    "no objects": (
        "pascal_context", "human_parts/2008_000002.mat", mat(anno={"imname": "x"}),
        "it is not as expected [(]no 'objects'",
    ),
    "unknown part": (
        "pascal_context", "human_parts/2008_000002.mat",
        anno("x", [("person", 15, 1, {"wing": np.ones((5, 7))})]), "no 'wing'",
    ),
    "normals": (
        "pascal_context", "normals_distill/2008_000002.png", png(np.zeros((5, 8, 3)), "RGB"),
        r"it must have the photograph's size \(5, 7\). Found the shape \(5, 8, 3\)",
    ),
    "no list": ("pascal_context", "ImageSets/Context/val.txt", None, "is missing"),
    "short list": (
        "pascal_context", "ImageSets/Context/train.txt", b"2008_000008\n",
        "must list 2 images. Found 1 in 1",
    ),
    "way out": (
        "pascal_context", "ImageSets/Context/val.txt", b"../x\n",
        "it must hold names. Found '../x'",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DAMAGES)
def test_damage_is_told_with_the_file_and_the_command(case, tmp_path):
    name, path, content, message = DAMAGES[case]
    files = files_of(name)
    assert path in files
    files[path] = content
    placed(name, tmp_path, {file: kept for file, kept in files.items() if kept is not None})
    with pytest.raises(PrepareError) as caught:
        MODULES[name].DATA.prepare(tmp_path)
    told = str(caught.value)
    assert re.search(message, told)
    # The first of these is seen in the masks, the second in the name that is tried last.
    assert f"  - {path} " in told or case in ("other size", "no segmentation")
    assert f"run python -m data_prep.{name} again" in told
    assert f"so that {tmp_path / name} " in told
    assert not (tmp_path / name / "manifest.json").exists()
    with pytest.raises(DataError, match=rf"not prepared(.|\n)*python -m data_prep\.{name}"):
        open_tasks(name, "train", tmp_path)


def test_of_a_whole_missing_set_only_the_first_files_are_named(name, tmp_path, capsys):
    assert run_command(MODULES[name].DATA, ["--root", str(tmp_path)]) == 1
    told = capsys.readouterr().err
    assert told.count("is missing") == (2 if name == "pascal_context" else 5)
    assert "python -m data_prep" in told


def test_a_file_that_changed_since_is_found_by_loader_and_preparation(name, tmp_path):
    folder = MODULES[name].DATA.prepare(placed(name, tmp_path))
    path = "JPEGImages/2008_000008.jpg" if name == "pascal_context" else "train/image/0.npy"
    whole = (folder / path).read_bytes()
    (folder / path).write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    opened = open_tasks(name, "train", tmp_path)
    with pytest.raises(DataError, match=rf"{path} is altered(.|\n)*python -m data_prep\.{name}"):
        opened[0]
    assert len(opened[1]) == 2
    with pytest.raises(PrepareError, match=rf"{path} has SHA-256 (.|\n)*remove .*manifest.json"):
        MODULES[name].DATA.prepare(tmp_path)
    (folder / path).unlink()
    with pytest.raises(DataError, match=f"{path} is missing"):
        opened[0]
    (folder / path).write_bytes(whole)
    MODULES[name].DATA.prepare(tmp_path)
    assert len(open_tasks(name, "train", tmp_path)[0]) == 2


def test_the_real_sets_have_the_sizes_and_the_files_of_the_literature(monkeypatch):
    monkeypatch.undo()
    for data, numbers, second in (
        (cityscapes.DATA, (2975, 500), "val/label_7/1.npy"),
        (nyuv2.DATA, (795, 654), "val/label/1.npy"),
    ):
        rows = {split: data.rows(split, "", ()) for split in ("train", "test")}
        assert (len(rows["train"]), len(rows["test"])) == numbers
        assert rows["test"][1]["segmentation"] == second
        assert rows["train"][0]["image"] == "train/image/0.npy"
    assert [len(task.class_names) for task in cityscapes.DATA.tasks] == [7, 0]
    assert [len(task.class_names) for task in nyuv2.DATA.tasks] == [13, 0, 0]
    assert [len(task.class_names) for task in pascal_context.TASKS] == [21, 7, 0, 0, 0]
    assert len(pascal_context.PART_OF) == 24
    assert set(pascal_context.PART_OF.values()) == set(range(1, 7))
    assert list(pascal_context.WITH_NORMALS) == sorted(set(pascal_context.WITH_NORMALS))


# CelebA ------------------------------------------------------------------------------------------


def prepare_celeba(root, **changes):
    return replace(CELEBA, **changes).prepare(root)


@pytest.fixture
def faces():
    return celeba_files()


@pytest.mark.parametrize("form", ["folder", "archive"])
def test_faces_and_attributes_are_those_of_the_files(faces, form, tmp_path):
    if form == "folder":
        unpack(faces, tmp_path / "celeba")
    else:
        pictures = {file: kept for file, kept in faces.items() if file.endswith(".jpg")}
        lists = {file: kept for file, kept in faces.items() if file.endswith(".txt")}
        unpack({**lists, "img_align_celeba.zip": zipped(pictures)}, tmp_path / "celeba")
    prepare_celeba(tmp_path)
    usual = transforms.Compose([transforms.Resize(64), transforms.CenterCrop(64)])
    lines = faces["list_attr_celeba.txt"].decode().splitlines()[2:]
    for split, numbers in (("train", (1, 2, 4, 7)), ("valid", (3, 6)), ("test", (5,))):
        loaded = celeba.load(split, tmp_path)
        assert loaded.images.shape == (len(numbers), 3, 64, 64)
        assert tuple(loaded.targets) == ATTRIBUTES
        for row, number in enumerate(numbers):
            with Image.open(io.BytesIO(faces[f"img_align_celeba/{number:06d}.jpg"])) as picture:
                expected = torch.from_numpy(np.array(usual(picture))).permute(2, 0, 1)
            assert torch.equal(loaded.images[row], expected)
            found = [int(loaded.targets[name][row]) for name in ATTRIBUTES]
            assert found == [int(value == "1") for value in lines[number - 1].split()[1:]]
    assert len(load_tasks("celeba", "test", tmp_path)) == 1
    assert is_current("celeba", tmp_path)
    assert len(checksums("celeba", tmp_path)["all files"]) == 64


def test_a_damaged_array_of_faces_is_told_and_made_again(faces, tmp_path):
    unpack(faces, tmp_path / "celeba")
    path = prepare_celeba(tmp_path) / "train-images.npy"
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    with pytest.raises(DataError, match=r"altered(.|\n)*python -m data_prep\.celeba"):
        celeba.load("train", tmp_path)
    prepare_celeba(tmp_path)
    assert path.read_bytes() == whole
    with pytest.raises(ValueError, match="one of train, valid, test. Found split='val'"):
        celeba.load("val", tmp_path)


def test_without_faces_the_way_by_hand_is_told(tmp_path):
    with pytest.raises(PrepareError) as caught:
        prepare_celeba(tmp_path)
    folder = tmp_path / "celeba"
    for part in (f"{folder / 'img_align_celeba'}: there is no such folder",
                 f"{folder / 'img_align_celeba.zip'}: there is none", f"put them into {folder}",
                 "python -m data_prep.celeba"):  # fmt: skip
        assert part in str(caught.value)


CELEBA_DAMAGES = {
    "missing face": ("img_align_celeba/000004.jpg", None, "its img_align_celeba/000004.jpg is mis"),
    "cut face": (
        "img_align_celeba/000004.jpg", lambda content: content[:400],
        "its img_align_celeba/000004.jpg is damaged: it cannot be decoded",
    ),
    "missing list": ("list_attr_celeba.txt", None, "list_attr_celeba.txt is missing"),
    "other attributes": (
        "list_attr_celeba.txt", lambda content: content.replace(b"Young", b"Old"),
        "list_attr_celeba.txt must begin with a number and the names of 40 attributes",
    ),
    "cut line": (
        "list_attr_celeba.txt", lambda content: content[:-9],
        r"line 9 of list_attr_celeba.txt must hold a file and 40 times 1 or -1",
    ),
    "too few": (
        "list_attr_celeba.txt", lambda content: b"8" + content[1:],
        "must list 8 photographs. Found 7 different ones in 7 lines",
    ),
    "other part": (
        "list_eval_partition.txt", lambda content: content.replace(b"jpg 2", b"jpg 3"),
        "line 5 of list_eval_partition.txt must hold a photograph",
    ),
    "short parts": (
        "list_eval_partition.txt", lambda content: content[:-13],
        "list_eval_partition.txt must list each photograph .* once. Found 6 for 7",
    ),
    "moved": (
        "list_eval_partition.txt", lambda content: content.replace(b"jpg 2", b"jpg 1"),
        "its valid split lists 3 faces instead of 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CELEBA_DAMAGES)
def test_damage_of_celeba_is_told(faces, case, tmp_path):
    path, change, message = CELEBA_DAMAGES[case]
    content = faces.pop(path)
    if change:
        faces[path] = change(content)
    unpack(faces, tmp_path / "celeba")
    with pytest.raises(PrepareError, match=message):
        prepare_celeba(tmp_path)
    assert not list((tmp_path / "celeba").glob("*.npy"))
    assert not list((tmp_path / "celeba").glob(".incoming*"))


def test_lists_and_archive_are_known_by_the_md5_of_torchvision(faces, tmp_path):
    known = celeba.DATA.known_md5()
    assert known["list_attr_celeba.txt"] == "75e246fa4810816ffd6ee81facbd244c"
    unpack(faces, tmp_path / "celeba")
    md5 = {"list_attr_celeba.txt": hashlib.md5(b"other", usedforsecurity=False).hexdigest()}
    with pytest.raises(PrepareError, match=r"list_attr_celeba.txt has MD5 \w+, not \w+"):
        prepare_celeba(tmp_path, md5=md5)


def test_a_damaged_archive_of_faces_is_told(faces, tmp_path):
    pictures = {file: faces.pop(file) for file in list(faces) if file.endswith(".jpg")}
    packed = bytearray(zipped(pictures))
    unpack(
        {**faces, "img_align_celeba.zip": bytes(packed[: len(packed) // 2])}, tmp_path / "celeba"
    )
    with pytest.raises(PrepareError, match=r"the archive is damaged: .*not a zip file"):
        prepare_celeba(tmp_path)
    packed[len(packed) // 2] ^= 255
    (tmp_path / "celeba" / "img_align_celeba.zip").write_bytes(packed)
    with pytest.raises(PrepareError, match=r"the archive is damaged: .*CRC|its img.* is damaged"):
        prepare_celeba(tmp_path)


def test_the_published_lists_have_forty_names_and_all_faces():
    assert len(set(ATTRIBUTES)) == 40
    assert ATTRIBUTES[31] == "Smiling"
    assert sum(celeba.DATA.numbers.values()) == 202_599
    with pytest.raises(ValueError, match="must begin with a number"):
        parse_lists("", "")


# The classes -------------------------------------------------------------------------------------

TASKS = (Task("kind", "classes", ("a", "b")), Task("map", "segmentation", ("x", "y")),
         Task("far", "depth"))  # fmt: skip


def images(number=3, **changes):
    targets = {
        "kind": torch.arange(number) % 2,
        "map": torch.arange(number).reshape(-1, 1, 1).expand(-1, 2, 2) % 3 - 1,
        "far": torch.ones(number, 1, 2, 2),
    }
    pixels = torch.arange(number, dtype=torch.uint8).reshape(-1, 1, 1, 1).expand(-1, 1, 2, 2)
    return MultiTaskImages(pixels, {**targets, **changes}, TASKS)


def test_a_subset_keeps_images_targets_and_order():
    for chosen in ([2, 0], torch.tensor([2, 0]), torch.tensor([2, 0]).numpy().tolist()):
        part = images().subset(chosen)
        assert part.images[:, 0, 0, 0].tolist() == [2, 0]
        assert part.targets["kind"].tolist() == [0, 0]
        assert part.targets["map"][:, 0, 0].tolist() == [1, -1]
        assert part.tasks == TASKS
    assert len(images().subset(torch.tensor([True, False, True]))) == 2
    assert len(images().subset([])) == 0
    image, targets = images()[1]
    assert image.shape == (1, 2, 2)
    assert {name: tuple(values.shape) for name, values in targets.items()} == {
        "kind": (), "map": (2, 2), "far": (1, 2, 2)
    }  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"other": torch.zeros(3)}, r"one entry per task. Found \['far', 'kind', 'map', 'other'\]"),
        ({"kind": torch.zeros(2).long()}, r"task kind must have shape \(3,\). Found \(2,\)"),
        ({"kind": torch.zeros(3)}, "task kind must be signed integers. Found torch.float32"),
        (
            {"kind": torch.full((3,), 2)},
            r"task kind must lie in \[0, 2\). Found values from 2 to 2",
        ),
        ({"kind": torch.full((3,), -1)}, r"task kind must lie in \[0, 2\). Found values from -1"),
        (
            {"map": torch.full((3, 2, 2), -2)},
            r"task map must lie in \[-1, 2\). Found values from -2",
        ),
        ({"far": torch.ones(3, 2, 2)}, r"task far must have shape \(3, 1, 2, 2\). Found \(3, 2, 2"),
        ({"far": torch.ones(3, 1, 2, 2).long()}, "task far must be torch.float32. Found torch.int"),
    ],
)
def test_images_and_targets_must_belong_together(changes, message):
    with pytest.raises(ValueError, match=message):
        images(**changes)


def test_a_task_must_be_of_a_known_kind_and_name_its_classes():
    with pytest.raises(ValueError, match="kind must be one of classes, .* Found 'boxes'"):
        Task("a", "boxes")
    with pytest.raises(ValueError, match="class_names must be given .* Found 0 for segmentation"):
        Task("a", "segmentation")
    with pytest.raises(ValueError, match="class_names must be given .* Found 1 for depth"):
        Task("a", "depth", ("x",))
    with pytest.raises(ValueError, match="images must be torch.uint8 or torch.float32 of shape"):
        MultiTaskImages(torch.zeros(2, 3, 3), {}, ())


def test_unknown_names_are_refused(tmp_path):
    with pytest.raises(
        ValueError, match="one of cityscapes, nyuv2, pascal_context. Found name='x'"
    ):
        open_tasks("x", "train", tmp_path)
    with pytest.raises(ValueError, match="Found name='pascal_context'"):
        load_tasks("pascal_context", "train", tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, test. Found split='val'"):
        open_tasks("nyuv2", "val", tmp_path)
