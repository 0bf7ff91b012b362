"""Tables across runs and seeds."""

import gzip
import math

import pandas as pd
import pytest

from experiments.run import provenance, records, results
from experiments.run.results import RunRecord


@pytest.fixture
def runs(project, toy_model, values):
    """Two runs that differ in one parameter."""
    for bound in (0.01, 0.02):
        parameters = toy_model(**{**values, "noise_bound": bound})
        record = RunRecord.start("toy", parameters, {})
        record.metric("best", bound)
        record.table("sessions", [{"seed": s, "accuracy": s + bound} for s in (0, 1)])
        record.save(project / "runs" / f"noise_bound={bound}")
    return project / "runs"


def test_runs_are_joined(runs):
    frame = results.collect(runs)["sessions"]
    assert list(frame.columns) == ["run", "chapter", "profile", "noise_bound", "seed", "accuracy"]
    assert frame["run"].tolist() == ["noise_bound=0.01"] * 2 + ["noise_bound=0.02"] * 2
    assert frame["accuracy"].tolist() == [0.01, 1.01, 0.02, 1.02]


def test_any_set_of_paths_will_do(runs):
    folders = sorted(runs.iterdir())
    files = [folder / "result.json" for folder in folders]
    whole = results.collect(runs)["metrics"]
    assert whole["value"].tolist() == [0.01, 0.02]
    for paths in (str(runs), folders, files, iter(files)):
        pd.testing.assert_frame_equal(results.collect(paths)["metrics"], whole)


def test_one_run_has_no_differing_parameters(runs):
    frame = results.collect(runs / "noise_bound=0.01")["sessions"]
    assert list(frame.columns) == ["run", "chapter", "profile", "seed", "accuracy"]


def test_lists_become_text_and_names_do_not_clash(project, toy_model, values):
    for seeds in ([0], [0, 1]):
        record = RunRecord.start("toy", toy_model(**{**values, "seeds": seeds}), {})
        record.table("t", [{"seeds": 7}])
        record.save(project / "runs" / f"{len(seeds)}")
    frame = results.collect(project / "runs")["t"]
    assert frame["parameter_seeds"].tolist() == ["[0]", "[0, 1]"]
    assert frame["seeds"].tolist() == [7, 7]


def test_committed_records_are_named_by_their_file(record, project):
    path = project / "results" / "toy.full.json"
    path.write_text(record.to_json())
    packed = path.with_name("toy.full.json.gz")
    packed.write_bytes(gzip.compress(path.read_bytes()))
    for file in (path, packed):
        assert results.collect(file)["metrics"]["run"].tolist() == ["toy.full"]


def test_folder_without_records(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"No result.json at or below"):
        results.collect(tmp_path)


def test_mean_and_spread():
    frame = pd.DataFrame({"m": ["b", "a", "b", "a", "c"], "v": [1.0, 5.0, 3.0, 5.0, 2.0]})
    summary = results.mean_and_spread(frame, "m", "v")
    assert summary["m"].tolist() == ["b", "a", "c"]
    assert summary["mean"].tolist() == [2.0, 5.0, 2.0]
    assert summary["n"].tolist() == [2, 2, 1]
    assert summary["std"].tolist()[:2] == [pytest.approx(math.sqrt(2)), 0.0]
    assert math.isnan(summary["std"][2])


def test_mean_over_several_columns_keeps_missing_groups():
    frame = pd.DataFrame({"m": ["a", "a"], "k": [None, None], "v": [1.0, 3.0]})
    summary = results.mean_and_spread(frame, ["m", "k"], "v")
    assert summary["mean"].tolist() == [2.0]


def test_mean_of_a_column_that_is_not_there():
    with pytest.raises(ValueError, match=r"Columns \['x', 'y'\] are missing. Found \['v'\]"):
        results.mean_and_spread(pd.DataFrame({"v": [1]}), ["x"], "y")


@pytest.mark.parametrize(
    ("mean", "std", "digits", "text"),
    [
        (45.284, 0.606, 2, "45.28 ± 0.61"),
        (45.284, 0.606, 1, "45.3 ± 0.6"),
        (45.284, math.nan, 2, "45.28"),
        (45.284, None, 0, "45"),
    ],
)
def test_format(mean, std, digits, text):
    assert results.format_mean_std(mean, std, digits) == text


def test_tables_of_the_thesis(monkeypatch):
    monkeypatch.chdir(provenance.project_root(records.__file__))
    table = results.thesis_table("3_1")
    assert table.columns[0] == "method"
    assert set(results.thesis_settings("fcl").columns) == {"name", "value", "note"}
    with pytest.raises(ValueError, match=r"No table '9_9' of the thesis .*Found \['3_1'"):
        results.thesis_table("9_9")
