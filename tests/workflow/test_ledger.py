"""The ledger: a line for each claim, the picture of their numbers, and what the thesis says."""

import re

import pytest
from bs4 import BeautifulSoup

from experiments.run.claims import OWN_QUESTION, VERDICTS, Claim, claim_rows, claims_of
from experiments.run.results import RunRecord, load_record, record_files
from workflow import ledger, ledger_coverage, ledger_figure, pages
from workflow.ledger import Entry, ledger_entries, list_part, write_ledger
from workflow.ledger_coverage import CHAPTERS, Statement, gaps, read_coverage
from workflow.project import ROOT, chapters

LATER = "not examined yet"
MAY_BE_LEFT = {"5", "InfLoRA", "L2C"}  # chapters with statements that are not examined yet

TEXTS = {
    "claim": "Flat is better than steep.",
    "printed_in": "Table 3.1",
    "thesis": "+2.5 points",
    "found": "+1.5 points, 95 % interval +0.5 to +2.5 over 3 seeds",
    "difference": "smaller network",
    "verdict": "reproduced",
    "anchor": "sec-pilot",
}
CHAPTER = """\
# %% [markdown]
# # A toy chapter
#
# (sec-pilot)=
# ## A pilot study
#
# ```{prf:theorem} Flat
# :label: thm-flat
# ```

# %% mystnb={"figure": {"name": "fig-flat", "caption": "Flat."}}
1
"""
TITLES = {"toy": "A toy chapter"}
STATEMENT = Statement("3-01", "3", "Table 3.1", "flat beats steep", "Flat is better *", "")


def claim(**changes):
    return Claim(**{**TEXTS, **changes})


def run(profile, *claims, **changes):
    """The record of a run that noted claims."""
    content = {
        "schema_version": 1, "chapter": "toy", "profile": profile, "parameters": {},
        "seeds": [0, 1], "git_commit": None, "git_dirty": None, "code_digest": None,
        "packages": {}, "python": "3.11.7", "system": "Linux x86_64", "device": "cpu",
        "hardware": "A", "precision": "float32", "threads": 2, "start": "2026-01-02T03:04:05",
        "wall_seconds": 1.0, "peak_memory_bytes": None, "peak_device_memory_bytes": None,
        "data": {}, "metrics": {}, "tables": {"claims": claim_rows(claims)}, "figures": [],
    }  # fmt: skip
    return RunRecord.model_validate({**content, **changes})


@pytest.fixture(autouse=True)
def _chapter(tmp_path, monkeypatch):
    """The source of the chapter that the claims belong to."""
    source = tmp_path / "toy.py"
    source.write_text(CHAPTER)
    for module in (ledger, pages):
        monkeypatch.setattr(module, "chapter_source", lambda name: source)


def page(entries):
    """The list as a browser reads it."""
    return BeautifulSoup(list_part(entries, TITLES), "html.parser")


def cells(row):
    return [" ".join(cell.get_text(" ").split()) for cell in row.find_all("td")]


def test_long_run_decides_and_the_live_one_stands_beside_it():
    live = run("cpu", claim(verdict="undecided"), claim(claim="Only here."))
    other = claim(claim="Not in full.", verdict="mixed")
    gpu = run("gpu", claim(verdict="not reproduced"), other)
    full = run("full", claim(mechanism="the box held 12 %"), seeds=[0, 1, 2])
    entries = ledger_entries([live], [gpu, full])
    assert [entry.claim.claim for entry in entries] == [
        "Flat is better than steep.",
        "Only here.",
        "Not in full.",
    ]
    assert [entry.claim.verdict for entry in entries] == ["reproduced", "reproduced", "mixed"]
    soup = page(entries)
    totals = [item.get_text() for item in soup.select(".ledger-totals li")]
    assert totals == ["2 reproduced", "1 mixed"]
    row = soup.find(id="claim-1")
    labels = [item.get_text() for item in row.find_all("dt")]
    assert labels == [
        "Printed",
        "full (3 seeds, 2026-01-02)",
        "gpu (2 seeds, 2026-01-02)",
        "cpu, this copy (2 seeds, 2026-01-02)",
    ]
    printed, first, *_ = (item.get_text() for item in row.find_all("dd"))
    assert printed == "+2.5 points (Table 3.1)"
    assert first == (
        f"{TEXTS['found']}. Set-up: smaller network. Mechanism: the box held 12 %. "
        "Verdict: reproduced."
    )
    assert row["data-verdict"] == "reproduced"
    assert cells(row)[2:] == ["Table 3.1", "0.60", "reproduced"]


def test_stale_record_says_so(monkeypatch):
    monkeypatch.setattr(ledger, "is_stale", lambda record: record.profile == "full")
    (entry,) = ledger_entries([run("cpu", claim())], [run("full", claim())])
    assert list(entry.findings) == [
        "full (2 seeds, 2026-01-02, the code has changed since)",
        "cpu, this copy (2 seeds, 2026-01-02)",
    ]


def test_other_records_decide_nothing():
    live = run("cpu", claim(verdict="undecided"))
    search, other = run("search", claim()), run("full", claim(), chapter="other")
    assert ledger_entries([live], [search, other]) == ledger_entries([live], [])


def test_undecided_says_what_could_have_been_seen():
    found = "-0.6 points, 95 % interval -1.7 to +0.5 over 10 seeds"
    kept = {**TEXTS, "found": found, "verdict": "partly"}  # as records were kept
    full = run("full").model_copy(update={"tables": {"claims": [kept]}})
    nats = claim(claim="In nats.", verdict="undecided", effect=0.0, low=-20, high=20, unit="nats")
    rows = page(ledger_entries([run("cpu", nats)], [full])).select("tbody tr")
    assert [cells(row)[-1] for row in rows] == [
        "undecided could see 20 nats",
        "undecided could see 1.1 points",
    ]
    assert "could see" not in str(page(ledger_entries([run("cpu", claim())], [])))


@pytest.mark.parametrize("anchor", ["sec-pilot", "fig-flat", "thm-flat"])
def test_link_leads_to_the_place_in_the_chapter(anchor):
    (entry,) = ledger_entries([run("cpu", claim(anchor=anchor))], [])
    link = page([entry]).select_one("#claim-1 a")
    assert link["href"] == f"chapters/toy.html#{anchor}"
    assert link.get_text() == "Where it is examined: A toy chapter"


def test_place_that_the_chapter_lost():
    gone = claim(anchor="sec-gone")
    (entry,) = ledger_entries([run("cpu")], [run("full", gone)])
    assert entry.address == "chapters/toy.html"
    with pytest.raises(ValueError, match="toy.py: .* must name a place .* Found 'sec-gone'"):
        ledger_entries([run("cpu", gone)], [])


def test_broken_record_is_named():
    row = {key: value for key, value in TEXTS.items() if key != "found"}
    broken = run("full").model_copy(update={"tables": {"claims": [row]}})
    with pytest.raises(
        ValueError, match="Record toy, profile full: Table `claims`, row 0: .* Missing: found"
    ):
        ledger_entries([run("cpu")], [broken])


def test_text_is_not_taken_for_markup():
    found = "a_b | *c* [d](e) {f}`g` $h$\n<i>.."
    part = list_part(ledger_entries([run("cpu", claim(found=found))], []), TITLES)
    assert part.startswith("(ledger-list)=\n## 1 claims\n\n```{raw} html\n")
    assert part.count("`") == 6  # no other than those of the block
    second = BeautifulSoup(part, "html.parser").select("dd")[1].get_text()
    assert second.startswith("a_b | *c* [d](e) {f}`g` $h$ <i>.. Set-up:")


def test_filters_name_what_there_is():
    entries = ledger_entries([run("cpu", claim(), claim(claim="B.", verdict="mixed"))], [])
    form = page(entries).form
    assert form.has_attr("hidden")  # until the script is there
    values = {
        s["name"]: [o["value"] for o in s.find_all("option")] for s in form.find_all("select")
    }
    assert values == {"verdict": ["", "reproduced", "mixed"], "chapter": ["", "toy"]}


def test_page_is_written_from_the_records_on_disk(tmp_path, monkeypatch):
    root = tmp_path / "project"
    monkeypatch.setattr(pages, "ROOT", root)
    monkeypatch.setattr(pages, "RUNS", root / "runs")
    monkeypatch.setattr(pages, "chapters", lambda: ["toy"])
    monkeypatch.setattr(pages, "parameters_part", lambda names: "")
    run("cpu", claim(verdict="undecided")).save(root / "runs/toy/cpu/main")
    (root / "results").mkdir()
    (root / "results/toy.full.json").write_text(run("full", claim()).to_json())
    pages.write_pages("cpu", root / "generated")
    text = (root / "generated/claims.md").read_text()
    picture = (root / "generated/ledger.svg").read_bytes()
    assert '<li class="verdict reproduced"><b>1</b> reproduced</li></ul>' in text
    assert "## What the thesis says, and where it is examined\n" in text
    pages.write_pages("cpu", root / "generated")
    assert (root / "generated/claims.md").read_text() == text
    assert (root / "generated/ledger.svg").read_bytes() == picture


def test_page_without_claims_says_so(tmp_path):
    write_ledger(ledger_entries([run("cpu")], [run("full")]), TITLES, [], tmp_path)
    assert (tmp_path / "claims.md").read_text() == "No run has noted a claim yet.\n"
    assert not (tmp_path / "ledger.svg").exists()


@pytest.mark.parametrize(
    ("effect", "printed", "share"),
    [(1.5, 2.5, 0.6), (-1.5, 2.5, -0.6), (-1.0, -2.0, 0.5), (0.0, 2.5, 0.0), (1.5, None, None),
     (None, 2.5, None), (1.5, 0.0, None)],
)  # fmt: skip
def test_share_of_the_printed_effect(effect, printed, share):
    made = claim(effect=effect, printed_effect=printed)
    assert Entry(1, "toy", {"full": made}, "").share == share


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """What is drawn for claims with these numbers: marks, lines and texts of the picture."""
    kept = []
    real = ledger_figure._draw_claim

    def draw(axes, *arguments):
        real(axes, *arguments)
        kept.append(axes)

    monkeypatch.setattr(ledger_figure, "_draw_claim", draw)

    def of(*numbers):
        entries = [
            Entry(i + 1, "toy", {"full": claim(claim=f"Claim {i} {'word ' * 30}.", **n)}, "")
            for i, n in enumerate(numbers)
        ]
        part = ledger_figure.figure_part(entries, TITLES, tmp_path)
        return part, (kept[-1] if kept else None)

    return of


def test_picture_divides_and_cuts_off(drawn):
    part, axes = drawn(
        {"effect": -1.0, "low": -3.0, "high": 1.0, "printed_effect": -2.0, "verdict": "undecided"},
        {"effect": 9.0, "low": -9.0, "high": 27.0, "printed_effect": 1.0},
        {"effect": 1.0, "printed_effect": 2.0},  # one seed, no interval
        {"effect": 1.0, "low": 0.5, "high": 1.5},  # nothing printed
    )
    ends = [line.get_segments()[0][:, 0].tolist() for line in axes.collections]
    assert ends == [[-0.5, 1.5], [-2.0, 4.0], [0.5, 0.5]]
    marks = [(float(line.get_xdata()[0]), line.get_marker()) for line in axes.lines[:-2]]
    arrows = [x for x, marker in marks if "arrow" in str(marker)]
    assert [(x, m) for x, m in marks if "arrow" not in str(m)] == [
        (0.5, "^"),
        (4.0, "o"),
        (0.5, "o"),
    ]
    assert len(arrows) == 2
    assert arrows[0] < -2
    assert arrows[1] > 4
    texts = [text.get_text() for text in axes.texts]
    assert texts[0] == "A toy chapter"
    assert [text.split()[0] for text in texts[1:]] == ["1", "2", "3"]
    assert max(map(len, texts)) < 60
    assert "1 of 4 claims have no number" in part
    assert "3 claims: " in part.split(":alt:")[1].splitlines()[0]
    assert "At least as large as printed: 1. Smaller, of the same sign: 2. " in part


def test_picture_grows_with_the_claims(drawn, tmp_path):
    def height():
        return float(re.search(r'height="([\d.]+)pt"', (tmp_path / "ledger.svg").read_text())[1])

    one = {"effect": 1.0, "low": 0.5, "high": 1.5, "printed_effect": 1.0}
    drawn(*[one] * 2)
    two = height()
    drawn(*[one] * 12)
    assert height() - two == pytest.approx(10 * 72 * ledger_figure.STEP, abs=1)


def test_no_picture_without_numbers(drawn, tmp_path):
    assert drawn({"effect": 1.0}, {}) == ("", None)
    assert not (tmp_path / "ledger.svg").exists()


def test_marks_of_the_list_are_those_of_the_picture():
    from experiments.run.plotting import PALETTE

    css = (ROOT / "book/_static/ledger.css").read_text()
    colours = re.findall(r"\.verdict(?:\.([a-z-]+))?::before \{[^}]*?\bcolor: (#\w+);", css)
    names = ["", *(verdict.replace(" ", "-") for verdict in VERDICTS[1:])]
    assert colours == list(zip(names, map(str.lower, PALETTE), strict=False))


@pytest.fixture
def written(tmp_path):
    """A list of statements: ``written(row, row)``."""

    def write(*rows, head="id,chapter,place,statement,covered_by,reason"):
        file = tmp_path / "coverage.csv"
        file.write_text("\n".join([head, *rows]) + "\n", encoding="utf-8")
        return file

    return write


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (["a,3,Table 3.1,x,Flat*,", "a,3,Table 3.2,x,Flat*,"], "'a': each id may occur once"),
        (["a,6,Table 6.1,x,Flat*,"], "'a': chapter must be one of 3, 4, 5, InfLoRA, L2C"),
        (["a,3,,x,Flat*,"], "'a': place and statement must be text"),
        (["a,3,Table 3.1,x,,"], "'a': either covered_by or reason must be text"),
        (["a,3,Table 3.1,x,Flat*,pending"], "'a': either covered_by or reason must be text"),
    ],
)
def test_wrong_statements_are_refused(written, rows, message):
    with pytest.raises(ValueError, match=f"coverage.csv, {message}"):
        read_coverage(written(*rows))
    with pytest.raises(ValueError, match="coverage.csv must have the columns"):
        read_coverage(written(*rows, head="id,chapter,statement"))


def test_gaps_between_statements_and_claims():
    rows = [
        STATEMENT,
        Statement("3-02", "3", "Table 3.2", "x", "Gone * | #sec-pilot | #sec-no", ""),
    ]
    claims = {"Flat is better than steep.": "Table 3.1", "Round is better.": "Table 3.3"}
    claims["What is best?"] = OWN_QUESTION
    assert gaps(rows, claims, ["sec-pilot"]) == (
        ["3-02: Gone *", "3-02: #sec-no"],
        ["Round is better."],
    )


def test_statements_lead_to_claims_places_or_reasons():
    entries = ledger_entries([run("cpu", claim())], [])
    rows = [
        STATEMENT,
        Statement("3-02", "3", "Table 3.2", "x < y", "#fig-flat | #thesis-cells", ""),
        Statement("3-03", "3", "Table 3.3", "z", "", LATER),
        Statement("4-01", "4", "Table 4.1", "w", "No such claim | #sec-gone", ""),
    ]
    links = {"fig-flat": ("chapters/toy.html#fig-flat", "A toy chapter")}
    soup = BeautifulSoup(ledger_coverage.coverage_part(rows, entries, links), "html.parser")
    assert [item.get_text() for item in soup.find_all("summary")] == [
        f"{CHAPTERS['3']}: 2 of 3 examined",
        f"{CHAPTERS['4']}: 1 of 1 examined",
    ]
    assert [item.get_text() for item in soup.find_all("li")] == [
        "Table 3.1 flat beats steep: 1 (reproduced)",
        "Table 3.2 x < y: A toy chapter, The thesis against itself",
        f"Table 3.3 z: {LATER}",
        "Table 4.1 w: not in this copy",
    ]
    assert [link["href"] for link in soup.find_all("a")] == [
        "#claim-1",
        "chapters/toy.html#fig-flat",
        "thesis.html#thesis-cells",
    ]


@pytest.fixture(scope="module")
def statements():
    """What the thesis says."""
    return read_coverage()


def numbers(text):
    """The tables that a place names: "Tables 4.1, 4.3 to 4.5" are 4.1, 4.3, 4.4 and 4.5."""
    found = set()
    for words in re.findall(r"[Tt]ables? ([\d., toand]+)", text):
        for first, last in re.findall(r"(\d\.\d+)(?: to (\d\.\d+))?", words):
            chapter, low = first.split(".")
            high = (last or first).split(".")[1]
            found |= {f"{chapter}.{number}" for number in range(int(low), int(high) + 1)}
    return found


def test_places_name_tables():
    assert numbers("Table 3.10, figure 4.1") == {"3.10"}
    assert numbers("Section 4.5.2, tables 4.1, 4.3 to 4.5 and 4.10") == {
        "4.1", "4.3", "4.4", "4.5", "4.10"
    }  # fmt: skip


@pytest.mark.parametrize("number", [
    *(f"3.{i}" for i in range(1, 12)), *(f"4.{i}" for i in range(1, 17)),
    *(f"5.{i}" for i in range(1, 19)),
])  # fmt: skip
def test_every_table_occurs(statements, number):
    assert number in set().union(*(numbers(row.place) for row in statements))
    assert (ledger_coverage.FILE.parent / f"table_{number.replace('.', '_')}.csv").is_file()


@pytest.mark.parametrize("name", ["Theorem 3.1", "Theorem 4.1", "Theorem 5.1", "Abstract"])
def test_proofs_and_abstracts_occur(statements, name):
    assert name in {row.place for row in statements}


def test_reasons_are_known(statements):
    allowed = {chapter: {LATER} for chapter in MAY_BE_LEFT}
    wrong = [
        f"{row.id}: {row.reason}"
        for row in statements
        if row.reason and row.reason not in allowed.get(row.chapter, set())
    ]
    assert wrong == []


def test_every_claim_of_a_committed_record_is_about_a_statement(statements):
    kept = [load_record(path) for path in record_files(ROOT / "results")]
    claims = {
        claim.claim: claim.printed_in
        for record in kept
        if record.chapter in chapters() and record.profile in ledger.LONG
        for claim in claims_of(record)
    }
    assert claims
    assert gaps(statements, claims, [])[1] == []
