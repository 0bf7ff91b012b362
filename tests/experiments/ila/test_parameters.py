"""The parameters of the ILA chapters, in the first seconds of a run."""

import pytest

from experiments.ila.parameters import IlaParameters, IlaStudyParameters
from experiments.run.parameters import ParameterError
from tests.chapters import check_cell, check_profile, profiles

MODELS = {"ila": IlaParameters, "ila_studies": IlaStudyParameters}


def check(chapter, **changes):
    return check_cell(MODELS[chapter], chapter, **changes)


@pytest.mark.parametrize("chapter", MODELS)
def test_the_parameters_cell_is_accepted(chapter):
    assert check(chapter).model == "smollm2"


@pytest.mark.parametrize(("chapter", "path"), profiles(MODELS))
def test_every_profile_is_accepted(chapter, path):
    assert check_profile(MODELS[chapter], chapter, path)


def test_both_chapters_have_the_same_experiment():
    """Else the studies would be of other rankings than those of the chapter."""
    one, other = check("ila").model_dump(), check("ila_studies").model_dump()
    apart = {"seeds"}
    assert not {k for k in one.keys() & other.keys() - apart if one[k] != other[k]}


def refused(chapter, changes):
    """The message of the error."""
    with pytest.raises(ParameterError) as caught:
        check(chapter, **changes)
    return str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"datasets": ["reasoning"]},
        {"datasets": ["reasoning", "reasoning"]},
        {"datasets": ["reasoning", "no_such_set"]},
        {"datasets": ["reasoning", "no/such/file.json"]},
        {"model": "./no_such_folder"},
        {"max_tokens": 8193},
        {"max_tokens": 513, "model": "tiny"},
        {"train_examples": 3},
        {"train_examples": 6, "stage_2_batch_size": 7},
        {"train_examples": 7001},
        {"test_examples": 2001},
        {"initial_score": 17.0},
        {"lr": 2.0},
        {"full_lr": 2.0},
        {"score_lr": 11.0},
        {"top": 0.75},
        {"keep": 1.0},
        {"quantized": True, "model": "tiny"},
        {"quantized": True, "device": "cpu"},
    ],
)
@pytest.mark.parametrize("chapter", MODELS)
def test_values_that_would_fail_later_are_refused_at_once(chapter, changes):
    message, (name, value) = refused(chapter, changes), next(iter(changes.items()))
    assert name in message
    assert str(value[-1] if isinstance(value, list) else value) in message


@pytest.mark.parametrize(
    "changes",
    [
        {"tuned_on": "other"},
        {"tunings": ["full"]},
        {"stage_1_steps": 2, "tunings": ["lora", "adalora"]},
        {"selections": ["top"]},
        {"components": ["qkv"]},
        {"smaller_tops": [0.1, 0.3]},
        {"smaller_tops": [0.1, 0.1]},
        {"questions": "no/such.jsonl"},
        {"tunings": ["lora", "full"], "quantized": True, "device": "cuda"},
    ],
)
def test_comparisons_that_cannot_be_made_are_refused(changes):
    message, (name, value) = refused("ila", changes), next(iter(changes.items()))
    assert f"{name} must" in message
    assert str(value) in message


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"seeds": [3]}, ["seeds", "Found [3]"]),
        ({"studied_on": "lima"}, ["studied_on", "Found ['lima']"]),
        ({"transferred_from": ["lima"]}, ["transferred_from", "['lima']"]),
        ({"transferred_from": ["reasoning"]}, ["transferred_from", "studied_on='reasoning'"]),
        ({"milestones": [0.0, 1.0]}, ["milestones", "(0, 1]", "Found [0.0, 1.0]"]),
        ({"milestones": [0.5]}, ["milestones", "1.0", "Found [0.5]"]),
        ({"initial_scores": [2.0]}, ["initial_scores", "initial_score=4.0"]),
        ({"penalties": [0.1]}, ["penalties", "Found [0.1]"]),
        ({"penalties": [0.0, -0.1]}, ["penalties", "-0.1"]),
        ({"batch_sizes": [0]}, ["batch_sizes", "0"]),
        ({"batch_sizes": [4, 401]}, ["train_examples", "401", "Found 400"]),
        ({"noise_steps": 1}, ["noise_steps", "equal to 2"]),
        ({"batch_sizes": [4, 4]}, ["batch_sizes", "[4, 4]"]),
        ({"solved_with": ["middle"]}, ["solved_with", "middle", "random_top"]),
        ({"full_ranked": True, "quantized": True, "device": "cuda"}, ["full_ranked", "quantized"]),
        ({"tasks": 2001}, ["tasks", "2001"]),
        ({"new_tokens": 353, "model": "tiny"}, ["new_tokens", "352", "Found 353"]),
    ],
)
def test_wrong_studies_are_refused(changes, words):
    message = refused("ila_studies", changes)
    assert all(word in message for word in words)


def test_the_context_of_a_model_in_a_folder(tmp_path):
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 64}')
    message = refused("ila", {"model": str(tmp_path), "max_tokens": 65})
    assert "max_tokens must be at most 64" in message
    assert check("ila", model=str(tmp_path), max_tokens=64).max_tokens == 64
