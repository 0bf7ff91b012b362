"""Every chapter is readable and runnable."""

import contextlib
import re
import shlex

import pytest
import yaml
from papermill.cli import _resolve_type
from pydantic import ValidationError

from experiments.run.chapter_source import parameter_model, parameters_cell
from experiments.run.parameters import ParameterError, check_parameter_file
from workflow.check_chapters import CHECKS, Chapter
from workflow.project import chapter_source, chapters, parameter_file

OPTION = r"-p \w+ [^\s`'\"]+|-y '[^']*'|-p \w+ '[^']*'"


@pytest.fixture(scope="module", params=chapters())
def chapter(request):
    return Chapter(chapter_source(request.param))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_chapter(chapter, check):
    assert check(chapter) == []


def test_there_is_a_chapter():
    assert "fcl" in chapters()


@pytest.mark.parametrize("name", chapters())
def test_values_that_a_chapter_asks_to_be_changed_are_allowed(name):
    """As papermill hands them on: lists and mappings with -y only."""
    text = chapter_source(name).read_text()
    for command in re.findall(rf"(?:{OPTION})(?: (?:{OPTION}))*", text):
        words, changes = iter(shlex.split(command)), {}
        for option in words:
            if option == "-y":
                changes |= yaml.safe_load(next(words))
            else:
                parameter = next(words)
                changes[parameter] = _resolve_type(next(words))
        check_parameter_file(chapter_source(name), parameter_file(name, "cpu"), changes=changes)


def with_absurd_numbers(value):
    """The value with each of its numbers, one at a time, replaced by one of an absurd size."""
    if isinstance(value, list):
        for i, item in enumerate(value or [0.0, 0]):
            yield from ([*value[:i], new, *value[i + 1 :]] for new in with_absurd_numbers(item))
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from ({**value, key: new} for new in with_absurd_numbers(item))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield from (10**10,) if isinstance(value, int) else (1e300, 1e-300)


ANY_NUMBER = ("compared_seeds", "ranked_seeds")  # of the seeds that there are
TRAINED_WITH = re.compile("^(?!classifier).*lr$")  # of the classifier: 0 stands for another one


@pytest.mark.parametrize("name", chapters())
def test_absurd_magnitudes_are_refused(name):
    source = chapter_source(name)
    model, lines = parameter_model(source), parameters_cell(source)
    values = {line.name: line.value for line in lines}
    assert model(**values)
    accepted = []
    for line in lines:
        for value in with_absurd_numbers(line.value) if line.name not in ANY_NUMBER else ():
            with contextlib.suppress(ValidationError):
                model(**{**values, line.name: value})
                tiny = "1e-300" in str(value)
                if tiny and not TRAINED_WITH.search(line.name):
                    continue  # many a number may be almost 0
                accepted.append((line.name, value))
    assert accepted == []


@pytest.mark.parametrize(
    ("name", "parameter"),
    [("ila", "model"), ("ila", "questions"), ("ila", "datasets"), ("fcl", "weights")],
)
def test_text_that_can_be_no_path_is_refused(name, parameter, tmp_path):
    (tmp_path / "config.json").write_bytes(b"\xff")
    source, file = chapter_source(name), parameter_file(name, "cpu")
    for text in (f"/{'x' * 5000}.json", "~no-such-user/x.json", "/a\0b.json", str(tmp_path)):
        value = ["chatterbot", "reasoning", text] if parameter == "datasets" else text
        changes = {parameter: value}
        if name == "fcl":
            changes |= {"dataset": "cub200", "class_split": "random", "sessions": 8}
            changes |= {"base_images": 0, "test_images": 0, "flatness_images": 1}
        with pytest.raises(ParameterError, match=f"{parameter} must be") as error:
            check_parameter_file(source, file, changes=changes)
        assert len(str(error.value)) < 1500
