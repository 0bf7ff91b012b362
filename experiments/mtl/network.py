"""One interface for every multi-task network: images in, one output per task out.

Training, the conflict meter and the methods that combine gradients know no more of a network than
:class:`MultiTaskModule`::

    network = MultiTaskNetwork(trunk, {"left": nn.Linear(512, 10), "right": nn.Linear(512, 10)})
    layers = network.shared_layers()
    meter = ConflictMeter(layers)
    outputs = network(images)                       # {"left": ..., "right": ...}
    gradients = meter.observe(losses, task_parameters=network.own_parameters())
    apply_gradients(layers, gradients, aggregator("pcgrad"))
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence

from torch import Tensor, nn

from ktlib.mtl.layers import layers_of
from ktlib.mtl.split import SplitTrunk


class MultiTaskModule(nn.Module, ABC):
    """A network with a head per task, whatever lies in front of the heads.

    Args:
        heads: task -> a module that makes the task's output of its features. They are kept, not
            copied. A task's name is also the name of a module: no dots.

    Attributes:
        tasks: names of the tasks, in the order of ``heads``.
        heads: the heads, by task.

    Raises:
        ValueError: there is no head, a name is not valid as a module name, or two heads have a
            parameter or a module with parameters in common.
        TypeError: a head is not a module.
    """

    def __init__(self, heads: Mapping[str, nn.Module]) -> None:
        super().__init__()
        _check_heads(heads)
        self.tasks = tuple(heads)
        self.heads = nn.ModuleDict(dict(heads))

    @abstractmethod
    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> what its head reads, of images ``(batch, ...)``."""

    @abstractmethod
    def shared_layers(self, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
        """The layers that the losses of several tasks train: name -> trainable parameters.

        With ``batch_norm=False`` batch norms are left out of what is counted as layers. An update
        needs the gradients of all: give :class:`~ktlib.mtl.conflict.ConflictMeter` this without
        batch norms for measurements only.
        """

    @abstractmethod
    def own_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Task -> the parameters that its loss alone trains, frozen ones included, each once."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> output of its head, of images ``(batch, ...)``."""
        features = self.features(images)
        return {task: self.output(task, features[task]) for task in self.tasks}

    def output(self, task: str, features: Tensor) -> Tensor:
        """What the head of one task makes of its features."""
        head = self.heads[task]
        # The features may be those of every task: a head that works in place gets its own.
        if len(self.tasks) > 1 and any(getattr(part, "inplace", False) for part in head.modules()):
            features = features.clone()
        made: Tensor = head(features)
        return made


class MultiTaskNetwork(MultiTaskModule):
    """A trunk and a head per task: the network that joint training, MGDA and the others train.

    With one task it is the single-task network. The trunk may be split: a
    :class:`~ktlib.mtl.split.SplitTrunk` gives each head the features of its task, which is Recon.

    Args:
        trunk: images -> features; kept, not copied.
        heads: task -> module, as :class:`MultiTaskModule` takes them; of a split trunk exactly its
            tasks.

    Raises:
        ValueError: also if the tasks of a split trunk are others, or a head shares a parameter with
            the trunk.
    """

    def __init__(self, trunk: nn.Module, heads: Mapping[str, nn.Module]) -> None:
        super().__init__(heads)
        if isinstance(trunk, SplitTrunk) and set(trunk.tasks) != set(self.tasks):
            raise ValueError(
                f"heads must be of the trunk's tasks {list(trunk.tasks)}. "
                f"Found heads of {list(self.tasks)}."
            )
        mine = set(trunk.parameters())
        for task, head in heads.items():
            if any(parameter in mine for parameter in head.parameters()):
                raise ValueError(f"the head of task {task!r} must not hold a part of the trunk.")
        self.trunk = trunk

    def features(self, images: Tensor) -> dict[str, Tensor]:
        """Task -> what its head reads: of an ordinary trunk the same tensor for every task."""
        found = self.trunk(images)
        return found if isinstance(self.trunk, SplitTrunk) else dict.fromkeys(self.tasks, found)

    def shared_layers(self, batch_norm: bool = True) -> dict[str, list[nn.Parameter]]:
        """The layers of the trunk that are not split, under their names in it."""
        if isinstance(self.trunk, SplitTrunk):
            return self.trunk.shared_layers(batch_norm)
        return layers_of(self.trunk, batch_norm)

    def own_parameters(self) -> dict[str, list[nn.Parameter]]:
        """Task -> parameters of its layers in a split trunk, and of its head."""
        own = {task: list(self.heads[task].parameters()) for task in self.tasks}
        if isinstance(self.trunk, SplitTrunk):
            own = {task: [*self.trunk.task_parameters(task), *own[task]] for task in self.tasks}
        return own


def make_trunks(make_trunk: Callable[[], nn.Module], count: int) -> list[nn.Module]:
    """Several trunks of one architecture, each with initial weights of its own.

    Raises:
        ValueError: ``make_trunk`` returns a module twice, or trunks of different parameters.
        TypeError: it returns something else than a module.
    """
    trunks = [make_trunk() for _ in range(count)]
    for trunk in trunks:
        if not isinstance(trunk, nn.Module):
            raise TypeError(f"make_trunk must return a module. Found {type(trunk).__name__}.")
    if len({p for trunk in trunks for p in trunk.parameters()}) < sum(
        len(list(trunk.parameters())) for trunk in trunks
    ):
        raise ValueError(
            "make_trunk must return a new module at each call. Found two with the same parameters."
        )
    shapes = [[(name, p.shape) for name, p in trunk.named_parameters()] for trunk in trunks]
    if any(shape != shapes[0] for shape in shapes):
        raise ValueError("make_trunk must return trunks of one architecture. Found different ones.")
    return trunks


def prefixed(
    prefix: str, layers: Mapping[str, Sequence[nn.Parameter]]
) -> dict[str, list[nn.Parameter]]:
    """The layers with their names behind a prefix and a dot."""
    return {f"{prefix}.{name}" if name else prefix: list(own) for name, own in layers.items()}


def _check_heads(heads: Mapping[str, nn.Module]) -> None:
    if not heads:
        raise ValueError("heads must be of at least one task. Found none.")
    for task, head in heads.items():
        if not isinstance(task, str) or not task or "." in task or hasattr(nn.ModuleDict(), task):
            raise ValueError(
                "heads must have names of tasks without dots that modules do not use themselves. "
                f"Found {task!r}."
            )
        if not isinstance(head, nn.Module):
            raise TypeError(
                f"the head of task {task!r} must be a module. Found {type(head).__name__}."
            )
    owners: dict[object, str] = {}
    for task, head in heads.items():
        for part in _modules_and_parameters(head):
            if owners.setdefault(part, task) != task:
                raise ValueError(
                    f"heads must be different modules. Found one in those of {owners[part]!r} "
                    f"and {task!r}: give each task a copy."
                )


def _modules_and_parameters(head: nn.Module) -> Iterable[object]:
    """The head itself and its parameters, which no other head may hold."""
    yield head
    yield from head.parameters()
