"""Records: complete, valid, the same on every machine, and joined into tables."""

import gzip
import json
import math
import time

import numpy as np
import pytest
import torch

from experiments.run import provenance, records, results
from experiments.run.results import RunRecord


def test_record_says_what_ran_where(record, values):
    assert record.schema_version == 1
    assert (record.chapter, record.profile, record.seeds) == ("toy", "cpu", [0, 1])
    assert record.parameters["noise_bound"] == values["noise_bound"]
    assert set(values) - set(record.parameters) == {"run_dir", "profile"}
    assert (record.device, record.precision) == ("cpu", "float32")
    assert record.threads == torch.get_num_threads()
    assert torch.__version__.startswith(record.packages["torch"])
    assert record.code_digest == provenance.code_digest("chapters/toy.py")


def test_saved_record_reads_back_the_same(record, tmp_path):
    path = record.save(tmp_path / "main")
    assert path == tmp_path / "main" / "result.json"
    assert results.load_record(path).model_dump() == record.model_dump()
    assert results.load_record(path.parent).metrics == {"accuracy": 0.5}
    assert json.loads(path.read_text())["start"] == record.started_at


def test_saving_measures_time_and_memory(record, tmp_path):
    time.sleep(0.01)  # milliseconds are kept
    record.save(tmp_path)
    assert record.wall_seconds > 0
    assert record.peak_memory_bytes > 10**7
    assert record.peak_device_memory_bytes is None


def test_saving_a_record_that_was_read_measures_nothing(record, tmp_path):
    loaded = results.load_record(record.save(tmp_path / "one"))
    second = results.load_record(loaded.save(tmp_path / "two"))
    assert second.wall_seconds == record.wall_seconds


def test_no_folder_no_file(record, project):
    before = sorted(project.rglob("*"))
    assert record.save("") is None
    assert sorted(project.rglob("*")) == before


def test_figures_of_the_run_are_listed(record, tmp_path):
    (tmp_path / "figures").mkdir()
    for name in ("b.svg", "a.svg"):
        (tmp_path / "figures" / name).write_text("")
    record.save(tmp_path)
    assert record.figures == ["a.svg", "b.svg"]


def test_record_tells_nothing_about_folders_and_people(record, tmp_path, project):
    text = record.save(tmp_path).read_text()
    assert str(project) not in text
    assert str(provenance.Path.home()) not in text


def test_each_row_is_one_line(record):
    record.table("sessions", [{"seed": seed, "accuracy": 0.5} for seed in range(3)])
    assert sum('"seed": ' in line for line in record.to_json().splitlines()) == 3


def test_later_values_replace_earlier_ones(record):
    record.metric("accuracy", 0.75)
    record.table("sessions", [])
    assert record.metrics == {"accuracy": 0.75}
    assert record.tables == {"sessions": []}


def test_scalars_of_numpy_and_torch_become_plain(record):
    row = {"a": np.float32(0.5), "b": np.int64(3), "c": torch.tensor(2.0), "d": np.bool_(True)}
    record.table("mixed", [row])
    record.metric("scalar", torch.tensor(3))
    assert record.tables["mixed"] == [{"a": 0.5, "b": 3, "c": 2.0, "d": True}]
    assert [type(value) for value in record.tables["mixed"][0].values()] == [
        float,
        int,
        float,
        bool,
    ]
    assert type(record.metrics["scalar"]) is int


@pytest.mark.parametrize("value", [math.nan, math.inf, np.float64("nan"), torch.tensor(-math.inf)])
def test_numbers_that_are_none_are_refused(record, value):
    with pytest.raises(ValueError, match="Metric `accuracy` must be finite"):
        record.metric("accuracy", value)
    with pytest.raises(ValueError, match="Table `t`, row 1, column `b` must be finite"):
        record.table("t", [{"a": 1, "b": 2.0}, {"a": 1, "b": value}])


@pytest.mark.parametrize("value", [None, "0.5", True])
def test_metric_must_be_a_number(record, value):
    with pytest.raises(ValueError, match="Metric `accuracy` must be a number"):
        record.metric("accuracy", value)


@pytest.mark.parametrize("value", [torch.ones(2), np.ones(3)])
def test_arrays_are_refused(record, value):
    with pytest.raises(ValueError, match=r"Metric `x` must be one number. Found an array of shape"):
        record.metric("x", value)


def test_objects_are_refused(record):
    with pytest.raises(ValueError, match="row 0, column `a` must be a number or text. Found list"):
        record.table("t", [{"a": [1]}])


def test_rows_must_have_the_same_columns(record):
    with pytest.raises(
        ValueError, match=r"Table `t`, row 1 must have the columns of row 0, \['a'\]"
    ):
        record.table("t", [{"a": 1}, {"a": 1, "b": 2}])


def test_what_was_written_past_the_checks_is_found_at_the_end(record, tmp_path):
    record.metrics["loss"] = math.nan
    with pytest.raises(ValueError, match="Metric `loss` must be finite"):
        record.save(tmp_path / "main")
    assert not (tmp_path / "main").exists()


def test_frame(record):
    assert list(record.frame("sessions").columns) == ["seed", "session", "accuracy", "note"]
    with pytest.raises(KeyError, match=r"no table 'other': \['sessions'\]"):
        record.frame("other")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schema_version": 2}, "schema_version: Input should be 1"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"wall_seconds": "3"}, "wall_seconds: Input should be a valid number"),
        ({"metrics": {"a": None}}, "metrics.a"),
        ({"seeds": None}, "seeds: Input should be a valid array"),
    ],
)
def test_file_that_is_no_record(record, tmp_path, change, message):
    path = record.save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ValueError, match=rf"result.json is not a record of a run. {message}"):
        results.load_record(path)


def test_half_a_file_is_no_record(record, tmp_path):
    path = record.save(tmp_path)
    path.write_text(path.read_text()[:100])
    with pytest.raises(ValueError, match="is not a record of a run. file: Invalid JSON"):
        results.load_record(path)


def test_the_schema_describes_every_field(record):
    schema = json.loads(records.schema_json())
    assert set(schema["properties"]) == set(json.loads(record.to_json()))
    assert all("description" in field for field in schema["properties"].values())


# Committed records


def test_committed_record(record, project):
    assert results.committed_record("toy", "full") is None
    (project / "results" / "toy.full.json").write_text(record.to_json())
    assert results.committed_record("toy", "full").metrics == {"accuracy": 0.5}
    packed = gzip.compress((project / "results" / "toy.full.json").read_bytes())
    (project / "results" / "toy.gpu.json.gz").write_bytes(packed)
    assert results.committed_record("toy", "gpu").metrics == {"accuracy": 0.5}


def test_record_gets_stale_with_the_code(record, chapter, rewrite):
    assert results.is_stale(record) is False
    rewrite(chapter, "# Text.", "# Better text.")
    assert results.is_stale(record) is False
    rewrite(chapter, "accuracy = ", "accuracy = 2 * ")
    assert results.is_stale(record) is True


def test_staleness_that_cannot_be_told(record, chapter, tmp_path, monkeypatch):
    chapter.unlink()
    assert results.is_stale(record) is None


def test_library_users_need_no_tools_of_the_book(project, toy_parameters, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "yaml", None)
    assert RunRecord.start("toy", toy_parameters, {}).code_digest is None


def test_label_of_a_record(record, project, chapter, rewrite):
    label = results.record_label(record, "toy", "cpu")
    assert label.startswith("Profile cpu, 2 seeds, 0 min on ")
    assert "commit unknown." in label
    assert "Code: made by the present code. To make it again: make record CHAPTER=toy" in label
    rewrite(chapter, "accuracy = ", "accuracy = 2 * ")
    assert "STALE" in results.record_label(record, "toy", "cpu")
    chapter.unlink()
    assert "Code: not compared." in results.record_label(record, "toy", "cpu")
    dirty = record.model_copy(update={"git_commit": "abcdef" * 6, "git_dirty": True})
    assert "commit abcdefabcd with local changes" in results.record_label(dirty, "toy", "cpu")


def test_label_of_a_record_that_is_not_there_yet():
    label = results.record_label(None, "toy", "full")
    assert label.endswith("To make it: make record CHAPTER=toy PROFILE=full")


# Records from a time when one could be made of code that was not committed; each goes when it is
# made again.
DIRTY = {"continual_peft.search.json", "ila.search.json"}
RESULTS = provenance.project_root(records.__file__) / "results"


def test_every_committed_record_is_valid():
    """The long runs kept with the project."""
    names, dirty = [], set()
    for path in results.record_files(RESULTS):  # build.json and benchmarks.json are none
        record = results.load_record(path)
        name = path.relative_to(RESULTS).as_posix().removesuffix(".gz")
        names.append(name)
        assert name == f"{record.chapter}.{record.profile}.json"
        assert record.data, f"{name} does not say which data it saw"
        dirty |= {name} if record.git_dirty is not False else set()
    assert names
    assert len(names) == len(set(names))  # compressed or not, not both
    assert dirty == DIRTY & {*names}


def test_no_committed_file_is_larger_than_a_megabyte():
    large = [p.name for p in RESULTS.rglob("*") if p.is_file() and p.stat().st_size > 1_000_000]
    assert large == []


def test_record_of_a_gpu_has_its_memory(record, monkeypatch):
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: 123)
    record.device = "cuda"
    record.save("")
    assert record.peak_device_memory_bytes == 123


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_run_on_a_gpu(project, toy_model, values):
    record = RunRecord.start("toy", toy_model(**{**values, "device": "cuda"}), {})
    torch.ones(1000, device="cuda")
    record.save("")
    assert record.hardware == torch.cuda.get_device_name()
    assert record.peak_device_memory_bytes >= 4000
