"""A seed of a record, computed again."""

import pytest

from experiments.run import provenance
from experiments.run.committed import recheck, recheck_file, recheck_of
from experiments.run.parameters import ChapterParameters
from experiments.run.results import RunRecord, is_stale, record_label


def record(seeds, values, **changes):
    given = {"seeds": seeds, "device": "cpu", "precision": "float32", "profile": "full"}
    made = RunRecord.start("toy", ChapterParameters(**given, run_dir=""), {})
    made.table(
        "accuracy",
        [{"seed": s, "value": v, "text": "a"} for s, v in zip(seeds, values, strict=True)],
    )
    made.table("claims", [{"found": str(values)}])
    return made.model_copy(update={"code_digest": "old"} | changes)


def one_row(value, text):
    return {"accuracy": [{"seed": 4, "value": value, "text": text}]}


KEPT = [4, 5], [1.5, 2.5]


def test_equal_rows_give_a_note():
    note = recheck(record(*KEPT), record([4], [1.5], code_digest="new"))
    assert (note.seed, note.rows, note.largest_difference, note.code_digest) == (4, 1, 0.0, "new")
    assert recheck(record(*KEPT), record([5], [2.5 + 1e-9])).largest_difference > 0


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (record([4], [1.6]), "Table accuracy, row 1 of seed 4: value is 1.5 in the record and 1.6"),
        (record([5], [1.5]), "value is 2.5"),
        (record([7], [1.5]), "seeds differ"),
        (record([4], [1.5], tables={}), "1 rows of seed 4, now 0"),
        (record([4], [1.5], parameters={"lr": 1}), "device, lr, precision differ"),
        (record([4], [1.5], code_digest=None), "does not know its code"),
        (record([4], [1.5], tables=one_row(1.5, "b")), "text is a"),
        (record([4], [1.5], tables=one_row(None, "a")), "None now"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_named(again, words):
    with pytest.raises(ValueError, match=words):
        recheck(record(*KEPT), again)


def test_a_note_counts_for_the_code_that_it_names(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "project_root", lambda *_: tmp_path)
    kept = record(*KEPT)
    current = {"digest": "new"}
    monkeypatch.setattr(provenance, "current_code_digest", lambda _chapter: current["digest"])
    assert is_stale(kept) is True
    file = recheck_file(tmp_path, "toy", "full")
    file.parent.mkdir(parents=True)
    note = recheck(kept, record([4], [1.5], code_digest="new"))
    file.write_text(note.model_dump_json())
    assert recheck_of(kept) == note
    assert is_stale(kept) is False
    label = record_label(kept, "toy", "full")
    assert "changed since; seed 4 computed again" in label
    assert "1 rows, all the same" in label
    current["digest"] = "newer"
    assert recheck_of(kept) is None
    assert is_stale(kept) is True
    assert "STALE" in record_label(kept, "toy", "full")


def test_a_note_on_another_record_does_not_count(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "project_root", lambda *_: tmp_path)
    monkeypatch.setattr(provenance, "current_code_digest", lambda _chapter: "new")
    file = recheck_file(tmp_path, "toy", "full")
    file.parent.mkdir(parents=True)
    note = recheck(record(*KEPT), record([4], [1.5], code_digest="new"))
    file.write_text(note.model_copy(update={"seed": 9}).model_dump_json())
    assert recheck_of(record(*KEPT)) is None
    assert is_stale(record(*KEPT)) is True
