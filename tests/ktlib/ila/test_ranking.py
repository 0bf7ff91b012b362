"""Rankings: which layers are the top, to JSON and back, and into peft."""

import json
import warnings

import peft
import pytest
import torch
from torch import nn

from ktlib.ila.layers import adapted_layers, linear_layers
from ktlib.ila.ranking import LayerRanking, endings_of_other_modules, layers_in

SCORES = {"model.layers.0.mlp.up_proj": 1.0, "model.layers.0.self_attn.q_proj": 3.0}
SCORES |= {"model.layers.1.mlp.up_proj": 3.0, "lm_head": 2.0}
BEST_FIRST = (
    "model.layers.0.self_attn.q_proj",
    "model.layers.1.mlp.up_proj",
    "lm_head",
    "model.layers.0.mlp.up_proj",
)


@pytest.fixture
def ranking():
    return LayerRanking(
        scores=SCORES,
        standard_errors=dict.fromkeys(SCORES, 0.1),
        curve={0: dict.fromkeys(SCORES, 4.0), 2: SCORES},
        losses=[1.5, 1.25],
        settings={"method": "ila", "seed": 0, "steps": 2},
        provenance={"class": "LlamaForCausalLM", "packages": {"torch": "2"}},
    )


def random_ranking(names, seed=0):
    values = torch.rand(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    return LayerRanking(
        scores=dict(zip(names, values, strict=True)), provenance={"class": "LlamaForCausalLM"}
    )


def get_peft_model(model, config):
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated")
        return peft.get_peft_model(model, config)


def test_best_come_first_and_ties_go_by_the_order_of_the_model(ranking):
    assert ranking.names == BEST_FIRST
    turned = LayerRanking(scores=dict(reversed(SCORES.items())))
    assert turned.names[:2] == (BEST_FIRST[1], BEST_FIRST[0])


@pytest.mark.parametrize(
    ("fraction", "total", "number"),
    [
        (0.3, 225, 68),  # 67.5
        (0.75, 225, 169),  # 168.75
        (0.75, 210, 158),  # 157.5
        (0.25, 210, 53),  # 52.5
        (0.3, 210, 63),
        (0.1, 30, 3),  # 0.1 * 30 is a little more than 3 in binary
        (0.07, 100, 7),
        (0.29, 100, 29),
        (0.001, 10, 1),  # never none
        (1, 7, 7),
    ],
)
def test_a_share_of_the_layers_is_rounded_to_the_nearest(fraction, total, number):
    assert layers_in(fraction, total) == number


def test_top_and_bottom_part_the_layers(ranking):
    assert ranking.top(0.5) == BEST_FIRST[:2]
    assert ranking.bottom(0.5) == (BEST_FIRST[3], BEST_FIRST[2])
    assert ranking.top(1) == BEST_FIRST
    assert ranking.bottom(1) == BEST_FIRST[::-1]
    many = random_ranking([f"layers.{i}.q" for i in range(210)])
    for percent in range(1, 100):
        top, bottom = many.top(percent / 100), many.bottom((100 - percent) / 100)
        assert len(top) + len(bottom) == 210
        assert not set(top) & set(bottom)


@pytest.mark.parametrize("value", [0, -0.1, 1.5, float("nan"), True])
def test_shares_outside_are_refused(ranking, value):
    with pytest.raises(ValueError, match=rf"Found top_fraction={value!r}."):
        ranking.top(value)
    with pytest.raises(ValueError, match=rf"Found fraction={value!r}."):
        ranking.bottom(value)
    with pytest.raises(ValueError, match=rf"Found top_fraction={value!r}."):
        ranking.lora_config(top_fraction=value)


def test_a_ranking_comes_back_from_json_equal(ranking, tmp_path):
    path = ranking.save(tmp_path / "new" / "ranking.json")
    assert LayerRanking.load(path) == ranking
    assert list(LayerRanking.load(path).scores) == list(SCORES)
    awkward = random_ranking(list(SCORES), seed=3)
    assert LayerRanking.load(awkward.save(path)).scores == awkward.scores
    assert json.loads(path.read_text())["schema_version"] == 1


def test_files_that_are_no_rankings_are_refused(ranking, tmp_path):
    path = ranking.save(tmp_path / "ranking.json")
    good = json.loads(path.read_text())
    for change, message in [
        ({"schema_version": 2}, "version 1. schema_version: Input should be 1"),
        ({"scores": {}}, "scores: Dictionary should have at least 1 item"),
        ({"extra": 1}, "extra: Extra inputs are not permitted"),
        ({"standard_errors": {"lm_head": 1.0}}, "standard_errors must have the layers"),
        ({"curve": {"1": {"lm_head": 1.0}}}, "curve at step 1 must have the layers"),
        ({"without_update": ["else"]}, "without_update must hold layers"),
    ]:
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=f"ranking.json is not a ranking of layers.*{message}"):
            LayerRanking.load(path)
    path.write_text('{"scores": ')
    with pytest.raises(ValueError, match="file: Invalid JSON"):
        LayerRanking.load(path)
    with pytest.raises(FileNotFoundError):
        LayerRanking.load(tmp_path / "missing.json")


def test_scores_must_be_finite_and_some():
    for scores in ({"a": float("nan")}, {"a": float("inf")}, {}):
        with pytest.raises(ValueError, match="scores"):
            LayerRanking(scores=scores)


def test_an_earlier_step_of_the_curve_is_a_ranking(ranking):
    start = ranking.at_step(0)
    assert set(start.scores.values()) == {4.0}
    assert start.names == tuple(SCORES)
    assert ranking.at_step(2).scores == SCORES
    assert start.settings["steps"] == 0
    with pytest.raises(ValueError, match=r"one of \[0, 2\]. Found step=1"):
        ranking.at_step(1)


def test_the_heat_map_has_blocks_and_projections(ranking):
    table = ranking.heat_map()
    assert list(table.index) == [0, 1, "outside"]
    assert list(table.columns) == ["up_proj", "q_proj", "lm_head"]
    assert table.loc[1, "up_proj"] == 3.0
    assert table.loc["outside", "lm_head"] == 2.0
    assert table.isna().sum().sum() == 5
    chosen = ranking.heat_map(top_fraction=0.5)
    assert chosen.loc[0, "q_proj"] == chosen.loc[1, "up_proj"] == 1.0
    assert chosen.loc[0, "up_proj"] == chosen.loc["outside", "lm_head"] == 0.0


def test_the_heat_map_keeps_encoder_and_decoder_apart():
    parts = ("encoder.block", "decoder.block")
    names = [f"{part}.{block}.layer.0.q" for part in parts for block in (0, 1)]
    table = random_ranking(names).heat_map()
    assert table.notna().sum().sum() == 4
    assert list(table.columns) == ["encoder.block.layer.0.q", "decoder.block.layer.0.q"]


def test_projections_of_one_last_name_keep_the_whole():
    names = [f"transformer.h.{b}.{part}.c_proj" for b in (0, 1) for part in ("attn", "mlp")]
    table = random_ranking(names).heat_map()
    assert list(table.columns) == ["attn.c_proj", "mlp.c_proj"]
    assert table.shape == (2, 2)


# peft ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top", [0.05, 0.3, 0.75, 1.0])
def test_the_exported_configuration_adapts_exactly_the_chosen_layers(new_llama, top):
    # Twelve blocks: `layers.1.mlp.up_proj` must not match `layers.11.mlp.up_proj`.
    names = [name for name in linear_layers(new_llama(blocks=12)) if name != "lm_head"]
    for seed in range(2):
        ranking = random_ranking(names, seed)
        config = ranking.lora_config(top_fraction=top, r=2, lora_alpha=4)
        assert config.r == 2
        assert config.task_type == "CAUSAL_LM"
        model = get_peft_model(new_llama(blocks=12), config)
        assert set(adapted_layers(model)) == set(ranking.top(top))


class TwoHeads(nn.Module):
    """A model in which the name of a layer ends that of another."""

    def __init__(self, inner):
        super().__init__()
        self.lm_head = nn.Linear(2, 2)
        self.extra = nn.ModuleDict({"lm_head": nn.Linear(2, 2), "proj": nn.Linear(2, 2)})
        self.config = inner


def test_layers_whose_names_end_other_names_are_adapted_exactly():
    model = TwoHeads({"model_type": "custom"})
    assert endings_of_other_modules(["lm_head", "extra.lm_head"], model) == ("lm_head",)
    ranking = LayerRanking(
        scores={"lm_head": 2.0, "extra.proj": 1.0},
        provenance={"endings_of_other_modules": ["lm_head"]},
    )
    for config in (
        ranking.lora_config(top_fraction=1.0),
        ranking.lora_config(top_fraction=1.0, model=model),
    ):
        adapted = adapted_layers(peft.get_peft_model(TwoHeads(model.config), config))
        assert set(adapted) == {"lm_head", "extra.proj"}
    # Names alone would have adapted one module too many.
    plain = peft.LoraConfig(target_modules=["lm_head", "extra.proj"])
    assert len(adapted_layers(peft.get_peft_model(TwoHeads(model.config), plain))) == 3


def test_the_exported_configuration_trains_in_a_plain_loop(new_llama, batches):
    ranking = random_ranking([name for name in linear_layers(new_llama()) if name != "lm_head"])
    model = get_peft_model(new_llama(), ranking.lora_config(top_fraction=0.3, r=4))
    chosen = set(ranking.top(0.3))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.05)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(**batches[0]).loss
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]
    changed = {n for n, value in model.state_dict().items() if not torch.equal(value, before[n])}
    assert {n.partition(".lora_")[0].removeprefix("base_model.model.") for n in changed} == chosen
    assert len(chosen) == 4


def test_settings_may_not_choose_layers(ranking):
    with pytest.raises(ValueError, match=r"Found \['target_modules'\]"):
        ranking.lora_config(top_fraction=0.5, target_modules=["q_proj"])
    classifier = ranking.model_copy(update={"provenance": {"class": "BertModel"}})
    assert classifier.lora_config(top_fraction=0.5).task_type is None
    assert ranking.lora_config(top_fraction=0.5, task_type="SEQ_CLS").task_type == "SEQ_CLS"


def test_a_model_of_another_architecture_is_named_with_what_it_lacks(ranking, new_llama):
    small = new_llama(blocks=1)
    message = "It is of LlamaForCausalLM; of its 4 layers these are missing: model.layers.1.mlp.up"
    with pytest.raises(ValueError, match=message):
        ranking.lora_config(top_fraction=0.5, model=small)
    ranking.check_model(new_llama(blocks=2))
