"""Continual learning of pre-trained models by small adapters. Explained in the bridge chapter.

A few lines on your own encoder, whose number of features is its attribute ``dim``::

    training = LoraTraining(
        layers=["key", "value"], rank=8, epochs=5, batch_size=64, lr=5e-4, seed=0
    )
    tasks = class_tasks(labels, classes=range(10, 30), tasks=5)
    learner = InfLora(encoder, training, tasks=5)
    rows = learn_tasks(learner, tasks, images, labels, test_images, test_labels)
    print(summary(rows))  # accuracy, forgetting, transfer

Learners with adapters need peft: ``pip install "knowledge-transfer-lib[lora]"``.
"""

from ktlib.cpeft.adapters import LoraBackbone
from ktlib.cpeft.comparisons import JointLora, LoraOracle, NearestMean, SequentialLora
from ktlib.cpeft.gpm import DualGPM
from ktlib.cpeft.inflora import InfLora
from ktlib.cpeft.inputs import InputMoment
from ktlib.cpeft.l2c import L2C, L2CSettings
from ktlib.cpeft.metrics import average_accuracy, final_accuracy, forgetting, summary
from ktlib.cpeft.tasks import ClassTask, ContinualLearner, class_tasks, learn_tasks, predict
from ktlib.cpeft.training import LoraTraining

__all__ = [
    "L2C",
    "ClassTask",
    "ContinualLearner",
    "DualGPM",
    "InfLora",
    "InputMoment",
    "JointLora",
    "L2CSettings",
    "LoraBackbone",
    "LoraOracle",
    "LoraTraining",
    "NearestMean",
    "SequentialLora",
    "average_accuracy",
    "class_tasks",
    "final_accuracy",
    "forgetting",
    "learn_tasks",
    "predict",
    "summary",
]
