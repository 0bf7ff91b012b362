"""Records: what every run writes.

A record is one small JSON file, ``result.json``, in the folder of its run. :class:`RunRecord` is
its definition; ``python -m experiments.run.records`` prints it as a JSON schema.
"""

from __future__ import annotations

import gzip
import json
import math
import platform
import sys
import time
import zlib
from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, PrivateAttr, ValidationError

from experiments.run import provenance
from experiments.run.atomic import write_text
from experiments.run.parameters import ChapterParameters

if TYPE_CHECKING:
    import pandas as pd

RECORD_NAME = "result.json"
Scalar = bool | int | Annotated[float, Field(allow_inf_nan=False)] | str | None
Number = int | Annotated[float, Field(allow_inf_nan=False)]


class Recheck(BaseModel):
    """That other code than a record's own gave the same rows."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    code_digest: str = Field(description="SHA-256 of the code that gave the same rows")
    git_commit: str | None = Field(description="its commit")
    reference: str | None = Field(description="commit of the code that it was compared with")
    profile: str = Field(description="name of the set of parameter values")
    seeds: list[int] = Field(description="the seeds that were computed again")
    rows: int = Field(gt=0, description="number of rows compared")
    largest_difference: float = Field(description="relative to the larger of 1 and the number")
    date: str = Field(description="day, ISO 8601")


class Part(BaseModel):
    """One of the runs that a record was merged from, and where its numbers come from."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    run: str = Field(description="name of the run, such as seeds=3")
    values: dict[str, list[JsonValue]] = Field(
        description="its values of the parameters in which the runs differ"
    )
    git_commit: str | None = Field(description="commit of the project")
    git_dirty: bool | None = Field(description="whether files differed from the commit")
    code_digest: str | None = Field(description="SHA-256 of the code that the numbers follow from")
    started_at: str = Field(description="when it started, ISO 8601, UTC")
    wall_seconds: float = Field(description="duration, in seconds")
    hardware: str = Field(description="model name of the device")
    threads: int = Field(description="number of CPU threads")
    from_cache: dict[str, int] = Field(description="kind of training -> how many were not computed")


class RunRecord(BaseModel):
    """The record of one run: started at its beginning, filled on the way, saved at its end."""

    model_config = ConfigDict(
        extra="forbid", strict=True, title="Record of a run", populate_by_name=True
    )

    schema_version: Literal[1] = Field(description="version of this format")
    chapter: str = Field(description="name of the chapter, its source is chapters/<name>.py")
    profile: str = Field(description="name of the set of parameter values")
    parameters: dict[str, JsonValue] = Field(description="values of all parameters")
    seeds: list[int] = Field(description="one repetition of the experiment per seed")
    git_commit: str | None = Field(description="commit of the project; null where there is none")
    git_dirty: bool | None = Field(description="whether files differed from the commit")
    code_digest: str | None = Field(description="SHA-256 of the code that the numbers follow from")
    packages: dict[str, str] = Field(description="name of a package -> version")
    python: str = Field(description="version of Python")
    system: str = Field(description="operating system and processor family")
    device: str = Field(description="where it was computed: cpu, cuda or mps")
    hardware: str = Field(description="model name of the device")
    precision: str = Field(description="type that products and convolutions were computed in")
    threads: int = Field(description="number of CPU threads")
    workers: int = Field(1, description="trainings at once on the CPU, which share the threads")
    started_at: str = Field(alias="start", description="when the run started, ISO 8601, UTC")
    wall_seconds: float = Field(ge=0, description="duration, in seconds; of parts, their sum")
    from_cache: dict[str, int] = Field(
        {}, description="kind of training -> how many were taken from the cache, not computed"
    )
    peak_memory_bytes: int | None = Field(
        description="most main memory held, in bytes; workers not counted"
    )
    peak_device_memory_bytes: int | None = Field(description="most GPU memory held, in bytes")
    data: dict[str, str] = Field(description="data file -> SHA-256")
    metrics: dict[str, Number] = Field(description="single numbers")
    tables: dict[str, list[dict[str, Scalar]]] = Field(
        description="lists of rows; the rows of one table have the same columns"
    )
    figures: list[str] = Field(description="names of the files in figures/")
    rechecked: Recheck | None = Field(None, description="later code that gives the same rows")
    parts: list[Part] = Field([], description="the runs that it was merged from; none: one run")

    _clock: float | None = PrivateAttr(default=None)  # None in a record that was read

    @classmethod
    def start(cls, chapter: str, parameters: ChapterParameters, data: Mapping[str, str]) -> Self:
        """Begin a record, and the measurement of time and memory.

        Args:
            chapter: name of the chapter, such as ``"fcl"``.
            parameters: the checked parameters of the run.
            data: SHA-256 by data file, as ``data_prep.checksums`` gives them.
        """
        # Reading records, as the pipeline does at every start, must not wait for PyTorch.
        import torch

        from experiments.run.cache import taken
        from experiments.run.parallel import workers
        from ktlib.device import choose_device, compute_dtype, hardware_name

        device = choose_device(parameters.device)
        taken.clear()
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        values = parameters.model_dump(mode="json", exclude={"run_dir", "profile"})
        commit, dirty = provenance.git_state()
        record = cls(
            schema_version=1,
            chapter=chapter,
            profile=parameters.profile,
            parameters=values,
            seeds=parameters.seeds,
            git_commit=commit,
            git_dirty=dirty,
            code_digest=provenance.current_code_digest(chapter),
            packages=provenance.package_versions(),
            python=platform.python_version(),
            system=provenance.system_name(),
            device=device.type,
            hardware=hardware_name(device),
            precision=str(compute_dtype(device, parameters.precision)).removeprefix("torch."),
            threads=torch.get_num_threads(),
            workers=workers() if device.type == "cpu" else 1,
            started_at=datetime.now(UTC).isoformat(timespec="seconds"),
            wall_seconds=0.0,
            peak_memory_bytes=None,
            peak_device_memory_bytes=None,
            data=dict(data),
            metrics={},
            tables={},
            figures=[],
        )
        record._clock = time.perf_counter()
        return record

    def metric(self, name: str, value: float) -> None:
        """Note a single number (also a scalar of NumPy or PyTorch); an earlier one is replaced.

        Raises:
            ValueError: it is not a finite number.
        """
        number = _plain(value, where=f"Metric `{name}`")
        if isinstance(number, bool | str) or number is None:
            raise ValueError(f"Metric `{name}` must be a number. Found {value!r}.")
        self.metrics[name] = number

    def table(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        """Note a table; an earlier one of this name is replaced.

        Args:
            name: see the tables that each chapter promises.
            rows: mappings from column to a number, text, truth value or None. All have the same
                columns.

        Raises:
            ValueError: a row has other columns than the first, or holds something else, NaN
                included.
        """
        self.tables[name] = _plain_rows(name, rows)

    def frame(self, name: str) -> pd.DataFrame:
        """A table of the record as a data frame.

        Raises:
            KeyError: the record has no such table.
        """
        import pandas as pd

        if name not in self.tables:
            raise KeyError(
                f"Record of `{self.chapter}` has no table {name!r}: {list(self.tables)}."
            )
        return pd.DataFrame(self.tables[name])

    def save(self, run_dir: Path | str) -> Path | None:
        """Measure time and memory, check the record, and write it into the folder of the run.

        The file is complete or not there: it is written under another name and then renamed.

        Args:
            run_dir: the folder; ``""`` checks the record and writes nothing.

        Returns:
            The path of the file, or None.

        Raises:
            ValueError: a metric or table holds something that a record cannot, or rows do not
                agree.
            OSError: the folder cannot be written to.
        """
        if self._clock is not None:
            self._measure(self._clock)
        self._recheck()
        if not str(run_dir):
            return None
        folder = Path(run_dir)
        self.figures = sorted(path.name for path in folder.glob("figures/*"))
        return write_text(folder / RECORD_NAME, self.to_json())

    def to_json(self) -> str:
        """The record as JSON, one line per metric and per row, so that versions compare well."""
        content = self.model_dump(mode="json", by_alias=True)
        lines = [f"{_json(key)}: {_block(value)}" for key, value in content.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def _measure(self, clock: float) -> None:
        from experiments.run.cache import taken  # imports PyTorch

        self.wall_seconds = round(time.perf_counter() - clock, 3)
        self.from_cache = dict(sorted(taken.items()))
        self.peak_memory_bytes = provenance.peak_memory_bytes()
        if self.device == "cuda":
            import torch

            self.peak_device_memory_bytes = torch.cuda.max_memory_allocated()

    def _recheck(self) -> None:
        """Metrics and tables once more: they may have been written to directly."""
        for name, value in dict(self.metrics).items():
            self.metric(name, value)
        for name, rows in dict(self.tables).items():
            self.table(name, rows)
        type(self).model_validate(self.model_dump())


def load_record(path: Path | str) -> RunRecord:
    """Read a record from its file, which may be compressed, or from the folder of its run.

    Raises:
        ValueError: the file is not a record; the message names the file and the fields.
        FileNotFoundError: there is no such file.
    """
    file = Path(path)
    file = file / RECORD_NAME if file.is_dir() else file
    try:
        return RunRecord.model_validate_json(provenance.unpacked(file))
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, detail['loc'])) or 'file'}: {detail['msg']}"
            for detail in error.errors()[:5]
        ]
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        problems = [f"file: {str(error).rstrip('.')}"]
    raise ValueError(f"{file} is not a record of a run. {'; '.join(problems)}.")


def _plain(value: Any, where: str) -> bool | int | float | str | None:
    """A value as JSON knows it; scalars of NumPy and PyTorch are converted."""
    if getattr(value, "ndim", 0) != 0:
        raise ValueError(f"{where} must be one number. Found an array of shape {value.shape}.")
    item = value.item() if hasattr(value, "item") else value
    if isinstance(item, float) and not math.isfinite(item):
        raise ValueError(f"{where} must be finite. Found {item!r}.")
    if item is None or isinstance(item, bool | int | float | str):
        return item
    raise ValueError(f"{where} must be a number or text. Found {type(item).__name__} {item!r}.")


def _plain_rows(
    name: str, rows: Iterable[Mapping[str, Any]]
) -> list[dict[str, bool | int | float | str | None]]:
    plain: list[dict[str, bool | int | float | str | None]] = []
    for number, row in enumerate(rows):
        where = f"Table `{name}`, row {number}"
        plain.append({key: _plain(row[key], f"{where}, column `{key}`") for key in row})
        if list(plain[0]) != list(plain[-1]):
            raise ValueError(
                f"{where} must have the columns of row 0, {list(plain[0])}. Found {list(row)}."
            )
    return plain


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)


def _block(value: Any, indent: str = "  ") -> str:
    """JSON with each entry of a mapping, and each row of a table, in its own line."""
    inner = indent + "  "
    if isinstance(value, dict) and value:
        entries = [f"{inner}{_json(key)}: {_block(entry, inner)}" for key, entry in value.items()]
        return "{\n" + ",\n".join(entries) + f"\n{indent}}}"
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return "[\n" + ",\n".join(f"{inner}{_json(row)}" for row in value) + f"\n{indent}]"
    return _json(value)


def schema_json() -> str:
    """The format of a record as a JSON schema."""
    return json.dumps(RunRecord.model_json_schema(by_alias=True), indent=2) + "\n"


if __name__ == "__main__":
    sys.stdout.write(schema_json())
