"""Which code, which versions and which machine a result came from.

Two digests answer two questions. :func:`code_digest`: could this code give other numbers than the
code of a stored record? :func:`run_digest`: would running the chapter again show anything new?
"""

from __future__ import annotations

import ast
import hashlib
import importlib.metadata
import io
import platform
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from experiments.run.chapter_source import code_cells, imported_names

__all__ = [
    "code_cells",
    "code_digest",
    "current_code_digest",
    "git_state",
    "modules_used",
    "package_versions",
    "peak_memory_bytes",
    "project_root",
    "run_digest",
    "system_name",
]

PROJECT = "knowledge-transfer-lib"
PACKAGES = ("ktlib", "data_prep", "experiments")
# Modules that show, check or describe, so that no number depends on them.
NUMBERLESS = (
    "experiments.run.allowed",
    "experiments.run.chapter_source",
    "experiments.run.committed",
    "experiments.run.parameters",
    "experiments.run.plotting",
    "experiments.run.provenance",
)
RECORDED_PACKAGES = (
    "ktlib",
    "matplotlib",
    "numpy",
    "pandas",
    "scikit-learn",
    "torch",
    "torchvision",
)


def project_root(start: Path | str | None = None) -> Path | None:
    """The nearest folder at or above ``start`` whose ``pyproject.toml`` is this project's.

    ``start`` is the current folder by default. None outside the project, for example where ktlib is
    used as a library.
    """
    folder = Path.cwd() if start is None else Path(start).resolve()
    for candidate in (folder, *folder.parents):
        try:
            text = (candidate / "pyproject.toml").read_text(encoding="utf-8")
            name = tomllib.loads(text).get("project", {}).get("name")
        except (OSError, tomllib.TOMLDecodeError):
            continue
        if name == PROJECT:
            return candidate
    return None


# Cells that no number of a record follows from: drawings, laid-out tables, and default values (a
# record holds the values that it was made with).
NUMBERLESS_TAGS = ("figure", "table", "parameters")


def code_digest(chapter_source: Path | str, exclude_tags: Iterable[str] = NUMBERLESS_TAGS) -> str:
    """SHA-256 of the code that a chapter's numbers follow from.

    That is: its code cells except :data:`NUMBERLESS_TAGS`, and every module of the project that
    they import, directly or through others, except modules that change no number. Comments and
    docstrings do not count.

    Args:
        chapter_source: the chapter, in percent format.
        exclude_tags: cells with one of these tags do not count.
    """
    skipped = set(exclude_tags)
    cells = [cell.source for cell in code_cells(chapter_source) if skipped.isdisjoint(cell.tags)]
    files = modules_used(chapter_source, leave_out=NUMBERLESS)
    modules = [f"{name}\n{_without_comments(_text(path))}" for name, path in files.items()]
    return _digest([*map(_without_comments, cells), *modules])


def current_code_digest(chapter: str) -> str | None:
    """Digest of the chapter's code as it is now; None where chapter or tools are missing."""
    root = project_root()
    source = root / "chapters" / f"{chapter}.py" if root else None
    if source is None or not source.exists():
        return None
    try:
        return code_digest(source)
    except ImportError:  # Jupytext and grimp belong to the `book` extra
        return None


def run_digest(
    chapter_source: Path | str,
    params_yaml: Path | str | None = None,
    extra_files: Iterable[Path | str] = (),
) -> str:
    """SHA-256 of everything that the outputs of an executed chapter follow from.

    That is: all code cells and all project modules behind them, comments included (a chapter may
    print its source), the parameter file, the committed records of the chapter, and
    ``extra_files``. Text cells do not count.

    Args:
        chapter_source: the chapter, in percent format.
        params_yaml: the parameter file of the run.
        extra_files: more files whose content counts; one that is missing counts as missing.
    """
    source = Path(chapter_source)
    cells = [_normalised(cell.source) for cell in code_cells(source)]
    modules = [f"{name}\n{_text(path)}" for name, path in modules_used(source).items()]
    records = _committed_records(source)
    files = [path for path in (params_yaml, *records, *extra_files) if path is not None]
    contents = [f"{Path(path).name}\n{_text(Path(path))}" for path in files]
    return _digest([*cells, *modules, *contents])


def modules_used(chapter_source: Path | str, leave_out: Iterable[str] = ()) -> dict[str, Path]:
    """The project's modules that a chapter imports, directly or through others, with their files.

    What is reached only through a module in ``leave_out`` is left out too.
    """
    import grimp  # belongs to the `book` extra

    packages = [name for name in PACKAGES if find_spec(name) is not None]
    # No cache on disk: reading the imports anew takes less than a tenth of a second.
    graph = grimp.build_graph(*packages, cache_dir=None, exclude_type_checking_imports=True)
    for name in set(leave_out) & graph.modules:
        graph.remove_module(name)
    waiting = [name for name in _imported_modules(chapter_source) if name in graph.modules]
    found: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            # Importing a.b runs a/__init__.py first, which the graph does not count as an import.
            parent = [name.rpartition(".")[0]] if "." in name else []
            used = [*graph.find_modules_directly_imported_by(name), *parent]
            waiting += [other for other in used if other in graph.modules]
    return {name: _module_file(name) for name in sorted(found)}


def git_state(folder: Path | str | None = None) -> tuple[str | None, bool | None]:
    """Commit of the project's working tree, and whether it holds changes outside ``results/``.

    ``(None, None)`` where there is no git, no project or no commit yet.
    """
    root = project_root(folder)
    commit = _git(root, "rev-parse", "HEAD") if root else None
    if commit is None:
        return None, None
    # A record is written below results/ itself; that does not make it a record of other code.
    changes = _git(root, "status", "--porcelain", "--", ".", ":(exclude)results")
    return commit, None if changes is None else bool(changes)


def package_versions(names: Iterable[str] = RECORDED_PACKAGES) -> dict[str, str]:
    """Versions of the installed packages among ``names``; the project need not be installed."""
    versions = {}
    for name in names:
        if name == "ktlib":
            import ktlib

            versions[name] = ktlib.__version__
            continue
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def system_name() -> str:
    """Operating system and processor family, such as ``"Linux x86_64"``."""
    return f"{platform.system()} {platform.machine()}"


def peak_memory_bytes() -> int | None:
    """The most main memory this process has held so far, in bytes; None where it is not known."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # Linux counts in KiB


def _committed_records(chapter_source: Path) -> list[Path]:
    """Records of a chapter, and notes on them: chapters/a/b.py -> results/a/b.*.json."""
    root = project_root(chapter_source.parent)
    if root is None or not chapter_source.resolve().is_relative_to(root / "chapters"):
        return []
    name = chapter_source.resolve().relative_to(root / "chapters").with_suffix("")
    folders = (root / "results" / name.parent, root / "results" / "rechecked" / name.parent)
    return sorted(file for folder in folders for file in folder.glob(f"{name.name}.*.json"))


def _imported_modules(chapter_source: Path | str) -> list[str]:
    """Candidates: ``from a.b import c`` may mean the module a.b or the module a.b.c."""
    modules = []
    for module, name in imported_names(chapter_source):
        modules.append(module)
        if name is not None:
            modules.append(f"{module}.{name}")
    return modules


def _module_file(name: str) -> Path:
    package, _, rest = name.partition(".")
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"Package {package!r} was there a moment ago and is gone.")
    path = Path(spec.submodule_search_locations[0], *rest.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _git(root: Path | None, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, timeout=30, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _digest(parts: Iterable[str]) -> str:
    total = hashlib.sha256()
    for part in parts:
        # The digest of each part keeps two parts apart from one part with the same text.
        total.update(hashlib.sha256(part.encode()).digest())
    return total.hexdigest()


def _text(path: Path) -> str:
    try:
        return _normalised(path.read_text(encoding="utf-8", errors="replace"))
    except FileNotFoundError:
        return "(missing)"


def _normalised(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def _without_comments(source: str) -> str:
    """The source without comments, docstrings and blank lines, where it is plain Python."""
    text = _normalised(source)
    lines = text.splitlines()
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        docstrings = _docstring_lines(ast.parse(text))
    except (tokenize.TokenError, SyntaxError):
        return text
    for token in tokens:
        if token.type == tokenize.COMMENT:
            row, column = token.start
            lines[row - 1] = lines[row - 1][:column].rstrip()
    kept = [line for row, line in enumerate(lines, start=1) if row not in docstrings]
    return "\n".join(line for line in kept if line.strip())


def _docstring_lines(tree: ast.Module) -> set[int]:
    rows: set[int] = set()
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if (
            isinstance(first, ast.Expr)
            and isinstance(first.value, ast.Constant)
            and isinstance(first.value.value, str)
            and isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        ):
            rows |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return rows
