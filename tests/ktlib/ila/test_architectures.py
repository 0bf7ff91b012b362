"""Gates on the models of the table against naive copies, with gates as weights of a mix."""

import copy
import re
import warnings
from functools import partial

import peft
import pytest
import torch
import transformers
from torch.func import functional_call

from ktlib.ila.checks import checked_batches
from ktlib.ila.gates import gated_updates, gated_weights
from ktlib.ila.layers import adapted_layers, linear_layers
from ktlib.ila.search import rank_layers, rank_layers_full
from ktlib.ila.targets import target_kind
from tests.ktlib.ila.architectures import ARCHITECTURES, VARIANTS, VOCABULARY, rows

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*scores are below the start", "ignore:`is_gradient_checkpointing` is deprecated"
)


def make(architecture, seed=0):
    kind = getattr(transformers, architecture.model)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        config = kind.config_class(**architecture.config)
        config._experts_implementation = "eager"  # the fast one knows no double precision
        model = kind(config).eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def batch_for(architecture):
    generator = torch.Generator().manual_seed(2)
    if architecture.labels == "image":
        images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=generator)
        return {"pixel_values": images, "labels": torch.tensor([0, 2])}
    ids = torch.randint(3, VOCABULARY, (2, 6), generator=generator)
    labels = torch.full_like(ids, -100)
    if architecture.labels == "class":
        return {"input_ids": ids, "labels": torch.tensor([0, 1])}
    # At the first position alone, where it is a target for all but causal models.
    labels[:, 3 if architecture.labels == "next token" else 0] = 1
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def own_loss(model, batch):
    return model(**batch).loss


def adapted(architecture, variant):
    """The model with filled adapters, and a copy of it without any."""
    plain = make(architecture)
    targets = list(architecture.targets)
    if variant.prepare == "embeddings":
        found = plain.get_input_embeddings()
        targets += [name for name, module in plain.named_modules() if module is found][:1]
    settings = {"r": 2, "lora_alpha": 3, "target_modules": targets} | dict(variant.settings)
    start = settings.get("init_lora_weights")
    if start in {"corda", "loftq"}:  # which ask for statistics of data, or a GPU
        settings["init_lora_weights"] = True
    if start == "lora_ga":
        settings["lora_ga_config"] = peft.LoraGAConfig()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(1)
        model = peft.get_peft_model(copy.deepcopy(plain), peft.LoraConfig(**settings)).eval()
        if start in {"corda", "loftq"}:
            model.peft_config["default"].init_lora_weights = start
        if variant.prepare in {"second", "both"}:
            model.add_adapter("other", peft.LoraConfig(r=2, target_modules=targets[:1]))
        if variant.prepare == "both":
            model.base_model.set_adapter(["default", "other"])
        if variant.prepare == "disable":
            model.base_model.disable_adapter_layers()
        if variant.prepare != "fresh":
            for name, parameter in model.named_parameters():
                if ".lora_B." in name:
                    torch.nn.init.normal_(parameter, std=0.3)
        if variant.prepare == "merge":
            model.merge_adapter()
    return model.double(), plain.double()


def shares(names):
    """A gate for each layer, all different, exact in float32."""
    return {name: (number % 7 + 1) / 8 for number, name in enumerate(names)}


def compare(gated, model, plain, ends, batch):
    """Loss and slopes of the gates against ``start + gamma (end - start)`` in a plain model."""
    gammas = shares(ends)
    leaves = {n: torch.tensor(g, dtype=torch.float64).requires_grad_() for n, g in gammas.items()}
    mixed = {
        f"{name}.{key}": start + leaves[name] * update
        for name, parts in ends.items()
        for key, (start, update) in parts.items()
    }
    wanted = functional_call(plain, mixed, kwargs=batch, tie_weights=False).loss
    slopes = torch.autograd.grad(wanted, list(leaves.values()))
    with gated as gates:
        for name, gamma in gammas.items():
            gates[name].score.data.fill_(gamma)
        loss = model(**batch).loss
        loss.backward()
        found = torch.stack([gates[name].score.grad for name in gammas])
    torch.testing.assert_close(loss, wanted, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(found.double(), torch.stack(slopes), rtol=1e-5, atol=1e-7)
    assert float(found.abs().max()) > 0


def identity(score):
    return score


def outcome(rank, gates, ends, *models, architecture):
    """Rank for one step and compare gates with a naive mix; the verdict and what was said."""
    batch = batch_for(architecture)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        try:
            ranking = rank([batch], loss=own_loss if architecture.labels == "image" else None)
        except ValueError as error:
            return "refused", str(error)
        said = {str(w.message) for w in told if issubclass(w.category, UserWarning)}
        assert len(ranking.losses) == 1
        compare(gates(1.0, identity), *models, ends(), batch)
    # What is said of these few numbers, not of the model.
    said = {text for text in said if not re.search("scores are below the start|ranked last", text)}
    return ("warns", " ".join(said)) if said else ("exact", "")


def ranked(architecture, variant):
    """The outcome of a ranking of adapters."""
    model, plain = adapted(architecture, variant)

    def ends():
        layers = {name: (plain.get_submodule(name), a) for name, a in adapted_layers(model).items()}
        return {
            name: {"weight": (layer.weight, adapter.get_delta_weight("default"))}
            for name, (layer, adapter) in layers.items()
        }

    rank, gates = partial(rank_layers, model, steps=1), partial(gated_updates, model)
    return outcome(rank, gates, ends, model, plain, architecture=architecture)


def ranked_whole(architecture, skip):
    """The outcome of a ranking of all weights; ``skip`` leaves out those that are unsupported."""
    model, base = make(architecture).double(), make(architecture, seed=1).double().state_dict()
    rank = partial(rank_layers_full, model, base, steps=1, skip_unsupported=skip)
    gates = partial(gated_weights, model, base, skip_unsupported=skip)

    def ends():
        return {
            name: {
                key: (base[f"{name}.{key}"], parameter.detach() - base[f"{name}.{key}"])
                for key, parameter in layer.named_parameters(recurse=False)
            }
            for name, layer in linear_layers(model).items()
        }

    return outcome(rank, gates, ends, model, copy.deepcopy(model), architecture=architecture)


CASES = [
    pytest.param(architecture, variant, id=f"{architecture.model}-{variant.name}")
    for architecture, variant in rows()
    if ARCHITECTURES.index(architecture) % 8 == 0 or variant is VARIANTS[0]
]


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_lora_is_exact_or_refused(architecture, variant):
    """Some of the table; tests/ktlib/test_support.py goes through all of it."""
    verdict, says = ranked(architecture, variant)
    assert verdict == variant.verdict
    assert re.search(variant.says, says)


@pytest.mark.parametrize(
    "architecture",
    [pytest.param(a, id=a.model, marks=[pytest.mark.slow] * a.slow) for a in ARCHITECTURES],
)
def test_fine_tuning_as_a_whole_is_exact_or_refused(architecture):
    verdict, says = ranked_whole(architecture, False)
    assert verdict == ("refused" if architecture.full else "exact")
    assert re.search(architecture.full, says)
    if architecture.full:
        verdict, says = ranked_whole(architecture, True)
        assert verdict == ("refused" if architecture.skipped else "warns")
        assert re.search(architecture.skipped or "left out", says)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda a: a.model)
def test_labels_are_read_as_the_model_reads_them(architecture):
    """A target at the first position: its loss is a number where the model does not shift."""
    if architecture.labels == "image":
        return
    model = make(architecture).double()
    batch = batch_for(architecture)
    kind = architecture.labels if architecture.labels != "class" else ""
    assert target_kind(model) == kind
    checked_batches(model, [batch])
    if kind:
        batch["labels"] = torch.full_like(batch["input_ids"], -100)
        batch["labels"][:, 0] = 1
        assert bool(own_loss(model, batch).isfinite()) == (kind != "next token")
