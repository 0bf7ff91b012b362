"""Sphinx extension: pages name no script or service on the network.

Jupyter Book always loads sphinx-thebe, which runs code cells on a server on the network. No button
starts it here, but its scripts stand in every page with the address of a public file server.
"""

from __future__ import annotations

from typing import Any

from sphinx.application import Sphinx

MARK = "thebe"


def drop_thebe(
    _app: Sphinx, _page: str, _template: str, context: dict[str, Any], _doctree: Any
) -> None:
    """Leave the scripts and style sheets of sphinx-thebe out of a page."""
    for kind in ("script_files", "css_files"):
        context[kind] = [file for file in context.get(kind, []) if not _is_thebe(file)]


def _is_thebe(file: Any) -> bool:
    attributes = getattr(file, "attributes", {}) or {}
    return MARK in f"{getattr(file, 'filename', file)} {attributes.get('body', '')}".lower()


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("html-page-context", drop_thebe, priority=900)  # after all that add scripts
    return {"parallel_read_safe": True, "parallel_write_safe": True}
