"""Trainings that are kept: with them all is as without, and their name holds all that they read."""

import copy

import pytest
import torch

import experiments.cpeft.experiment as cpeft
import experiments.fcl.experiment as fcl
import experiments.mtl.experiment as mtl
from experiments.cpeft.parameters import ContinualPeftParameters
from experiments.fcl.parameters import FclParameters
from experiments.mtl.parameters import ReconParameters
from experiments.run import cache
from ktlib.seeding import deterministic
from tests.chapter_parameters import CHAPTERS, check_profile

SMALL = {
    "fcl": {"dataset": "digits", "base_classes": 4, "sessions": 2, "ways": 2, "shots": 3,
            "base_images": 8, "test_images": 5, "flatness_images": 20, "epochs": 1},
    "recon": {"train_images": 300, "test_images": 50, "batch_size": 32, "epochs": 1, "width": 4},
    "continual_peft": {"pretraining_epochs": 1},
}  # fmt: skip
MODELS = {"fcl": FclParameters, "recon": ReconParameters, "continual_peft": ContinualPeftParameters}
MODULES = {"fcl": fcl, "recon": mtl, "continual_peft": cpeft}
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
}


def small_parameters(chapter):
    smoke = check_profile(MODELS[chapter], chapter, CHAPTERS / f"params/{chapter}.smoke.yaml")
    return MODELS[chapter].model_validate(smoke.model_dump() | SMALL[chapter])


def experiment(chapter, parameters=None):
    module = MODULES[chapter]
    kinds = {"fcl": "FewShotExperiment", "recon": "MultiTaskExperiment"}
    made = getattr(module, kinds.get(chapter, "ContinualExperiment"))
    return made(parameters or small_parameters(chapter), "cpu")


def tensors(trained):
    """All tensors in what a training gave, in a fixed order."""
    if isinstance(trained, dict):
        return [t for one in trained.values() for t in tensors(one)]
    if isinstance(trained, tuple):
        return [t for one in trained for t in tensors(one)]
    if isinstance(trained, mtl.TrainedRun):
        counts = [torch.tensor(list(m.scores(-0.1).values())) for m in trained.meters]
        return [*tensors(trained.network), *counts]
    network = getattr(trained, "network", trained)
    return [value.detach() for value in network.state_dict().values()]


@pytest.mark.parametrize("name", TRAININGS)
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
    assert {"epochs", "pretraining_epochs"} & read
    # These are there under another name: `seed`, or what follows from them.
    elsewhere = {"severity", "tasks", "test_images"} if chapter == "recon" else {"test_images"}
    assert read - named.keys() <= elsewhere


def test_images_of_ones_own_are_trained_on(tmp_path, monkeypatch):
    monkeypatch.setenv("KTLIB_CACHE", str(tmp_path))
    whole = experiment("recon")
    whole.train("joint", 1)
    other = copy.copy(whole.train_data)
    other.images = whole.train_data.images.flip(-1)
    cache.taken.clear()
    own = whole.with_data(other)
    one, two = own.train("joint", 1), whole.train("joint", 1)
    assert cache.taken.total() == 1
    assert not torch.equal(tensors(one)[0], tensors(two)[0])
