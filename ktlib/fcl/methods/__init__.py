"""The methods that the few-shot chapter compares, one module each."""

from ktlib.fcl.methods.learner import Learner, SessionResults, run_learner
from ktlib.fcl.methods.memory import Exemplars, herding
from ktlib.fcl.methods.nearest_mean import F2M, Finetune, NearestMean

__all__ = [
    "F2M",
    "Exemplars",
    "Finetune",
    "Learner",
    "NearestMean",
    "SessionResults",
    "herding",
    "run_learner",
]
