"""A ranking of the layers of a model by importance: read it, save it, hand it to peft."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from decimal import ROUND_HALF_UP, Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, model_validator
from torch import nn

from ktlib.checks import require_extra
from ktlib.ila.layers import layer_name, some_of

if TYPE_CHECKING:
    import pandas as pd
    import peft

Finite = Annotated[float, Field(allow_inf_nan=False)]


class LayerRanking(BaseModel):
    """Scores of layers, the higher the more important, and where they come from.

    A score is s_i of (5.7) where stage 2 of ILA learned it; other methods give it another meaning,
    see ``settings["method"]``. Layers are in the order of the model; of two equal scores the
    earlier layer ranks first.

    Example:
        >>> ranking = LayerRanking(scores={"0.q_proj": 3.9, "0.v_proj": 4.2, "1.q_proj": 4.1})
        >>> ranking.top(0.5)  # two of three: to the nearest, halves up
        ('0.v_proj', '1.q_proj')
        >>> sorted(ranking.lora_config(top_fraction=0.3, r=8).target_modules)
        ['0.v_proj']
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = Field(1, description="version of this format")
    scores: dict[str, Finite] = Field(min_length=1, description="layer -> score")
    standard_errors: dict[str, Finite] = Field(
        {}, description="layer -> standard error of the score over batches; empty if unknown"
    )
    curve: dict[int, dict[str, Finite]] = Field({}, description="step -> scores after that step")
    without_update: list[str] = Field([], description="layers with nothing to score: ranked last")
    losses: list[Finite] = Field([], description="loss of each step, before it")
    settings: dict[str, JsonValue] = Field({}, description="how the scores were computed")
    provenance: dict[str, JsonValue] = Field({}, description="model, data and package versions")

    @model_validator(mode="after")
    def _same_layers(self) -> Self:
        if not set(self.without_update) <= self.scores.keys():
            raise ValueError("without_update must hold layers of `scores`.")
        for where, names in (("standard_errors", self.standard_errors), *self.curve.items()):
            if names and names.keys() != self.scores.keys():
                place = where if isinstance(where, str) else f"curve at step {where}"
                raise ValueError(f"{place} must have the layers of `scores`.")
        return self

    @property
    def names(self) -> tuple[str, ...]:
        """The layers, the most important first."""
        last = set(self.without_update)
        # sorted() keeps the order of the model where scores are equal.
        return tuple(sorted(self.scores, key=lambda name: (name in last, -self.scores[name])))

    def top(self, top_fraction: float) -> tuple[str, ...]:
        """The most important layers, best first: as many as :func:`layers_in` says.

        Raises:
            ValueError: ``top_fraction`` does not lie in (0, 1].
        """
        return self.names[: layers_in(top_fraction, len(self.scores))]

    def bottom(self, fraction: float) -> tuple[str, ...]:
        """The least important layers, the lowest first: those outside ``top(1 - fraction)``.

        Raises:
            ValueError: ``fraction`` does not lie in (0, 1].
        """
        total = len(self.scores)
        layers_in(fraction, total, "fraction")  # checks the fraction
        kept = 0 if fraction == 1 else layers_in(float(1 - Decimal(str(fraction))), total)
        return self.names[kept:][::-1]

    def at_step(self, step: int) -> Self:
        """The ranking as it stood after a step of ``curve``; without standard errors.

        Raises:
            ValueError: the curve has no such step.
        """
        if step not in self.curve:
            raise ValueError(f"step must be one of {sorted(self.curve)}. Found step={step}.")
        changed = {"scores": self.curve[step], "standard_errors": {}, "curve": {}}
        settings = {**self.settings, "steps": step}
        return self.model_copy(
            update={**changed, "losses": self.losses[:step], "settings": settings}
        )

    def heat_map(self, top_fraction: float | None = None) -> pd.DataFrame:
        """Scores by block (rows) and projection (columns), as in figure 5.1 of the thesis.

        Layers outside the blocks, such as the head, stand in a last row ``"outside"``. Cells
        without a layer are NaN.

        Args:
            top_fraction: 1 for the layers in ``top(top_fraction)`` and 0 for the others, instead
                of scores.
        """
        import pandas as pd

        chosen = None if top_fraction is None else set(self.top(top_fraction))
        places = _places(self.scores)
        short = _short_names({projection for _, projection in places.values()})
        cells: dict[int | str, dict[str, float]] = {}
        columns: dict[str, None] = {}
        for name, (block, projection) in places.items():
            value = self.scores[name] if chosen is None else float(name in chosen)
            cells.setdefault(block, {})[short[projection]] = value
            columns[short[projection]] = None
        rows = [block for block in cells if block != "outside"]
        rows += [block for block in cells if block == "outside"]
        table = pd.DataFrame([cells[row] for row in rows], index=rows, columns=list(columns))
        return table.rename_axis(index="block", columns="projection")

    def lora_config(
        self, top_fraction: float, *, model: nn.Module | None = None, **settings: Any
    ) -> peft.LoraConfig:
        """A LoRA configuration that adapts exactly the most important layers.

        ``target_modules`` is the list of their full names, which other tools read too. Where such a
        name also ends that of another module (``lm_head``, ``draft.lm_head``), it is a regular
        expression instead, because peft compares the ends of names.

        Args:
            top_fraction: share of the layers, as for :meth:`top`.
            model: the model that will be adapted, to check that it has these layers. Without it,
                other modules are those of the model that was ranked.
            **settings: all else that ``peft.LoraConfig`` takes: ``r``, ``lora_alpha`` and so on.
                ``task_type`` is ``CAUSAL_LM`` unless given, if the model ranked was causal.

        Raises:
            ValueError: ``settings`` choose layers as well, or the model lacks layers.
            ImportError: peft is not installed.
        """
        library = require_extra("peft", "lora")
        taken = {"target_modules", "layers_to_transform", "layers_pattern", "exclude_modules"}
        if taken & settings.keys():
            raise ValueError(
                "settings must leave the choice of layers to the ranking. Found "
                f"{sorted(taken & settings.keys())}."
            )
        chosen = [name for name in self.scores if name in set(self.top(top_fraction))]
        endings = self.provenance.get("endings_of_other_modules", [])
        if model is not None:
            self.check_model(model)
            endings = list(endings_of_other_modules(chosen, model))
        ambiguous = isinstance(endings, list) and bool(set(chosen) & {str(e) for e in endings})
        targets = "|".join(map(re.escape, chosen)) if ambiguous else chosen
        if str(self.provenance.get("class", "")).endswith("ForCausalLM"):
            settings.setdefault("task_type", "CAUSAL_LM")
        config: peft.LoraConfig = library.LoraConfig(target_modules=targets, **settings)
        return config

    def check_model(self, model: nn.Module) -> None:
        """Check that a model has the layers of this ranking.

        Raises:
            ValueError: it lacks some; the message names them.
        """
        present = {layer_name(name) for name, _ in model.named_modules()}
        missing = [name for name in self.scores if name not in present]
        if missing:
            ranked = self.provenance.get("class", "another model")
            raise ValueError(
                f"ranking must be of a model with the same layers as {type(model).__name__}. It is "
                f"of {ranked}; of its {len(self.scores)} layers these are missing: "
                f"{some_of(missing)}."
            )

    def save(self, path: Path | str) -> Path:
        """Write the ranking as JSON, whole or not at all."""
        target = Path(path)
        target.parent.mkdir(parents=True, exist_ok=True)
        # The name holds the process, so that two processes do not write into one temporary file.
        temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
        try:
            temporary.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")
            return temporary.replace(target)
        finally:
            temporary.unlink(missing_ok=True)

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a ranking from JSON; what :meth:`save` wrote comes back equal.

        Raises:
            ValueError: the file is not a ranking, or of another version; the message names the
                file and the fields.
            FileNotFoundError: there is no such file.
        """
        text = Path(path).read_text(encoding="utf-8")
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            problems = [
                f"{'.'.join(map(str, detail['loc'])) or 'file'}: {detail['msg']}"
                for detail in error.errors()[:5]
            ]
            raise ValueError(
                f"{path} is not a ranking of layers, version 1. {'; '.join(problems)}."
            ) from None


def layers_in(fraction: float, total: int, name: str = "top_fraction") -> int:
    """How many of ``total`` layers a fraction is: to the nearest, halves up, at least one.

    Computed from the decimal digits: 0.3 of 225 is 67.5 and gives 68 on every machine.

    Raises:
        ValueError: ``fraction`` does not lie in (0, 1]; ``name`` is what the message calls it.
    """
    if isinstance(fraction, bool) or not 0 < fraction <= 1:
        raise ValueError(f"{name} must lie in (0, 1]. Found {name}={fraction!r}.")
    exact = Decimal(str(float(fraction))) * total
    return max(1, int(exact.quantize(Decimal(1), rounding=ROUND_HALF_UP)))


def endings_of_other_modules(names: list[str], model: nn.Module) -> tuple[str, ...]:
    """The names that, after a dot, end the name of another module of the model."""
    modules = [layer_name(name) for name, _ in model.named_modules()]
    return tuple(n for n in names if any(other.endswith(f".{n}") for other in modules))


def _places(names: Iterable[str]) -> dict[str, tuple[int | str, str]]:
    """Layer -> block and projection: ``"model.layers.3.mlp.up_proj"`` -> 3, ``"mlp.up_proj"``.

    Where several stacks have such blocks, as encoder and decoder, the projection names its stack.
    """
    found = {name: re.match(r"(?:(.*?)\.)?(\d+)\.(.+)", name) for name in names}
    one = len({match[1] for match in found.values() if match}) < 2
    return {
        name: (int(m[2]), m[3] if one else f"{m[1]}.{m[3]}") if m else ("outside", name)
        for name, m in found.items()
    }


def _short_names(projections: set[str]) -> dict[str, str]:
    """The last part of each name, where no two projections share it."""
    last = [projection.rpartition(".")[2] for projection in projections]
    unique = len(set(last)) == len(last)
    return {p: p.rpartition(".")[2] if unique else p for p in projections}
