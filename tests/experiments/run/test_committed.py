"""A seed of a record, computed again."""

import pytest

from experiments.run import provenance
from experiments.run.committed import recheck
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
    note = recheck(record(*KEPT), record([4], [1.5], code_digest="new")).rechecked
    assert (note.seeds, note.rows, note.largest_difference) == ([4], 1, 0.0)
    assert note.code_digest == "new"
    close = recheck(record(*KEPT), record([5], [2.5 + 1e-9])).rechecked
    assert 0 < close.largest_difference < 1e-8


def test_seconds_and_bytes_and_claims_do_not_count():
    again = record([4], [1.5])
    for name in ("seconds_per_step", "peak_bytes", "forward_ms", "ms"):
        kept = record(*KEPT)
        for made, value in ((kept, 1.0), (again, 2.0)):
            made.tables["accuracy"][0][name] = value
        assert recheck(kept, again).rechecked.rows == 1
    with pytest.raises(ValueError, match="rms was 1.0 and is 2.0"):
        recheck(
            record(*KEPT, tables={"a": [{"seed": 4, "rms": 1.0}]}),
            record([4], [1.5], tables={"a": [{"seed": 4, "rms": 2.0}]}),
        )


def test_rows_of_all_seeds_together_count_where_the_seeds_are_the_same():
    shared = {"tables": {"cost": [{"params": 3}]}}
    assert recheck(record(*KEPT, **shared), record(*KEPT, **shared)).rechecked.rows == 1
    with pytest.raises(ValueError, match="share no rows"):
        recheck(record(*KEPT, **shared), record([4], [1.5], tables={}))
    with pytest.raises(ValueError, match="cost, row 1: params was 3 and is 4"):
        recheck(record(*KEPT, **shared), record(*KEPT, tables={"cost": [{"params": 4}]}))


def test_run_of_another_size_is_compared_with_its_own_reference():
    reference = record([9], [7.0], profile="smoke", git_commit="abc", parameters={"lr": 1})
    again = record([9], [7.0], profile="smoke", parameters={"lr": 1})
    note = recheck(record(*KEPT), again, reference).rechecked
    assert (note.profile, note.reference, note.rows) == ("smoke", "abc", 1)


@pytest.mark.parametrize(
    ("again", "words"),
    [
        (record([4], [1.6]), "Table accuracy, row 1: value was 1.5 and is 1.6"),
        (record([5], [1.5]), "value was 2.5"),
        (record([7], [1.5]), "seeds differ"),
        (record([4], [1.5], tables={}), "accuracy had 1 rows, and has 0"),
        (record([4], [1.5], parameters={"lr": 1}), "device, lr, precision differ"),
        (record([4], [1.5], code_digest=None), "does not know its code"),
        (record([4], [1.5], tables=one_row(1.5, "b")), "text was a"),
        (record([4], [1.5], tables=one_row(None, "a")), "is None now"),
    ],
)  # fmt: skip
def test_anything_else_is_refused_and_named(again, words):
    with pytest.raises(ValueError, match=words):
        recheck(record(*KEPT), again)


def test_a_parameter_that_is_new_and_empty_is_as_it_was_without_it():
    kept = record(*KEPT, parameters={"lr": 1})
    again = record([4], [1.5], parameters={"lr": 1, "tasks": [], "weights": ""})
    assert recheck(kept, again).rechecked.rows == 1
    with pytest.raises(ValueError, match="tasks differ"):
        recheck(kept, record([4], [1.5], parameters={"lr": 1, "tasks": ["a"]}))


def test_a_note_counts_for_the_code_that_it_names(monkeypatch):
    kept = record(*KEPT)
    current = {"digest": "new"}
    monkeypatch.setattr(provenance, "current_code_digest", lambda _chapter: current["digest"])
    assert is_stale(kept) is True
    checked = recheck(kept, record([4], [1.5], code_digest="new"))
    assert is_stale(checked) is False
    label = record_label(checked, "toy", "full")
    assert "changed since; profile full computed again" in label
    assert "1 rows, all as before" in label
    current["digest"] = "newer"
    assert is_stale(checked) is True
    assert "STALE" in record_label(checked, "toy", "full")
    current["digest"] = "old"  # the code of the record itself
    assert "made by the present code" in record_label(checked, "toy", "full")
