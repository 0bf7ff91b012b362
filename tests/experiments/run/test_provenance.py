"""Digests change with what matters and with nothing else."""

import ast
import gzip
import subprocess
import sys

import grimp
import pytest

import ktlib
from data_prep import data_root
from experiments.run import provenance
from experiments.run.results import committed_record, thesis_table
from tests.paths import ROOT

FILES = {
    "ktlib/toy/__init__.py": '"""A part."""\n',
    "ktlib/toy/maths.py": 'def double(x):\n    """Twice."""\n    return 2 * x  # exact\n',
    "ktlib/other/maths.py": "x = 0\n",
    "ktlib/seeding.py": "x = 0\n",
    "experiments/toy/report.py": "x = 0\n",
    "experiments/toy/claims.py": "x = 0\n",
    "experiments/toy/figures.py": "x = 0\n",
    "experiments/models/net.py": "x = 0\n",
    "experiments/models/big.py": "x = 0\n",
    "experiments/run/records.py": "x = 0\n",
    "experiments/run/plotting.py": "x = 0\n",
    "data_prep/pairs.py": "x = 0\n",
    "data_prep/celeba.py": "x = 0\n",
}


@pytest.fixture
def parts(project, chapter, rewrite):
    """The project with parts, of which the header of the chapter names some."""
    for name, text in FILES.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    used = "#   ktlib:\n#     data: [pairs]\n#     uses: [toy, models/net]\n# ---\n\n"
    rewrite(chapter, "# ---\n\n", used)
    return project


@pytest.fixture
def digests(parts, chapter):
    return lambda: (provenance.code_digest(chapter), provenance.run_digest(chapter))


def changes(digests, action):
    """Whether (code digest, run digest) change with an action."""
    before = digests()
    action()
    return tuple(old != new for old, new in zip(before, digests(), strict=True))


def test_files_behind_a_chapter(parts, chapter):
    found = {file.relative_to(parts).as_posix() for file in provenance.code_files(chapter)}
    unused = {"other/maths.py", "models/big.py", "plotting.py", "celeba.py"}
    assert found == {name for name in FILES if not name.endswith(tuple(unused))}


def test_part_that_is_not_there(parts, chapter, rewrite):
    rewrite(chapter, "uses: [toy,", "uses: [tyo,")
    with pytest.raises(ValueError, match="toy.py: `uses` must name.*Found 'tyo'"):
        provenance.code_files(chapter)


def test_nothing_changes_by_itself(digests):
    assert digests() == digests()


CODE_AND_RUN, RUN_ONLY, NOTHING = (True, True), (False, True), (False, False)


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        ("accuracy = noise_bound", "accuracy = 2 * noise_bound", CODE_AND_RUN),
        ("noise_draws = 2  #", "noise_draws = 3  #", RUN_ONLY),
        ("# draws per batch", "# draws for each batch", RUN_ONLY),
        ("print(accuracy)", "print(2 * accuracy)", RUN_ONLY),
        ("# Text.", "# Other text.", NOTHING),
        ("# # A toy chapter", "# # Another title", NOTHING),
        ('# %% tags=["figure"]', '# %% tags=["figure", "hide-input"]', NOTHING),
        ("noise_draws\n", "noise_draws  \n", NOTHING),
    ],
)
def test_change_in_the_chapter(chapter, rewrite, digests, old, new, expected):
    assert changes(digests, lambda: rewrite(chapter, old, new)) == expected


@pytest.mark.parametrize(
    ("name", "old", "new", "expected"),
    [
        ("ktlib/toy/maths.py", "2 * x", "3 * x", CODE_AND_RUN),
        ("ktlib/toy/maths.py", "# exact", "# rounded", RUN_ONLY),
        ("ktlib/toy/maths.py", "return 2 * x", "return (2 * x)", RUN_ONLY),
        ("ktlib/toy/maths.py", '"""Twice."""', '"""Two times."""', RUN_ONLY),
        ("ktlib/toy/maths.py", "\n", "\r\n", NOTHING),
        ("ktlib/toy/__init__.py", '"""A part."""', "x = 1", CODE_AND_RUN),
        ("ktlib/seeding.py", "0", "1", CODE_AND_RUN),
        ("ktlib/other/maths.py", "0", "1", NOTHING),
        ("experiments/toy/report.py", "0", "None", CODE_AND_RUN),
        ("experiments/toy/claims.py", "0", "1", RUN_ONLY),
        ("experiments/toy/figures.py", "0", "1", RUN_ONLY),
        ("experiments/models/net.py", "0", "1", CODE_AND_RUN),
        ("experiments/models/big.py", "0", "1", NOTHING),
        ("experiments/run/records.py", "0", "1", CODE_AND_RUN),
        ("experiments/run/plotting.py", "0", "1", RUN_ONLY),
        ("data_prep/pairs.py", "0", "1", CODE_AND_RUN),
        ("data_prep/celeba.py", "0", "1", NOTHING),
    ],
)
def test_change_in_a_part(parts, rewrite, digests, name, old, new, expected):
    assert changes(digests, lambda: rewrite(parts / name, old, new)) == expected


def test_moving_code_between_cells_counts(chapter, rewrite, digests):
    """The boundary of two parts is part of the digest."""
    action = lambda: rewrite(chapter, "\n# %% [markdown]\n# Text.\n\n# %%\n", "")  # noqa: E731
    assert changes(digests, action) == CODE_AND_RUN


def test_run_digest_follows_parameters_records_and_extra_files(project, chapter):
    def digest():
        return provenance.run_digest(chapter, project / "toy.yaml", [project / "extra.csv"])

    seen = {digest()}
    for name in ("toy.yaml", "extra.csv", "results/toy.full.json"):
        (project / name).write_text("1\n")
        seen.add(digest())
    assert len(seen) == 4
    (project / "results" / "other.full.json").write_text("1\n")
    assert digest() in seen
    (project / "results" / "toy.full.json").unlink()
    packed = project / "results" / "toy.full.json.gz"
    packed.write_bytes(gzip.compress(b"1\n"))
    assert digest() in seen  # the same record
    packed.write_bytes(gzip.compress(b"2\n"))
    assert digest() not in seen


def test_what_the_numbers_of_a_run_follow_from(parts, chapter, rewrite):
    """Code and parameters, also default values; not what a page would show, nor the records."""
    file = parts / "toy.yaml"
    file.write_text("noise_bound: 0.5\n")
    seen = {provenance.numbers_digest(chapter, file)}
    for path, old, new, counts in (
        (file, "0.5", "0.25", True),
        (file, "0.25", "0.25  # half", False),
        (chapter, "noise_draws = 2  # draws", "noise_draws = 3  # draws", True),
        (chapter, "noise_bound = 0.01", "noise_bound = 0.02", False),  # the file has another
        (chapter, "print(accuracy)", "print(2 * accuracy)", False),
        (parts / "ktlib/toy/maths.py", "2 * x", "3 * x", True),
        (parts / "ktlib/toy/maths.py", "# exact", "# rounded", False),
        (parts / "experiments/toy/claims.py", "0", "1", False),
    ):
        rewrite(path, old, new)
        assert (provenance.numbers_digest(chapter, file) not in seen) == counts
        seen.add(provenance.numbers_digest(chapter, file))
    (parts / "results" / "toy.full.json").write_text("1\n")
    assert provenance.numbers_digest(chapter, file) in seen
    (parts / "results" / "toy.search.json").write_text("1\n")  # a chapter takes settings from it
    assert provenance.numbers_digest(chapter, file) not in seen


def test_kept_trainings_outlive_a_change_of_claims(monkeypatch, parts, rewrite):
    monkeypatch.setattr(provenance, "HERE", parts / "experiments/run")
    found = []
    for name in ("claims", "figures", "report"):
        provenance.parts_digest.cache_clear()
        found.append(provenance.parts_digest(("toy",)))
        rewrite(parts / f"experiments/toy/{name}.py", "0", "1")
    provenance.parts_digest.cache_clear()
    assert found == [found[0]] * 3
    assert provenance.parts_digest(("toy",)) != found[0]
    provenance.parts_digest.cache_clear()


def test_records_of_a_chapter_in_a_folder(project, chapter):
    (project / "chapters" / "proofs").mkdir()
    proof = chapter.rename(project / "chapters" / "proofs" / "toy.py")
    before = provenance.run_digest(proof)
    (project / "results" / "toy.full.json").write_text("1\n")
    assert provenance.run_digest(proof) == before
    (project / "results" / "proofs").mkdir()
    (project / "results" / "proofs" / "toy.full.json").write_text("1\n")
    assert provenance.run_digest(proof) != before


def test_source_that_is_no_python_counts_whole():
    assert provenance._code("%magic  # kept\nx = '") == "%magic  # kept\nx = '"


@pytest.mark.parametrize("chapter", sorted(ROOT.glob("chapters/**/*.py")), ids=lambda p: p.stem)
def test_every_module_behind_a_chapter_is_named_in_its_header(chapter):
    """Except those that only fetch, read verified bytes, or show."""
    graph = grimp.build_graph(
        "ktlib", "experiments", cache_dir=None, exclude_type_checking_imports=True
    )
    waiting = {name for name in imports_of(chapter) if name in graph.modules}
    found = set()
    while waiting:
        name = waiting.pop()
        found.add(name)
        waiting |= graph.find_modules_directly_imported_by(name) - found
    named = {file.relative_to(ROOT).with_suffix("") for file in provenance.code_files(chapter)}
    named = {".".join(file.parts).removesuffix(".__init__") for file in named}
    empty = {"ktlib", "ktlib._moved", "experiments", "experiments.models"}
    assert not {n for n in found - named - empty if not n.startswith("experiments.run")}


def imports_of(chapter):
    for node in ast.walk(ast.parse(chapter.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


# Project, git, versions


def test_project_root_is_found_from_below(project):
    assert provenance.project_root(project / "toykit" / "deep") == project
    assert provenance.project_root() == project


def test_other_and_broken_projects_are_passed_by(project, monkeypatch):
    inner = project / "inner"
    inner.mkdir()
    for text in ('[project]\nname = "other"\n', "not toml ["):
        (inner / "pyproject.toml").write_text(text)
        assert provenance.project_root(inner) == project


def test_a_chapter_outside_the_project_finds_it(tmp_path, monkeypatch):
    """From any working folder: what the thesis prints, the records, the data, its own code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("KTLIB_DATA", raising=False)
    assert provenance.project_root() == ROOT
    assert not thesis_table("3_1").empty
    assert committed_record("ila", "full") is not None
    assert provenance.current_code_digest("fcl") is not None
    assert data_root() == ROOT / "data"


def test_outside_the_project(tmp_path):
    assert provenance.project_root(tmp_path) is None
    assert provenance.git_state(tmp_path) == (None, None)


def git(folder, *arguments):
    identity = ["-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false"]
    subprocess.run(["git", *identity, *arguments], cwd=folder, check=True, capture_output=True)


def test_state_of_git(project):
    assert provenance.git_state() == (None, None)  # no repository
    git(project, "init")
    assert provenance.git_state() == (None, None)  # no commit
    git(project, "add", ".")
    git(project, "commit", "-m", "first")
    commit, dirty = provenance.git_state()
    assert len(commit) == 40
    assert dirty is False
    (project / "results" / "toy.full.json").write_text("a new record")
    assert provenance.git_state() == (commit, False)
    (project / "toykit" / "new.py").write_text("x = 1")
    assert provenance.git_state() == (commit, True)


def test_machine_without_git(project, monkeypatch):
    monkeypatch.setenv("PATH", "")
    assert provenance.git_state() == (None, None)


def test_versions():
    versions = provenance.package_versions(("ktlib", "torch", "no-such-package"))
    assert versions["ktlib"] == ktlib.__version__
    assert set(versions) == {"ktlib", "torch"}


def test_peak_memory_is_counted_in_bytes():
    # This process has loaded Python: surely more than 10 MB, and less than a terabyte.
    assert 10**7 < provenance.peak_memory_bytes() < 10**12


def test_peak_memory_is_unknown_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setitem(sys.modules, "resource", None)
    assert provenance.peak_memory_bytes() is None
