"""Check that the chapters stay readable and runnable: ``python -m workflow.check_chapters``.

Each check takes a chapter and returns one line per problem. CONTRIBUTING.md explains the rules.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import jupytext

from experiments.run.chapter_source import Cell, imported_names, parameter_model, parameters_cell
from experiments.run.parameters import ParameterError, check_parameter_file
from workflow.chapter_code import OWN, Chapter, names_of_project, names_set, names_used
from workflow.project import ROOT, chapter_source, chapters

MEDIAN_LINES = 6
MOST_LINES = 25
HIDING_TAGS = {"hide-input", "hide-cell", "remove-input", "remove-cell"}
HIDDEN_FOR = {"figure", "table", "installation", "parameters"}  # cells that a reader may skip
HIDDEN_SHARE = 0.25  # of the code cells, figures aside
# The modules that show results; a hidden cell uses no other, so that no method is hidden. A part's
# own tables, figures and claims are in its modules `report`, `figures` and `claims`.
SHOWING = {"experiments.run.plotting", "experiments.run.results", "experiments.run.claims"}
SHOWING_PARTS = (".report", ".figures", ".claims")
# A heading for each part of a chapter, in this order.
PARTS = {
    "problem": r"problem",
    "pilot study": r"pilot",
    "method": r"method",
    "limits": r"where .* (stop|end)s|limits",
    "exercises": r"exercises",
    "summary": r"summary",
    "further reading": r"further reading",
}
OPENING = ("The question", "After this chapter you can", "Before you start", "Time to run")
# A page of evidence teaches nothing: it says what was asked and found, and what it cannot say.
EVIDENCE_PARTS = {"protocol": r"protocol", "claims": r"claims", "limits": PARTS["limits"]}
EVIDENCE_OPENING = ("The question", "How to read it", "Time to run")


def parameters(chapter: Chapter) -> list[str]:
    """The first code cell holds the parameters, the next one checks them, and the names agree."""
    try:
        lines = parameters_cell(chapter.path)
        model = parameter_model(chapter.path)
        fields = set(model.model_fields)
    except (ValueError, ImportError, AttributeError) as error:
        return [str(error)]
    problems = []
    if "parameters" not in chapter.code[0].tags:
        problems.append("the first code cell must be the one tagged 'parameters'")
    if "check_parameters(" not in chapter.code[1].source:
        problems.append("the cell after the parameters cell must call check_parameters")
    names = [line.name for line in lines]
    problems += [f"parameter `{name}` is set twice" for name in names if names.count(name) > 1]
    problems += [f"parameter `{line.name}` has no comment" for line in lines if not line.comment]
    problems += [f"parameter `{name}` is not a field of the model" for name in set(names) - fields]
    problems += [
        f"field `{name}` of the model is not set" for name in fields - {*names, *model.reference}
    ]
    return sorted(problems)


def parameter_files(chapter: Chapter) -> list[str]:
    """The default values and those of every profile are allowed."""
    root = chapter.path.parents[1] if chapter.is_proof else chapter.path.parent
    # chapters/proofs/fcl.py has its values in chapters/params/proofs/
    folder = root / "params" / chapter.path.parent.relative_to(root)
    files = sorted(folder.glob(f"{chapter.path.stem}.*.yaml"))
    if not files:
        where = folder.relative_to(root).as_posix()
        return [f"there is no parameter file {chapter.path.stem}.<profile>.yaml in {where}/"]
    problems = []
    for path in files:
        try:
            check_parameter_file(chapter.path, path)
        except (ParameterError, ValueError) as error:
            problems.append(f"{path.name}: {error}")
    return problems


def _shows(module: str, name: str | None) -> bool:
    whole = f"{module}.{name}"  # the module itself, in `from experiments.fcl import figures`
    return module in SHOWING or module.endswith(SHOWING_PARTS) or whole.endswith(SHOWING_PARTS)


def cell_sizes(chapter: Chapter) -> list[str]:
    """Code cells are short; longer code belongs in a module."""
    sizes = {
        cell.number: sum(bool(line.strip()) for line in cell.source.splitlines())
        for cell in chapter.code
        if "parameters" not in cell.tags  # a table, one line per parameter
    }
    problems = [
        f"cell {number} has {size} lines, allowed are {MOST_LINES}"
        for number, size in sizes.items()
        if size > MOST_LINES
    ]
    visible = [
        sizes[cell.number] for cell in chapter.code if cell.number in sizes and not hides(cell)
    ]
    if visible and statistics.median(visible) > MEDIAN_LINES and not chapter.is_evidence:
        median = statistics.median(visible)
        problems.append(
            f"the median of visible cells is {median:g} lines, allowed are {MEDIAN_LINES}"
        )
    return problems


def hides(cell: Cell) -> bool:
    """Whether a reader sees the code of the cell only after a click, or never."""
    return not HIDING_TAGS.isdisjoint(cell.tags)


def hidden_cells(chapter: Chapter) -> list[str]:
    """Few cells are hidden, and only those that draw, lay out a table or install."""
    hidden = [cell for cell in chapter.code if hides(cell)]
    problems = [
        f"cell {cell.number} is hidden and not tagged one of {sorted(HIDDEN_FOR)}"
        for cell in hidden
        if HIDDEN_FOR.isdisjoint(cell.tags)
    ]
    methods = {
        name: module
        for module, name in imported_names(chapter.path)
        if module.partition(".")[0] in OWN and not _shows(module, name)
    }
    for cell in hidden:
        used = sorted(names_used(cell.source) & set(methods))
        problems += [f"cell {cell.number} is hidden and uses `{n}` of {methods[n]}" for n in used]
    folded = [cell for cell in hidden if "figure" not in cell.tags]
    if len(folded) > HIDDEN_SHARE * len(chapter.code) and not chapter.is_evidence:
        problems.append(
            f"{len(folded)} of {len(chapter.code)} code cells are hidden and no figure, "
            f"allowed are {HIDDEN_SHARE:.0%}"
        )
    return problems


def figure_cells(chapter: Chapter) -> list[str]:
    """Each figure has a name, a caption and alt text; no other code depends on it."""
    problems = []
    names: list[str] = []
    for number, cell in enumerate(chapter.notebook.cells, start=1):
        if cell.cell_type != "code" or "figure" not in cell.metadata.get("tags", []):
            continue
        settings = cell.metadata.get("mystnb", {})
        figure, image = settings.get("figure", {}), settings.get("image", {})
        texts = {
            "name": figure.get("name"),
            "caption": figure.get("caption"),
            "alt": image.get("alt"),
        }
        problems += [
            f"figure in cell {number} has no {key}" for key, text in texts.items() if not text
        ]
        if figure.get("name") in names:
            problems.append(f"figure in cell {number} has the name of another: {figure['name']}")
        names.append(figure.get("name"))
    return problems + _leaks(chapter)


def _leaks(chapter: Chapter) -> list[str]:
    """Figures are not part of a record's digest, so other code must not use names they set."""
    problems = []
    from_figures: dict[str, int] = {}
    for cell in chapter.code:
        stored = names_set(cell.source)
        if "figure" in cell.tags:
            from_figures |= dict.fromkeys(stored, cell.number)
            continue
        used = names_used(cell.source) & set(from_figures) - stored
        problems += [
            f"cell {cell.number} uses `{name}`, set in the figure of cell {from_figures[name]}"
            for name in sorted(used)
        ]
        from_figures = {name: n for name, n in from_figures.items() if name not in stored}
    return problems


def anatomy(chapter: Chapter) -> list[str]:
    """A chapter has an opening and all its parts, in order."""
    if chapter.is_proof:
        return []
    opening, parts = (EVIDENCE_OPENING, EVIDENCE_PARTS) if chapter.is_evidence else (OPENING, PARTS)
    problems = [f"the opening has no `{words}`" for words in opening if words not in chapter.text]
    prose = re.sub(r"^(`{3,}|:{3,}).*?^\1", "", chapter.text, flags=re.MULTILINE | re.DOTALL)
    titles = [line for line in prose.splitlines() if line.startswith("# ")]
    if len(titles) != 1:
        problems.append(f"there must be one title (`# ...`), there are {len(titles)}")
    headings = [line[3:] for line in prose.splitlines() if line.startswith("## ")]
    last = -1
    for part, pattern in parts.items():
        places = [i for i, line in enumerate(headings) if re.search(pattern, line, re.IGNORECASE)]
        if not places:
            problems.append(f"there is no heading for the part '{part}'")
        elif places[-1] < last:
            problems.append(f"the part '{part}' comes before the part that it should follow")
        else:
            last = next(i for i in places if i >= last)
    return problems


def exercises(chapter: Chapter) -> list[str]:
    """Every exercise has a solution."""
    asked = re.findall(r"\{exercise\}.*\n(?::.*\n)*?:label: (\S+)", chapter.text)
    answered = set(re.findall(r"\{solution(?:-start)?\} (\S+)", chapter.text))
    return [f"exercise `{label}` has no solution" for label in asked if label not in answered]


def clean_text(chapter: Chapter) -> list[str]:
    """The file is as Jupytext writes it, so that editing it as a notebook changes nothing else."""
    problems = [
        f"cell {number}: the metadata behind `# %%` cannot be parsed"
        for number, cell in enumerate(chapter.notebook.cells, start=1)
        if "incorrectly_encoded_metadata" in cell.metadata
    ]
    written = jupytext.writes(chapter.notebook, fmt="py:percent")
    if _body(written) != _body(chapter.path.read_text(encoding="utf-8")):
        problems.append("Jupytext formats it differently: run `jupytext --to py:percent` on it")
    return problems


def _body(source: str) -> str:
    """The cells, without the header that names versions."""
    return source[source.index("# %%") :].strip() if "# %%" in source else source


CHECKS: tuple[Callable[[Chapter], list[str]], ...] = (
    parameters,
    parameter_files,
    cell_sizes,
    hidden_cells,
    figure_cells,
    names_of_project,
    anatomy,
    exercises,
    clean_text,
)


def notebooks_in_git(root: Path = ROOT) -> list[str]:
    """Notebook files that git tracks or would add: chapters are kept as text only."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.ipynb"],
        cwd=root,
        capture_output=True,
        text=True,
        check=False,  # outside of git nothing is tracked
    )
    return listed.stdout.splitlines()


def main() -> int:
    """Print what is wrong; the exit status says whether anything is."""
    problems = [f"{name}: notebooks are not kept in git" for name in notebooks_in_git()]
    names = chapters()
    for name in names:
        chapter = Chapter(chapter_source(name))
        problems += [f"chapters/{name}.py: {line}" for check in CHECKS for line in check(chapter)]
    print("\n".join(problems) or f"{len(names)} chapter(s), no problems")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
