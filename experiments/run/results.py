"""Records of runs and the tables made from them: the names that chapters and the pipeline use.

Defined in ``experiments.run.records`` (one run), ``experiments.run.committed`` (those kept with the
project) and ``experiments.run.tables`` (many runs, and the thesis).
"""

from experiments.run.committed import committed_record, is_stale, record_command, record_label
from experiments.run.provenance import record_files
from experiments.run.records import RECORD_NAME, RunRecord, load_record
from experiments.run.tables import (
    collect,
    format_mean_std,
    mean_and_spread,
    thesis_settings,
    thesis_table,
)

__all__ = [
    "RECORD_NAME",
    "RunRecord",
    "collect",
    "committed_record",
    "format_mean_std",
    "is_stale",
    "load_record",
    "mean_and_spread",
    "record_command",
    "record_files",
    "record_label",
    "thesis_settings",
    "thesis_table",
]
