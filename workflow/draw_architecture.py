"""Draw which part of the project imports which, into ARCHITECTURE.md.

``python -m workflow.draw_architecture`` draws it anew, with ``--check`` it says whether the picture
is that of the present code. A number on an arrow counts modules that import a module. Imports for
types alone do not count.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import grimp

from experiments.run.atomic import write_text
from workflow.project import ROOT

PAGE = ROOT / "ARCHITECTURE.md"
PACKAGES = ("ktlib", "data_prep", "experiments", "workflow")
SCRIPTS = ("chapters", "benchmarks")
METHODS = ("cpeft", "fcl", "mtl", "ila")
TOOLS = "device, seeding, checks, tracing, testing"
PICTURE = re.compile(r"```mermaid\n.*?```", re.DOTALL)


def part_of(module: str) -> str:
    """The box that a module belongs to."""
    top, _, rest = module.partition(".")
    if top != "ktlib":
        return top
    name = rest.partition(".")[0]
    return f"ktlib.{name}" if name in METHODS else TOOLS


def imports() -> Iterator[tuple[str, str]]:
    """Each import of a module by a module of another part, as the two parts."""
    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)
    pairs = [
        (m, used) for m in graph.modules for used in graph.find_modules_directly_imported_by(m)
    ]
    pairs += [pair for folder in SCRIPTS for pair in _imports_of_scripts(ROOT / folder)]
    for module, used in pairs:
        if part_of(module) != part_of(used):
            yield part_of(module), part_of(used)


def _imports_of_scripts(folder: Path) -> Iterator[tuple[str, str]]:
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            named = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            named += [name.name for name in node.names] if isinstance(node, ast.Import) else []
            yield from ((folder.name, m) for m in named if m.partition(".")[0] in PACKAGES)


def picture() -> str:
    """The boxes and arrows, in Mermaid's language."""
    counts = Counter(imports())
    inner = [f"ktlib.{name}" for name in METHODS]
    names = {name: name.replace(".", "_") for name in (*SCRIPTS, *PACKAGES, *inner)}
    names[TOOLS] = "tools"
    boxes = [f'    {names[name]}["{name}"]' for name in (*inner, TOOLS)]
    arrows = [f"  {names[a]} -- {n} --> {names[b]}" for (a, b), n in sorted(counts.items())]
    lines = ["flowchart TD", "  subgraph ktlib", *boxes, "  end", *arrows]
    return "\n".join(["```mermaid", *lines, "```"])


def main() -> int:
    """Command line; returns the exit status."""
    before = PAGE.read_text(encoding="utf-8")
    after = PICTURE.sub(picture(), before)
    if "--check" not in sys.argv[1:]:
        write_text(PAGE, after)
    elif after != before:
        print("ARCHITECTURE.md shows other imports. Run: python -m workflow.draw_architecture")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
