"""Every data set and every file of weights that a paper profile names, small, as on a user's disk.

``place(name, root)`` writes the files of a set below ``root`` in the exact layout and format of its
publishers, and returns its description with the sizes of these files, which ``prepare`` then checks
and records as it does with the real ones.
"""

import hashlib
import json
from dataclasses import replace
from importlib import import_module

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from safetensors.torch import save_file
from torchvision.models import mobilenet_v2, resnet18

from data_prep import INSTRUCTION_SETS
from data_prep.cifar100 import FOLDER
from data_prep.common.idx import encode_idx
from experiments.models.language import byte_tokenizer
from tests.data_prep.python2_pickle import cifar_files
from tests.data_prep.small_multi_task import (
    celeba_files,
    numpy_files,
    pascal_files,
    small_numpy_set,
)
from tests.data_prep.small_photographs import jpeg, mini_files, unpack
from tests.data_prep.small_set import known_files

CLASSES = 8  # of miniImageNet and CUB
TRAIN, TEST = 6, 2  # images per class
NUMBERS = {"train": 8, "test": 2}  # images of a set with several targets
SIDE = 32


def data_of(name):
    """The description of a set in its module."""
    return import_module(f"data_prep.{name}").DATA


def place(name, root):
    """Write the files of a set; its description, with their numbers, sizes and checksums."""
    data = data_of(name)
    space = {"space": 1 << 20} if hasattr(data, "space") else {}
    if name in INSTRUCTION_SETS:
        files, changes = instruction_files(data), {"rows": 40}
    else:
        files, changes = LAYOUTS[name](data)
    unpack(files, root / name)
    return replace(data, **space, **changes)


def instruction_files(data):
    """40 rows in the form and the kind of file of their publishers."""
    pairs = [(f"What is {i} and {i}?", f"It is {2 * i}, of course.") for i in range(40)]
    if data.name == "lima":
        rows = [{"conversations": list(pair), "source": "stackexchange"} for pair in pairs]
        return {data.file: "".join(json.dumps(row) + "\n" for row in rows).encode()}
    if data.name == "alpaca_gpt4":
        rows = [{"instruction": q, "input": "", "output": a, "text": q + a} for q, a in pairs]
        return {data.file: json.dumps(rows).encode()}
    assert data.name == "no_robots"
    roles = ("user", "assistant")
    messages = [
        [{"role": role, "content": said} for role, said in zip(roles, pair, strict=True)]
        for pair in pairs
    ]
    table = {"prompt": [q for q, _ in pairs], "messages": messages, "category": ["Chat"] * 40}
    content = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table(table), content)
    return {data.file: content.getvalue().to_pybytes()}


def moby_dick(data):
    """A novel of twenty paragraphs."""
    paragraphs = [f"Chapter {i}. " + "The whale is large and white. " * 10 for i in range(20)]
    files = {file: "\r\n\n".join(paragraphs).encode() for file in data.files}
    return files, {"files": known_files(files)}


def overlaid(data):
    """Images and labels of the sets that are built from MNIST."""
    random, files = np.random.RandomState(0), {}
    for file in data.files:
        number = 40 if file.startswith("train") else 12
        shape, most = ((number, 36, 36), 256) if "images" in file else ((number, 2), 10)
        files[file] = encode_idx(random.randint(0, most, shape).astype(np.uint8))
    return files, {"files": known_files(files)}


def cifar100(_data):
    files = cifar_files(100 * TRAIN, 100 * TEST, classes=100)
    found = {f"{FOLDER}/{name}": content for name, content in files.items()}
    facts = {
        name: hashlib.md5(content, usedforsecurity=False).hexdigest()
        for name, content in found.items()
    }
    return found, {"md5": facts}


def mini_imagenet(data):
    wnids = [f"n0{1532829 + i}" for i in range(CLASSES)]
    files = mini_files(84, wnids, tuple(range(10, 10 + TRAIN)))
    numbers = {"train": TRAIN, "test": TEST}
    changes = {"numbers": {s: CLASSES * n for s, n in numbers.items()}, "per_class": numbers}
    return {f"{data.folder}/{name}": content for name, content in files.items()}, {
        **changes, "classes": CLASSES,
    }  # fmt: skip


def cub200(data):
    files, lines = {}, {name: [] for name in data.texts}
    for label in range(1, CLASSES + 1):
        bird = f"Species_{label}"
        lines["classes.txt"].append(f"{label} {label:03d}.{bird}")
        for image in range(TRAIN + TEST):
            number = len(lines["images.txt"]) + 1
            path = f"{label:03d}.{bird}/{bird}_{image:04d}_{number}.jpg"
            files[f"images/{path}"] = jpeg(260, 300 + 10 * image, number)
            lines["images.txt"].append(f"{number} {path}")
            lines["image_class_labels.txt"].append(f"{number} {label}")
            lines["train_test_split.txt"].append(f"{number} {int(image < TRAIN)}")
    files |= {name: ("\n".join(own) + "\n").encode() for name, own in lines.items()}
    numbers = {"train": CLASSES * TRAIN, "test": CLASSES * TEST}
    return {f"{data.folder}/{name}": content for name, content in files.items()}, {
        "numbers": numbers, "classes": CLASSES,
    }  # fmt: skip


def numpy_set(data):
    small = small_numpy_set(data, (SIDE, SIDE), NUMBERS)
    files = numpy_files(data.name, (SIDE, SIDE), NUMBERS)
    return files, {"numbers": NUMBERS, "rows": small.rows, "decode": small.decode}


def pascal_context(_data):
    sizes = [(SIDE, SIDE - 3), (SIDE - 7, SIDE)] * 5
    names = {f"2008_{number:06d}": size for number, size in enumerate(sizes)}
    return pascal_files(names, NUMBERS["test"]), {"numbers": NUMBERS}


def celeba(_data):
    numbers = NUMBERS | {"valid": 1}
    splits = [0] * numbers["train"] + [1] * numbers["valid"] + [2] * numbers["test"]
    return celeba_files(splits), {"numbers": numbers, "md5": {}}


LAYOUTS = {
    "celeba": celeba, "cifar100": cifar100, "cityscapes": numpy_set, "cub200": cub200,
    "mini_imagenet": mini_imagenet, "moby_dick": moby_dick, "nyuv2": numpy_set,
    "pascal_context": pascal_context,
    **dict.fromkeys(("multi_fashion_mnist", "multi_mnist", "multi_fashion"), overlaid),
}  # fmt: skip


# Weights -----------------------------------------------------------------------------------------


def torchvision_weights(folder):
    """The files that torchvision keeps in ``TORCH_HOME``, of networks without training."""
    (folder / "hub" / "checkpoints").mkdir(parents=True)
    for make, file in ((mobilenet_v2, "mobilenet_v2-b0353104"), (resnet18, "resnet18-f37072fd")):
        torch.save(make(weights=None).state_dict(), folder / "hub" / "checkpoints" / f"{file}.pth")


def timm_vit(path, hidden=64):
    """A ViT-B/16 as timm keeps it, with fewer units between the layers of a block."""
    stream = torch.Generator().manual_seed(1)
    shapes = {"cls_token": (1, 1, 768), "pos_embed": (1, 197, 768), "norm.weight": (768,)}
    shapes |= {"patch_embed.proj.weight": (768, 3, 16, 16), "patch_embed.proj.bias": (768,)}
    shapes |= {"norm.bias": (768,), "head.weight": (21843, 8), "head.bias": (21843,)}
    for block in range(12):
        for name, shape in {
            "norm1": (768,), "attn.qkv": (2304, 768), "attn.proj": (768, 768), "norm2": (768,),
            "mlp.fc1": (hidden, 768), "mlp.fc2": (768, hidden),
        }.items():  # fmt: skip
            shapes[f"blocks.{block}.{name}.weight"] = shape
            shapes[f"blocks.{block}.{name}.bias"] = shape[:1]
    state = {n: 0.02 * torch.randn(shape, generator=stream) for n, shape in shapes.items()}
    state |= {n: state[n] + 1 for n in state if "norm" in n and n.endswith("weight")}
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(state, path)


def llama_2(folder):
    """The folder of a small Llama 2: no chat template, no padding token, two half-precision files.

    Its tokenizer has a token for each byte.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    tokenizer.chat_template = tokenizer.pad_token = None
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=32, intermediate_size=64, num_hidden_layers=4,
            num_attention_heads=4, max_position_embeddings=4096, tie_word_embeddings=False,
            bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
            initializer_range=0.1,
        )
    )  # fmt: skip
    model.to(torch.float16).save_pretrained(folder, max_shard_size="60KB")
    tokenizer.save_pretrained(folder)
