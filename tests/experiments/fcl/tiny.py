"""The evidence in seconds: scikit-learn's digits, networks of four channels, one epoch."""

from experiments.fcl.parameters import EvidenceParameters
from tests.chapters import check_cell

TINY = {
    "dataset": "digits", "class_splits": ["random"], "base_classes": 4, "sessions": 2, "ways": 2,
    "shots": 3, "base_images": 8, "test_images": 5, "width": 4, "stem_stride": 1,
    "tuned_convolutions": 2, "epochs": 1, "batch_size": 16, "crop_padding": 1, "seeds": [3],
    "study_seeds": [3], "flatness_images": 20, "flatness_draws": 3, "shots_studied": [1, 3],
    "layers_studied": [2], "bounds_studied": [0.01], "methods": ["ncm", "finetune", "f2m", "fsll"],
    "device": "cpu",
}  # fmt: skip


def tiny(**changes):
    """Parameters of the tiny size, some of them changed."""
    return check_cell(EvidenceParameters, "fcl_evidence", **TINY | changes)
