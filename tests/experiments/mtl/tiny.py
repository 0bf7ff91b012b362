"""Parameters of the evidence on multi-task learning at a size for tests."""

from experiments.mtl.parameters import EvidenceParameters
from tests.chapters import check_cell

TINY = {
    "profile": "test", "device": "cpu", "seeds": [3], "study_seeds": [3], "searched": False,
    "long_images": 48, "long_epochs": 1, "train_images": 32, "test_images": 20, "epochs": 1,
    "batch_size": 8, "width": 4, "top_k": 5, "timed_images": 2, "branch_epochs": 1,
    "methods": ["single", "joint", "cagrad", "famo", "mmoe", "bmtas"],
    "recon_methods": ["joint", "cagrad", "famo"], "controls": ["random_layers", "last"],
    "control_methods": ["joint"], "counts_studied": [2, 5], "severities_studied": [0.0, -0.1],
    "quarters_studied": ["2", "all"], "transfer_from": ["multi_mnist"], "skips_studied": ["last"],
    "task_counts": [2, 3], "timed_methods": ["joint", "pcgrad"], "timed_steps": 4,
}  # fmt: skip


def tiny(**changes):
    return check_cell(EvidenceParameters, "recon_evidence", **TINY | changes)
