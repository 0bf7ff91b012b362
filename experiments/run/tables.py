"""Tables across runs and seeds, and the printed tables of the thesis."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.run.provenance import project_root
from experiments.run.records import RECORD_NAME, RunRecord, load_record

if TYPE_CHECKING:
    import pandas as pd


def collect(paths: Iterable[Path | str] | Path | str) -> dict[str, pd.DataFrame]:
    """Join the records of any set of runs into one data frame per table.

    Args:
        paths: one or several records, folders of runs, or folders above such folders.

    Returns:
        Data frames by table name. A table's own columns come after ``run`` (the folder's name),
        ``chapter``, ``profile`` and each parameter in which the runs differ. Metrics are the table
        ``metrics`` with the columns ``metric`` and ``value``.

    Raises:
        FileNotFoundError: a path holds no record.
        ValueError: a file is not a record.
    """
    import pandas as pd  # slow to import: not for the pipeline, which only reads records

    several = [paths] if isinstance(paths, str | Path) else paths
    files = [file for path in several for file in _record_files(Path(path))]
    runs = [(_run_name(file), load_record(file)) for file in files]
    differing = _differing_parameters([record for _, record in runs])
    parts: dict[str, list[pd.DataFrame]] = {}
    for run, record in runs:
        origin = {"run": run, "chapter": record.chapter, "profile": record.profile}
        origin |= {name: _short(record.parameters.get(name)) for name in differing}
        metrics = [{"metric": name, "value": value} for name, value in record.metrics.items()]
        tables = {name: record.frame(name) for name in record.tables}
        for name, frame in {**tables, "metrics": pd.DataFrame(metrics)}.items():
            parts.setdefault(name, []).append(_with_origin(frame, origin))
    return {name: pd.concat(frames, ignore_index=True) for name, frames in parts.items()}


def mean_and_spread(frame: pd.DataFrame, by: str | Sequence[str], value: str) -> pd.DataFrame:
    """Mean and spread of a column over the rows of each group, usually over the seeds.

    Args:
        frame: one row per repetition.
        by: the columns that define the groups.
        value: the column to average.

    Returns:
        The columns of ``by``, then ``mean``, ``std`` (of the sample, divided by n - 1; NaN for one
        row) and ``n``, the groups in the order of their first rows.

    Raises:
        ValueError: a column is missing.
    """
    keys = [by] if isinstance(by, str) else list(by)
    missing = [name for name in [*keys, value] if name not in frame.columns]
    if missing:
        raise ValueError(f"Columns {missing} are missing. Found {list(frame.columns)}.")
    grouped = frame.groupby(keys, sort=False, dropna=False)[value]
    return grouped.agg(mean="mean", std="std", n="size").reset_index()


def format_mean_std(mean: float, std: float | None = None, digits: int = 2) -> str:
    """``"45.28 ± 0.61"``; the mean alone without a spread (None or NaN)."""
    if std is None or math.isnan(std):
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ± {std:.{digits}f}"


def thesis_table(number: str) -> pd.DataFrame:
    """A printed table of the thesis by its number, such as ``"3_1"`` for table 3.1.

    Raises:
        ValueError: unknown table; the message lists the known ones.
    """
    return _thesis_file("table", number)


def thesis_settings(chapter: str) -> pd.DataFrame:
    """The settings that the thesis states for a chapter, such as ``"fcl"``: name, value, note.

    Raises:
        ValueError: no settings for the chapter; the message lists the known chapters.
    """
    return _thesis_file("settings", chapter)


def released_ranking(data: str) -> pd.DataFrame:
    """The conflict scores that the authors of Recon published: rank, layer, score.

    Raises:
        ValueError: no ranking for these data; the message lists the known ones.
    """
    return _thesis_file("recon_released", data)


def _thesis_file(kind: str, key: str) -> pd.DataFrame:
    import pandas as pd

    root = project_root()
    folder = (root or Path()) / "results" / "thesis"
    known = sorted(path.stem.removeprefix(f"{kind}_") for path in folder.glob(f"{kind}_*.csv"))
    if key not in known:
        raise ValueError(f"No {kind} {key!r} of the thesis in {folder}. Found {known}.")
    return pd.read_csv(folder / f"{kind}_{key}.csv")


def _record_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if (path / RECORD_NAME).is_file():
        return [path / RECORD_NAME]
    found = sorted(path.rglob(RECORD_NAME))
    if not found:
        raise FileNotFoundError(f"No {RECORD_NAME} at or below {path}.")
    return found


def _run_name(file: Path) -> str:
    """The folder of a run; a record under another name is a committed one, named by its file."""
    if file.name == RECORD_NAME:
        return file.resolve().parent.name
    return file.name.removesuffix(".gz").removesuffix(".json")


def _differing_parameters(records: list[RunRecord]) -> list[str]:
    names = dict.fromkeys(name for record in records for name in record.parameters)
    return [
        name
        for name in names
        if len({json.dumps(record.parameters.get(name)) for record in records}) > 1
    ]


def _short(value: Any) -> Any:
    """A cell of a table: lists as text, other values as they are."""
    return json.dumps(value) if isinstance(value, list | dict) else value


def _with_origin(frame: pd.DataFrame, origin: dict[str, Any]) -> pd.DataFrame:
    """Insert columns at the front; one that the table already has becomes ``parameter_<name>``."""
    for name, value in reversed(origin.items()):
        column = f"parameter_{name}" if name in frame.columns else name
        frame.insert(0, column, [value] * len(frame))
    return frame
