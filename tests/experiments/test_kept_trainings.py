"""Trainings that are kept: with them all is as without, and their name holds all that they read."""

import dataclasses

import grimp
import pytest
import torch

import experiments.cpeft.experiment as cpeft
import experiments.fcl.experiment as fcl
import experiments.ila.experiment as ila
import experiments.mtl.experiment as mtl
from experiments.cpeft.parameters import ContinualPeftParameters
from experiments.fcl.parameters import FclParameters
from experiments.ila.parameters import IlaStudyParameters
from experiments.mtl.parameters import ReconParameters
from experiments.run import cache
from experiments.run.provenance import part_files
from ktlib.seeding import deterministic
from tests.chapters import CHAPTERS, check_profile
from tests.paths import ROOT

SMALL = {
    "fcl": {"dataset": "digits", "base_classes": 4, "sessions": 2, "ways": 2, "shots": 3,
            "base_images": 8, "test_images": 5, "flatness_images": 20, "epochs": 1,
            "class_split": "random"},
    "recon": {"train_images": 300, "test_images": 50, "batch_size": 32, "epochs": 1, "width": 4},
    "continual_peft": {"pretraining_epochs": 1},
    "ila_studies": {"datasets": ["reasoning", "chatterbot"], "studied_on": "reasoning",
                    "transferred_from": [], "stage_1_steps": 3, "stage_2_steps": 2},
}  # fmt: skip
MODELS = {
    "fcl": FclParameters,
    "recon": ReconParameters,
    "continual_peft": ContinualPeftParameters,
    "ila_studies": IlaStudyParameters,
}
MODULES = {"fcl": fcl, "recon": mtl, "continual_peft": cpeft, "ila_studies": ila}
EXPERIMENTS = {
    "fcl": fcl.FewShotExperiment,
    "recon": mtl.MultiTaskExperiment,
    "continual_peft": cpeft.ContinualExperiment,
    "ila_studies": ila.LayerExperiment,
}
TRAININGS = {
    "plain": ("fcl", lambda e: e.train_plain(3)),
    "cosine": ("fcl", lambda e: e.train_plain(3, cosine=True)),
    "sam": ("fcl", lambda e: e.train_plain(3, sam_radius=0.05)),
    "f2m": ("fcl", lambda e: e.train_f2m(3)),
    "released": ("fcl", lambda e: e.train_f2m(3, spread_weight=1.0)),
    "joint": ("recon", lambda e: e.train("joint", 1)),
    "recon": ("recon", lambda e: e.train("pcgrad", 1, ["layer4.1.conv2"], lr=0.01)),
    "cagrad": ("recon", lambda e: e.train("cagrad", 1)),
    "single": ("recon", lambda e: e.train_single(1)),
    "pretrained": ("continual_peft", lambda e: e.pretrained(0.05)),
    "stage 1": ("ila_studies", lambda e: e.tune("reasoning", 1)),
    "some layers": (
        "ila_studies",
        lambda e: e.tune("reasoning", 1, e.layers[:3], milestones=[0.5]),
    ),
    "full": ("ila_studies", lambda e: e.rank_full("reasoning", 1)),
}


# Read, and yet not in the name: what stands there in another form, and what only refuses values.
ELSEWHERE = {
    "recon": {"severity"},
    "ila_studies": {"batch_sizes", "stage_2_batch_size"},
}


def small_parameters(chapter):
    smoke = check_profile(MODELS[chapter], chapter, CHAPTERS / f"params/{chapter}.smoke.yaml")
    return MODELS[chapter].model_validate(smoke.model_dump() | SMALL[chapter])


def experiment(chapter, parameters=None):
    return EXPERIMENTS[chapter](parameters or small_parameters(chapter), "cpu")


def tensors(trained):
    """All tensors in what a training gave, in a fixed order."""
    if isinstance(trained, dict):
        return [t for one in trained.values() for t in tensors(one)]
    if isinstance(trained, tuple):
        return [t for one in trained for t in tensors(one)]
    if isinstance(trained, mtl.TrainedRun):
        counts = [torch.tensor(list(m.scores(-0.1).values())) for m in trained.meters]
        return [*tensors(trained.network), *counts]
    if isinstance(trained, ila.TunedRun):
        return [*trained.adapters.values(), torch.tensor(trained.training.losses)]
    if isinstance(trained, ila.LayerRanking):
        return [torch.tensor(score) for score in trained.scores.values()]
    network = getattr(trained, "network", trained)
    return [value.detach() for value in network.state_dict().values()]


@pytest.mark.parametrize("name", TRAININGS)
@pytest.mark.slow
def test_a_training_from_the_cache_is_the_one_that_was_done(name, tmp_path, monkeypatch):
    chapter, train = TRAININGS[name]
    with deterministic():
        fresh = train(experiment(chapter))  # the tests keep nothing
        monkeypatch.setenv("KTLIB_CACHE", str(tmp_path))
        cache.taken.clear()
        train(experiment(chapter))
        assert not cache.taken
        again = train(experiment(chapter))
    assert cache.taken.total() == 1
    assert len(tensors(fresh)) > 3
    for one, two in zip(tensors(fresh), tensors(again), strict=True):
        assert torch.equal(one, two)
        assert one.stride() == two.stride()


@pytest.mark.parametrize("name", TRAININGS)
def test_the_name_of_a_training_holds_every_parameter_that_is_read(name, monkeypatch):
    chapter, train = TRAININGS[name]
    read, named = set(), {}
    model = MODELS[chapter]

    class Watched(model):
        def __getattribute__(self, name):
            if name in model.model_fields:
                read.add(name)
            return super().__getattribute__(name)

    def noting(_kind, _uses, settings, make, **_):
        named.update(settings)
        read.clear()
        return make()

    monkeypatch.setattr(MODULES[chapter], "kept", noting)
    train(experiment(chapter, Watched.model_validate(small_parameters(chapter).model_dump())))
    assert {"epochs", "pretraining_epochs", "stage_1_steps"} & read
    assert read - named.keys() <= ELSEWHERE.get(chapter, set())


@pytest.mark.parametrize("chapter", MODULES)
def test_the_name_of_a_training_holds_the_code_of_all_that_is_imported(chapter):
    graph = grimp.build_graph("ktlib", "experiments", exclude_type_checking_imports=True)
    module = MODULES[chapter]
    # The experiment on adapters imports the methods, which the pre-training does not call.
    start = "experiments.cpeft.pretraining" if chapter == "continual_peft" else module.__name__
    files = {file.relative_to(ROOT).with_suffix("") for file in part_files(ROOT, module._USES)}
    known = {".".join(file.parts).removesuffix(".__init__") for file in files}
    others = {
        name
        for name in graph.find_upstream_modules(start) - known
        if not name.startswith(("experiments.run", "data_prep"))
    }
    assert others <= {"ktlib", "ktlib._moved"}


def test_images_of_ones_own_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("KTLIB_CACHE", str(tmp_path))
    whole = experiment("recon")
    whole.train("joint", 1)
    other = dataclasses.replace(whole.train_data, images=whole.train_data.images.flip(-1))
    cache.taken.clear()
    own = whole.with_data(other)
    one, two = own.train("joint", 1), whole.train("joint", 1)
    assert cache.taken.total() == 1
    assert not torch.equal(tensors(one)[0], tensors(two)[0])


@pytest.mark.slow
def test_a_ranking_from_the_cache_is_the_one_that_was_learned(tmp_path, monkeypatch):
    made = experiment("ila_studies")
    run = made.tune("reasoning", 1, milestones=[0.5])
    fresh = made.rank(run)
    monkeypatch.setenv("KTLIB_CACHE", str(tmp_path))
    cache.taken.clear()
    made.rank(run)
    others = [
        made.rank(run, seed=7),
        made.rank(run, share=0.5),
        made.rank(run, penalty=0.5),
        made.rank(made.tune("reasoning", 2)),
        made.rank(run, lr=0.5),
    ]
    assert not cache.taken
    again = experiment("ila_studies").rank(run)
    assert cache.taken.total() == 1
    assert again == fresh
    assert all(other.scores != fresh.scores for other in others)


def test_more_milestones_than_are_kept_are_trained_anew(tmp_path, monkeypatch):
    monkeypatch.setenv("KTLIB_CACHE", str(tmp_path))
    cache.taken.clear()
    made = experiment("ila_studies")
    made.tune("reasoning", 1)
    more = made.tune("reasoning", 1, milestones=[0.5])
    assert not cache.taken
    assert made.tune("reasoning", 1).training.snapshots.keys() == {0.5, 1.0}
    assert made.tune("reasoning", 1, milestones=[0.5]).training.losses == more.training.losses
    assert cache.taken.total() == 2
