"""The whole book at the smoke size: its files, its links, and a second build."""

import json
import re
import subprocess
import sys
import time
from urllib.parse import unquote, urlsplit

import cloudpickle
import joblib
import matplotlib.pyplot as plt
import nbformat
import pytest
import torch
import yaml
from bs4 import BeautifulSoup

from experiments.run import parallel
from experiments.run.committed import recheck
from experiments.run.results import load_record
from tests.chapters import execute
from workflow.project import ROOT, chapters
from workflow.run_chapter import kernel_environment

pytestmark = pytest.mark.slow
CHAPTERS = chapters()
# What pandas draws at random for a styled table: its name, and its place in memory
RANDOM_NAMES = """
[name]
regex: T_[0-9a-f]{5}
replace: T

[place]
regex: Styler at 0x[0-9a-f]+
replace: Styler
"""


@pytest.fixture(scope="session")
def parsed(smoke_book):
    """Every page of the book: path -> parsed HTML."""
    pages = [page for page in smoke_book.html.rglob("*.html") if "_static" not in page.parts]
    return {page: BeautifulSoup(page.read_text(encoding="utf-8"), "html.parser") for page in pages}


def test_build_ends_with_the_path_of_the_book(smoke_build):
    project, output = smoke_build
    assert output.strip().splitlines()[-1].endswith(str(project.html / "index.html"))
    for chapter in CHAPTERS:
        assert f"Finished chapter {chapter} (profile smoke)" in output


def test_second_build_executes_nothing_and_is_quick(smoke_book):
    started = time.monotonic()
    done = smoke_book.build("book", "--profile", "smoke")
    assert time.monotonic() - started <= 15
    assert done.returncode == 0, done.stdout
    assert "Nothing has changed since the last build." in done.stdout
    assert "Running chapter" not in done.stdout


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_run_folder_is_complete(smoke_book, chapter):
    folder = smoke_book.root / "runs" / chapter / "smoke" / "main"
    record = load_record(folder)
    assert (record.chapter, record.profile) == (chapter, "smoke")
    assert record.tables
    assert {path.name for path in (folder / "figures").iterdir()} == set(record.figures)
    outputs = [
        output
        for cell in nbformat.read(folder / "executed.ipynb", as_version=4).cells
        if cell.cell_type == "code"
        for output in cell.outputs
    ]
    assert not [output for output in outputs if output.output_type == "error"]
    assert not list(smoke_book.root.rglob("*.partial-*"))


@pytest.fixture
def one_thread():
    """As many as the chapters of the smoke build have; last digits depend on it."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("chapter", CHAPTERS)
@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.usefixtures("one_thread")
def test_code_gives_the_same_record_again(smoke_book, chapter, monkeypatch, tmp_path, data_folder):
    """Without the cache; what is handed to other processes and back survives the way."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setenv("KTLIB_DATA", str(data_folder))
    monkeypatch.setenv(parallel.VARIABLE, "1")  # a worker sets it, here in this process
    monkeypatch.setattr(parallel, "workers", lambda: 2)
    monkeypatch.setattr(parallel, "_in_worker", there_and_back(parallel._in_worker))
    folder = smoke_book.root / "runs" / chapter / "smoke" / "main"
    values = yaml.safe_load((folder / "parameters.yaml").read_text(encoding="utf-8"))
    with joblib.parallel_config(backend="sequential"):
        execute(chapter, values | {"run_dir": str(tmp_path / "again")})
    plt.close("all")
    first, second = load_record(folder), load_record(tmp_path / "again")
    assert not second.from_cache
    assert recheck(first, second).rechecked.largest_difference == 0


def there_and_back(function):
    """The same on copies of what is given, and with a copy of what is returned."""

    def copied(*arguments):
        return copy(function(*map(copy, arguments)))

    def copy(thing):
        return cloudpickle.loads(cloudpickle.dumps(thing))

    return copied


@pytest.mark.parametrize("chapter", ["fcl", "proofs/recon"])
def test_executed_notebook_gives_the_same_outputs_again(smoke_book, chapter, tmp_path):
    executed = smoke_book.root / "runs" / chapter / "smoke" / "main" / "executed.ipynb"
    text = executed.read_text(encoding="utf-8")
    again = smoke_book.root / f"again-{chapter.replace('/', '-')}.ipynb"
    elsewhere = re.sub(r'run_dir = \\"runs/[^"]*\\"', rf'run_dir = \\"{again.stem}\\"', text)
    assert elsewhere != text
    again.write_text(elsewhere)
    rules = tmp_path / "rules.cfg"
    rules.write_text(RANDOM_NAMES)
    options = ["--nbval", "--nbval-current-env", "--nbval-sanitize-with", str(rules)]
    quiet = ["-p", "no:cacheprovider", "-p", "no:xdist", "-c", "/dev/null", "-q", "--tb=short"]
    command = [sys.executable, "-m", "pytest", *options, *quiet, again.name]
    # Threads as in the Snakefile. Two workers in place of one, and trainings that are done in place
    # of those that were kept, must not change what is shown.
    other = {"KTLIB_WORKERS": "2", "KTLIB_CACHE": ""}
    done = smoke_book.run(*command, **kernel_environment(threads=1, workers=1) | other)
    assert done.returncode == 0, done.stdout[-6000:]


def test_links_inside_the_book_lead_somewhere(parsed):
    anchors = {
        page: {tag["id"] for tag in soup.find_all(id=True)}
        | {tag["name"] for tag in soup.find_all("a", attrs={"name": True})}
        for page, soup in parsed.items()
    }
    broken = []
    for page, soup in parsed.items():
        for attribute in ("href", "src"):
            for tag in soup.find_all(attrs={attribute: True}):
                address = urlsplit(tag[attribute])
                if address.scheme or address.netloc:
                    continue
                target = (page.parent / unquote(address.path)).resolve() if address.path else page
                fragment = unquote(address.fragment)
                known = anchors.get(target)
                if not target.exists() or (
                    fragment and known is not None and fragment not in known
                ):
                    broken.append(f"{page.name}: {tag[attribute]}")
    assert broken == []


def test_pages_load_nothing_from_elsewhere(parsed):
    loading = {"script": "src", "img": "src", "link": "href", "iframe": "src", "source": "src"}
    outside = [
        f"{page.name}: {tag}"
        for page, soup in parsed.items()
        for name, attribute in loading.items()
        for tag in soup.find_all(name, attrs={attribute: True})
        if urlsplit(tag[attribute]).netloc and "canonical" not in tag.get("rel", [])
    ]
    assert outside == []
    assert not [page.name for page, soup in parsed.items() if "unpkg.com" in str(soup)]


def test_pages_show_no_error_and_no_machine_path(parsed, smoke_book):
    for page, soup in parsed.items():
        text = soup.get_text()
        assert "Traceback (most recent call last)" not in text, page.name
        assert str(smoke_book.root) not in text, page.name
        assert str(ROOT) not in text, page.name
        assert not soup.select(".cell_output .traceback, .problematic, .system-message"), page.name


def test_execution_page_tells_the_runs(smoke_book):
    text = smoke_book.page("execution")
    for chapter in CHAPTERS:
        record = load_record(smoke_book.root / "runs" / chapter / "smoke" / "main")
        for fact in (record.hardware, record.python, record.packages["torch"], record.profile):
            assert fact in text


def test_parameters_page_lists_every_parameter(smoke_book):
    text = smoke_book.page("parameters")
    for chapter in CHAPTERS:
        record = load_record(smoke_book.root / "runs" / chapter / "smoke" / "main")
        assert [name for name in record.parameters if name not in text] == []


def test_claims_page_lists_every_claim(smoke_book):
    def words(text):  # the page has other quotation marks and dashes
        return " ".join(re.findall(r"\w+", text))

    text = words(smoke_book.page("claims"))
    runs = [smoke_book.root / "runs" / chapter / "smoke" / "main" for chapter in CHAPTERS]
    rows = [row for run in runs for row in load_record(run).tables.get("claims", [])]
    assert [row["claim"] for row in rows if words(row["claim"]) not in text] == []
    assert rows or "No run has noted a claim yet" in text


@pytest.mark.parametrize("chapter", CHAPTERS)
def test_offered_notebook_is_whole_and_clean(smoke_book, chapter):
    path = smoke_book.html / "_sources" / "chapters" / f"{chapter}.ipynb"
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert sum(bool(cell.outputs) for cell in code) > 3
    assert notebook.metadata.kernelspec.name == "python3"
    text = path.read_text(encoding="utf-8")
    for word in ("papermill-error", "start_time", "iopub", str(smoke_book.root)):
        assert word not in text


def test_citations_are_resolved(parsed):
    text = " ".join(soup.get_text() for soup in parsed.values())
    assert "[?]" not in text
    references = next(soup for page, soup in parsed.items() if page.name == "references.html")
    assert len(references.select(".citation")) >= 10


@pytest.mark.parametrize("page", ["rerun.md", "notation.md", "intro.md"])
def test_examples_in_the_text_run(page, tmp_path):
    text = (ROOT / "book" / page).read_text(encoding="utf-8")
    blocks = re.findall(r"```python\n(.*?)```", text, flags=re.DOTALL)
    blocks = [block for block in blocks if "collect(" not in block]  # needs runs
    for block in blocks:
        script = tmp_path / "example.py"
        script.write_text(block)
        done = subprocess.run(
            [sys.executable, str(script)], cwd=ROOT, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
    assert blocks or page != "rerun.md"


def test_names_of_code_in_the_notation_exist():
    import ktlib.fcl
    from experiments.fcl.parameters import FclParameters

    text = (ROOT / "book" / "notation.md").read_text(encoding="utf-8")
    part = text.partition("## Few-shot continual learning")[2].partition("\n## ")[0]
    names = re.findall(r"`([A-Za-z_.]+)`", part)
    assert len(names) > 10
    known = {*FclParameters.model_fields, *ktlib.fcl.__all__}
    assert [name for name in names if name.partition(".")[0] not in known] == []


def test_make_notebooks_writes_every_chapter(smoke_book):
    done = smoke_book.build("notebooks")
    assert done.returncode == 0, done.stdout
    for chapter in CHAPTERS:
        notebook = json.loads((smoke_book.root / "notebooks" / f"{chapter}.ipynb").read_text())
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        tags = [cell["metadata"].get("tags", []) for cell in notebook["cells"]]
        assert sum("parameters" in tag for tag in tags) == 1


def test_every_reference_entry_is_complete():
    text = (ROOT / "book" / "references.bib").read_text(encoding="utf-8")
    entries = re.split(r"\n(?=@)", text.strip())
    keys = [re.match(r"@\w+\{([^,]+),", entry).group(1) for entry in entries]
    assert len(keys) == len(set(keys))
    for entry in entries:
        for field in ("author", "title", "year"):
            assert re.search(rf"^\s*{field}\s*=", entry, flags=re.MULTILINE), entry
