"""Every paper profile, from the files on a disk through some steps of every method to its scores.

The real sets are large, and most of them cannot be fetched here. Their place is taken by small ones
in the same layout, see :mod:`tests.data_prep.full_layouts`. Of a profile's values only numbers are
lowered: of classes, images, steps, channels.
"""

import math
from dataclasses import replace
from importlib import import_module
from urllib.error import URLError

import pytest
import torch
import yaml

import data_prep as data
from data_prep.common.topic import PROTOCOLS, TopicLists
from experiments.cpeft.experiment import ContinualExperiment
from experiments.cpeft.parameters import CLASSES
from experiments.fcl.experiment import STARTS_FROM, FewShotExperiment
from experiments.fcl.parameters import KNOBS
from experiments.ila.experiment import LayerExperiment
from experiments.mtl.evidence import Case
from experiments.mtl.experiment import MultiTaskExperiment
from experiments.run.parameters import check_parameter_file
from ktlib.seeding import deterministic
from tests.chapters import CHAPTERS
from tests.data_prep import full_layouts
from tests.data_prep.full_layouts import TRAIN

PROFILES = sorted(CHAPTERS.glob("params/*.paper*.yaml"))

FEW = {"seeds": [0], "epochs": 1, "device": "cpu"}
FEW_SHOT = FEW | {
    "width": 16, "base_classes": 4, "sessions": 1, "ways": 2, "base_images": 2, "test_images": 1,
    "batch_size": 4, "session_epochs": 2, "flatness_images": 4, "flatness_draws": 2,
}  # fmt: skip
MULTI_TASK = FEW | {"width": 8, "batch_size": 2, "train_images": 8, "test_images": 2}
LANGUAGE = {
    "seeds": [0, 1], "device": "cpu", "test_examples": 4, "text_examples": 2, "batch_size": 4,
    "stage_1_steps": 8, "stage_2_steps": 2, "stage_2_batch_size": 4, "max_tokens": 256,
    "lora_rank": 2,
}  # fmt: skip
LOWERED = {
    "fcl": FEW_SHOT,
    "fcl_evidence": FEW_SHOT | {"study_seeds": []},
    "recon": MULTI_TASK,
    "recon_evidence": MULTI_TASK
    | {"study_seeds": [], "long_images": 8, "long_epochs": 1, "timed_images": 1},
    "ila": LANGUAGE | {"benchmarks": []},  # questions that are fetched
    "ila_studies": LANGUAGE | {"batch_sizes": [4]},
    "continual_peft": FEW | {"tasks": 2, "tops": [1, 2], "task_images": 2, "test_images": 1},
}


@pytest.fixture(scope="module")
def disk(tmp_path_factory):
    """A project's folder with ``data`` and weights in it, and function that places a set."""
    folder, placed = tmp_path_factory.mktemp("project"), {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("KTLIB_DATA", str(folder / "data"))
        patch.setenv("TORCH_HOME", str(folder / "torch"))
        full_layouts.torchvision_weights(folder / "torch")

        def prepared(name):
            if name not in placed:
                placed[name] = full_layouts.place(name, folder / "data")
                patch.setattr(import_module(f"data_prep.{name}"), "DATA", placed[name])
                placed[name].prepare()

        with deterministic():
            yield prepared


def finite(values):
    numbers = [float(value) for value in values]
    assert numbers
    assert all(math.isfinite(number) for number in numbers), numbers


def few_shot(parameters, monkeypatch):
    if parameters.class_split == "topic":  # all images of its classes; lists name those of 50,000
        labels = data.load(parameters.dataset, "train").labels
        protocol = PROTOCOLS[parameters.dataset]
        first = protocol.base_classes + protocol.ways * torch.arange(protocol.sessions)
        shots = [
            [str(i) for c in range(start, start + protocol.ways)
             for i in (labels == c).nonzero()[: protocol.shots, 0].tolist()]
            for start in first.tolist()
        ]  # fmt: skip
        small = replace(protocol, base_images=TRAIN * protocol.base_classes)
        lists = TopicLists(small, None, tuple(map(tuple, shots)))
        monkeypatch.setattr("experiments.fcl.experiment.topic_lists", lambda _name: lists)
    experiment = FewShotExperiment(parameters, "cpu")
    trained = {
        "plain": experiment.train_plain(0),
        "cosine": experiment.train_plain(0, cosine=True),
        "sam": experiment.train_plain(0, sam_radius=0.05),
        "f2m": experiment.train_f2m(0),
    }
    for method in getattr(parameters, "methods", ("ncm", "f2m")):
        # What few steps made bears no rate of trained networks.
        setting = {"epochs": 1, "lr": 1e-9} if "lr" in KNOBS.get(method, ()) else {}
        start = trained[STARTS_FROM.get(method, "plain")]
        results = experiment.run_sessions(experiment.learner(method, start, 0, **setting), 0)
        assert len(results.rows) == parameters.sessions + 1
        finite(row["accuracy"] for row in results.rows)
    found = experiment.flatness(trained["f2m"], 0, "test", bound=0.01, draws=2, images=4)
    finite([found.indicator])


def multi_task(parameters, monkeypatch):
    experiment = MultiTaskExperiment(parameters, "cpu")
    run = experiment.train("joint", 0)
    again = experiment.train("joint", 0, experiment.recon_layers(run))
    for found in (run, again, *experiment.train_single(0).values()):
        finite(loss for losses in found.losses.values() for loss in losses)
    assert list(experiment.scores(again.network)) == list(experiment.tasks)


def multi_task_evidence(parameters, monkeypatch):
    """The long comparison, and the training of each method."""
    monkeypatch.setattr("experiments.mtl.experiment._SIDES", (full_layouts.SIDE,) * 2)
    experiment = MultiTaskExperiment(parameters, "cpu")
    case = Case(experiment, 0, {})
    case.long_comparison()
    assert {row["task"] for row in case.tables["results"]} == {*experiment.tasks}
    finite(row["score"] for row in case.tables["results"])
    choices = {row["layers"]: row["names"].split() for row in case.tables["choices"]}
    assert len(choices["recon"]) == len(choices["random_layers"]) == parameters.top_k
    for method in parameters.methods[2:]:
        run = case.train("matrix", method, (), case.setting("matrix", method, "shared"))
        finite(loss for losses in run.losses.values() for loss in losses)


def language(parameters, _monkeypatch):
    experiment = LayerExperiment(parameters, "cpu")
    experiment.encode_all()
    dataset = parameters.datasets[0]
    run = experiment.tune(dataset, 0)
    finite(run.training.losses)
    ranking = experiment.rank(run)
    finite(ranking.scores.values())
    top = experiment.selected("top", ranking, 0)
    for tuning in getattr(parameters, "tunings", ["lora"]):
        finite(experiment.tuned_losses(tuning, top, dataset, 0).values())
    if getattr(parameters, "full_ranked", False):
        finite(experiment.rank_full(dataset, 0).scores.values())


def continual(parameters, _monkeypatch):
    experiment = ContinualExperiment(parameters, "cpu")
    backbone = experiment.pretrained()
    for method in parameters.methods:
        rows = experiment.run(method, 0, backbone).rows
        finite(row["accuracy"] for row in rows)


RUNS = {
    "fcl": few_shot, "fcl_evidence": few_shot, "recon": multi_task,
    "recon_evidence": multi_task_evidence,
    "ila": language, "ila_studies": language, "continual_peft": continual,
}  # fmt: skip


def test_missing_weights_are_named_before_anything_is_read(monkeypatch, tmp_path):
    def no_network(*_given, **_options):
        raise URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr("torchvision.models._api.load_state_dict_from_url", no_network)
    monkeypatch.setattr(data, "open_tasks", lambda *_: pytest.fail("read the images first"))
    (path,) = (path for path in PROFILES if "pascal" in path.name)
    parameters = check_parameter_file(CHAPTERS / "recon_evidence.py", path)
    place = rf"put mobilenet_v2-\w+\.pth into {tmp_path}/hub/checkpoints, or name the file itself"
    with pytest.raises(RuntimeError, match=place):
        MultiTaskExperiment(parameters, "cpu")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:no conflict of severity:UserWarning")
@pytest.mark.filterwarnings("ignore:MTAN cannot be traced .* may be written to:UserWarning")
@pytest.mark.parametrize("path", PROFILES, ids=lambda path: path.stem)
def test_a_paper_profile_runs(path, disk, monkeypatch, tmp_path):
    chapter = path.name.partition(".")[0]
    known = yaml.safe_load(path.read_text(encoding="utf-8"))
    changes = dict(LOWERED[chapter])
    if known.get("weights"):
        changes.pop("width", None)  # that of the weights
    if known.get("class_splits") == ["topic"]:
        fixed = {"base_classes": 60, "sessions": 8, "ways": 5, "base_images": 0}
        changes |= fixed | {"batch_size": 16}
    if "datasets" in known:
        full_layouts.llama_2(tmp_path / "llama")
        changes["model"] = str(tmp_path / "llama")
    if chapter == "continual_peft":
        full_layouts.timm_vit(tmp_path / "vit.safetensors")
        monkeypatch.setitem(CLASSES, known["dataset"], 4)
        changes["weights"] = str(tmp_path / "vit.safetensors")
    source = CHAPTERS / f"{chapter}.py"
    parameters = check_parameter_file(source, path, changes=changes)
    sets = {getattr(parameters, "dataset", None), *getattr(parameters, "datasets", ())}
    sets |= {*getattr(parameters, "transfer_from", ()), getattr(parameters, "general_text", None)}
    for name in sorted(filter(None, sets)):
        disk(name)
    RUNS[chapter](parameters, monkeypatch)
