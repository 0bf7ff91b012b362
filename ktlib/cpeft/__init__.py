"""Continual learning of pre-trained models by small adapters. Explained in the bridge chapter.

A few lines on an encoder of your own, whose number of features is its attribute ``dim``::

    tasks = class_tasks(labels, classes=range(10, 30), tasks=5, images=None, class_seed=0, seed=0)
    learner = InfLora(encoder, layers=["key", "value"], rank=8, epochs=5, batch_size=64,
                      lr=5e-4, seed=0, tasks=5)
    rows = learn_tasks(learner, tasks, images, labels, test_images, test_labels)
    print(summary(rows))                                   # accuracy, forgetting, transfer
"""

from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.comparisons import JointLora, LoraOracle, NearestMean, SequentialLora
from ktlib.cpeft.drift import drift_rows, layer_state
from ktlib.cpeft.gpm import DualGPM, threshold_for
from ktlib.cpeft.heads import JoinedHead
from ktlib.cpeft.inflora import InfLora, design_down, usable_rank
from ktlib.cpeft.inputs import InputMoment, input_moments
from ktlib.cpeft.l2c import L2C, mixed_adapters
from ktlib.cpeft.metrics import (
    accuracies_alone,
    average_accuracy,
    backward_transfer,
    final_accuracy,
    forgetting,
    forward_transfer,
    summary,
)
from ktlib.cpeft.statistics import ClassStatistics, align_head
from ktlib.cpeft.tasks import (
    ClassTask,
    ContinualLearner,
    class_tasks,
    learn_tasks,
    predict,
    predict_within,
)
from ktlib.cpeft.training import features_of, train_task

__all__ = [
    "L2C",
    "ClassStatistics",
    "ClassTask",
    "ContinualLearner",
    "DualGPM",
    "InfLora",
    "InputMoment",
    "JoinedHead",
    "JointLora",
    "LoraBackbone",
    "LoraOracle",
    "NearestMean",
    "SequentialLora",
    "accuracies_alone",
    "align_head",
    "average_accuracy",
    "backward_transfer",
    "class_tasks",
    "design_down",
    "drift_rows",
    "features_of",
    "final_accuracy",
    "forgetting",
    "forward_transfer",
    "input_moments",
    "layer_state",
    "learn_tasks",
    "mixed_adapters",
    "predict",
    "predict_within",
    "summary",
    "threshold_for",
    "train_task",
    "usable_rank",
]
