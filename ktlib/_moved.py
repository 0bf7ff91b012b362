"""Where the modules of version 0.1 are now. To be removed in version 0.3."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType

# Prefix of module names in 0.1 -> in 0.2; of several that fit, the longest counts.
MOVED = {
    "ktlib.data": "data_prep",
    "ktlib.models": "experiments.models",
    "ktlib.progress": "tqdm",
    "ktlib.fcl.checks": "ktlib.checks",
    "ktlib.fcl.methods": "experiments.fcl.baselines",
    "ktlib.fcl.report": "experiments.fcl.figures",
    "ktlib.mtl.report": "experiments.mtl.figures",
    "ktlib.mtl.studies": "experiments.mtl.figures",
    "ktlib.mtl.backward_stretches": "ktlib.mtl.graph_segments",
    "ktlib.mtl.rotograd": "experiments.mtl.architectures.rotograd",
    "ktlib.mtl.scores": "experiments.mtl.metrics",
    "ktlib.mtl.selection": "experiments.mtl.controls",
    "ktlib.mtl.tracing": "ktlib.tracing",
    "ktlib.allowed": "experiments.run.parameters",
    "ktlib.cpeft.answers": "experiments.cpeft.expert_outputs",
    "ktlib.cpeft.questions": "experiments.cpeft.joint_analyses",
    "ktlib.cpeft.cooperation": "experiments.cpeft.toy_model",
}
TO_EXPERIMENTS = {
    "fcl": "embedding_map experiment landscape parameters proof topic_split",
    "mtl": "architectures attributes augment comparison dense experiment network parameters proof "
    "tasks variants",
    "ila": "adapters chat evaluation experiment finetuning harness judge launch measures memory "
    "parameters proof proof_model reasoning report selection snapshots stability",
    "cpeft": "experiment parameters pretraining proof report",
}
TO_RUN = "atomic chapter_source claims committed paired parallel parameters plotting "
TO_RUN += "provenance records results tables"
for part, names in TO_EXPERIMENTS.items():
    MOVED |= {f"ktlib.{part}.{name}": f"experiments.{part}.{name}" for name in names.split()}
MOVED |= {f"ktlib.{m}": f"experiments.run.{m}" for m in TO_RUN.split()}


class Moved:
    """A finder of modules that finds none, and says where those of version 0.1 are."""

    def find_spec(
        self, name: str, _path: Sequence[str] | None = None, _target: ModuleType | None = None
    ) -> None:
        """Called for modules that no other finder knows.

        Raises:
            ImportError: the module is elsewhere since version 0.2.
        """
        fits = [old for old in MOVED if f"{name}.".startswith(f"{old}.")]
        if fits:
            new = MOVED[max(fits, key=len)]
            where = "" if new.startswith(("ktlib", "tqdm")) else ", in a clone of the book only"
            raise ImportError(f"{name} of ktlib 0.1 is gone; see {new}{where}.", name=name)
