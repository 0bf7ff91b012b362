"""Language models by name: the prepared one, a tiny random one, or any from a folder or the hub.

Weights are read from safetensors only, and code that comes with a model is never run.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from data_prep.common.files import FileFacts, data_error, manifest_facts
from data_prep.common.root import data_root
from data_prep.smollm2 import FILES as SMOLLM2_FILES
from ktlib.device import choose_device
from ktlib.seeding import generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

PREPARED = "smollm2"
TINY = "tiny"
# Each turn between two marks, as most chat models have it.
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] "
    "+ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)


def load_language_model(
    name: str = PREPARED,
    *,
    dtype: torch.dtype = torch.float32,
    device: str | torch.device = "cpu",
    quantized: bool = False,
    seed: int = 0,
    root: Path | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model of transformers, in evaluation mode, and its tokenizer.

    Args:
        name: "smollm2" (SmolLM2-135M-Instruct, prepared by ``data_prep.smollm2``), "tiny" (see
            :func:`tiny_language_model`), a folder with a model, or an id of the Hugging Face hub.
        dtype: Of the weights. Train in float32, under autocast where bfloat16 is wanted.
        device: "auto", "cpu", "cuda" or "mps"; or any device, such as one of several GPUs.
        quantized: Keep the linear projections in 4 bits (NF4 with double quantisation, as QLoRA,
            Dettmers et al., 2023) and the rest in float32, frozen and ready for adapters of peft.
        seed: Of the weights of "tiny"; other models ignore it.
        root: The data root; None stands for :func:`data_prep.data_root`.

    Raises:
        ValueError: an unknown device, or ``quantized`` without a CUDA device or bitsandbytes.
        DataError: "smollm2" is not prepared, or a file of it is altered.
        RuntimeError: there is no such folder, and the hub cannot be reached or has no such model.
    """
    place = choose_device(device) if isinstance(device, str) else device
    if quantized:
        require_quantization(place, name)
    if name == TINY:
        tiny, own = tiny_language_model(seed)
        return _moved(tiny, place, dtype), own

    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"dtype": dtype, "use_safetensors": True, "trust_remote_code": False}
    if quantized:
        options |= {"quantization_config": _four_bits(), "device_map": {"": place}}
    source = _source(name, root)
    # The tokenizer is small: what is wrong with a name is found before anything large is fetched.
    tokenizer = load_tokenizer(name, root=root)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(source, **options)
    except (OSError, ValueError) as error:
        raise _not_available(name, error) from error
    if quantized:
        peft: Any = importlib.import_module("peft")  # most of it is without types
        model = peft.prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
        return model, tokenizer
    return _moved(model, place, dtype), tokenizer


def load_tokenizer(name: str = PREPARED, *, root: Path | None = None) -> PreTrainedTokenizerBase:
    """The tokenizer of a language model alone; arguments and errors as above.

    One without a padding token pads with its end token; what is padded is masked in any case.
    """
    if name == TINY:
        return byte_tokenizer()
    from transformers import AutoTokenizer

    source = _source(name, root, weights=False)
    try:
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    except (OSError, ValueError) as error:
        raise _not_available(name, error) from error
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def language_model_checksums(name: str, *, root: Path | None = None) -> dict[str, str]:
    """SHA-256 of the files of a model, for run records; of a hub id: none, as the hub verifies.

    Raises:
        DataError: "smollm2" is not prepared.
    """
    if name == PREPARED:
        expected = manifest_facts(PREPARED, SMOLLM2_FILES, root)
        return {file: known.sha256 for file, known in expected.items()}
    folder = Path(name).expanduser()
    if name == TINY or not folder.is_dir():
        return {}
    return {path.name: _sha256(path) for path in sorted(folder.glob("*.safetensors"))}


def tiny_language_model(seed: int = 0) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A random Llama for tests: 4 blocks of width 32, a context of 512 tokens, one token per byte.

    Like SmolLM2 it shares the weights of embedding and output head. Its 60 thousand weights follow
    from ``seed``; the global generators are as they were.

    Raises:
        ValueError: ``seed`` is not an integer >= 0.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = byte_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(generator(seed, TINY).initial_seed())
        model = LlamaForCausalLM(config)
    return _moved(model, torch.device("cpu"), torch.float32), tokenizer


def byte_tokenizer() -> PreTrainedTokenizerBase:
    """A tokenizer made here: the 256 bytes and three marks, with a chat template."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    transformers: Any = importlib.import_module("transformers")
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    marks = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: number for number, token in enumerate([*marks, *letters])}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    made: PreTrainedTokenizerBase = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=marks[0],
        bos_token=marks[1],
        eos_token=marks[2],
        chat_template=CHAT_TEMPLATE,
        model_max_length=512,
    )
    return made


def _moved(model: Any, device: torch.device, dtype: torch.dtype) -> PreTrainedModel:
    """The model on a device, with weights of one type, in evaluation mode.

    Only weights change their type: the frequencies of the position embedding stay in float32.
    """
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    moved: PreTrainedModel = model.to(device).eval()
    return moved


def _source(name: str, root: Path | None, *, weights: bool = True) -> str:
    """What transformers is to read: a folder, verified where it can be, or an id of the hub."""
    if name == PREPARED:
        folder = (root or data_root()) / PREPARED
        expected = manifest_facts(PREPARED, SMOLLM2_FILES, root)
        for file, known in expected.items():
            if weights or not file.endswith(".safetensors"):
                _verify(folder / file, known)
        return str(folder)
    folder = Path(name).expanduser()
    if folder.is_dir():
        if weights and not list(folder.glob("*.safetensors")):
            raise RuntimeError(
                f"Language model {name!r} has no weights in safetensors in its folder; other "
                "formats are not read, as they can run code."
            )
        return str(folder)
    if name.startswith((".", "/", "~", "\\")) or name.count("/") > 1:
        raise RuntimeError(f"Language model {name!r} is a path, and there is no such folder.")
    return name


def _verify(path: Path, known: FileFacts) -> None:
    """Compare a file with its manifest without holding it in memory."""
    try:
        size = path.stat().st_size
        if size != known.size:
            found = f"it has {size} bytes and should have {known.size}"
            raise data_error(PREPARED, f"Data file {path} is damaged: {found}.")
        digest = _sha256(path)
    except FileNotFoundError:
        raise data_error(PREPARED, f"Data file {path} is missing.") from None
    except OSError as error:
        raise data_error(PREPARED, f"Data file {path} cannot be read: {error}.") from error
    if digest != known.sha256:
        found = f"its SHA-256 is {digest} and should be {known.sha256}"
        raise data_error(PREPARED, f"Data file {path} is altered: {found}.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_quantization(device: torch.device, name: str) -> None:
    """Refuse weights in 4 bits without a model from files, a CUDA device and bitsandbytes.

    Raises:
        ValueError: one of them is missing.
    """
    if name == TINY:
        raise ValueError(f"quantized must be False for a model made here. Found name={name!r}.")
    if device.type != "cuda":
        rule = "quantized=True needs a CUDA device"
        raise ValueError(f"{rule}. Found device={device.type!r}; use quantized=False there.")
    if importlib.util.find_spec("bitsandbytes") is None:
        raise ValueError("quantized=True needs bitsandbytes. Install it: pip install bitsandbytes")


def _four_bits() -> Any:
    transformers: Any = importlib.import_module("transformers")
    return transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )


def _not_available(name: str, error: Exception) -> RuntimeError:
    reason = " ".join(str(error).split())[:300]
    return RuntimeError(
        f"Language model {name!r} is not available: {reason}\nKnown without the hub: {PREPARED!r}, "
        f"{TINY!r}, or a folder. To use a model of the hub without a network, fetch it elsewhere:\n"
        f"  hf download {name} --include '*.safetensors' '*.json' '*.model' '*.jinja' "
        f"--local-dir FOLDER\nand give the folder as the name. The weights must be safetensors."
    )
