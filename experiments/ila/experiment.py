"""The experiment on layers that the chapters, their studies and their search have in common.

Everything that must be the same wherever layers or methods are compared is here: the model as it
was, which conversations are trained on and which are held out, how stage 1 and stage 2 are run. The
chapter ``chapters/ila.py`` shows the functions in the order in which it explains them.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import torch
from torch import Tensor

from data_prep import checksums, load_conversations, load_text
from experiments.ila.adapters import (
    layer_names,
    with_adalora,
    with_all_weights,
    with_lora,
    with_qlora,
)
from experiments.ila.chat import (
    Encoded,
    Example,
    batches,
    context_length,
    encode_conversations,
    encode_text,
)
from experiments.ila.evaluation import held_out_loss
from experiments.ila.finetuning import Training, TrainingOptions, finetune
from experiments.ila.parameters import LanguageParameters
from experiments.ila.selection import choose_layers
from experiments.ila.snapshots import Snapshot, restore
from experiments.models.language import (
    TINY,
    language_model_checksums,
    load_language_model,
    load_tokenizer,
    require_quantization,
)
from experiments.run.cache import kept, tensors_digest
from ktlib.ila.agreement import Ranking
from ktlib.ila.ranking import LayerRanking
from ktlib.ila.search import rank_layers, rank_layers_full
from ktlib.seeding import generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Parameters = TypeVar("Parameters", bound=LanguageParameters)
Result = TypeVar("Result")
Batch = dict[str, Tensor]
Layers = str | tuple[str, ...]

_USES = ("ila", "models/language", "data_prep")
# The parameters that both stages read, and each alone.
_BOTH_STAGES = ("model", "quantized", "precision", "train_examples", "max_tokens", "lora_rank")
_STAGE_1 = ("batch_size", "stage_1_steps", "lr")
_STAGE_2 = ("stage_2_batch_size", "stage_2_steps", "initial_score", "score_lr")

GENERAL_TEXT = "general text"
"""Name, in tables, of the text that should not be forgotten."""


@dataclass(frozen=True)
class TunedRun:
    """Stage 1: LoRA on some layers, trained on one set with one seed.

    Attributes:
        dataset: what it was trained on.
        seed: of ``A`` and of the order of the conversations.
        layers: a component, or the names of the adapted layers.
        training: losses, times, and the adapters at milestones, the end among them.
    """

    dataset: str
    seed: int
    layers: Layers
    training: Training

    @property
    def adapters(self) -> Snapshot:
        """The trained adapters at the end."""
        return self.training.snapshots[1.0]


class LayerExperiment(Generic[Parameters]):
    """Model, conversations, and both stages, for any seed.

    Args:
        parameters: of the chapter.
        device: where to compute.
        validation: hold out the validation conversations, not those of the test split: for
            searches, which never load these.
    """

    def __init__(
        self, parameters: Parameters, device: torch.device | str, *, validation: bool = False
    ) -> None:
        self.parameters = parameters
        self.device = torch.device(device)
        if parameters.quantized:
            require_quantization(self.device, parameters.model)
        self.held_out_split = "validation" if validation else "test"
        self._encoded: dict[tuple[str, str], Encoded] = {}  # tokenizing takes seconds

    # Model -------------------------------------------------------------------------------------

    def new_model(self) -> PreTrainedModel:
        """The model as it was before fine-tuning: a new copy for every caller."""
        return copy.deepcopy(_pristine(self.parameters.model, str(self.device), self.quantized))

    @property
    def quantized(self) -> bool:
        """Whether the weights are kept in 4 bits."""
        return self.parameters.quantized

    @cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model."""
        return load_tokenizer(self.parameters.model)

    @cached_property
    def layers(self) -> tuple[str, ...]:
        """All layers that are ranked, in the order of the model."""
        pristine = _pristine(self.parameters.model, str(self.device), self.quantized)
        return layer_names(pristine)

    # Data --------------------------------------------------------------------------------------

    def encoded(self, dataset: str, split: str) -> Encoded:
        """Conversations of one split as tokens, with the numbers of those dropped and shortened."""
        if (dataset, split) in self._encoded:
            return self._encoded[dataset, split]
        p = self.parameters
        wanted = p.train_examples if split == "train" else p.test_examples
        found = load_conversations(dataset, split, size=_generated(dataset, wanted))
        pristine = _pristine(p.model, str(self.device), self.quantized)
        made = encode_conversations(
            found[: wanted or None],
            self.tokenizer,
            context=context_length(pristine),
            max_tokens=p.max_tokens,
        )
        if split == "train" and len(made.examples) < p.largest_batch:
            names = [name for name in type(p).model_fields if "batch_size" in name]
            raise ValueError(
                f"{', '.join(names)} must be at most {len(made.examples)}, the training "
                f"conversations of {dataset} with an answer within max_tokens={p.max_tokens}. "
                f"Found {p.largest_batch}."
            )
        self._encoded[dataset, split] = made
        return made

    def encode_all(self) -> None:
        """Encode all sets, so that one that is too small is named before anything is trained.

        Raises:
            ValueError: too few conversations are left of a set.
        """
        for dataset in self.parameters.datasets:
            self.examples(dataset)
            self.examples(dataset, self.held_out_split)

    def examples(self, dataset: str, split: str = "train") -> tuple[Example, ...]:
        """Conversations of one split as tokens."""
        return self.encoded(dataset, split).examples

    def batches(
        self, dataset: str, seed: int, steps: int, stage: int, *, batch_size: int | None = None
    ) -> list[Batch]:
        """Training batches, one for each step; each stage and seed has an order of its own."""
        p = self.parameters
        sizes = {1: p.batch_size, 2: p.stage_2_batch_size}
        return batches(
            self.examples(dataset),
            batch_size or sizes[stage],
            self.tokenizer,
            seed=generator(seed, "batches of stage", stage).initial_seed(),
            steps=steps,
            by_length=True,
        )

    def held_out(self, dataset: str) -> list[Batch]:
        """Held-out conversations, or general text; the same ones for every seed."""
        p = self.parameters
        if dataset == GENERAL_TEXT:
            examples = self._general_text
        else:
            examples = self.examples(dataset, self.held_out_split)
        size = min(2 * p.batch_size, len(examples))
        return batches(examples, size, self.tokenizer, seed=None, by_length=True)

    @cached_property
    def _general_text(self) -> tuple[Example, ...]:
        p = self.parameters
        passages = load_text(p.general_text)
        order = torch.randperm(len(passages), generator=generator(0, "general text")).tolist()
        count = p.text_examples
        # A search looks at other passages than the chapters.
        first = count if self.held_out_split == "validation" else 0
        chosen = [passages[i] for i in order[first : first + count]]
        return encode_text(chosen, self.tokenizer, max_tokens=p.max_tokens)

    def losses(self, model: PreTrainedModel) -> dict[str, float]:
        """Held-out loss on every set and on general text, in nats per target token."""
        names = (*self.parameters.datasets, GENERAL_TEXT)
        precision = self.parameters.precision
        return {n: held_out_loss(model, self.held_out(n), precision=precision) for n in names}

    # Stage 1: fine-tuning ----------------------------------------------------------------------

    def prepared(
        self, tuning: str, layers: Layers, seed: int, *, steps: int | None = None
    ) -> PreTrainedModel:
        """The model with what is to be trained: adapters on some layers, or their own weights.

        Args:
            tuning: ``lora``, ``adalora`` or ``full``.
            layers: a component such as ``all``, or names. With ``full``, ``all`` is every weight,
                embeddings and norms included.
            seed: of the adapters.
            steps: of the training, for AdaLoRA; ``stage_1_steps`` by default.

        Raises:
            ValueError: an unknown way of tuning, or layers that the model does not have.
        """
        p, model = self.parameters, self.new_model()
        if tuning == "lora":
            adapt = with_qlora if self.quantized else with_lora
            adapted: PreTrainedModel = adapt(model, rank=p.lora_rank, layers=layers, seed=seed)
            return adapted
        if tuning == "adalora":
            total = steps or p.stage_1_steps
            made: PreTrainedModel = with_adalora(
                model, steps=total, target_rank=p.lora_rank, layers=layers, seed=seed
            )
            return made
        if tuning != "full":
            raise ValueError(f"tuning must be 'lora', 'adalora' or 'full'. Found {tuning!r}.")
        return with_all_weights(model, None if layers == "all" else layers)

    def train(
        self,
        model: PreTrainedModel,
        tuning: str,
        dataset: str,
        seed: int,
        *,
        steps: int | None = None,
        lr: float | None = None,
        milestones: Sequence[float] = (),
    ) -> Training:
        """Fine-tune a prepared model in place."""
        p = self.parameters
        count = steps or p.stage_1_steps
        rate = (p.full_lr if tuning == "full" else p.lr) if lr is None else lr
        return finetune(
            model,
            self.batches(dataset, seed, count, stage=1),
            steps=count,
            lr=rate,
            options=TrainingOptions(precision=p.precision),
            milestones=milestones,
        )

    def tune(
        self,
        dataset: str,
        seed: int,
        layers: Layers = "all",
        *,
        milestones: Sequence[float] = (),
    ) -> TunedRun:
        """Stage 1: train LoRA on some layers, and keep the adapters."""
        marks = sorted({*milestones, 1.0})

        def make() -> TunedRun:
            model = self.prepared("lora", layers, seed)
            training = self.train(model, "lora", dataset, seed, milestones=marks)
            return TunedRun(dataset, seed, layers, training)

        settings = self._settings(_STAGE_1, dataset, seed=seed, layers=layers)
        return self._kept(
            "stage 1", settings, make, lambda run: {*marks} <= run.training.snapshots.keys()
        )

    def adapted(self, run: TunedRun, share: float = 1.0) -> PreTrainedModel:
        """The model with the adapters that a run had after a share of its training."""
        model = self.prepared("lora", run.layers, run.seed)
        restore(model, run.training.snapshots[share])
        return model

    # Stage 2: the ranking ----------------------------------------------------------------------

    def rank(
        self, run: TunedRun, *, seed: int | None = None, share: float = 1.0, **options: Any
    ) -> LayerRanking:
        """Stage 2: learn one score per layer on the set that the adapters were trained on.

        Args:
            run: of :meth:`tune`, on all layers.
            seed: of the batches of stage 2; that of the run by default.
            share: milestone of the training whose adapters are ranked.
            **options: other values of ``steps``, ``batch_size``, ``initial_score``, ``lr`` and
                ``penalty``, see :func:`ktlib.ila.rank_layers`.
        """
        order = run.seed if seed is None else seed

        def make() -> LayerRanking:
            found, settings = self._stage_2(run.dataset, order, options)
            with _pages_tell():
                return rank_layers(self.adapted(run, share), found, **settings)

        adapters = tensors_digest(run.training.snapshots[share])
        settings = self._settings(_STAGE_2, run.dataset, seed=order, layers=run.layers, **options)
        return self._kept("stage 2", settings | {"adapters": adapters}, make)

    def rank_full(self, dataset: str, seed: int, **options: Any) -> LayerRanking:
        """Both stages with full fine-tuning instead of LoRA."""

        def make() -> LayerRanking:
            model = self.prepared("full", "all", seed)
            self.train(model, "full", dataset, seed)
            found, settings = self._stage_2(dataset, seed, options)
            before = _pristine(self.parameters.model, str(self.device), False).state_dict()
            with _pages_tell():
                return rank_layers_full(model, before, found, **settings)

        names = (*_STAGE_1, *_STAGE_2, "full_lr")
        return self._kept("full", self._settings(names, dataset, seed=seed, **options), make)

    def _settings(self, names: Sequence[str], dataset: str, **more: Any) -> dict[str, Any]:
        """What a training on a set follows from, beside its code."""
        p = self.parameters
        model = language_model_checksums(p.model)
        found = {name: getattr(p, name) for name in (*_BOTH_STAGES, *names)} | more
        return found | {"dataset": dataset, "data": [checksums(dataset), model]}

    def _kept(
        self,
        kind: str,
        settings: dict[str, Any],
        make: Callable[[], Result],
        enough: Callable[[Result], bool] = lambda _: True,
    ) -> Result:
        """The result from the cache where it was computed before."""
        # A model of the hub may change under its name.
        if self.parameters.model != TINY and not settings["data"][1]:
            return make()
        return kept(kind, _USES, settings, make, device=self.device, enough=enough)

    def _stage_2(
        self, dataset: str, seed: int, options: dict[str, Any]
    ) -> tuple[list[Batch], dict[str, Any]]:
        p = self.parameters
        given = dict(options)
        steps = given.pop("steps", p.stage_2_steps)
        size = given.pop("batch_size", None)
        settings = {"initial_score": p.initial_score, "lr": p.score_lr, "precision": p.precision}
        found = self.batches(dataset, seed, steps, stage=2, batch_size=size)
        return found, settings | {"seed": seed, "data": dataset} | given

    # Comparison --------------------------------------------------------------------------------

    def selected(
        self,
        selection: str,
        ranking: Ranking,
        seed: int,
        *,
        share: float | None = None,
        draw: int = 0,
    ) -> tuple[str, ...]:
        """The layers of a choice by its name in the parameters, in the order of the model.

        ``keep`` and ``top`` are shares of the ranking, ``random_keep`` and ``random_top`` as many
        at random, ``first`` and ``last`` as many as ``top`` in the order of the model.

        Args:
            selection: its name; ``all`` for all layers.
            ranking: that the choice is made by.
            seed: of a random choice.
            share: of the layers, instead of ``keep`` or ``top``.
            draw: number of the random choice, where one seed has several.

        Raises:
            ValueError: an unknown name.
        """
        p = self.parameters
        if selection == "all":
            return self.layers
        choice, _, which = selection.rpartition("_")
        kinds = {"keep": "top", "top": "top", "random_keep": "random", "random_top": "random"}
        kinds |= {"first": "first", "last": "last"}
        if selection not in kinds:
            raise ValueError(f"selection must be one of {['all', *kinds]}. Found {selection!r}.")
        share = share or (p.keep if which == "keep" else p.top)
        rng = generator(seed, "random layers", selection, draw) if choice == "random" else None
        return choose_layers(kinds[selection], self.layers, share, ranking=ranking, rng=rng)

    def tuned_losses(
        self, tuning: str, layers: Layers, dataset: str, seed: int, *, lr: float | None = None
    ) -> dict[str, float]:
        """Held-out losses of a model that was fine-tuned on one set."""
        model = self.prepared(tuning, layers, seed)
        self.train(model, tuning, dataset, seed, lr=lr)
        return self.losses(model)


@contextmanager
def _pages_tell() -> Iterator[None]:
    """Without the warning of scores below their start, whose share the pages print."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".* scores are below the start", UserWarning)
        yield


@lru_cache(maxsize=1)
def _pristine(name: str, device: str, quantized: bool) -> PreTrainedModel:
    """The model as it was loaded, once per process. It must not be changed."""
    model, _ = load_language_model(name, device=torch.device(device), quantized=quantized)
    return model


def _generated(dataset: str, wanted: int) -> int | None:
    """How many conversations to ask for: generated tasks have no number of their own."""
    from data_prep import REASONING

    return (wanted or None) if dataset == REASONING else None
