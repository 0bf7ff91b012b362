"""The methods that the few-shot chapter compares, one module each.

All are a :class:`Learner`: they take a network that was trained on the base session, and
:func:`run_learner` leads them through the sessions::

    split, classifier = ...                  # after train_base
    results = run_learner(FSLL(split, epochs=6, lr=0.02), sessions, images, labels, *test_data)
    pd.DataFrame(results.rows)
"""

from ktlib.fcl.methods.ewc import EWCInBox
from ktlib.fcl.methods.fsll import FSLL
from ktlib.fcl.methods.icarl import ICaRL
from ktlib.fcl.methods.idlvq import IDLVQC
from ktlib.fcl.methods.learner import Learner, SessionResults, run_learner
from ktlib.fcl.methods.lucir import LUCIR, CosineClassifier
from ktlib.fcl.methods.memory import Exemplars, herding
from ktlib.fcl.methods.nearest_mean import F2M, Finetune, NearestMean
from ktlib.fcl.methods.topic import TOPIC, NeuralGas
from ktlib.fcl.methods.upper_bounds import ClassifierRetraining, Joint

__all__ = [
    "F2M",
    "FSLL",
    "IDLVQC",
    "LUCIR",
    "TOPIC",
    "ClassifierRetraining",
    "CosineClassifier",
    "EWCInBox",
    "Exemplars",
    "Finetune",
    "ICaRL",
    "Joint",
    "Learner",
    "NearestMean",
    "NeuralGas",
    "SessionResults",
    "herding",
    "run_learner",
]
