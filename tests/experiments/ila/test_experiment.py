"""The experiment on layers: what is held out, what seeds change, both stages on a tiny model."""

import pytest
import torch

from experiments.ila.experiment import GENERAL_TEXT, LayerExperiment
from tests.experiments.ila.conftest import parameters


def test_every_model_is_a_copy_of_its_own(experiment):
    one, other = experiment.new_model(), experiment.new_model()
    with torch.no_grad():
        next(one.parameters()).zero_()
    assert next(other.parameters()).abs().sum() > 0
    assert len(experiment.layers) == 28


def test_splits_are_apart_and_cut_to_size(experiment, sets):
    train = experiment.examples(sets[0])
    held = experiment.examples(sets[0], "test")
    assert (len(train), len(held)) == (12, 4)
    assert not {one.tokens for one in train} & {one.tokens for one in held}
    everything = LayerExperiment(parameters(sets, train_examples=0), "cpu")
    assert len(everything.examples(sets[0])) > 12
    searched = LayerExperiment(parameters(sets), "cpu", validation=True)
    tested = {
        tuple(row) for batch in experiment.held_out(sets[0]) for row in batch["input_ids"].tolist()
    }
    looked = {
        tuple(row) for batch in searched.held_out(sets[0]) for row in batch["input_ids"].tolist()
    }
    assert not tested & looked


def test_a_search_reads_other_general_text(experiment, sets):
    def passages(one):
        return {tuple(example.tokens) for example in one._general_text}

    searched = LayerExperiment(parameters(sets), "cpu", validation=True)
    assert len(passages(experiment)) == 3
    assert not passages(experiment) & passages(searched)


def test_seeds_and_stages_have_batches_of_their_own(experiment, sets):
    def tokens(seed, stage):
        return [
            batch["input_ids"].tolist() for batch in experiment.batches(sets[0], seed, 3, stage)
        ]

    assert tokens(0, 1) == tokens(0, 1)
    assert tokens(0, 1) != tokens(1, 1)
    assert [len(batch) for batch in tokens(0, 1)] == [4, 4, 4]
    assert [len(batch) for batch in tokens(0, 2)] == [2, 2, 2]
    other = experiment.batches(sets[0], 0, 2, 2, batch_size=5)
    assert [len(batch["labels"]) for batch in other] == [5, 5]


def test_losses_name_every_set(experiment, sets):
    losses = experiment.losses(experiment.new_model())
    assert list(losses) == [*sets, GENERAL_TEXT]
    assert all(0 < value < 10 for value in losses.values())


def test_both_stages_repeat_themselves(experiment, sets):
    run = experiment.tune(sets[0], 1, milestones=(0.5,))
    again = experiment.tune(sets[0], 1)
    assert set(run.training.snapshots) == {0.5, 1.0}
    for name, value in run.adapters.items():
        assert torch.equal(value, again.adapters[name])
    ranking = experiment.rank(run)
    assert tuple(ranking.scores) == experiment.layers
    assert ranking == experiment.rank(again)
    assert ranking.settings["steps"] == 3
    assert ranking.scores != experiment.rank(run, seed=5).scores
    assert ranking.scores != experiment.rank(run, share=0.5).scores
    longer = experiment.rank(run, steps=4, batch_size=3, initial_score=1.0)
    assert (longer.settings["steps"], longer.settings["initial_score"]) == (4, 1.0)


def test_adapters_are_put_back_as_they_were(experiment, sets):
    run = experiment.tune(sets[0], 0)
    model = experiment.prepared("lora", "all", 0)
    experiment.train(model, "lora", sets[0], 0)
    batch = experiment.held_out(sets[0])[0]
    with torch.no_grad():
        assert torch.equal(experiment.adapted(run)(**batch).logits, model.eval()(**batch).logits)


def test_full_fine_tuning_is_ranked_against_the_model_as_it_was(experiment, sets):
    ranking = experiment.rank_full(sets[0], 0)
    assert set(experiment.layers) <= set(ranking.scores)
    assert len(set(ranking.scores.values())) > 5


@pytest.mark.parametrize("tuning", ["lora", "adalora", "full"])
def test_ways_of_tuning_learn_the_set(experiment, sets, tuning):
    before = experiment.losses(experiment.new_model())
    after = experiment.tuned_losses(tuning, "all", sets[0], 0, lr=0.02)
    assert after[sets[0]] < before[sets[0]]


def test_choices_by_name(experiment):
    ranking = list(experiment.layers)[::-1]
    assert experiment.selected("all", ranking, 0) == experiment.layers
    assert experiment.selected("top", ranking, 0) == experiment.layers[-7:]
    assert experiment.selected("last", ranking, 0) == experiment.layers[-7:]
    assert experiment.selected("first", ranking, 0) == experiment.layers[:7]
    assert len(experiment.selected("keep", ranking, 0)) == 21
    assert len(experiment.selected("random_keep", ranking, 0)) == 21
    drawn = {experiment.selected("random_top", ranking, 0, draw=draw) for draw in range(4)}
    assert len(drawn) > 1
    assert all(len(one) == 7 for one in drawn)
    with pytest.raises(ValueError, match=r"selection must be one of .* Found 'best'"):
        experiment.selected("best", ranking, 0)
    with pytest.raises(ValueError, match="tuning must be 'lora', 'adalora' or 'full'"):
        experiment.prepared("prompt", "all", 0)


def test_a_set_smaller_than_a_batch_is_named_before_the_training(sets):
    small = LayerExperiment(parameters(sets, train_examples=0, stage_2_batch_size=40), "cpu")
    with pytest.raises(ValueError, match="stage_2_batch_size must be.*echo.json .*Found 40"):
        small.encode_all()
    with pytest.raises(ValueError, match="quantized=True needs a CUDA device|made here"):
        LayerExperiment(parameters(sets, quantized=True, model="smollm2", device="auto"), "cpu")
