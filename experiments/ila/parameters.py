"""Parameters of the chapters on layer importance in language models, and what each may be."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, model_validator

from data_prep import FILE_TYPES, REASONING
from data_prep.texts import CONVERSATION_SETS
from experiments.run.parameters import (
    SMALLEST_RATE,
    ChapterParameters,
    LearningRate,
    is_file,
    is_folder,
)

COMPONENT_SETS = ("attention", "qkv", "feed_forward", "all")
"""Parts of every block that are tuned alone in the pilot (table 5.1), and all of them."""

SELECTIONS = ("all", "keep", "top", "random_keep", "random_top", "first", "last")
"""Choices of layers to tune; see :meth:`experiments.ila.experiment.LayerExperiment.selected`."""

TUNINGS = ("lora", "adalora", "full")
"""Ways of fine-tuning; ``quantized`` makes QLoRA of the first."""


CONTEXTS = {"smollm2": 8192, "tiny": 512}
"""Longest input of the models that are known by name, in tokens."""
REASONING_TASKS = {"train": 6900, "test": 2000}
"""So many different tasks can at least be generated for these splits."""
TASK_TOKENS = 160
"""More than the prompt of a task has, with one token per byte as in the tiny model."""


def context_of(model: str) -> int | None:
    """Longest input of a model in tokens; None where only its files on the hub say it."""
    if model in CONTEXTS or not is_file(f"{model}/config.json"):
        return CONTEXTS.get(model)
    file = Path(model).expanduser() / "config.json"
    try:
        length = json.loads(file.read_text(encoding="utf-8")).get("max_position_embeddings")
    except (OSError, ValueError, AttributeError, RecursionError):
        raise ValueError(
            f"model must be a folder with a readable config.json. Found {file}"
        ) from None
    return length if isinstance(length, int) else None


def _known_model(name: str) -> str:
    is_path = name.startswith((".", "/", "~")) or name.count("/") > 1
    if is_path and not is_folder(name):
        raise ValueError(
            f"model must be smollm2, tiny, a folder or an id of the hub. Found {name!r}"
        )
    return name


def _known_dataset(name: str) -> str:
    if name not in CONVERSATION_SETS and not (name.endswith(FILE_TYPES) and is_file(name)):
        known = ", ".join(CONVERSATION_SETS)
        raise ValueError(f"datasets must be among {known}, or .json(l) files. Found {name!r}")
    return name


Count = Annotated[int, Field(ge=1, le=1_000_000)]
Size = Annotated[int, Field(ge=1, le=10_000)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
Rate = Annotated[float, Field(ge=SMALLEST_RATE, le=1)]
Score = Annotated[float, Field(ge=-16, le=16)]  # beyond, the sigmoid is flat in float32
ModelName = Annotated[str, Field(min_length=1), AfterValidator(_known_model)]


class LanguageParameters(ChapterParameters):
    """Parameters of model, data and the two stages, which all experiments on layers share."""

    model: ModelName = Field(description="smollm2, tiny, a folder, or an id of the hub")
    quantized: bool = Field(description="whether the model is held in 4 bits (QLoRA)")
    datasets: list[Annotated[str, AfterValidator(_known_dataset)]] = Field(
        min_length=2, description="conversations to learn from"
    )
    general_text: Literal["moby_dick"] = Field(
        description="general text that should not be forgotten"
    )
    train_examples: int = Field(
        ge=0, le=10_000_000, description="training conversations of each set; 0: all"
    )
    test_examples: Count = Field(description="held-out conversations of each set, at most")
    text_examples: Count = Field(description="passages of general text")
    max_tokens: int = Field(
        ge=8, le=1_000_000, description="longest example in tokens; the end is cut off"
    )
    batch_size: Size = Field(description="conversations per step")
    lora_rank: Size = Field(description="rank of LoRA")
    lr: Rate = Field(description="highest learning rate of LoRA")
    full_lr: Rate = Field(description="highest learning rate of full fine-tuning")
    stage_1_steps: int = Field(
        ge=2, le=1_000_000, description="steps of fine-tuning before the ranking"
    )
    epsilon: float = Field(
        gt=0, le=1000, description="change of the loss per step that counts as stable"
    )
    initial_score: Score = Field(description="score of every layer at the start")
    score_lr: LearningRate = Field(description="learning rate of the scores")
    stage_2_steps: int = Field(
        ge=2, le=1_000_000, description="steps, one batch each, of learning the scores"
    )
    stage_2_batch_size: Size = Field(description="conversations per step of stage 2")
    keep: Fraction = Field(description="fraction of the layers that stay when the rest is frozen")
    top: Fraction = Field(description="fraction of the layers that are tuned alone")

    @property
    def largest_batch(self) -> int:
        """Most conversations in a step of either stage: a training set must hold as many."""
        return max(self.batch_size, self.stage_2_batch_size)

    @model_validator(mode="after")
    def _fits_the_data(self) -> Self:
        if len(set(self.datasets)) < len(self.datasets):
            raise ValueError(f"datasets may hold each set once. Found {self.datasets}")
        if 0 < self.train_examples < self.largest_batch:
            raise ValueError(
                f"train_examples must be 0 (all) or at least {self.largest_batch}, the largest "
                f"batch size. Found {self.train_examples}"
            )
        for name, split in (("train_examples", "train"), ("test_examples", "test")):
            most, found = REASONING_TASKS[split], getattr(self, name)
            if REASONING in self.datasets and found > most:
                raise ValueError(f"{name} must be at most {most} with {REASONING}. Found {found}")
        if self.top >= self.keep:
            raise ValueError(f"top must be below keep={self.keep}. Found {self.top}")
        return self

    @model_validator(mode="after")
    def _fits_the_model(self) -> Self:
        context = context_of(self.model)
        if context is not None and self.max_tokens > context:
            raise ValueError(
                f"max_tokens must be at most {context}, the context of {self.model}. "
                f"Found {self.max_tokens}"
            )
        if self.quantized and (self.model == "tiny" or self.device in ("cpu", "mps")):
            raise ValueError(
                "quantized must be False for the model tiny and without a CUDA device. "
                f"Found True with model={self.model!r}, device={self.device!r}"
            )
        return self


class IlaParameters(LanguageParameters):
    """Parameters of ``chapters/ila.py``."""

    components: list[Literal[COMPONENT_SETS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="parts of the blocks that are tuned alone in the pilot"
    )
    tunings: list[Literal[TUNINGS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="ways of fine-tuning that are compared"
    )
    selections: list[Literal[SELECTIONS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="choices of layers that are compared"
    )
    smaller_tops: list[float] = Field(description="fractions below `top` that are tuned alone, too")
    tuned_on: str = Field(description="the set that choices of layers are tuned on")
    ranked_seeds: Count = Field(description="seeds, at most, whose rankings are learned")
    compared_seeds: Count = Field(description="seeds, at most, of fine-tuning comparisons")
    timed_steps: Count = Field(description="steps behind every time")
    benchmarks: list[str] = Field(description="of lm-evaluation-harness, on every tuned model")
    benchmark_questions: int = Field(
        ge=0, le=1_000_000, description="questions of each benchmark; 0: all"
    )
    questions: str = Field(description="file of questions to answer for a judge; empty: none")

    @model_validator(mode="after")
    def _fits_the_comparison(self) -> Self:
        if self.tuned_on not in self.datasets:
            raise ValueError(f"tuned_on must be among {self.datasets}. Found {self.tuned_on!r}")
        for name, needed in (("tunings", "lora"), ("selections", "all"), ("components", "all")):
            found = getattr(self, name)
            if needed not in found or len(set(found)) < len(found):
                raise ValueError(f"{name} must hold {needed!r}, and each once. Found {found}")
        if self.stage_1_steps < 3 and "adalora" in self.tunings:
            raise ValueError(
                "stage_1_steps must be at least 3 with 'adalora' among tunings: ranks are taken "
                f"away behind the first step. Found {self.stage_1_steps}"
            )
        tops = self.smaller_tops
        if not all(0 < share < self.top for share in tops) or len(set(tops)) < len(tops):
            raise ValueError(
                f"smaller_tops must lie in (0, top={self.top}), each once. Found {tops}"
            )
        if self.questions and not is_file(self.questions):
            raise ValueError(f"questions must be a file, or empty. Found {self.questions!r}")
        if self.quantized and self.tunings != ["lora"]:
            raise ValueError(f"tunings must be ['lora'] with quantized. Found {self.tunings}")
        return self


class IlaStudyParameters(LanguageParameters):
    """Parameters of ``chapters/ila_studies.py``."""

    studied_on: str = Field(description="the set whose rankings are studied")
    batch_sizes: list[Size] = Field(min_length=1, description="conversations per step of stage 2")
    noise_steps: int = Field(
        ge=2, le=1_000_000, description="steps of stage 2 while batch sizes are tried"
    )
    milestones: list[float] = Field(min_length=1, description="shares of stage 1 that are ranked")
    initial_scores: list[Score] = Field(min_length=1, description="scores at the start")
    penalties: list[Annotated[float, Field(ge=0, le=1000)]] = Field(
        min_length=1, description="weights of the penalty on open gates"
    )
    full_ranked: bool = Field(description="whether full fine-tuning is ranked, too")
    ablated: bool = Field(description="whether every update is taken away once")
    transferred_from: list[str] = Field(description="sets whose rankings are used on another one")
    intersected: bool = Field(description="whether layers that no set needs are left out")
    solved_with: list[Literal[SELECTIONS]] = Field(  # type: ignore[valid-type]
        description="choices of layers that are tuned to solve tasks"
    )
    tasks: int = Field(
        ge=1, le=REASONING_TASKS["test"], description="held-out tasks that are solved"
    )
    new_tokens: Count = Field(description="longest answer to a task, in tokens")

    @property
    def largest_batch(self) -> int:
        """As for the chapter, with the batch sizes that are tried."""
        return max(super().largest_batch, *self.batch_sizes)

    @model_validator(mode="after")
    def _fits_the_studies(self) -> Self:
        if len(self.seeds) < 2:
            raise ValueError(f"seeds must be two at least, to be compared. Found {self.seeds}")
        for name in ("studied_on", "transferred_from"):
            found = getattr(self, name)
            unknown = sorted({*([found] if isinstance(found, str) else found)} - set(self.datasets))
            if unknown:
                raise ValueError(f"{name} must be among {self.datasets}. Found {unknown}")
        if self.studied_on in self.transferred_from:
            raise ValueError(f"transferred_from must not hold studied_on={self.studied_on!r}")
        if not all(0 < share <= 1 for share in self.milestones) or 1.0 not in self.milestones:
            raise ValueError(f"milestones must lie in (0, 1] and hold 1.0. Found {self.milestones}")
        if self.initial_score not in self.initial_scores:
            raise ValueError(
                f"initial_scores must hold initial_score={self.initial_score}. "
                f"Found {self.initial_scores}"
            )
        if 0.0 not in self.penalties:
            raise ValueError(f"penalties must hold 0.0. Found {self.penalties}")
        if self.quantized and self.full_ranked:
            raise ValueError("full_ranked must be False with quantized. Found True")
        room = (context_of(self.model) or math.inf) - TASK_TOKENS
        if self.new_tokens > room:
            raise ValueError(
                f"new_tokens must be at most {room}, what a task leaves of the context of "
                f"{self.model}. Found {self.new_tokens}"
            )
        for name in ("batch_sizes", "milestones", "initial_scores", "penalties"):
            found = getattr(self, name)
            if len(set(found)) < len(found):
                raise ValueError(f"{name} may hold each value once. Found {found}")
        return self
