"""Digests change with what matters and with nothing else."""

import subprocess
import sys

import pytest

import ktlib
from experiments.run import provenance


@pytest.fixture
def digests(chapter):
    return lambda: (provenance.code_digest(chapter), provenance.run_digest(chapter))


def changes(digests, action):
    """Whether (code digest, run digest) change with an action."""
    before = digests()
    action()
    return tuple(old != new for old, new in zip(before, digests(), strict=True))


def test_modules_behind_a_chapter(chapter):
    assert list(provenance.modules_used(chapter)) == [
        "toykit",
        "toykit.deep",
        "toykit.deep.maths",
        "toykit.deep.setup",
        "toykit.model",
        "toykit.shared",
    ]


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
        ("deep/maths.py", "2 * x", "3 * x", CODE_AND_RUN),
        ("deep/maths.py", "# exact", "# rounded", RUN_ONLY),
        ("deep/maths.py", '"""Twice."""', '"""Two times."""', RUN_ONLY),
        ("deep/maths.py", '"""Sums."""', '"""Sums.\n\nMore words.\n"""', RUN_ONLY),
        ("deep/maths.py", "\n", "\r\n", NOTHING),
        ("__init__.py", '"""A package."""', "x = 1", CODE_AND_RUN),
        ("unused.py", "", "x = 1", NOTHING),
    ],
)
def test_change_in_the_package(project, rewrite, digests, name, old, new, expected):
    assert changes(digests, lambda: rewrite(project / "toykit" / name, old, new)) == expected


@pytest.mark.parametrize("name", ["plots.py", "colours.py"])
def test_modules_that_change_no_number(project, chapter, rewrite, digests, name):
    rewrite(chapter, "accuracy = ", "from toykit import plots\naccuracy = ")
    module = project / "toykit" / name
    assert changes(digests, lambda: module.write_text("x = 1\n")) == RUN_ONLY


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
    assert provenance._without_comments("%magic  # kept\nx = '") == "%magic  # kept\nx = '"


def test_hash_sign_in_a_text_is_no_comment():
    assert provenance._without_comments('x = "#1"  # gone') == 'x = "#1"'


def test_real_modules_are_found():
    root = provenance.project_root(provenance.__file__)
    assert root is not None
    assert provenance._module_file("ktlib.seeding") == root / "ktlib" / "seeding.py"
    assert provenance._module_file("ktlib") == root / "ktlib" / "__init__.py"


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
