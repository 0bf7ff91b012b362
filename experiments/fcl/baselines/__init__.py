"""The methods that the few-shot chapter compares, one module each.

All are a :class:`Learner`: they take a network that was trained on the base session, and
:func:`run_learner` runs them through the sessions::

    split, classifier = ...                  # after train_base
    results = run_learner(FSLL(split, epochs=6, lr=0.02), sessions, images, labels, *test_data)
    pd.DataFrame(results.rows)
"""

from experiments.fcl.baselines.ewc import EWCInBox
from experiments.fcl.baselines.fsll import FSLL, FsllSettings
from experiments.fcl.baselines.icarl import ICaRL
from experiments.fcl.baselines.idlvq import IDLVQC, IdlvqSettings
from experiments.fcl.baselines.learner import Learner, SessionResults, run_learner
from experiments.fcl.baselines.lucir import LUCIR, CosineClassifier, LucirSettings
from experiments.fcl.baselines.memory import Exemplars, herding
from experiments.fcl.baselines.nearest_mean import F2M, Finetune, NearestMean
from experiments.fcl.baselines.topic import TOPIC, NeuralGas, TopicSettings
from experiments.fcl.baselines.upper_bounds import ClassifierRetraining, Joint

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
    "FsllSettings",
    "ICaRL",
    "IdlvqSettings",
    "Joint",
    "Learner",
    "LucirSettings",
    "NearestMean",
    "NeuralGas",
    "SessionResults",
    "TopicSettings",
    "herding",
    "run_learner",
]
