"""A small project, built once in a folder with a strange name; each test changes a copy of it."""

import dataclasses
import shutil

import pytest

from tests.conftest import STRANGE


@pytest.fixture(scope="session")
def built_project(new_project):
    """The small project after its first build. Do not change it; take ``project``."""
    # Braces as well: Snakemake and papermill take them for fields to fill in.
    built = dataclasses.replace(new_project, root=new_project.root.with_name(STRANGE + "{3}"))
    shutil.copytree(new_project.root, built.root)
    done = built.build("book", "--profile", "smoke")
    assert done.returncode == 0, done.stdout
    return built


@pytest.fixture
def project(built_project, tmp_path):
    """A copy of the small project after its first build."""
    copy = dataclasses.replace(built_project, root=tmp_path / "project")
    shutil.copytree(built_project.root, copy.root)
    return copy
