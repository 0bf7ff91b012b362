"""The checks over chapters find what they are there for."""

import subprocess

import pytest

from workflow import check_chapters
from workflow.check_chapters import CHECKS, Chapter

SOUND = """\
# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # A chapter
#
# **The question.** Why?
# **After this chapter you can** say so. **Before you start**, rest. **Time to run.** None.

# %% tags=["parameters"]
seeds = [0]  # repetitions
device = "cpu"  # where
precision = "auto"  # how
profile = "cpu"  # name
run_dir = ""  # folder

# %%
from experiments.run.parameters import ChapterParameters, check_parameters

P = check_parameters(globals(), ChapterParameters)

# %% [markdown]
# ## The problem
# ## A pilot study

# %%
from ktlib import seeding
from experiments.run.plotting import style_for
from ktlib.seeding import generator

stream = generator(P.seeds[0], "toy")
other = seeding.generator(0)

# %% [markdown]
# ## The method

# %% tags=["hide-input", "figure"] mystnb={"image": {"alt": "A line."}, "figure": {"name": "fig-a", "caption": "A line."}}
height = 3
print(style_for("f2m"), stream)

# %%
rows = [row for row in range(3)]


def area(height):
    return 2 * height


# %% [markdown]
# ## Where it stops
# ## Exercises
#
# ```{exercise} One
# :label: ex-one
#
# ## no heading
# ```
#
# ```{solution} ex-one
# Yes.
# ```
#
# ## Summary
# ## Further reading
"""  # noqa: E501 - the metadata of a cell stand in one line


@pytest.fixture
def problems(tmp_path):
    """Replace a text of the sound chapter and check it."""

    def check(old="", new="", values="seeds: [1]\n"):
        assert old in SOUND
        path = tmp_path / "toy.py"
        path.write_text(SOUND.replace(old, new, 1) if old else SOUND)
        (tmp_path / "params").mkdir(exist_ok=True)
        (tmp_path / "params" / "toy.cpu.yaml").write_text(values)
        return [line for check in CHECKS for line in check(Chapter(path))]

    return check


def test_a_sound_chapter_has_no_problems(problems):
    assert problems() == []


LONG = "\n".join(f"x{i} = {i}" for i in range(26))


@pytest.mark.parametrize(
    ("old", "new", "expected"),
    [
        # parameters
        ('tags=["parameters"]', 'tags=["other"]', "tagged 'parameters'. Found 0"),
        ("seeds = [0]", "seeds = list()", "`seeds = list()`"),
        ("  # folder", "", "`run_dir` has no comment"),
        ("profile =", "profiles =", "`profiles` is not a field"),
        ("profile =", "profiles =", "field `profile`"),
        ('run_dir = ""', 'device = ""', "`device` is set twice"),
        ("# # A chapter\n", "# # A chapter\n\n# %%\nx = 1\n\n# %% [markdown]\n", "first code cell"),
        ("# %%\nfrom exp", "# %%\nx = 1\n\n# %%\nfrom exp", "must call check_parameters"),
        ("check_parameters(globals(), ChapterParameters)", "None", "must call `check_parameters"),
        # parameter files
        ('device = "cpu"', 'device = "tpu"', "`device` = 'tpu'"),
        # sizes
        ("height = 3", LONG, "has 27 lines, allowed are 25"),
        ("height = 3", "\n".join([*LONG.split("\n")[:23], "", ""]), None),
        # hidden cells
        ('["hide-input", "figure"]', '["hide-input"]', "hidden and not tagged"),
        ('["hide-input", "figure"]', '["remove-cell"]', "hidden and not tagged"),
        ('["hide-input", "figure"]', '["hide-input", "table"]', None),
        ("height = 3", "generator(0)", "uses `generator` of ktlib.seeding"),
        # figures
        ('{"alt": "A line."}', "{}", "has no alt"),
        ('"caption": "A line."', '"x": ""', "has no caption"),
        ('"name": "fig-a"', '"x": ""', "has no name"),
        ("return 2 * height", "return width", None),
        ("    return 2 * height", "    return 2\n\n\nheight + 1", "uses `height`"),
        ("def area(height)", "def area(x)", "uses `height`"),
        ("rows = [", "height = 4\narea = height\nrows = [", None),
        # names
        ("import generator", "import generators", "`generators` is not a public name"),
        ("import generator", "import generator, _stream_seed", "`_stream_seed` is not"),
        ("from ktlib.seeding", "from ktlib.seeds", "public name of ktlib.seeds"),
        ("seeding.generator(0)", "seeding.generate(0)", "`generate` is not a public name"),
        ("def area", "def generator", "`generator` is imported"),
        # anatomy
        ("# # A chapter", "# # A chapter\n#\n# # Another", "there are 2"),
        ("**Before you start**", "Now", "`Before you start`"),
        ("# ## Summary\n", "", "'summary'"),
        ("problem\n# ## A pilot study", "pilot study\n# ## A problem", "comes before"),
        ("```{solution} ex-one", "```{solution} ex-two", "`ex-one` has no solution"),
        # text
        ('["hide-input", "figure"]', "['hide-input', 'figure']", "jupytext --to py:percent"),
        ('["hide-input", "figure"]', '["hide-input", "figure"', "cannot be parsed"),
    ],
)  # fmt: skip
def test_each_fault_is_found(problems, old, new, expected):
    found = problems(old, new)
    if expected is None:
        assert found == []
    else:
        assert any(expected in line for line in found), found


@pytest.mark.parametrize(
    ("values", "expected"),
    [("seed: 3\n", "toy.cpu.yaml"), ("seeds: 3\n", "`seeds` = 3"), ("", None)],
)
def test_values_of_a_profile(problems, values, expected):
    found = problems(values=values)
    assert found == [] if expected is None else any(expected in line for line in found)


def test_a_chapter_without_profiles(tmp_path):
    path = tmp_path / "toy.py"
    path.write_text(SOUND)
    assert check_chapters.parameter_files(Chapter(path)) == [
        "there is no parameter file toy.<profile>.yaml in params/"
    ]


def test_median_of_visible_cells(problems):
    ten = "\n".join(f"y{i} = {i}" for i in range(10))
    cells = "".join(f"\n# %%\n{ten}\n" for _ in range(8))
    found = problems(
        "# %% [markdown]\n# ## Where it stops", f"{cells}\n# %% [markdown]\n# ## Where it stops"
    )
    assert "the median of visible cells is 10 lines, allowed are 6" in found


def test_share_of_hidden_cells(problems):
    hidden = "".join('\n# %% tags=["hide-input", "table"]\nprint(1)\n' for _ in range(3))
    found = problems(
        "# %% [markdown]\n# ## The method", f"{hidden}\n# %% [markdown]\n# ## The method"
    )
    assert found == ["3 of 8 code cells are hidden and no figure, allowed are 25%"]


def test_two_figures_of_one_name(problems):
    figure = SOUND[SOUND.index('# %% tags=["hide-input"') : SOUND.index("# %%\nrows")]
    found = problems("# %%\nrows", figure + "# %%\nrows")
    assert any("has the name of another: fig-a" in line for line in found)


def test_a_proof_has_another_anatomy(tmp_path):
    path = tmp_path / "proofs" / "toy.py"
    path.parent.mkdir()
    path.write_text(SOUND.replace("# ## Summary\n", ""))
    assert check_chapters.anatomy(Chapter(path)) == []


def test_notebooks_are_found_before_they_are_committed(tmp_path):
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    (tmp_path / ".gitignore").write_text("ignored.ipynb\n")
    for name in ("a.ipynb", "ignored.ipynb", "b.py"):
        (tmp_path / name).write_text("")
    assert check_chapters.notebooks_in_git(tmp_path) == ["a.ipynb"]


def test_command_prints_all_problems(tmp_path, monkeypatch, capsys):
    (tmp_path / "toy.py").write_text(SOUND.replace("# ## Summary\n", "").replace("  # how", ""))
    monkeypatch.setattr(check_chapters, "chapters", lambda: ["toy"])
    monkeypatch.setattr(check_chapters, "chapter_source", lambda name: tmp_path / f"{name}.py")
    assert check_chapters.main() == 1
    printed = capsys.readouterr().out
    assert "chapters/toy.py: parameter `precision` has no comment" in printed
    assert "chapters/toy.py: there is no heading for the part 'summary'" in printed


def test_command_is_content_with_sound_chapters(monkeypatch, capsys):
    monkeypatch.setattr(check_chapters, "chapters", list)
    monkeypatch.setattr(check_chapters, "notebooks_in_git", list)
    assert check_chapters.main() == 0
    assert capsys.readouterr().out == "0 chapter(s), no problems\n"
