"""A small project, built once in a folder with a strange name; each test changes a copy of it."""

import dataclasses
import shutil

import pytest

from tests.conftest import STRANGE, Project, copy_mini, once


@pytest.fixture(scope="session")
def built_project(tmp_path_factory):
    """The small project after its first build. Do not change it; take ``project``."""
    # Braces as well: Snakemake and papermill take them for fields to fill in.
    name = STRANGE + "{3}"

    def make(folder):
        project = Project(folder / name, folder / "data" / STRANGE)
        copy_mini(project.root)
        done = project.build("book", "--profile", "smoke")
        assert done.returncode == 0, done.stdout

    folder = once(tmp_path_factory, "built", make)
    return Project(folder / name, folder / "data" / STRANGE)


@pytest.fixture
def project(built_project, tmp_path):
    """A copy of the small project after its first build."""
    copy = dataclasses.replace(built_project, root=tmp_path / "project")
    shutil.copytree(built_project.root, copy.root)
    return copy
