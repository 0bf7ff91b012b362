"""What the small chapter of the pipeline tests uses."""

from pydantic import Field

from experiments.run.parameters import ChapterParameters


class MiniParameters(ChapterParameters):
    """Parameters of the small chapter."""

    rate: float = Field(gt=0, description="factor")
    wait: str = Field(description="file to wait for; empty: do not wait")
    fail: bool = Field(description="whether to raise")


def scaled(value: float, rate: float) -> float:
    """The value times the rate."""
    return value * rate
