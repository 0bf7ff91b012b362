"""Wrong parameters are refused at once, all together, with what is allowed."""

import math
import types

import numpy as np
import pytest

from experiments.run import allowed, parameters
from experiments.run.parameters import ParameterError, check_parameters


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


def test_unknown_name_lists_the_nearest(values, toy_model):
    message = refused({**values, "noise_bond": 1.0}, toy_model)
    assert "`noise_bond` = 1.0 is not a parameter here. Did you mean `noise_bound`" in message
    assert "Allowed: device, noise_bound, noise_draws, precision" in message


@pytest.mark.parametrize("value", [None, True, 3, 0.5, "text", [1], {"a": 1}, (1,)])
def test_every_kind_of_plain_value_can_be_an_unknown_parameter(values, toy_model, value):
    assert "`other` =" in refused({**values, "other": value}, toy_model)


def test_missing_name(values, toy_model):
    del values["noise_draws"]
    assert "`noise_draws` is missing. Allowed: integer >= 1 and <= 64" in refused(values, toy_model)


@pytest.mark.parametrize(
    ("name", "value", "allowed"),
    [
        ("noise_bound", -0.5, "number > 0"),
        ("noise_bound", 0, "number > 0"),
        ("noise_bound", math.nan, "number > 0"),
        ("noise_bound", math.inf, "number > 0"),
        ("noise_bound", True, "number > 0"),
        ("noise_bound", None, "number > 0"),
        ("noise_draws", 0, "integer >= 1 and <= 64"),
        ("noise_draws", 2.0, "integer >= 1 and <= 64"),
        ("noise_draws", True, "integer >= 1 and <= 64"),
        ("noise_draws", "4", "integer >= 1 and <= 64"),
        ("seeds", [], "list of (integer >= 0), at least 1"),
        ("seeds", [-1], "list of (integer >= 0), at least 1"),
        ("seeds", [0.0], "list of (integer >= 0), at least 1"),
        ("seeds", 0, "list of (integer >= 0), at least 1"),
        ("seeds", (0, 1), "list of (integer >= 0), at least 1"),
        ("device", "gpu", "one of 'auto', 'cpu', 'cuda', 'mps'"),
        ("precision", "float16", "one of 'auto', 'float32', 'bfloat16'"),
        ("profile", "My profile", "text"),
        ("run_dir", None, "text"),
    ],
)
def test_wrong_value_is_named_with_what_is_allowed(values, toy_model, name, value, allowed):
    message = refused({**values, name: value}, toy_model)
    assert f"`{name}` = {value!r} is not allowed. Allowed: {allowed}" in message


def test_whole_number_is_a_number(values, toy_model):
    assert check_parameters({**values, "noise_bound": 1}, toy_model).noise_bound == 1.0


def test_number_that_yaml_made_text_of(values, toy_model):
    message = refused({**values, "noise_bound": "1e-3"}, toy_model)
    assert "'1e-3' is text: in YAML write a number without quotes" in message
    assert "1.0e-3" in message


def test_text_that_is_no_number_gets_no_such_hint(values, toy_model):
    assert "in YAML" not in refused({**values, "noise_bound": "wide"}, toy_model)


def test_repeated_seed(values, toy_model):
    message = refused({**values, "seeds": [1, 1]}, toy_model)
    assert "`seeds` = [1, 1] is not allowed" in message
    assert "Rule: every seed may occur once only." in message


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


def test_run_dir_is_made(values, toy_model, tmp_path):
    folder = tmp_path / "runs" / "main"
    check_parameters({**values, "run_dir": str(folder)}, toy_model)
    assert list(folder.iterdir()) == []


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


CHECK = "parameters = check_parameters(globals(), ToyParameters)"


def test_second_check_ignores_results(values, toy_model):
    """A reader runs the whole notebook, changes a parameter and starts again from the top."""
    cells = ["", "noise_draws = 2", CHECK, "accuracy = 0.5", "noise_draws = 4", CHECK]
    namespace = {**values, "accuracy": 0.5, "noise_draws": 4, "In": cells}
    assert check_parameters(namespace, toy_model).noise_draws == 4


def test_second_check_still_finds_a_misspelt_name(values, toy_model):
    cells = ["", "noise_draws = 2", CHECK, "accuracy = f(1)", "seeds = [0]\nnoise_drwas = 4", CHECK]
    namespace = {**values, "accuracy": 0.5, "noise_drwas": 4, "In": cells}
    message = refused(namespace, toy_model)
    assert "`noise_drwas` = 4 is not a parameter here" in message
    assert "accuracy" not in message


def test_first_check_in_a_notebook_looks_at_all_names(values, toy_model):
    namespace = {**values, "other": 1, "In": ["", "%load_ext x", "other = 1", CHECK]}
    assert "`other` = 1" in refused(namespace, toy_model)


# Parameter files


@pytest.fixture
def check_file(chapter, tmp_path, toy_model):
    def check(text):
        path = tmp_path / "toy.test.yaml"
        path.write_text(text)
        return parameters.check_parameter_file(chapter, path, toy_model)

    return check


def test_file_changes_what_it_names(check_file):
    checked = check_file("noise_draws: 3\nnoise_bound: 1.0e-3\n")
    assert (checked.noise_draws, checked.noise_bound, checked.seeds) == (3, 0.001, [0, 1])


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n"])
def test_empty_file_changes_nothing(check_file, values, text):
    assert check_file(text).model_dump() == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise_draw: 3", "toy.test.yaml.*\n.*`noise_draw` = 3 is not a parameter here"),
        ("noise_bound: 1e-3", "'1e-3' is text"),
        ("noise_draws: true", "`noise_draws` = True is not allowed"),
        ("- 1\n- 2", "must hold lines `name: value`"),
        ("just text", "must hold lines `name: value`"),
        ("3: 4", "must hold lines `name: value`"),
        ("a: [1", "not a YAML file"),
        ("noise_draws: 2\nnoise_draws: 3", r"may stand once. Found twice: \['noise_draws'\]"),
        ("noise_draws: !!python/name:os.system x", "not a YAML file"),
    ],
)
def test_wrong_file(check_file, text, message):
    with pytest.raises(ParameterError, match=message):
        check_file(text)


def test_model_is_found_through_the_chapter(chapter, tmp_path):
    (tmp_path / "toy.yaml").write_text("noise_draws: 3")
    checked = parameters.check_parameter_file(chapter, tmp_path / "toy.yaml")
    assert type(checked).__module__ == "toykit.model"
    assert checked.noise_draws == 3


def test_table_of_parameters(chapter, toy_model):
    rows = parameters.describe_parameters(chapter, toy_model)
    assert {row["name"] for row in rows} == set(toy_model.model_fields)
    by_name = {row["name"]: row for row in rows}
    assert by_name["noise_bound"] == {
        "name": "noise_bound",
        "default": 0.01,
        "allowed": "number > 0",
        "comment": "half the width of the box; thesis: 0.01",
    }


@pytest.mark.parametrize(
    ("schema", "words"),
    [
        ({"type": "boolean"}, "True or False"),
        ({"anyOf": [{"type": "integer"}, {"type": "null"}]}, "integer or None"),
        ({"const": "uniform"}, "'uniform'"),
        ({"enum": ["a", 1]}, "one of 'a', 1"),
        ({"$ref": "#/$defs/Law"}, "one of 'x'"),
        ({"type": "number", "exclusiveMaximum": 1.5}, "number < 1.5"),
        ({"type": "number", "minimum": 0.0}, "number >= 0"),
        ({"type": "integer", "exclusiveMaximum": 2**32}, "integer < 4294967296"),
        (
            {"type": "array", "items": {"type": "number"}, "minItems": 2, "maxItems": 3},
            "list of (number), at least 2, at most 3",
        ),
    ],
)
def test_allowed_values_in_words(schema, words):
    assert allowed._in_words(schema, {"Law": {"enum": ["x"]}}) == words
