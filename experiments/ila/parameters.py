"""Parameters of the chapters on layer importance in language models, and what each may be."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from experiments.run.parameters import ChapterParameters

COMPONENT_SETS = ("attention", "qkv", "feed_forward", "all")
"""Parts of every block that are tuned alone in the pilot (table 5.1), and all of them."""

SELECTIONS = ("all", "keep", "top", "random_keep", "random_top", "first", "last")
"""Choices of layers to tune; see :meth:`experiments.ila.experiment.LayerExperiment.selected`."""

TUNINGS = ("lora", "adalora", "full")
"""Ways of fine-tuning; ``quantized`` makes QLoRA of the first."""


class LanguageParameters(ChapterParameters):
    """Model, data and the two stages: what all experiments on layers can be told."""

    model: str = Field(min_length=1, description="smollm2, tiny, a folder, or an id of the hub")
    quantized: bool = Field(description="whether the model is held in 4 bits (QLoRA)")
    datasets: list[str] = Field(min_length=2, description="conversations to learn from")
    general_text: Literal["moby_dick"] = Field(
        description="general text that should not be forgotten"
    )
    train_examples: int = Field(ge=0, description="training conversations of each set; 0: all")
    test_examples: int = Field(ge=1, description="held-out conversations of each set, at most")
    text_examples: int = Field(ge=1, description="passages of general text")
    max_tokens: int = Field(ge=8, description="longest example in tokens; the end is cut off")
    batch_size: int = Field(ge=1, description="conversations per step")
    lora_rank: int = Field(ge=1, description="rank of LoRA")
    lr: float = Field(gt=0, description="highest learning rate of LoRA")
    full_lr: float = Field(gt=0, description="highest learning rate of full fine-tuning")
    stage_1_steps: int = Field(ge=2, description="steps of fine-tuning before the ranking")
    epsilon: float = Field(gt=0, description="change of the loss per step that counts as stable")
    initial_score: float = Field(description="score of every layer at the start")
    score_lr: float = Field(gt=0, description="learning rate of the scores")
    stage_2_steps: int = Field(ge=2, description="steps, one batch each, of learning the scores")
    stage_2_batch_size: int = Field(ge=1, description="conversations per step of stage 2")
    keep: float = Field(
        gt=0, lt=1, description="share of the layers that stay when the rest is frozen"
    )
    top: float = Field(gt=0, lt=1, description="share of the layers that are tuned alone")

    @model_validator(mode="after")
    def _fits_the_data(self) -> Self:
        if len(set(self.datasets)) < len(self.datasets):
            raise ValueError(f"datasets may hold each set once. Found {self.datasets}")
        if self.train_examples and self.train_examples < self.batch_size:
            raise ValueError(
                f"train_examples must be 0 (all) or at least batch_size={self.batch_size}. "
                f"Found {self.train_examples}"
            )
        if self.top > self.keep:
            raise ValueError(f"top must be at most keep={self.keep}. Found {self.top}")
        return self


class IlaParameters(LanguageParameters):
    """What ``chapters/ila.py`` can be told."""

    components: list[Literal[COMPONENT_SETS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="parts of the blocks that are tuned alone in the pilot"
    )
    tunings: list[Literal[TUNINGS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="ways of fine-tuning that are compared"
    )
    selections: list[Literal[SELECTIONS]] = Field(  # type: ignore[valid-type]
        min_length=1, description="choices of layers that are compared"
    )
    smaller_tops: list[float] = Field(description="shares below `top` that are tuned alone, too")
    tuned_on: str = Field(description="the set that choices of layers are tuned on")
    ranked_seeds: int = Field(ge=1, description="seeds, at most, whose rankings are learned")
    compared_seeds: int = Field(ge=1, description="seeds, at most, of fine-tuning comparisons")
    timed_steps: int = Field(ge=1, description="steps behind every time")
    benchmarks: list[str] = Field(description="of lm-evaluation-harness, on every tuned model")
    benchmark_questions: int = Field(ge=0, description="questions of each benchmark; 0: all")
    questions: str = Field(description="file of questions to answer for a judge; empty: none")

    @model_validator(mode="after")
    def _fits_the_comparison(self) -> Self:
        if self.tuned_on not in self.datasets:
            raise ValueError(f"tuned_on must be among {self.datasets}. Found {self.tuned_on!r}")
        for name, needed in (("tunings", "lora"), ("selections", "all"), ("components", "all")):
            found = getattr(self, name)
            if needed not in found or len(set(found)) < len(found):
                raise ValueError(f"{name} must hold {needed!r}, and each once. Found {found}")
        tops = self.smaller_tops
        if not all(0 < share < self.top for share in tops) or len(set(tops)) < len(tops):
            raise ValueError(
                f"smaller_tops must lie in (0, top={self.top}), each once. Found {tops}"
            )
        if self.questions and not Path(self.questions).is_file():
            raise ValueError(f"questions must be a file, or empty. Found {self.questions!r}")
        if self.quantized and self.tunings != ["lora"]:
            raise ValueError(f"tunings must be ['lora'] with quantized. Found {self.tunings}")
        return self


class IlaStudyParameters(LanguageParameters):
    """What ``chapters/ila_studies.py`` can be told."""

    studied_on: str = Field(description="the set whose rankings are studied")
    batch_sizes: list[int] = Field(min_length=1, description="conversations per step of stage 2")
    noise_steps: int = Field(ge=2, description="steps of stage 2 while batch sizes are tried")
    milestones: list[float] = Field(min_length=1, description="shares of stage 1 that are ranked")
    initial_scores: list[float] = Field(min_length=1, description="scores at the start")
    penalties: list[float] = Field(min_length=1, description="weights of the penalty on open gates")
    full_ranked: bool = Field(description="whether full fine-tuning is ranked, too")
    ablated: bool = Field(description="whether every update is taken away once")
    transferred_from: list[str] = Field(description="sets whose rankings are used on another one")
    intersected: bool = Field(description="whether layers that no set needs are left out")
    solved_with: list[Literal[SELECTIONS]] = Field(  # type: ignore[valid-type]
        description="choices of layers that are tuned to solve tasks"
    )
    tasks: int = Field(ge=1, description="held-out tasks that are solved")
    new_tokens: int = Field(ge=1, description="longest answer to a task, in tokens")

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
        if 0.0 not in self.penalties or min(self.penalties) < 0:
            raise ValueError(f"penalties must hold 0.0 and none below. Found {self.penalties}")
        if min(self.batch_sizes) < 1:
            raise ValueError(f"batch_sizes must be at least 1. Found {self.batch_sizes}")
        for name in ("batch_sizes", "milestones", "initial_scores", "penalties"):
            found = getattr(self, name)
            if len(set(found)) < len(found):
                raise ValueError(f"{name} may hold each value once. Found {found}")
        return self
