"""Sphinx extension: mend some things in the pages that Jupyter Book makes.

Its sphinx-thebe runs code cells on a server on the network. No button starts it here, but its
scripts stand in every page with the address of a public file server. Screen readers stumble over a
list of references whose entries are no list items, over signatures that are half a list of
definitions, and over a link within a switch.
"""

from __future__ import annotations

import re
from typing import Any

from sphinx.application import Sphinx

MARK = "thebe"
LIST_OF_REFERENCES = '<div role="list" class="citation-list">'
SIGNATURE = re.compile(r'<dl>\n((?:<dd><em class="sig-param">.*</dd>\n)+)</dl>')
SWITCH = re.compile(r"<summary>Expand for references to .*?</summary>")


def mend(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Take the scripts and style sheets of sphinx-thebe, and wrong roles, out of a page."""
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _is_thebe(file)]
    body = context.get("body", "")
    body = body.replace(LIST_OF_REFERENCES, '<div class="citation-list">')
    body = SIGNATURE.sub(_lines, body)
    context["body"] = SWITCH.sub("<summary>Where the chapters use it</summary>", body)


def _lines(signature: re.Match[str]) -> str:
    """One line for each parameter."""
    lines = signature[1].replace("<dd>", '<span class="sig-line">').replace("</dd>", "</span>")
    return f'<span class="sig-lines">{lines}</span>'


def _is_thebe(file: Any) -> bool:
    attributes = getattr(file, "attributes", {}) or {}
    return MARK in f"{getattr(file, 'filename', file)} {attributes.get('body', '')}".lower()


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", mend, priority=900)  # after all that add scripts
    return {"parallel_read_safe": True, "parallel_write_safe": True}
