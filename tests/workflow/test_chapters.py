"""Every chapter is readable and runnable."""

import re
import shlex

import pytest
import yaml
from papermill.cli import _resolve_type

from experiments.run.parameters import check_parameter_file
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
