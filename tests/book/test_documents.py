"""What the documents say exists, works and agrees."""

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

import ktlib
from experiments.run.results import load_record, record_files
from tests.paths import ROOT

NAMES = ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "ARCHITECTURE.md")
DOCUMENTS = [ROOT / name for name in NAMES]
PAGES = [*sorted((ROOT / "book").glob("*.md")), *sorted((ROOT / "book" / "api").glob("*.md"))]


def blocks(path, language):
    """The code blocks of a document, also those in lists."""
    text = path.read_text(encoding="utf-8")
    return re.findall(rf"^ *```{language}\n(.*?)^ *```", text, re.DOTALL | re.MULTILINE)


def code(path, language):
    """All code of a document."""
    return "\n".join(blocks(path, language))


def commands(path, word):
    """Lines of shell code that start with a word, and such code within a line."""
    inline = re.findall(rf"`({word} [^`]*)`", path.read_text(encoding="utf-8").replace("\n", " "))
    lines = [line.split("#")[0].strip() for line in code(path, "bash").splitlines()]
    return [line for line in lines if line.startswith(f"{word} ")] + inline


def make_targets():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z]+):", makefile, re.MULTILINE))


@pytest.mark.parametrize("path", [*DOCUMENTS, *PAGES], ids=lambda path: path.name)
def test_make_targets_exist(path):
    named = {
        word
        for command in commands(path, "make")
        for word in command.split()[1:]
        if re.fullmatch("[a-z]+", word)
    }
    assert named <= make_targets()


def test_the_two_commands_come_first():
    block = code(ROOT / "README.md", "bash").splitlines()
    assert [line.split("#")[0].strip() for line in block[:2]] == ["make book", "make test"]
    assert {"book", "test"} <= make_targets()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_to_files(path):
    text = re.sub(
        r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE
    )
    links = re.findall(r"\]\(([^)#]+)\)", text)
    missing = [link for link in links if "://" not in link and not (path.parent / link).exists()]
    assert missing == []


GENERATED = {".venv/", "data/", "runs/", "notebooks/", "book/_build/"}


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_paths_exist(path):
    text = path.read_text(encoding="utf-8")
    named = set(re.findall(r"`([\w.-]+(?:/[\w.-]+)*/)`", text))
    named |= set(re.findall(r"`([\w-]+(?:/[\w.-]+)+\.(?:py|md|yml|json|toml))`", text))
    assert {name for name in named - GENERATED if not (ROOT / name).exists()} == set()


@pytest.mark.parametrize("path", DOCUMENTS[:2], ids=lambda path: path.name)
def test_modules_that_are_run_exist(path):
    text = path.read_text(encoding="utf-8")
    modules = set(re.findall(r"python -m ((?:data_prep|workflow)\.\w+)", text))
    assert modules
    assert {m for m in modules if not (ROOT / f"{m.replace('.', '/')}.py").exists()} == set()


def test_names_and_versions_agree():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert project["dynamic"] == ["version"]  # it stands in ktlib/__init__.py
    assert project["name"] == ktlib.DISTRIBUTION
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == ktlib.__version__
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(r"^## \[(\d.*?)\]", changes, re.MULTILINE)[1] == ktlib.__version__


def test_hooks_come_from_the_project_alone():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert [repository["repo"] for repository in config["repos"]] == ["local"]
    for hook in config["repos"][0]["hooks"]:
        program = hook["entry"].split()[0]
        assert program.startswith(".venv/bin/")


def test_every_exception_from_a_rule_has_its_reason():
    """In the lists of pyproject.toml that switch something off."""
    text = Path(ROOT / "pyproject.toml").read_text(encoding="utf-8")
    start, end = text.index("\nignore = ["), text.index("[tool.ruff.lint.pydocstyle]")
    rules = [line for line in text[start:end].splitlines() if re.match(r'\s*"[A-Z]+\d*"', line)]
    assert rules
    assert [line for line in rules if "#" not in line] == []


def test_times_are_those_that_were_measured():
    """Everywhere the same: of a first build, of each chapter in it, of the long runs."""
    build = json.loads((ROOT / "results" / "build.json").read_text(encoding="utf-8"))
    assert (build["profile"], build["cores"]) == ("cpu", 2)
    pages = [" ".join((ROOT / name).read_text(encoding="utf-8").split()) for name in TIMES]
    for page, (first, row) in zip(pages, TIMES.values(), strict=True):
        assert int(re.search(first, page)[1]) == round(build["seconds"] / 60)
        longest = {
            "cpu": max(build["chapters"].values()),
            "full": max(
                run.wall_seconds
                for path in record_files(ROOT / "results")
                for record in [load_record(path)]
                if record.profile == "full"
                for run in record.parts or [record]
            ),
        }
        for profile, seconds in longest.items():
            told = int(re.search(row.format(profile=profile), page)[1])
            assert seconds / 60 <= told <= 1.3 * seconds / 60 + 1, profile
    for chapter, seconds in build["chapters"].items():
        text = (ROOT / "chapters" / f"{chapter}.py").read_text(encoding="utf-8")
        told = re.search(r"\*\*Time to run\.\*\* About (\d+) minutes? on two CPU cores", text)
        assert told is not None, chapter
        assert abs(int(told[1]) - seconds / 60) <= 1, chapter


# The sentence on a first build, and the row of a profile
TIMES = {
    "README.md": (
        r"first `make book` takes about (\d+) minutes on two cores",
        r"\| `{profile}` \| [^|]* \| up to (\d+) minutes on 2 cores",
    ),
    "book/rerun.md": (
        r"make book # what you are reading: (\d+) minutes on two cores",
        r"\| `{profile}` \| [^|]* \| up to (\d+) minutes on 2 CPU cores",
    ),
}


@pytest.mark.parametrize(
    ("name", "mistakes"),
    [
        ("book/chapters/fcl.ipynb", 0),
        ("book/_build/html/fcl.html", 0),
        ("book/_generated/claims.md", 0),
        ("chapters/fcl.py", 1),
        ("book/rerun.md", 1),
    ],
)
def test_spelling_is_checked_where_people_write(name, mistakes, tmp_path):
    file = tmp_path / name
    file.parent.mkdir(parents=True)
    file.write_text("rec" + "ieve\n")
    command = [sys.executable, "-m", "codespell_lib", "--toml", str(ROOT / "pyproject.toml"), "."]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.stdout.count("==>") == mistakes, done.stdout + done.stderr
