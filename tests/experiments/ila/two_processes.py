"""What test_launch.py runs in two processes; in a process of its own it is a script."""

import json
import sys
from pathlib import Path

import torch
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard

from experiments.ila.finetuning import finetune, restore, snapshot, with_lora
from experiments.ila.launch import main, require_same, shared_batches
from experiments.models.language import tiny_language_model
from ktlib.ila.search import rank_layers


def batches(rows):
    """Six batches of random tokens; rows have unlike numbers of targets."""
    random = torch.Generator().manual_seed(0)
    made = []
    for _ in range(6):
        ids = torch.randint(3, 250, (rows, 12), generator=random)
        labels = ids.clone()
        for row in range(rows):
            labels[row, : 2 + 3 * row] = -100
        made.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels})
    return made


def sharded(accelerator, folder):
    """Both stages on a model whose weights are spread over the processes, as by FSDP."""
    model = with_lora(tiny_language_model(1)[0], rank=2)
    if accelerator.num_processes > 1:
        for block in model.get_base_model().model.layers:
            fully_shard(block)
        fully_shard(model)
        model._is_accelerate_prepared = True  # accelerate itself shards on GPUs only
    training = finetune(model, batches(3), steps=6, lr=0.01, accelerator=accelerator)
    trained = snapshot(model)
    with shared_batches(model, accelerator):
        ranking = rank_layers(model, batches(3), steps=6)
    again = snapshot(model)
    assert all(torch.equal(again[name], value) for name, value in trained.items())
    restore(model, {name: value + 1 for name, value in trained.items()})
    assert all(torch.equal(snapshot(model)[name], value + 1) for name, value in trained.items())
    facts = {"losses": training.losses, "scores": ranking.scores}
    torch.save(trained, folder / f"sharded-{accelerator.process_index}.pt")
    (folder / f"sharded-{accelerator.process_index}.json").write_text(json.dumps(facts))


def differing(accelerator):
    """Tensors that differ between processes are noticed."""
    same = {"a": torch.ones(3), "b": torch.zeros(2, dtype=torch.bfloat16)}
    require_same(accelerator, same, "adapters")
    try:
        require_same(accelerator, {"a": torch.full((3,), accelerator.process_index)}, "adapters")
    except RuntimeError as error:
        return str(error)
    return ""


if __name__ == "__main__":
    out = Path(sys.argv[1])
    main([*sys.argv[2:], "--out", str(out)])
    found = Accelerator()
    assert found.num_processes == 2
    assert differing(found) == "The adapters of the processes differ: they should be the same."
    sharded(found, out)
    torch.distributed.destroy_process_group()
