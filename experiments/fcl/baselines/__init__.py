"""The methods that the few-shot chapter compares, one module for each family.

All are a :class:`Learner`: they take a network that was trained on the base session, and
:func:`run_learner` runs them through the sessions::

    split, classifier = ...                  # after train_base
    results = run_learner(FSLL(split, epochs=6, lr=0.02), sessions, images, labels, *test_data)
    pd.DataFrame(results.rows)
"""

from experiments.fcl.baselines.ewc import EWCInBox
from experiments.fcl.baselines.frozen import Lda, Ridge, Teen
from experiments.fcl.baselines.fsll import FSLL, FsllSettings
from experiments.fcl.baselines.icarl import ICaRL
from experiments.fcl.baselines.idlvq import IDLVQC, IdlvqSettings
from experiments.fcl.baselines.learner import (
    Learner,
    SessionResults,
    average_incremental_accuracy,
    run_learner,
)
from experiments.fcl.baselines.lucir import LUCIR, CosineClassifier, LucirSettings
from experiments.fcl.baselines.memory import Exemplars, herding
from experiments.fcl.baselines.nearest_mean import F2M, Finetune, NearestMean
from experiments.fcl.baselines.topic import TOPIC, NeuralGas, TopicSettings
from experiments.fcl.baselines.upper_bounds import ClassifierRetraining, Joint

LABELS = {
    "ncm": "frozen network",
    "ncm_raw": "frozen network without prototype normalisation",
    "teen": "TEEN (calibrated prototypes)",
    "lda": "LDA on the frozen network",
    "ridge": "ridge regression on the frozen network",
    "finetune": "fine-tuning",
    "icarl": "iCaRL",
    "lucir": "LUCIR (Rebalance)",
    "topic": "TOPIC (our reading)",
    "fsll": "FSLL",
    "fsll_released": "FSLL (as released with F2M)",
    "idlvq": "IDLVQ-C (our reading)",
    "f2m": "F2M",
    "f2m_flat": "F2M (flat settings)",
    "sam": "F2M after SAM training",
    "ewc_wide": "F2M + EWC",
    "joint": "upper bound joint training",
    "crt": "upper bound cRT",
}
"""Id of a method -> its name in tables. "Our reading" is of a paper without public code."""

__all__ = [
    "F2M",
    "FSLL",
    "IDLVQC",
    "LABELS",
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
    "Lda",
    "Learner",
    "LucirSettings",
    "NearestMean",
    "NeuralGas",
    "Ridge",
    "SessionResults",
    "Teen",
    "TopicSettings",
    "average_incremental_accuracy",
    "herding",
    "run_learner",
]
