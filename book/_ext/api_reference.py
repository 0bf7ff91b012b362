"""Sphinx extension: the reference of ktlib.

A public name is documented where it is to be imported from: ``ktlib.fcl.f2m_loss``, which is
defined in ``ktlib.fcl.f2m``. What mentions it by the other name, a docstring or the code of a
chapter, is led to the same entry. Names outside ktlib have no page here and are shown as text.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from docutils import nodes
from pydantic import BaseModel
from sphinx.application import Sphinx
from sphinx.config import Config
from sphinx.environment import BuildEnvironment
from sphinx.util.inspect import stringify_signature
from sphinx_codeautolink import extension as codeautolink

PARTS = ("ktlib.fcl", "ktlib.mtl", "ktlib.ila", "ktlib.cpeft")


class CodeBlocks(codeautolink.CodeBlockAnalyser):
    """Finds names in code, also in pages with boxes, which have sections without a title."""

    def visit_title(self, node: nodes.title) -> None:
        """Titles of boxes are no titles of sections."""
        if isinstance(node.parent, nodes.section):
            super().visit_title(node)

    def depart_section(self, node: nodes.section) -> None:
        """Forget the title of a section that has one."""
        if any(isinstance(child, nodes.title) for child in node.children):
            super().depart_section(node)


def aliases(parts: tuple[str, ...] = PARTS) -> dict[str, str]:
    """Where a public name or a member of it is defined -> its name in the reference."""
    return {old: new for part in parts for old, new in _names(part) if old != new}


def _names(part: str) -> Iterator[tuple[str, str]]:
    module = importlib.import_module(part)
    for name in module.__all__:
        thing = getattr(module, name)
        defined = f"{getattr(thing, '__module__', part)}.{name}"
        yield defined, f"{part}.{name}"
        if inspect.isclass(thing):
            for member in vars(thing):
                yield f"{defined}.{member}", f"{part}.{name}.{member}"


def add_aliases(app: Sphinx, config: Config) -> None:
    """Tell sphinx-codeautolink, which looks for classes where they are defined."""
    if Path(app.srcdir, "api").is_dir():
        config.codeautolink_inventory_map = aliases()


def signature_of_model(
    _app: Sphinx, what: str, _name: str, thing: Any, _options: Any, *found: str | None
) -> tuple[str | None, ...] | None:
    """The signature of a pydantic model by its types alone, without the checks of its fields."""
    if what != "class" or not issubclass(thing, BaseModel):
        return None
    signature, types = inspect.signature(thing), get_type_hints(thing)
    fields = [field.replace(annotation=types[name]) for name, field in signature.parameters.items()]
    plain = inspect.Signature(fields)  # without the "None" that it returns
    return stringify_signature(plain, unqualified_typehints=True), *found[1:]


def lead(
    app: Sphinx, env: BuildEnvironment, node: Any, text: nodes.TextElement
) -> nodes.Node | None:
    """Resolve a reference that Sphinx has not: under its public name, or as text."""
    if node.get("refdomain") != "py":
        return None
    domain, target = env.get_domain("py"), node.get("reftarget", "")
    spellings = {target, f"{node.get('py:module')}.{target}", f"{node.get('py:class')}.{target}"}
    known = app.config.codeautolink_inventory_map
    objects = env.domaindata["py"]["objects"]
    # In a docstring a name can be short for one of the module that the text is from.
    ends = [new for old, new in known.items() if old.endswith(f".{target}")]
    for public in [known[name] for name in spellings if name in known] + ends[:1]:
        if public in objects:
            builder, page = app.builder, node["refdoc"]
            return domain.resolve_xref(env, page, builder, "obj", public, node, text)
    return text


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    codeautolink.CodeBlockAnalyser = CodeBlocks
    app.connect("config-inited", add_aliases)
    app.connect("autodoc-process-signature", signature_of_model)
    app.connect("missing-reference", lead, priority=900)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
