"""Records in parts: merging, and what is refused. How parts are made: test_parts_are_made.py."""

import copy
from types import SimpleNamespace

import pytest

from experiments.run import committed
from experiments.run.committed import keep, recheck, record_command
from experiments.run.results import RunRecord, load_record, record_files
from workflow import build, parts

RATE = 2.0


def part(seed, group=None, **changes):
    """The record of a part: one seed, of one group or of both."""
    groups = ["few", "many"] if group is None else [group]
    points = [{"group": g, "seed": seed, "value": RATE * seed + len(g)} for g in groups]
    times = [{"seed": seed, "seconds": 1.0 + len(groups)}]
    tables = {
        "points": points,
        "settings": [{"rate": RATE, "forward_ms": seed}],
        "by_seed": [{"seed": seed, "square": seed**2}],
        "times": times,
        "claims": [],
    }
    content = {
        "schema_version": 1, "chapter": "mini", "profile": "full", "seeds": [seed],
        "parameters": {"seeds": [seed], "groups": groups, "rate": RATE},
        "git_commit": "a" * 40, "git_dirty": False, "code_digest": "c" * 64,
        "packages": {"torch": "2.15.0"}, "python": "3.11.7", "system": "Linux x86_64",
        "device": "cpu", "hardware": "A", "precision": "float32", "threads": 1,
        "start": f"2026-01-02T03:04:0{seed}+00:00", "wall_seconds": 10.5 + seed,
        "peak_memory_bytes": 2**30 + seed, "peak_device_memory_bytes": None,
        "data": {"pairs/images.npy": "d" * 64}, "from_cache": {"plain": 1},
        "metrics": {"rate": RATE, "seed": seed}, "tables": tables, "figures": ["a.svg"],
    }  # fmt: skip
    return RunRecord.model_validate({**content, **changes})


def by_seed(*seeds, **changes):
    return {f"seeds={seed}": part(seed, **changes) for seed in seeds}


def by_group():
    pairs = [(g, s) for g in ("many", "few") for s in (1, 0)]
    return {f"groups={group},seeds={seed}": part(seed, group) for group, seed in pairs}


@pytest.fixture(autouse=True)
def chapter(tmp_path, monkeypatch):
    """A chapter that names no module of claims."""
    source = tmp_path / "mini.py"
    source.write_text("# %% tags=['parameters']\n")
    monkeypatch.setattr(parts, "chapter_source", lambda _name: source)
    return source


def test_rows_of_all_parts_in_the_order_of_the_seeds():
    merged = parts.merge(by_seed(3, 0, 1))
    assert merged.seeds == merged.parameters["seeds"] == [0, 1, 3]
    assert [row["seed"] for row in merged.tables["points"]] == [0, 0, 1, 1, 3, 3]
    assert merged.tables["settings"] == [{"rate": RATE, "forward_ms": 0}]
    assert merged.parameters["rate"] == RATE
    assert merged.parameters["groups"] == ["few", "many"]


def test_what_is_said_of_the_whole_and_of_each_part():
    several = by_seed(0, 1)
    several["seeds=1"] = part(1, hardware="B", git_commit="b" * 40)
    merged = parts.merge(several)
    assert merged.wall_seconds == 22.0
    assert merged.peak_memory_bytes == 2**30 + 1
    assert merged.from_cache == {"plain": 2}
    assert merged.hardware == "A; B"
    assert merged.git_commit == "b" * 40  # of the part that started last
    assert merged.started_at == "2026-01-02T03:04:00+00:00"
    assert (merged.metrics, parts.left_out(several, merged)) == ({"rate": RATE}, ["seed"])
    assert merged.figures == []
    assert [p.run for p in merged.parts] == ["seeds=0", "seeds=1"]
    assert merged.parts[1].model_dump() == {
        "run": "seeds=1", "values": {"seeds": [1]}, "git_commit": "b" * 40, "git_dirty": False,
        "code_digest": "c" * 64, "started_at": "2026-01-02T03:04:01+00:00", "wall_seconds": 11.5,
        "hardware": "B", "threads": 1, "from_cache": {"plain": 1},
    }  # fmt: skip


def test_groups_are_joined_and_what_they_share_is_kept_once():
    merged = parts.merge(by_group())
    assert merged.parameters["groups"] == ["few", "many"]
    cells = [(row["seed"], row["group"]) for row in merged.tables["points"]]
    assert cells == [(0, "few"), (0, "many"), (1, "few"), (1, "many")]
    assert merged.tables["by_seed"] == [{"seed": 0, "square": 0}, {"seed": 1, "square": 1}]
    assert merged.parts[0].values == {"seeds": [0], "groups": ["few"]}
    assert len(merged.tables["times"]) == 2  # by seed; seconds may differ


def test_parts_of_groups_alone():
    merged = parts.merge({f"groups={g}": part(0, g) for g in ("few", "many")})
    assert (merged.seeds, merged.parameters["groups"]) == ([0], ["few", "many"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"code_digest": "e" * 64}, "code_digest: 'cccc.*' in seeds=0, 'eeee.*' in seeds=1"),
        ({"threads": 2}, "threads: 1 in seeds=0, 2 in seeds=1"),
        ({"workers": 2}, "workers: 1 in seeds=0, 2 in seeds=1"),
        ({"python": "3.12.1"}, "python: '3.11.7' in seeds=0, '3.12.1'"),
        ({"packages": {"torch": "2.14"}}, "packages.torch: '2.15.0' in seeds=0, '2.14'"),
        ({"packages": {"torch": "2.15.0", "numpy": "2"}}, "packages.numpy: None in seeds=0, '2'"),
        ({"data": {}}, "data.pairs/images.npy: 'dd.*' in seeds=0, None in seeds=1"),
        ({"precision": "bfloat16"}, "precision: 'float32' in seeds=0, 'bfloat16'"),
        ({"device": "cuda"}, "device: 'cpu' in seeds=0, 'cuda'"),
        ({"profile": "cpu"}, "profile: 'full' in seeds=0, 'cpu'"),
        (
            {"parameters": {"seeds": [1], "groups": ["few", "many"], "rate": 3.0}},
            "parameters.rate: 2.0 in seeds=0, 3.0 in seeds=1",
        ),
        (
            {"parameters": {"seeds": [1], "groups": ["few"], "rate": RATE}},
            r"parameters.groups: \['few', 'many'\] in seeds=0, \['few'\] in seeds=1",
        ),
    ],
)  # fmt: skip
def test_parts_that_differ_are_refused_and_it_is_said_in_what(change, words):
    with pytest.raises(ValueError, match=f"Parts of a record must agree. Found {words}"):
        parts.merge({"seeds=0": part(0), "seeds=1": part(1, **change)})


def test_parts_that_do_not_know_their_code_are_refused():
    with pytest.raises(ValueError, match="must know their code"):
        parts.merge(by_seed(0, 1, code_digest=None))


def test_parts_with_uncommitted_changes_are_refused():
    several = by_seed(0, 1) | by_seed(2, git_dirty=True)
    with pytest.raises(ValueError, match="Found uncommitted changes in seeds=2;"):
        parts.merge(several)
    assert parts.merge(several, allow_dirty=True).git_dirty is True
    assert parts.merge(by_seed(0, 1)).git_dirty is False


def test_missing_combinations_are_named():
    several = by_group()
    del several["groups=many,seeds=1"]
    with pytest.raises(ValueError, match=r"are missing: seeds=1,groups=many\."):
        parts.merge(several)


def test_what_occurs_twice_is_named():
    several = by_seed(0, 1) | {"groups=few,seeds=0": part(0, "few")}
    with pytest.raises(ValueError, match="Found seeds=0,groups=few in seeds=0 and in groups=few,"):
        parts.merge(several)


def test_tables_that_no_column_tells_apart_must_be_the_same():
    several = by_seed(0, 1)
    several["seeds=1"].tables["settings"][0]["rate"] = 3.0
    with pytest.raises(ValueError, match="`settings` must be the same in seeds=0 and seeds=1, .*"
                       "no column for seeds"):  # fmt: skip
        parts.merge(several)
    groups = by_group()
    groups["groups=many,seeds=1"].tables["by_seed"].append({"seed": 1, "square": 2})
    with pytest.raises(ValueError, match="`by_seed` must be the same .* no column for groups"):
        parts.merge(groups)
    several = by_seed(0, 1)
    del several["seeds=0"].tables["settings"]
    with pytest.raises(ValueError, match="`settings` must be the same"):
        parts.merge(several)


def test_a_study_of_some_seeds_is_in_their_parts_only():
    several = by_seed(0, 1, 2)
    several["seeds=0"].tables["points"] = []
    del several["seeds=2"].tables["points"]
    assert {row["seed"] for row in parts.merge(several).tables["points"]} == {1}


def test_claims_need_a_module_that_makes_them():
    several = by_seed(0, 1)
    several["seeds=1"].tables["claims"] = [{"claim": "c", "found": "of one seed"}]
    with pytest.raises(ValueError, match="must name the module that makes its claims"):
        parts.merge(several)


def test_parts_that_are_not_there_are_named(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "RUNS", tmp_path)
    with pytest.raises(ValueError, match="are missing: seeds=0, seeds=1. `make record`"):
        parts.read_parts("mini", "full", ["seeds=0", "seeds=1"])
    with pytest.raises(ValueError, match="are missing: all."):
        parts.read_parts("mini", "full", [])


def test_only_finished_runs_of_lists_are_parts(monkeypatch, tmp_path):
    monkeypatch.setattr(parts, "RUNS", tmp_path)
    monkeypatch.setattr(parts, "list_parameters", lambda _chapter: ["seeds", "groups"])
    names = ["main", "rate=2.0,seeds=1", "seeds=1.failed", "seeds=2.partial-77", "notes"]
    wanted = ["groups=few,seeds=3", "seeds=1"]
    for name in (*names, *wanted):
        (tmp_path / "mini/full" / name).mkdir(parents=True)
        (tmp_path / "mini/full" / name / "result.json").touch()
    (tmp_path / "mini/full/seeds=9").mkdir()  # without a record
    assert parts.found_runs("mini", "full") == wanted
    assert parts.part_runs("mini", {"groups": "few,many", "seeds": "0"})[1] == "groups=many,seeds=0"
    with pytest.raises(ValueError, match="SET must name lists, .*: seeds, groups. Found 'rate'"):
        parts.part_runs("mini", {"rate": "1.0,2.0"})


# What is kept


def test_a_large_record_is_compressed_and_reads_back(tmp_path, monkeypatch):
    merged = parts.merge(by_group())
    plain = keep(merged, tmp_path)
    assert plain == tmp_path / "mini.full.json"
    monkeypatch.setattr(committed, "LARGEST_PLAIN", 1000)
    packed = keep(merged, tmp_path)
    first = packed.read_bytes()
    assert packed.name == "mini.full.json.gz"
    assert record_files(tmp_path) == [packed]  # and the plain one is gone
    assert load_record(packed) == merged
    keep(merged, tmp_path)
    assert packed.read_bytes() == first
    assert first[4:8] == bytes(4)  # no time
    for damaged in (first[:-40], first[:200] + b"x" + first[201:], b"{}"):
        packed.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"mini.full.json.gz is not a record of a run. file: "):
            load_record(packed)
    monkeypatch.setattr(committed, "LARGEST_PLAIN", 10**6)
    assert record_files(keep(merged, tmp_path).parent) == [plain]


def test_a_part_computed_again_is_compared_with_the_merged_record():
    merged = parts.merge(by_group())
    again = part(0, "few", code_digest="new")
    note = recheck(merged, again).rechecked
    assert (note.seeds, note.code_digest) == ([0], "new")
    assert note.rows == 4  # points, settings, by_seed, times
    again.tables["points"][0]["value"] += 1
    with pytest.raises(ValueError, match="points, row 1: value was 3.0 and is 4.0"):
        recheck(merged, again)
    with pytest.raises(ValueError, match="groups differ"):
        recheck(merged, part(0, "none"))


def test_the_command_that_makes_a_record_names_its_parts():
    assert record_command("mini", "full", part(0)) == "make record CHAPTER=mini PROFILE=full"
    assert record_command("mini", "full", parts.merge(by_seed(0, 1))).endswith(" SEEDS=0,1")
    command = record_command("mini", "full", parts.merge(by_group()))
    assert command.endswith(" SEEDS=0,1 SET='groups=few,many'")


# What Snakemake is given


@pytest.fixture
def given(monkeypatch):
    """The arguments that Snakemake gets, and which build its steps are told that they belong to."""
    seen = SimpleNamespace()

    def main(arguments):
        seen.arguments, seen.build = arguments, build.os.environ[build.BUILD_VARIABLE]

    monkeypatch.setenv(build.BUILD_VARIABLE, "this one")
    monkeypatch.setattr("snakemake.cli.main", main)
    monkeypatch.setattr(build, "invalidate_modified_data", lambda *_: None)
    monkeypatch.setattr(build, "parameter_file", lambda *_: None)

    def call(*options, **kinds):
        parsed = build.parse(["record", "--chapter", "mini", *options])
        assert build.snakemake(["target"], ["mini"], parsed, ["seeds=0"], **kinds)
        return seen

    return call


@pytest.mark.parametrize("words", ["--executor slurm --jobs 8", "--profile=here", "-e slurm -j 2"])
def test_options_for_snakemake_are_handed_through(given, words):
    seen = given(f"--snakemake={words}", parts=True)
    assert seen.arguments[-len(words.split()) :] == words.split()
    assert "parts=1" in seen.arguments
    assert "gpu=1" not in seen.arguments  # a cluster has more than one
    assert seen.build == ""


def test_runs_on_this_machine_share_its_gpu_and_end_with_the_build(given):
    seen = given("--snakemake=--resources mem_mb=9000 gpu=2")
    assert seen.arguments[-3:] == ["--resources", "mem_mb=9000", "gpu=2"]
    assert "gpu=1" in seen.arguments
    assert "parts=1" not in seen.arguments
    assert seen.build == "this one"
    assert build.parse(["record", "--snakemake=-n"]).dry_run


def test_parts_are_not_changed_by_merging():
    several = by_group()
    before = copy.deepcopy(several)
    parts.merge(several)
    assert several == before
