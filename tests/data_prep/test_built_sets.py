"""Sets that are built from MNIST and Fashion-MNIST: from which files, and always the same."""

from dataclasses import replace

import numpy as np
import pytest

from data_prep import (
    DataError,
    checksums,
    is_current,
    load,
    load_tasks,
    multi_fashion,
    multi_fashion_mnist,
    multi_mnist,
    pairs,
)
from data_prep.common.command import run_command
from data_prep.common.errors import PrepareError
from data_prep.common.files import FileFacts
from data_prep.common.idx import encode_idx
from tests.data_prep.small_set import known_files, write_files

SETS = {m.DATA.name: m for m in (pairs, multi_fashion_mnist, multi_mnist, multi_fashion)}
OVERLAID = list(SETS)[1:]
NUMBER, MARK = {"train": 200, "test": 100}, {"train": 50, "test": 60}
LABELS = {"fashion_mnist": lambda number: number % 10, "mnist": lambda number: number // 3 % 10}


def marked(split, name):
    """Images that can be recognised in each corner: split and number where nothing covers them."""
    number = np.arange(NUMBER[split])
    images = np.zeros((len(number), 28, 28), dtype=np.uint8)
    mark = np.stack([np.full_like(number, MARK[split]), number + 1], axis=1)
    images[:, 0, 0:2] = images[:, 27, 26:28] = mark
    return images, LABELS[name](number).astype(np.uint8)


def sources_of(images, split):
    """For each image the number of its source top left and bottom right."""
    first, second = images[:, 0, 0:2].astype(int), images[:, 35, 34:36].astype(int)
    assert (first[:, 0] == MARK[split]).all()
    assert (second[:, 0] == MARK[split]).all()
    return first[:, 1] - 1, second[:, 1] - 1


@pytest.fixture(params=SETS)
def small(request, tmp_path, monkeypatch):
    """A set with small sources in a data root, and the checksums of what must come out known."""
    module = SETS[request.param]
    originals = []
    for original in module.DATA.originals:
        arrays = [values for split in MARK for values in marked(split, original.name)]
        files = dict(zip(original.files, map(encode_idx, arrays), strict=True))
        write_files(tmp_path / original.name, files)
        originals.append(replace(original, files=known_files(files)))
    data = replace(module.DATA, originals=tuple(originals))
    if module is pairs:
        data = replace(data, per_class={"train": 2, "test": 1})
    arrays = [
        values
        for split in MARK
        for values in data.build(split, [marked(split, one.name) for one in originals])
    ]
    known = known_files(dict(zip(data.files, map(encode_idx, arrays), strict=True)))
    monkeypatch.setattr(module, "DATA", replace(data, files=known))
    return module.DATA, tmp_path


def test_a_split_is_made_only_from_files_of_that_split_and_of_those_sets(small):
    data, root = small
    folder = data.prepare(root)
    assert is_current(data.name, root)
    assert {path.name for path in folder.iterdir()} == {"manifest.json", *data.files}
    names = [one.name for one in data.originals]
    assert {path.name for path in root.iterdir() if path.is_dir()} == {*names, data.name}
    corners = [names[0], names[-1]]
    for split, number in NUMBER.items():
        loaded = (load if data.name == "pairs" else load_tasks)(data.name, split, root)
        assert len(loaded) == (number if data.name == "pairs" else 2 * number)
        sources = sources_of(loaded.images[:, 0].numpy(), split)
        labels = [LABELS[name](one) for name, one in zip(corners, sources, strict=True)]
        if data.name == "pairs":
            assert loaded.labels.tolist() == (10 * labels[0] + labels[1]).tolist()
            continue
        expected = ["item", "digit"] if len(names) == 2 else ["top_left", "bottom_right"]
        assert [task.name for task in loaded.tasks] == expected
        for task, own, original in zip(
            loaded.tasks, labels, (data.originals[0], data.originals[-1]), strict=True
        ):
            assert loaded.targets[task.name].tolist() == own.tolist()
            assert task.class_names == original.class_names


def test_a_second_run_builds_nothing_and_a_damaged_file_is_built_again(small, monkeypatch):
    data, root = small
    folder = data.prepare(root)
    with monkeypatch.context() as patch:
        patch.delattr(type(data), "build")
        data.prepare(root)
    path = folder / "t10k-images-idx3-ubyte"
    before, other = path.read_bytes(), (folder / "train-images-idx3-ubyte").stat().st_mtime_ns
    for content, word in ((before[:-1], "damaged"), (before[:-1] + b"\x07", "altered")):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"{word}(.|\n)*python -m data_prep\.{data.name}$"):
            data.load("test", root)
        assert len(data.load("train", root)) >= NUMBER["train"]
        data.prepare(root)
        assert path.read_bytes() == before
    assert (folder / "train-images-idx3-ubyte").stat().st_mtime_ns == other


def test_another_result_than_the_pinned_one_is_refused_and_not_kept(small, capsys):
    data, root = small
    other = replace(data, files={f: FileFacts(k.size, "0" * 64) for f, k in data.files.items()})
    with pytest.raises(PrepareError, match=r"images-idx3-ubyte has SHA-256 (.|\n)*of numpy"):
        other.prepare(root)
    assert list((root / data.name).iterdir()) == []
    assert run_command(other, ["--root", str(root)]) == 1
    assert f"{data.name}: The data set cannot be completed" in capsys.readouterr().err


@pytest.mark.parametrize("name", OVERLAID)
def test_a_set_that_is_not_there_and_wrong_names_are_told(name, tmp_path):
    with pytest.raises(DataError, match=rf"missing(.|\n)*python -m data_prep\.{name}$"):
        load_tasks(name, "train", tmp_path)
    with pytest.raises(ValueError, match=f"Found name='{name}', which load_tasks loads"):
        load(name, "train", tmp_path)
    with pytest.raises(ValueError, match="split must be one of train, test. Found split='val'"):
        load_tasks(name, "val", tmp_path)
    with pytest.raises(ValueError, match="Found name='pairs'"):
        load_tasks("pairs", "train")


@pytest.mark.parametrize("name", OVERLAID)
def test_the_real_sets_are_known_by_size_and_checksum(name):
    known = SETS[name].DATA.files
    for file, facts in known.items():
        number = 120_000 if file.startswith("train") else 20_000
        assert facts.size == (16 + number * 36 * 36 if "images" in file else 12 + 2 * number)
    assert checksums(name) == {file: facts.sha256 for file, facts in known.items()}
    every = [one.sha256 for other in OVERLAID for one in SETS[other].DATA.files.values()]
    assert len(set(every)) == 12


@pytest.mark.parametrize(
    ("name", "split"), [("pairs", "train"), *((name, "test") for name in SETS)]
)
def test_the_real_sets_show_what_their_labels_name(name, split):
    data = SETS[name].DATA
    if not all(is_current(one) for one in (name, *(one.name for one in data.originals))):
        pytest.skip(f"the real {name} is not prepared here")
    loaded = data.load(split)
    images = loaded.images[:, 0].numpy()
    if name == "pairs":
        assert loaded.labels.bincount().tolist() == [data.per_class[split]] * 100
        labels = (loaded.labels // 10, loaded.labels % 10)
    else:
        labels = tuple(loaded.targets[task.name] for task in loaded.tasks)
    # The parts that the other image never covers: eight rows at the top and at the bottom.
    for original, part, rows, own in (
        (data.originals[0], images[:, :8, :28], slice(0, 8), labels[0]),
        (data.originals[-1], images[:, 28:, 8:], slice(20, 28), labels[1]),
    ):
        source = original.load(split)
        if name != "pairs":
            assert own.bincount().tolist() == (2 * source.labels.bincount()).tolist()
        kinds = {}
        for strip, label in zip(
            source.images[:, 0, rows].numpy(), source.labels.tolist(), strict=True
        ):
            kinds.setdefault(strip.tobytes(), set()).add(label)
        shown = zip(part, own.tolist(), strict=True)
        assert all(label in kinds[strip.tobytes()] for strip, label in shown)
    if len(data.originals) == 1:
        # What is drawn without a look at the labels is nearly independent: one in ten is alike.
        assert 0.09 < float((labels[0] == labels[1]).float().mean()) < 0.11
