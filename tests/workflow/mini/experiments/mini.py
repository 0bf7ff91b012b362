"""What the small chapter of the pipeline tests uses."""

from typing import Any

from pydantic import Field

from experiments.run.parameters import ChapterParameters


class MiniParameters(ChapterParameters):
    """Parameters of the small chapter."""

    rate: float = Field(gt=0, description="factor")
    groups: list[str] = Field(min_length=1, description="what is scaled")
    wait: str = Field(description="file to wait for; empty: do not wait")
    fail: bool = Field(description="whether to raise")


def scaled(value: float, rate: float) -> float:
    """The value times the rate."""
    return value * rate


def points(parameters: MiniParameters) -> list[dict[str, Any]]:
    """A row for each group and seed."""
    return [
        {"group": group, "seed": seed, "value": scaled(seed + len(group), parameters.rate)}
        for group in parameters.groups
        for seed in parameters.seeds
    ]
