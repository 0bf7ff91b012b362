"""The chapters on ILA use what their search chose, and their words hold in their records."""

import pytest

from data_prep import DataError
from experiments.ila.evaluation import held_out_loss
from experiments.ila.experiment import GENERAL_TEXT, LayerExperiment
from experiments.ila.parameters import IlaParameters, IlaStudyParameters
from experiments.ila.report import finetune_difference
from experiments.run.parameters import check_parameter_file
from experiments.run.results import committed_record, thesis_settings
from experiments.searches import ila as search_ila
from tests.paths import ROOT

MODELS = {"ila": IlaParameters, "ila_studies": IlaStudyParameters}


@pytest.fixture(autouse=True)
def _here(monkeypatch):
    monkeypatch.chdir(ROOT)


def values_of(chapter, profile):
    """Parameters of a chapter in a profile."""
    folder = ROOT / "chapters"
    file = folder / f"params/{chapter}.{profile}.yaml"
    return check_parameter_file(folder / f"{chapter}.py", file, MODELS[chapter]).model_dump()


@pytest.mark.parametrize("profile", ["cpu", "full"])
@pytest.mark.parametrize("chapter", MODELS)
def test_the_rates_are_those_that_the_search_chose(chapter, profile):
    chosen = search_ila.choose(committed_record("ila", "search").frame("search"))
    used = values_of(chapter, profile)
    assert {name: used[name] for name in search_ila.RATES} == chosen


def test_the_search_has_the_size_of_the_live_run():
    searched, live = committed_record("ila", "search").parameters, values_of("ila", "cpu")
    apart = {"seeds", "profile", "run_dir", "device", *search_ila.RATES}
    different = {k for k, v in searched.items() if k not in apart and live[k] != v}
    assert not different
    assert not set(searched["seeds"]) & set(values_of("ila", "full")["seeds"])


def test_the_best_rate_of_each_kind_lies_inside_its_grid():
    """At an edge a better one may lie outside."""
    table = committed_record("ila", "search").frame("search")
    chosen = search_ila.choose(table)
    for name, part in table.groupby("name"):
        assert part["rate"].min() < chosen[name] < part["rate"].max(), name
        counted = part.groupby("rate")[["dataset", "seed"]].nunique()
        assert set(map(tuple, counted.to_numpy().tolist())) == {(2, 2)}, name


def test_the_words_about_the_long_run_hold_in_its_record():
    """The chapter tells in words what the long run says; another record may need other words."""
    record = committed_record("ila", "full")
    rows, pairs = record.tables["finetune"], record.frame("jaccard")
    seeds, sets = (pairs[pairs["kind"] == kind] for kind in ("seeds", "data sets"))
    of_seeds = seeds.query("top == 0.75")["value"]
    assert (round(of_seeds.min(), 2), round(of_seeds.max(), 2)) == (0.60, 0.70)
    assert pairs.query("top == 0.75")["chance"].mean() == pytest.approx(0.60, abs=0.005)
    code = seeds[seeds["a"].str.startswith("human_eval")]
    assert (code.query("top == 0.75")["p_value"] < 0.05).all()
    assert code["rank_correlation"].between(0.27, 0.38).all()
    assert (code["p_value_within_kinds"] < 0.05).mean() <= 1 / 3
    others = seeds[~seeds["a"].str.startswith("human_eval")].query("top == 0.75")
    for _, part in others.groupby("a"):
        assert (part["p_value"] > 0.05).any()
    for top in (0.75, 0.3):
        assert len(sets[sets["top"] == top]) == 9
    assert (sets["p_value"] > 0.01).all()

    scores = record.frame("layer_scores").groupby(["dataset", "seed"])
    noise = scores["standard_error"].mean() / scores["score"].std()
    assert (round(noise.min(), 1), round(noise.max(), 1)) == (0.7, 1.4)
    cheap = record.frame("cheap_scores")
    by = cheap.groupby("b")["rank_correlation"].agg(["min", "max", "mean"])
    assert (round(by.loc["first order", "min"], 2), round(by.loc["first order", "max"], 2)) == (
        0.39, 0.80,
    )  # fmt: skip
    assert by.loc["first order", "min"] > seeds["rank_correlation"].max()
    assert by.loc["update norm", "mean"] < 0.25

    def change(one, other, dataset="reasoning"):
        return finetune_difference(rows, ("lora", one), ("lora", other), dataset)

    for one, other in (("top", "all"), ("random_top", "all"), ("top", "random_top")):
        gap = change(one, other)
        assert abs(gap.mean) < 0.1, (one, other)
        assert gap.low < 0 < gap.high, (one, other)
    reach = [abs(end) for one in ("top", "random_top")
             for end in (change(one, "all").low, change(one, "all").high)]  # fmt: skip
    assert 0.42 < max(reach) < 0.5
    late = change("last", "top")
    assert late.low > 0
    assert late.mean == pytest.approx(0.5, abs=0.05)
    kept, blind = change("keep", "all"), change("random_keep", "all")
    assert kept.mean < -0.1 < blind.mean < 0
    assert kept.high > 0
    held = record.frame("finetune").query("dataset == 'reasoning' and method == 'lora'")
    wide = held.pivot_table("value", "seed", "layers")
    assert (wide["all"] - wide["keep"]).between(0.1, 0.35).all()
    assert not (wide["all"] - wide["random_keep"]).between(0.1, 0.35).all()

    cost = record.frame("cost").set_index(["method", "layers"])
    ratio = {m: cost.loc[(m, "top")] / cost.loc[(m, "all")] for m in ("lora", "full")}
    found = [round(ratio[m][c], 2) for m in ratio for c in ("peak_bytes", "seconds_per_step")]
    assert found == [0.91, 0.93, 0.45, 0.39]
    second = (cost.loc[("lora", "scores only")] / cost.loc[("lora", "all")]).round(2)
    assert second.to_dict() == {"peak_bytes": 0.88, "seconds_per_step": 0.93}
    printed = thesis_settings("ila").set_index("name")["value"]
    stages = [float(printed[f"stage_{number}_ms_per_iteration"]) for number in (1, 2)]
    assert round(stages[1] / stages[0], 2) == 0.80

    mean = record.frame("finetune").groupby(["method", "layers", "dataset"])["value"].mean()
    before = mean["not tuned", ""]
    for method, layers, dataset in mean.index:
        rise = mean[method, layers, dataset] - before[dataset]
        if dataset == GENERAL_TEXT:
            assert abs(rise) < 0.05, (method, layers)
        if dataset == "human_eval" and method == "lora":
            assert rise > 0.05, layers
        if dataset == "human_eval" and method in ("full", "adalora"):
            assert abs(rise) < 0.06, (method, layers)


def test_the_words_about_the_long_run_of_the_studies_hold_in_its_record():
    record = committed_record("ila_studies", "full")
    noise = record.frame("noise").query("top == 0.3")
    assert (noise["step"].max(), set(noise["batch_size"])) == (96, {4, 12})
    same, other = (noise[noise["a"] == kind] for kind in ("stage 2 alone", "both stages"))
    few, many = (same[same["batch_size"] == size] for size in (4, 12))
    assert (few[few["step"] >= 60]["p_value"] < 0.01).all()
    assert (few[few["step"] < 60]["p_value"] > 0.01).all()
    assert (many["p_value"] < 0.01).all()
    last = [part.set_index("step").loc[96, "rank_correlation"] for part in (few, many)]
    assert [round(value, 2) for value in last] == [0.47, 0.68]
    assert other["rank_correlation"].round(2).between(-0.1, 0.12).all()
    assert (other["p_value"] > 0.05).all()

    pairs = record.frame("jaccard")
    of = dict(iter(pairs.groupby("study")))
    early = of["milestone"].query("top == 0.3").groupby("a")["rank_correlation"]
    assert (early.mean()[["1 %", "25 %", "50 %"]] < 0.15).all()
    assert early.min()["75 %"] > 0.9
    starts = of["initial_score"].query("top == 0.3").groupby("a")["rank_correlation"]
    ends = starts.agg(["min", "max"]).round(2)
    assert ends.loc["2"].tolist() == pytest.approx([0.90, 0.97], abs=0.005)
    assert ends.loc["1"].tolist() == pytest.approx([0.65, 0.91], abs=0.005)
    dials = record.frame("dials").groupby("penalty")["mean dial"].mean().round(2)
    assert dials.to_dict() == {0.0: 0.75, 0.01: 0.15}
    assert of["penalty"]["rank_correlation"].mean() < 0.2
    full = of["full"].query("top == 0.75")
    assert (round(full["value"].min(), 2), round(full["value"].max(), 2)) == (0.60, 0.66)
    assert full["chance"].mean() == pytest.approx(0.60, abs=0.005)

    cheap = record.frame("cheap_scores").query("b == 'first order'")["rank_correlation"]
    assert (round(cheap.min(), 2), round(cheap.max(), 2)) == (0.70, 0.81)
    again = record.frame("repeatability").query("top == 0.3").set_index("a")
    assert (again.loc[["learned", "first order"], "p_value"] > 0.05).all()
    assert again.loc["update norm", "rank_correlation"] == pytest.approx(0.90, abs=0.005)
    assert again.loc["update norm", "p_value_within_kinds"] > 0.05

    rows = record.tables["finetune"]
    for one in ("top of own", "top of chatterbot"):
        gap = finetune_difference(rows, ("lora", one), ("lora", "random top"), "reasoning")
        assert gap.low < 0 < gap.high
    solved = record.frame("finetune").query("dataset == 'tasks solved'")
    by = solved.groupby("layers")["value"].agg(["min", "max"]).round(0)
    assert by.loc["all"].tolist() == [25, 30]
    assert by.loc["keep"].tolist() == [27, 42]
    assert by.loc["top"].tolist() == [28, 37]
    assert by.loc["random_top"].tolist() == [28, 35]
    assert solved.query("method == 'not tuned'")["value"].tolist() == [0]
    for one in ("keep", "top", "random_top"):
        gap = finetune_difference(
            rows, ("lora", one), ("lora", "all"), "tasks solved", "accuracy (%)"
        )
        assert gap.low < 0 < gap.mean < gap.high


def test_the_words_about_the_proof_on_the_pretrained_model_hold_in_its_record():
    record = committed_record("proofs/ila", "full")
    assert record.parameters["model"] == "smollm2"
    assert record.parameters["lora_rank"] == 8
    table = record.frame("language_model")
    assert len(table) == 9
    ratio = table["bound"] / table["gap"]
    assert 110 < ratio.min() < ratio.max() < 200
    assert table["flips"].mul(100).round().between(2, 6).all()
    assert (table["sure"] < 0.1).all()
    by_time = table.groupby("t")[["gap", "other sequences"]].mean()
    assert by_time["gap"].is_monotonic_decreasing
    assert by_time["other sequences"].is_monotonic_increasing
    last = by_time.iloc[-1]
    assert last["other sequences"] / last["gap"] == pytest.approx(10, rel=0.15)


def test_a_row_of_the_full_record():
    """The untuned model's loss on held-out text, computed again."""
    record = committed_record("ila", "full")
    known = record.parameters | {"device": "cpu", "profile": "test", "run_dir": ""}
    try:
        experiment = LayerExperiment(IlaParameters.model_validate(known), "cpu")
        batches = experiment.held_out("reasoning")
    except DataError as error:
        pytest.skip(f"the pre-trained model is not prepared: {error}")
    found = held_out_loss(experiment.new_model(), batches, precision="float32")
    (row,) = [
        row
        for row in record.tables["finetune"]
        if (row["method"], row["dataset"], row["seed"]) == ("not tuned", "reasoning", 0)
    ]
    assert found == pytest.approx(row["value"], rel=1e-4)
