"""Both stages in two processes are the same as in one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import peft
import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file

from experiments.ila.launch import main, require_same, shared_batches
from experiments.models.language import tiny_language_model
from ktlib.ila.ranking import LayerRanking
from ktlib.ila.search import rank_layers
from tests.experiments.ila import two_processes
from tests.paths import ROOT

CLUSTER = ROOT / "experiments" / "ila" / "cluster"


@pytest.fixture(scope="module")
def options(tmp_path_factory):
    """Options for the command, without the folder; batches of three rows."""
    data = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"What is {i} and {i}?"},
                {"role": "assistant", "content": f"{2 * i}" * (1 + i % 4)},
            ]
        }
        for i in range(30)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = "--model tiny --steps 6 --batch-size 3 --lr 0.01 --rank 2 --ranking-batches 6"
    words += " --top-fraction 0.3 --precision float32"
    return [*words.split(), "--milestones", "0.5", "--data", str(data)]


@pytest.fixture(scope="module")
def one_process(options, tmp_path_factory):
    """Folder of a run in this process."""
    folder = tmp_path_factory.mktemp("one")
    main([*options, "--out", str(folder)])
    return folder


def adapters(folder):
    return load_file(folder / "adapter" / "adapter_model.safetensors")


def assert_close(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=1e-3, atol=3e-4)


# peft 0.21 still asks by a name that transformers 5.23 calls old.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_files_of_a_run(one_process):
    training = json.loads((one_process / "training.json").read_text())
    assert training["processes"] == 1
    assert len(training["losses"]) == 6
    ranking = LayerRanking.load(one_process / "ranking.json")
    assert len(ranking.names) == 28
    halfway = LayerRanking.load(one_process / "ranking-0.5.json")
    assert halfway.scores != ranking.scores
    config = peft.LoraConfig.from_pretrained(one_process / "top")
    chosen = peft.get_peft_model(tiny_language_model()[0], config)
    assert set(chosen.targeted_module_names) == set(ranking.top(0.3))
    adapted = peft.PeftModel.from_pretrained(tiny_language_model()[0], one_process / "adapter")
    assert sum(p.numel() for name, p in adapted.named_parameters() if ".lora_" in name) == sum(
        value.numel() for value in adapters(one_process).values()
    )


def test_in_one_process_batches_are_not_touched(lora_llama, batches):
    accelerator = Accelerator(device_placement=False)
    plain = rank_layers(lora_llama, batches)
    with shared_batches(lora_llama, accelerator):
        assert rank_layers(lora_llama, batches).scores == plain.scores
    assert not lora_llama._forward_hooks
    require_same(accelerator, {"a": torch.zeros(2)}, "scores")


@pytest.mark.slow
def test_two_processes_do_what_one_does(options, one_process, tmp_path):
    """``accelerate launch`` with the shipped configuration; three rows are two and one."""
    launch = ["launch", "--num_processes", "2", "--main_process_port", "0", "--config_file"]
    command = [sys.executable, "-m", "accelerate.commands.accelerate_cli", *launch]
    script = Path(two_processes.__file__)
    done = subprocess.run(
        [*command, str(CLUSTER / "ddp.yaml"), str(script), str(tmp_path), *options],
        cwd=ROOT,
        env={
            **os.environ,
            "ACCELERATE_USE_CPU": "true",
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": str(ROOT),
        },
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    one, two = (
        json.loads((folder / "training.json").read_text()) for folder in (one_process, tmp_path)
    )
    assert two["processes"] == 2
    assert two["losses"] == pytest.approx(one["losses"], rel=1e-4)
    assert_close(adapters(tmp_path), adapters(one_process))
    for file in ("ranking.json", "ranking-0.5.json"):
        scores, expected = (LayerRanking.load(f / file).scores for f in (tmp_path, one_process))
        assert scores == pytest.approx(expected, abs=2e-3)
        assert max(abs(score - 4) for score in scores.values()) > 0.05, "they were trained"

    whole = tmp_path / "whole"
    whole.mkdir()
    two_processes.sharded(Accelerator(device_placement=False), whole)
    expected = json.loads((whole / "sharded-0.json").read_text())
    for process in range(2):
        found = json.loads((tmp_path / f"sharded-{process}.json").read_text())
        assert found["losses"] == pytest.approx(expected["losses"], rel=1e-4)
        assert found["scores"] == pytest.approx(expected["scores"], abs=2e-3)
        assert_close(
            torch.load(tmp_path / f"sharded-{process}.pt"),
            torch.load(whole / "sharded-0.pt"),
        )


@pytest.mark.parametrize("name", ["ddp", "fsdp"])
def test_accelerate_takes_the_configuration(name, monkeypatch):
    from accelerate.commands.launch import _validate_launch_command, launch_command_parser
    from accelerate.utils import FullyShardedDataParallelPlugin
    from accelerate.utils.launch import prepare_multi_gpu_env

    words = ["--config_file", str(CLUSTER / f"{name}.yaml"), "--num_processes", "4", "-m", "x"]
    with monkeypatch.context() as patched:
        for variable in list(os.environ):  # what an earlier launch may have left
            if variable.startswith(("ACCELERATE_", "FSDP_")):
                patched.delenv(variable)
        args, _, _ = _validate_launch_command(launch_command_parser().parse_args(words))
        assert args.num_processes == 4
        assert (args.use_fsdp, args.multi_gpu) == (name == "fsdp", name == "ddp")
        for variable, value in prepare_multi_gpu_env(args).items():
            patched.setenv(variable, value)
        if name == "fsdp":
            plugin = FullyShardedDataParallelPlugin()
            assert plugin.fsdp_version == 2
            assert plugin.reshard_after_forward is True
            plugin.set_auto_wrap_policy(tiny_language_model()[0])
            names = plugin.auto_wrap_policy.keywords["transformer_layer_cls"]
            assert {layer.__name__ for layer in names} == {"LlamaDecoderLayer"}
