"""The reference of ktlib: every public name has an entry, and is linked with the chapters."""

import importlib
import inspect

import pytest
from bs4 import BeautifulSoup

pytestmark = pytest.mark.slow
PARTS = ("fcl", "mtl", "ila", "cpeft")
TOOLS = ("device", "seeding", "testing", "checks")


def parsed(book, name):
    return BeautifulSoup((book.html / f"{name}.html").read_text(encoding="utf-8"), "html.parser")


def entries(page, module):
    """Names that a page has an entry for, without the members of classes."""
    ids = [entry["id"] for entry in page.select("dl.py > dt[id]")]
    names = [name.removeprefix(f"{module}.") for name in ids if name.startswith(f"{module}.")]
    return [name for name in names if "." not in name]


@pytest.mark.parametrize("part", PARTS)
def test_every_public_name_has_one_entry(smoke_book, part):
    found = entries(parsed(smoke_book, f"api/{part}"), f"ktlib.{part}")
    assert sorted(found) == sorted(importlib.import_module(f"ktlib.{part}").__all__)


@pytest.mark.parametrize("tool", TOOLS)
def test_every_tool_has_one_entry(smoke_book, tool):
    module = importlib.import_module(f"ktlib.{tool}")
    public = {
        name
        for name, thing in vars(module).items()
        if inspect.isroutine(thing) or inspect.isclass(thing)
        if thing.__module__ == module.__name__ and not name.startswith("_")
    }
    found = entries(parsed(smoke_book, "api/tools"), module.__name__)
    assert len(found) == len(set(found))
    assert public <= set(found)


@pytest.mark.parametrize(
    ("chapter", "part"),
    [("fcl", "fcl"), ("recon", "mtl"), ("ila", "ila"), ("continual_peft", "cpeft")],
)
def test_chapter_and_reference_link_to_each_other(smoke_book, chapter, part):
    code = parsed(smoke_book, f"chapters/{chapter}").select("a.sphinx-codeautolink-a")
    assert [link for link in code if f"api/{part}.html#ktlib.{part}." in link["href"]]
    uses = parsed(smoke_book, f"api/{part}").select("details a.reference")
    assert [link for link in uses if f"chapters/{chapter}.html" in link["href"]]
