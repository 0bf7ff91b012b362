"""Every chapter is readable and runnable."""

import pytest

from workflow.check_chapters import CHECKS, Chapter
from workflow.project import chapter_source, chapters


@pytest.fixture(scope="module", params=chapters())
def chapter(request):
    return Chapter(chapter_source(request.param))


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_chapter(chapter, check):
    assert check(chapter) == []


def test_there_is_a_chapter():
    assert "fcl" in chapters()
