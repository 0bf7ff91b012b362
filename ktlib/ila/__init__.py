"""Which layers matter when a language model is fine-tuned: ILA (thesis, chapter 5).

For any model of transformers with LoRA adapters of peft that are trained until the loss is stable.
A *layer* is an adapted linear module, named as in the model without peft::

    ranking = rank_layers(model, batches)                  # learns one score per layer
    ranking.save("ranking.json")                           # LayerRanking.load reads it
    print(ranking.top(0.1))                                # names, the most important first
    config = ranking.lora_config(top_fraction=0.3, r=8)    # a peft.LoraConfig for these layers
    frozen = freeze_unimportant(model, ranking, keep=0.75) # or: go on without the lowest quarter

A *batch* is a dict of ``input_ids``, ``attention_mask`` and ``labels``, each ``(batch, length)``,
with labels of -100 where there is nothing to predict. The model is bit for bit as before when a
ranking returns. :func:`rank_layers_full` does the same for a model that was fine-tuned as a whole;
:func:`first_order_scores`, :func:`ablation_scores` and :func:`update_norms` are cheap rankings to
compare with, and :class:`FirstOrderScores` reads one from the training itself.
"""

from ktlib.ila.baselines import (
    FirstOrderScores,
    ablation_scores,
    first_order_scores,
    update_norms,
)
from ktlib.ila.freezing import freeze_unimportant
from ktlib.ila.gates import gated_updates, gated_weights
from ktlib.ila.layers import adapted_layers
from ktlib.ila.ranking import LayerRanking
from ktlib.ila.search import rank_layers, rank_layers_full

__all__ = [
    "FirstOrderScores",
    "LayerRanking",
    "ablation_scores",
    "adapted_layers",
    "first_order_scores",
    "freeze_unimportant",
    "gated_updates",
    "gated_weights",
    "rank_layers",
    "rank_layers_full",
    "update_norms",
]
