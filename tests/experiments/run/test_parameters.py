"""Wrong parameters are refused at once, all together, with what is allowed."""

import math
import subprocess
import sys
import types
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from pydantic import Field, TypeAdapter

from experiments.run import parameters
from experiments.run.parameters import ChapterParameters, ParameterError, check_parameters
from experiments.run.run_folder import LOCK, RECORD
from tests.paths import ROOT


def refused(namespace, model):
    with pytest.raises(ParameterError) as error:
        check_parameters(namespace, model)
    return str(error.value)


def test_right_values_pass(values, toy_model):
    checked = check_parameters(values, toy_model)
    assert checked.model_dump() == values


def test_what_no_parameter_can_be_is_left_alone(values, toy_model):
    """Modules, functions, classes, arrays, private names and IPython's own names."""
    others = {
        "math": math,
        "sqrt": math.sqrt,
        "Path": type,
        "array": np.zeros(2),
        "_hidden": 3,
        "__name__": "__main__",
        "In": ["", "x = 1"],
        "Out": {},
        "exit": types.SimpleNamespace(),
    }
    assert check_parameters({**others, **values}, toy_model).noise_draws == 2


def test_unknown_name_comes_with_the_nearest_or_all_names(values, toy_model):
    message = refused({**values, "noise_bond": 1.0}, toy_model)
    assert "`noise_bond` = 1.0 is not a parameter here. Did you mean `noise_bound`" in message
    assert ", ".join(toy_model.model_fields) in refused({**values, "x": 1}, toy_model)


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "text", [1], {"a": 1}, (1,)])
def test_every_kind_of_plain_value_can_be_an_unknown_parameter(values, toy_model, value):
    assert f"`other` = {value!r}" in refused({**values, "other": value}, toy_model)


def test_missing_name(values, toy_model):
    del values["noise_draws"]
    assert "`noise_draws` is missing" in refused(values, toy_model)


@pytest.mark.parametrize(
    ("name", "value", "rule"),
    [
        ("noise_bound", -0.5, "greater than 0"),
        ("noise_bound", 0, "greater than 0"),
        ("noise_bound", math.nan, "finite number"),
        ("noise_bound", math.inf, "finite number"),
        ("noise_bound", True, "valid number"),
        ("noise_bound", None, "valid number"),
        ("noise_draws", 0, "greater than or equal to 1"),
        ("noise_draws", 65, "less than or equal to 64"),
        ("noise_draws", 2.0, "valid integer"),
        ("noise_draws", True, "valid integer"),
        ("noise_draws", "4", "valid integer"),
        ("seeds", [], "at least 1 item"),
        ("seeds", [1, 1], "differ"),
        ("seeds", 0, "valid list"),
        ("seeds", (0, 1), "valid list"),
        ("device", "gpu", "'auto', 'cpu', 'cuda' or 'mps'"),
        ("precision", "float16", "'auto', 'float32' or 'bfloat16'"),
        ("profile", "My profile", "pattern"),
        ("run_dir", None, "valid string"),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(values, toy_model, name, value, rule):
    message = refused({**values, name: value}, toy_model)
    assert f"`{name}` = {value!r} is not allowed: " in message
    assert rule in message


@pytest.mark.parametrize("seed", [-1, 0.0, 2**32, 2**63])
def test_wrong_value_inside_a_list_is_named_with_its_place(values, toy_model, seed):
    assert f"`seeds[1]` = {seed!r} is not" in refused({**values, "seeds": [0, seed]}, toy_model)


def test_whole_number_is_a_number(values, toy_model):
    assert check_parameters({**values, "noise_bound": 1}, toy_model).noise_bound == 1.0


def test_number_that_yaml_made_text_of(values, toy_model):
    message = refused({**values, "noise_bound": "1e-3"}, toy_model)
    assert "`noise_bound` = '1e-3' is not allowed" in message
    assert "1.0e-3, not 1e-3" in message
    assert "YAML" not in refused({**values, "run_dir": 3, "device": "gpu"}, toy_model)


def test_rule_about_several_parameters(values, toy_model):
    message = refused({**values, "seeds": [0, 1, 2]}, toy_model)
    assert "- `noise_draws` must be at least the number of `seeds`" in message


def test_all_problems_at_once(values, toy_model):
    message = refused({**values, "noise_bound": -1.0, "noise_draws": 0, "x": 1}, toy_model)
    assert message.startswith("3 problems with the parameters")
    assert message.count("\n- ") == 3


def test_device_that_is_not_there(values, toy_model, monkeypatch):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    message = refused({**values, "device": "cuda"}, toy_model)
    assert "`device` asks for 'cuda', which this machine does not have" in message


def test_run_dir_is_made(values, toy_model, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    checked = check_parameters({**values, "run_dir": "~/runs/main"}, toy_model)
    assert checked.run_dir == str(tmp_path / "runs/main")
    assert [path.name for path in Path(checked.run_dir).iterdir()] == [LOCK]


def test_run_dir_loses_what_an_earlier_run_left(values, toy_model, record, tmp_path):
    """Also a run that was broken off before its record; what is no run's is kept."""
    folder = tmp_path / "used"
    record.save(folder)
    kept = [folder / "notes.txt", folder / "figures/mine.png"]
    for broken_off in (False, True):
        gone = [folder / "figures/old.svg", folder / "answers/lora_0.jsonl"]
        for file in (*gone, *kept):
            file.parent.mkdir(exist_ok=True)
            file.touch()
        assert (folder / RECORD).exists() != broken_off
        check_parameters({**values, "run_dir": str(folder)}, toy_model)
        assert [file for file in (*gone, folder / RECORD) if file.exists()] == []
        assert [file for file in kept if not file.exists()] == []


@pytest.mark.parametrize("text", ["[1]", "{}", "no JSON"])
@pytest.mark.parametrize("name", [RECORD, "figures/mine.svg"])
def test_run_dir_of_something_else_is_refused_and_kept(values, toy_model, tmp_path, name, text):
    file = tmp_path / "mine" / name
    file.parent.mkdir(parents=True)
    file.write_text(text)
    message = refused({**values, "run_dir": str(tmp_path / "mine")}, toy_model)
    assert "must be a folder of its own" in message
    assert file.read_text() == text


def test_run_dir_of_a_run_at_the_same_time_is_refused(values, toy_model, tmp_path):
    other = (
        "import sys; from pathlib import Path; from experiments.run.run_folder import claim;"
        "print(claim(Path(sys.argv[1])), flush=True); input()"
    )
    command = [sys.executable, "-c", other, str(tmp_path / "run")]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, **pipes) as process:
        assert process.stdout.readline() == "None\n"
        figure = tmp_path / "run/figures/a.svg"
        figure.parent.mkdir()
        figure.touch()
        message = refused({**values, "run_dir": str(tmp_path / "run")}, toy_model)
        assert "is in use by another run" in message
        assert figure.exists()
        process.communicate("\n", timeout=60)
    for folder in ("run", "run", "other", "run"):  # again from the top; the last one is given back
        check_parameters({**values, "run_dir": str(tmp_path / folder)}, toy_model)
    assert not figure.exists()


@pytest.mark.parametrize("name", ["a\0b", "a\nb", "~no-such-user/x", "\ud800"])
def test_run_dir_that_is_no_path(values, toy_model, name):
    assert f"`run_dir` = {name!r} is not allowed: " in refused(
        {**values, "run_dir": name}, toy_model
    )


def test_overlong_run_dir(values, toy_model, tmp_path):
    message = refused({**values, "run_dir": str(tmp_path / ("x" * 5000))}, toy_model)
    assert "cannot be written to: File name too long" in message
    assert len(message) < 400


class OtherParameters(ChapterParameters):
    """One of each kind that papermill hands on as another."""

    method_lr: dict[str, float]
    flip: bool
    note: str


@pytest.mark.parametrize(
    ("name", "value", "form"),
    [
        ("seeds", "[7]", "`seeds: [7]` in a file, and with papermill -y '{seeds: [7]}'"),
        ("seeds", "7, 8", "-y '{seeds: [7, 8]}'"),
        ("seeds", 7, "-y '{seeds: [7]}'"),
        ("method_lr", "{mgda: 0.05}", "-y '{method_lr: {mgda: 0.05}}'"),
        ("method_lr", 0.05, "-y '{method_lr: {name: value}}'"),
        ("flip", "true", "-p flip True"),
        ("note", 3, "-r note 3"),
    ],
)
def test_value_that_papermill_hands_on_as_another_kind(values, name, value, form):
    given = {**values, "method_lr": {}, "flip": False, "note": ""}
    del given["noise_bound"], given["noise_draws"]
    assert check_parameters(given, OtherParameters)
    assert form in refused({**given, name: value}, OtherParameters)


@pytest.mark.parametrize(
    "values_given",
    [
        {"noise_bound": "x" * 10**5},
        {"noise_bound": 10**400},
        {"noise_draws": 10**5000},
        {"noise_draws": [[0] * 10**4] * 10**4},
        {"seeds": list(range(-(10**4), 0))},
        {"seeds": ["x" * 10**5]},
        {"x" * 10**5: 1},
        {"other": {"x" * 10**5: {"y": 0}}},
        dict.fromkeys(map("unknown{}".format, range(1000)), 0),
    ],
    ids=range(9),
)
def test_messages_stay_short(values, toy_model, values_given):
    message = refused({**values, **values_given}, toy_model)
    assert len(message) < 10_000
    assert max(map(len, message.splitlines())) < 1000


def test_run_dir_that_cannot_be_made(values, toy_model, tmp_path):
    (tmp_path / "file").write_text("")
    message = refused({**values, "run_dir": str(tmp_path / "file" / "run")}, toy_model)
    assert "cannot be written to: Not a directory" in message


def test_full_disk_is_found_before_the_work(values, toy_model, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    message = refused({**values, "run_dir": str(tmp_path)}, toy_model)
    assert "cannot be written to: No space left on device" in message


def test_notebooks_show_the_message_only(values, toy_model):
    with pytest.raises(ParameterError) as error:
        check_parameters({**values, "noise_draws": 0}, toy_model)
    assert error.value._render_traceback_() == [f"ParameterError: {error.value}"]


def test_second_check_ignores_results(values, toy_model):
    """A reader runs the whole notebook, changes a parameter and starts again from the top."""
    checked = check_parameters(values, toy_model)
    again = {**values, "accuracy": 0.5, "noise_draws": 4, "P": checked}
    assert check_parameters(again, toy_model).noise_draws == 4
    assert "`noise_draws` = 0" in refused({**again, "noise_draws": 0}, toy_model)


# Parameter files


@pytest.fixture
def check_file(chapter, tmp_path):
    def check(text, **changes):
        path = tmp_path / "toy.test.yaml"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return parameters.check_parameter_file(chapter, path, changes=changes)

    return check


def test_file_and_run_change_what_they_name(check_file):
    checked = check_file("noise_draws: 3\nnoise_bound: 1.0e-3\n", noise_draws=4)
    assert (checked.noise_draws, checked.noise_bound, checked.seeds) == (4, 0.001, [0, 1])
    assert type(checked).__module__ == "toykit.model"  # found through the chapter


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n"])
def test_empty_file_changes_nothing(check_file, values, text):
    assert check_file(text).model_dump() == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise_draw: 3", "`noise_draw` = 3 is not a parameter"),
        ("noise_bound: 1e-3", "'1e-3'"),
        ("noise_draws: true", "`noise_draws` = True"),
        ("- 1\n- 2", r"`name: value`. Found \[1, 2\]"),
        ("just text", "`name: value`. Found 'just text'"),
        ("3: 4", "`name: value`. Found {3: 4}"),
        ("a: [1", "not a YAML file"),
        ("noise_draws: 2\nnoise_draws: 3", r"Found twice: \['noise_draws'\]"),
        ("noise_draws: !!python/name:os.system x", "not a YAML file"),
        ("seeds: " + "[" * 10**5, "nested too deeply"),
        ("seeds: 2020-13-45", "not a YAML file"),
        ("seeds: !!timestamp x", "not a YAML file"),
        ("noise_draws: 1" + "0" * 5000, "not a YAML file"),
        ("a: \0", "not a YAML file"),
        ("noise_draws: ä".encode("latin-1"), "not a YAML file"),
    ],
    ids=range(15),
)
def test_wrong_file(check_file, text, message):
    with pytest.raises(ParameterError, match=rf"(?s)toy\.test\.yaml.*{message}"):
        check_file(text)


@pytest.mark.parametrize("name", ["noise_draws: 3\n" * 1000, "a\0b", "missing.yaml", "."])
def test_text_in_place_of_a_file(chapter, name):
    with pytest.raises(ParameterError) as error:
        parameters.check_parameter_file(chapter, name)
    assert ": cannot be read: " in str(error.value) or "not a YAML file" in str(error.value)
    assert len(str(error.value)) < 400


def test_wrong_value_of_a_run(check_file):
    with pytest.raises(ParameterError, match=r"yaml, noise_draws = 0\)"):
        check_file("", noise_draws=0)


def test_table_of_parameters(chapter):
    rows = {row["name"]: row for row in parameters.describe_parameters(chapter)}
    assert rows["noise_bound"] == {
        "name": "noise_bound",
        "default": 0.01,
        "allowed": "number > 0",
        "comment": "half the width of the box: thesis, 0.01",
    }
    assert rows["seeds"]["allowed"] == "list of (integer >= 0 and <= 4294967295) with at least 1"


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (bool, "True or False"),
        (int | None, "integer or null"),
        (Literal["uniform"], "'uniform'"),
        (Literal["a", 1], "'a', 1"),
        (dict[str, float], "mapping of (number)"),
        (Annotated[float, Field(ge=0.0, lt=1.5)], "number >= 0 and < 1.5"),
        (Annotated[int, Field(lt=2**32)], "integer < 4294967296"),
        (Annotated[list[str], Field(max_length=3)], "list of (text) at most 3"),
    ],
)
def test_allowed_values_in_words(kind, words):
    assert parameters._allowed(TypeAdapter(kind).json_schema()) == words
