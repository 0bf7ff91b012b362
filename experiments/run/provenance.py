"""Which code, which versions and which machine a result came from.

Three digests answer three questions. :func:`code_digest`: could this code give other numbers than
the code of a stored record? :func:`numbers_digest`: would a run that nobody looks at give others?
:func:`run_digest`: would running the chapter again show anything new?
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import importlib.metadata
import json
import platform
import subprocess
import sys
import tomllib
from collections.abc import Callable, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiments.run.chapter_source import PROFILES, code_cells, parameters_cell

PROJECT = "knowledge-transfer-lib"
HERE = Path(__file__).parent
# What every number follows from, beside the parts that a chapter names.
MACHINERY = (
    "experiments/run/parallel.py",
    "experiments/run/records.py",
    "ktlib/checks.py",
    "ktlib/device.py",
    "ktlib/seeding.py",
    "ktlib/tracing.py",
)
# Cells that no number of a record follows from: drawings, laid-out tables, and default values (a
# record holds the values that it was made with).
NUMBERLESS_TAGS = frozenset({"figure", "table", "parameters"})
# Modules of a part that none follows from: claims, and what is derived for them, are computed anew
# from the tables of a record, and figures only draw them.
NUMBERLESS_MODULES = frozenset({"claims.py", "derived.py", "figures.py"})
DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
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

    Without ``start`` it is looked for from the current folder, and then from this file: a notebook
    may run anywhere. None outside the project.
    """
    if start is None:
        return project_root(Path.cwd()) or project_root(HERE)
    folder = Path(start).resolve()
    for candidate in (folder, *folder.parents):
        try:
            text = (candidate / "pyproject.toml").read_text(encoding="utf-8")
            name = tomllib.loads(text).get("project", {}).get("name")
        except (OSError, tomllib.TOMLDecodeError):
            continue
        if name == PROJECT:
            return candidate
    return None


def chapter_header(chapter_source: Path | str) -> dict[str, Any]:
    """What stands under ``ktlib`` in the header of a chapter: its data sets, and what it uses."""
    import yaml  # belongs to the book

    lines = Path(chapter_source).read_text(encoding="utf-8").splitlines()
    if not lines or lines[0] != "# ---" or "# ---" not in lines[1:]:
        return {}
    block = lines[1 : lines.index("# ---", 1)]
    header = yaml.safe_load("\n".join(line.removeprefix("#").removeprefix(" ") for line in block))
    part = (header or {}).get("jupyter", {}).get("ktlib", {})
    return dict(part) if isinstance(part, dict) else {}


def code_files(chapter_source: Path | str) -> list[Path]:
    """The project's files that a chapter's numbers follow from, as its header names them.

    ``uses: [fcl]`` stands for the folders ``ktlib/fcl`` and ``experiments/fcl``; ``models/resnet``
    and ``ktlib/mtl`` name a module or folder more closely. To them come the modules of the data
    sets in ``data`` and :data:`MACHINERY`.

    Raises:
        ValueError: the header names something that is not there.
    """
    source = Path(chapter_source).resolve()
    root = project_root(source.parent)
    if root is None:
        return []
    header = chapter_header(source)
    try:
        found = {*part_files(root, header.get("uses", []))}
    except ValueError as error:
        raise ValueError(f"{source.name}: {error}") from None
    found.update(root / "data_prep" / f"{name}.py" for name in header.get("data", []))
    return sorted(file for file in found if file.is_file())


def part_files(root: Path, parts: Iterable[str]) -> list[Path]:
    """The files of parts of ktlib and experiments, and :data:`MACHINERY`.

    Args:
        root: the project.
        parts: as ``uses`` of :func:`code_files`.

    Raises:
        ValueError: there is no such part.
    """
    found = {root / name for name in MACHINERY}
    for name in parts:
        places = [folder / name for folder in (root, root / "ktlib", root / "experiments")]
        files = [place.with_suffix(".py") for place in places]
        modules = [file for place in places for file in place.rglob("*.py")]
        modules += [file for file in files if file.is_file()]
        if not modules:
            raise ValueError(f"`uses` must name parts of ktlib or experiments. Found {name!r}.")
        found.update(modules)
    return sorted(found)


@lru_cache
def parts_digest(parts: tuple[str, ...]) -> str:
    """SHA-256 of the code of parts of this project, without comments, docstrings and layout.

    :data:`NUMBERLESS_MODULES` do not count.
    """
    root = HERE.parents[1]
    files = [file for file in part_files(root, parts) if file.name not in NUMBERLESS_MODULES]
    return _digest(f"{file.relative_to(root).as_posix()}\n{_code(_text(file))}" for file in files)


def code_digest(chapter_source: Path | str) -> str:
    """SHA-256 of the code that a chapter's numbers follow from.

    That is: :func:`code_files` except :data:`NUMBERLESS_MODULES`, and the chapter's code cells
    except :data:`NUMBERLESS_TAGS`. Comments, docstrings and layout do not count.
    """
    cells = [c.source for c in code_cells(chapter_source) if NUMBERLESS_TAGS.isdisjoint(c.tags)]
    files = [f for f in code_files(chapter_source) if f.name not in NUMBERLESS_MODULES]
    return _digest([*map(_code, cells), *_named_texts(chapter_source, files, _code)])


def current_code_digest(chapter: str) -> str | None:
    """Digest of the chapter's code as it is now; None where chapter or tools are missing."""
    root = project_root()
    source = root / "chapters" / f"{chapter}.py" if root else None
    if source is None or not source.exists():
        return None
    try:
        return code_digest(source)
    except ImportError:  # YAML belongs to the book
        return None


def numbers_digest(chapter_source: Path | str, params_yaml: Path | str) -> str:
    """SHA-256 of what the numbers of a run follow from.

    That is: :func:`code_digest`, the parameters, and the chapter's records of searches. Not its
    records of profiles: parts are not computed again because they were merged into one.
    """
    import yaml  # belongs to the book

    values = {line.name: line.value for line in parameters_cell(chapter_source)}
    values |= yaml.safe_load(Path(params_yaml).read_text(encoding="utf-8")) or {}
    records = _committed_records(Path(chapter_source))
    searches = [_text(file) for file in records if file.name.split(".")[1] not in PROFILES]
    settings = json.dumps(values, sort_keys=True, default=str)
    return _digest([code_digest(chapter_source), settings, *searches])


def run_digest(
    chapter_source: Path | str,
    params_yaml: Path | str | None = None,
    extra_files: Iterable[Path | str] = (),
) -> str:
    """SHA-256 of everything that the outputs of an executed chapter follow from.

    That is: all code cells and :func:`code_files`, comments included (a chapter may print its
    source), what shows results (``experiments/run``), the parameter file, the committed records of
    the chapter, and ``extra_files``. Text cells do not count.

    Args:
        chapter_source: the chapter, in percent format.
        params_yaml: the parameter file of the run.
        extra_files: more files whose content counts; one that is missing counts as missing.
    """
    source = Path(chapter_source)
    cells = [_normalised(cell.source) for cell in code_cells(source)]
    root = project_root(source.resolve().parent)
    showing = sorted((root / "experiments" / "run").glob("*.py")) if root else []
    files = [params_yaml, *_committed_records(source), *showing, *extra_files]
    contents = [
        f"{Path(path).name.removesuffix('.gz')}\n{_text(Path(path))}"
        for path in files
        if path is not None
    ]
    named = _named_texts(source, code_files(source), _normalised)
    return _digest([*cells, *named, *contents])


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


def record_files(folder: Path, chapter: str = "**/*", profile: str = "*") -> list[Path]:
    """The records kept in ``results/``: ``<chapter>.<profile>.json``, with ``.gz`` if compressed.

    Args:
        folder: the folder ``results``.
        chapter: its name; by default the records of all.
        profile: its name; by default the records of all, and those of searches.
    """
    names = (f"{chapter}.{profile}.json{end}" for end in ("", ".gz"))
    return sorted(path for name in names for path in folder.glob(name))


def unpacked(path: Path) -> bytes:
    """The content of a file, of one that ends in ``.gz`` without the compression.

    Raises:
        OSError: it cannot be read.
        EOFError, zlib.error: the compressed file is cut off or damaged.
    """
    content = path.read_bytes()
    return gzip.decompress(content) if path.suffix == ".gz" else content


def _committed_records(chapter_source: Path) -> list[Path]:
    """Records of a chapter: chapters/a/b.py -> results/a/b.*.json."""
    root = project_root(chapter_source.parent)
    if root is None or not chapter_source.resolve().is_relative_to(root / "chapters"):
        return []
    name = chapter_source.resolve().relative_to(root / "chapters").with_suffix("")
    return record_files(root / "results", name.as_posix())


def _named_texts(
    chapter_source: Path | str, files: Iterable[Path], form: Callable[[str], str]
) -> list[str]:
    """Name and content of a chapter's code files, in the form given."""
    root = project_root(Path(chapter_source).resolve().parent)
    return [f"{file.relative_to(root or '/').as_posix()}\n{form(_text(file))}" for file in files]


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
        return _normalised(unpacked(path).decode("utf-8", errors="replace"))
    except FileNotFoundError:
        return "(missing)"


def _normalised(text: str) -> str:
    return "\n".join(line.rstrip() for line in text.splitlines()).strip()


def _code(source: str) -> str:
    """The syntax of a source, without docstrings; the text itself where it is not plain Python.

    ``ast.dump`` would do, but its output differs between versions of Python.
    """
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return _normalised(source)
    for node in ast.walk(tree):
        if isinstance(node, DOCUMENTED) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return repr(_shape(tree))


def _shape(node: Any) -> Any:
    if isinstance(node, ast.AST):
        fields = [(name, _shape(value)) for name, value in ast.iter_fields(node)]
        return (type(node).__name__, *[field for field in fields if field[1] not in (None, [])])
    return [_shape(part) for part in node] if isinstance(node, list) else node
