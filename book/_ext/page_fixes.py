"""Sphinx extension: mend two things in the pages that Jupyter Book makes.

Its sphinx-thebe runs code cells on a server on the network. No button starts it here, but its
scripts stand in every page with the address of a public file server. And the list of references is
marked as a list whose entries are no list items, which screen readers stumble over.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

MARK = "thebe"
LIST_OF_REFERENCES = '<div role="list" class="citation-list">'


def mend(_app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any) -> None:
    """Take the scripts and style sheets of sphinx-thebe, and the wrong role, out of a page."""
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _is_thebe(file)]
    body = context.get("body", "")
    context["body"] = body.replace(LIST_OF_REFERENCES, '<div class="citation-list">')


def _is_thebe(file: Any) -> bool:
    attributes = getattr(file, "attributes", {}) or {}
    return MARK in f"{getattr(file, 'filename', file)} {attributes.get('body', '')}".lower()


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", mend, priority=900)  # after all that add scripts
    return {"parallel_read_safe": True, "parallel_write_safe": True}
