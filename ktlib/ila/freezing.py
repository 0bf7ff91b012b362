"""Freeze the layers that matter least (thesis, 5.4)."""

from __future__ import annotations

from torch import nn

from ktlib.ila.layers import active_adapter, adapted_layers, is_tuner_layer, layer_name
from ktlib.ila.ranking import LayerRanking, layers_in


def freeze_unimportant(
    model: nn.Module, ranking: LayerRanking, keep: float = 0.75
) -> tuple[str, ...]:
    """Freeze the layers outside ``ranking.top(keep)``, so that training leaves them alone (5.4).

    With adapters of peft, the LoRA weights of these layers are frozen: the layers keep the update
    that they have, none if training has not begun. Without adapters, their weights and biases are;
    freezing a head that is tied to the embeddings then freezes these too. Layers that the ranking
    does not know stay as they are.

    Call it before the optimiser is made, which then needs no memory for frozen layers. One made
    earlier leaves them alone as well, weight decay and momentum included, because their ``.grad``
    is now None. For FSDP and DeepSpeed call it before the model is wrapped. ``set_adapter``,
    ``enable_adapter_layers`` and leaving ``disable_adapter()`` make peft train all adapters again:
    call this afterwards once more.

    Args:
        model: the model to be trained.
        ranking: of a model with the same layers.
        keep: share of the layers that train, as in :meth:`~ktlib.ila.ranking.LayerRanking.top`.

    Returns:
        Names of the frozen layers, the least important first.

    Raises:
        ValueError: ``keep`` does not lie in (0, 1]; the model lacks layers of the ranking, or has
            several active adapters.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
        >>> ranking = LayerRanking(scores={"0": 0.1, "1": 1.5})
        >>> freeze_unimportant(model, ranking, keep=0.5)
        ('0',)
        >>> [name for name, weights in model.named_parameters() if weights.requires_grad]
        ['1.weight', '1.bias']
    """
    layers_in(keep, len(ranking.scores), "keep")  # checks the share
    ranking.check_model(model)
    kept = set(ranking.top(keep))
    frozen = tuple(name for name in reversed(ranking.names) if name not in kept)
    parts = _trained_parts(model)
    missing = [name for name in frozen if name not in parts]
    if missing:
        raise ValueError(
            f"model must adapt the layers of the ranking. It has no adapter on {missing[:5]}."
        )
    for name in frozen:
        for parameter in parts[name]:
            parameter.requires_grad_(False)
            parameter.grad = None
    return frozen


def _trained_parts(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    """What training changes in each layer: adapter weights, or a module's own weights."""
    if not any(map(is_tuner_layer, model.modules())):
        return {
            layer_name(name): list(module.parameters(recurse=False))
            for name, module in model.named_modules()
        }
    layers = adapted_layers(model)
    adapter = active_adapter(layers)
    parts: dict[str, list[nn.Parameter]] = {}
    for name, layer in layers.items():
        parts[name] = []
        for kind in layer.adapter_layer_names:
            weights = dict(getattr(layer, kind).items()).get(adapter)
            if isinstance(weights, nn.Parameter):
                parts[name].append(weights)
            elif isinstance(weights, nn.Module):
                parts[name] += weights.parameters()
    return parts
