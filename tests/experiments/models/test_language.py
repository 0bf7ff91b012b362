"""Language models by name, without a network."""

import importlib.util
import json
import sys
from types import SimpleNamespace

import pytest
import torch

from data_prep.common.files import DataError
from data_prep.common.storage import write_manifest
from experiments.models import language
from experiments.models.language import (
    byte_tokenizer,
    language_model_checksums,
    load_language_model,
    load_tokenizer,
    tiny_language_model,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with a tiny model and its tokenizer, as transformers saves them."""
    path = tmp_path_factory.mktemp("models") / "own"
    model, tokenizer = tiny_language_model(seed=5)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path, save_jinja_files=False)
    return path


@pytest.fixture
def no_hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)


def test_the_tiny_model_follows_from_its_seed_and_changes_no_generator():
    before = torch.get_rng_state()
    models = [tiny_language_model(seed)[0] for seed in (0, 0, 1)]
    assert torch.equal(before, torch.get_rng_state())
    first = [m.model.layers[0].mlp.up_proj.weight for m in models]
    assert torch.equal(first[0], first[1])
    assert not torch.equal(first[0], first[2])
    assert models[0].lm_head.weight is models[0].model.embed_tokens.weight
    assert not models[0].training
    with pytest.raises(ValueError, match="`seed` must be an integer >= 0"):
        tiny_language_model(-1)


def test_the_tiny_model_learns():
    model, tokenizer = tiny_language_model()
    batch = tokenizer("abcabcabcabc", return_tensors="pt")
    batch["labels"] = batch["input_ids"]
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(15):
        loss = model(**batch).loss
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] / 2


def test_each_byte_is_a_token_and_comes_back():
    tokenizer = byte_tokenizer()
    text = "Größe: 12\n\tend  "
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(text.encode())
    assert tokenizer.decode(ids) == text
    assert len(tokenizer) == 259
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    marked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "Hi"}], tokenize=False, add_generation_prompt=True
    )
    assert marked == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert tokenizer(marked)["input_ids"].count(tokenizer.bos_token_id) == 2


def test_a_folder_gives_the_model_that_was_saved(folder):
    model, tokenizer = load_language_model(str(folder))
    expected = tiny_language_model(seed=5)[0]
    ids = torch.tensor([tokenizer("some text")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, expected(ids).logits)
    assert (model.dtype, model.training) == (torch.float32, False)
    half, _ = load_language_model(str(folder), dtype=torch.bfloat16)
    assert half.dtype == torch.bfloat16
    assert half.model.rotary_emb.inv_freq.dtype == torch.float32
    assert list(language_model_checksums(str(folder))) == ["model.safetensors"]
    assert language_model_checksums("tiny") == language_model_checksums("some/model") == {}


def test_a_tokenizer_without_a_padding_token_pads_with_its_end(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    del settings["pad_token"]
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    found = load_tokenizer(str(tmp_path))
    assert found.pad_token_id == found.eos_token_id
    assert load_tokenizer("tiny").pad_token_id == 0


def test_weights_that_can_run_code_are_not_read(folder, tmp_path):
    for path in folder.glob("*.json"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    torch.save({}, tmp_path / "pytorch_model.bin")
    with pytest.raises(RuntimeError, match="has no weights in safetensors"):
        load_language_model(str(tmp_path))


@pytest.mark.usefixtures("no_hub")
def test_without_a_network_it_is_told_what_to_fetch_and_where_to_put_it():
    with pytest.raises(RuntimeError) as caught:
        load_language_model("someone/some-model")
    for part in ("'someone/some-model'", "'smollm2', 'tiny', or a folder",
                 "hf download someone/some-model", "give the folder as the name"):  # fmt: skip
        assert part in str(caught.value)
    with pytest.raises(RuntimeError, match="no such folder"):
        load_language_model("./no/such/folder")


def test_four_bits_need_a_gpu_and_bitsandbytes(monkeypatch):
    with pytest.raises(ValueError, match="needs a CUDA device. Found device='cpu'"):
        load_language_model("smollm2", quantized=True)
    with pytest.raises(ValueError, match="quantized must be False for a model made here"):
        load_language_model("tiny", quantized=True)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match="pip install bitsandbytes"):
        language.require_quantization(torch.device("cuda"), "smollm2")


def test_four_bits_are_asked_for_as_in_qlora(folder, monkeypatch):
    """What transformers and peft are handed; only a GPU can do it."""
    import peft
    import transformers

    asked = {}

    def from_pretrained(source, **options):
        asked.update(options)
        return SimpleNamespace()

    monkeypatch.setattr(language, "choose_device", lambda name: torch.device("cuda"))
    monkeypatch.setattr(language, "require_quantization", lambda device, name: None)
    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", from_pretrained)
    monkeypatch.setattr(peft, "prepare_model_for_kbit_training", lambda model, **named: "prepared")
    monkeypatch.setattr(language, "_four_bits", lambda: "four bits")
    assert load_language_model(str(folder), quantized=True)[0] == "prepared"
    assert asked["quantization_config"] == "four bits"
    assert asked["device_map"] == {"": torch.device("cuda")}
    assert asked["use_safetensors"] is True
    assert asked["trust_remote_code"] is False


@pytest.mark.gpu
@pytest.mark.skipif("bitsandbytes" not in sys.modules and not torch.cuda.is_available(),
                    reason="needs CUDA")  # fmt: skip
def test_four_bits_on_a_gpu(folder):
    pytest.importorskip("bitsandbytes")
    model, tokenizer = load_language_model(str(folder), device="cuda", quantized=True)
    ids = torch.tensor([tokenizer("some text")["input_ids"]], device="cuda")
    assert torch.isfinite(model(ids).logits).all()
    assert not any(p.requires_grad for p in model.parameters())


@pytest.fixture
def prepared(folder, tmp_path):
    """The tiny model in the place of SmolLM2, with a manifest."""
    own = tmp_path / "smollm2"
    own.mkdir()
    for path in folder.iterdir():
        (own / path.name).write_bytes(path.read_bytes())
    write_manifest(own, list(language.SMOLLM2_FILES))
    return tmp_path


def test_the_prepared_model_is_verified_each_time(prepared):
    model, _ = load_language_model("smollm2", root=prepared)
    assert model.config.num_hidden_layers == 4
    assert set(language_model_checksums("smollm2", root=prepared)) == set(language.SMOLLM2_FILES)
    path = prepared / "smollm2/model.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(DataError, match="is altered: its SHA-256"):
        load_language_model("smollm2", root=prepared)
    path.write_bytes(content[:-9])
    with pytest.raises(DataError, match="is damaged: it has"):
        load_language_model("smollm2", root=prepared)
    path.unlink()
    with pytest.raises(DataError, match="is missing"):
        load_language_model("smollm2", root=prepared)
    assert load_tokenizer("smollm2", root=prepared)  # needs no weights


def test_a_model_that_is_not_prepared_names_the_command(tmp_path):
    for load in (load_language_model, load_tokenizer):
        with pytest.raises(DataError, match="run: python -m data_prep.smollm2"):
            load("smollm2", root=tmp_path)
