"""Cutting the forward pass of any network in two, exactly: what :mod:`torch.fx` traces of it."""

from __future__ import annotations

import copy
import inspect
import operator
import pickle
import random
import sys
import threading
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.fx.proxy import TraceError
from torch.utils._pytree import tree_leaves, tree_map_only

# Tracing replaces methods of nn.Module while it runs: two at once would trace each other.
_TRACING = threading.Lock()

# `x += y` would be traced as `x = x + y`, which differs where x has a second name.
WRITERS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")

# Functions that leave their arguments alone and whose result is a tensor of its own.
_READERS: set[Any] = {
    operator.add, operator.sub, operator.mul, operator.truediv, operator.matmul,
    torch.add, torch.sub, torch.mul, torch.div, torch.matmul, torch.cat, torch.stack,
}  # fmt: skip

# Their results are never views.
_POOLS = (nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)

# What tracing would lose.
_FUNCTION: Any = torch.autograd.Function
_UNSEEN: list[tuple[Any, str]] = [
    (torch.no_grad, "__enter__"), (torch.enable_grad, "__enter__"), (_FUNCTION, "apply"),
    (torch.inference_mode, "__enter__"), (torch.set_grad_enabled, "__init__"),
    (torch.autocast, "__enter__"),
]  # fmt: skip

# The number of inputs of a call and the names of its keywords; None if some are no tensors.
Call = tuple[int, tuple[str, ...]] | None


def trace(network: nn.Module, call: Call) -> tuple[fx.Graph | None, str]:
    """The steps of a network's forward pass, each module without children as one step.

    A block with hooks is one step, too.

    Args:
        network: stays as it is.
        call: arguments that are not named keep their defaults.

    Returns:
        The graph and ""; or None and why it would not compute what the network computes.
    """
    if call is None:
        return None, "it is called with an argument that is not a tensor"
    if is_hooked(network):
        return None, "hooks hang on the network itself"
    # A copy, as forward may store what it computes: here these are no tensors. The steps only name
    # parameters and buffers, which need no copy.
    kept = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
    try:
        probe = copy.deepcopy(network, kept)
        with _TRACING:
            graph, other = (_trace_in(probe, mode, call) for mode in (True, False))
        reason = _not_exact(probe, graph, other)
    except Exception as error:  # noqa: BLE001 - fx raises many kinds, from TraceError to TypeError
        reason = str(error) or type(error).__name__
    return (None, reason) if reason else (graph, "")


def warn_whole(network: nn.Module, reason: str, consequence: str, stacklevel: int) -> None:
    """Warn that a network is not split, if there is a reason."""
    if reason:
        warnings.warn(
            f"{type(network).__name__} cannot be traced ({reason}); "
            f"{consequence}: exact, but slower.",
            stacklevel=stacklevel + 1,
        )


def call_of(inputs: Sequence[Any], options: Mapping[str, Any]) -> Call:
    """How a network is called."""
    tensors = all(isinstance(value, Tensor) for value in (*inputs, *options.values()))
    return (len(inputs), tuple(options)) if tensors else None


def default_call(network: nn.Module) -> Call:
    """A call with the arguments that have no default."""
    given = inspect.signature(network.forward).parameters.values()
    needed = [p for p in given if p.default is p.empty and p.kind not in (2, 4)]  # *args, **kwargs
    names = tuple(p.name for p in needed if p.kind is p.KEYWORD_ONLY)
    return max(len(needed) - len(names), not names), names


def as_call(example: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Inputs and keywords of an example: a mapping of keywords, a tuple of inputs, or one input."""
    if isinstance(example, Mapping):
        return (), dict(example)
    return (example if isinstance(example, tuple) else (example,)), {}


def split_graph(
    graph: fx.Graph, first: int, *, single: bool = False
) -> tuple[fx.Graph, fx.Graph, list[fx.Node]]:
    """The steps in front of one step, and those from it on.

    Args:
        graph: of :func:`trace`.
        first: position of that step.
        single: one value is handed on, and as it is: not in a tuple.

    Returns:
        A graph that ends with a tuple of the values handed on, a graph that takes them as its
        arguments, and their nodes in ``graph``: with skip connections several. Parameters and
        buffers are not handed on but read where they are used.
    """
    nodes = list(graph.nodes)
    before, after = nodes[:first], dict.fromkeys(nodes[first:])
    used = [node for node in before if any(user in after for user in node.users)]
    crossing = [node for node in used if node.op != "get_attr"]
    prefix, tail = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in before:
        copied[node] = prefix.node_copy(node, copied.__getitem__)
    values = tuple(copied[node] for node in crossing)
    prefix.output(values[0] if single else values)
    copied = {node: tail.placeholder(f"value_{i}") for i, node in enumerate(crossing)}
    for node in [node for node in used if node.op == "get_attr"] + list(after):
        copied[node] = tail.node_copy(node, copied.__getitem__)
    return prefix, tail, crossing


def program(network: nn.Module, graph: fx.Graph) -> fx.GraphModule:
    """The steps as a module that holds the very modules and parameters of the network."""
    made = fx.GraphModule(network, graph)
    for node in graph.nodes:
        if node.op == "get_attr":
            block = str(node.target).rpartition(".")[0]
            mine, theirs = made.get_submodule(block), network.get_submodule(block)
            for kind in ("_parameters", "_buffers"):
                mine.__dict__[kind] = theirs.__dict__[kind]
    return made


def first_of(nodes: Sequence[fx.Node], layers: Collection[str]) -> int:
    """Position of the first step that uses a layer's parameters; that of the output if none does.

    Parameters are used by a module that is called or, in a block that owns some, read by name.
    """
    for i, node in enumerate(nodes):
        target = str(node.target)
        if node.op == "call_module" and any(is_inside(layer, target) for layer in layers):
            return i
        if node.op == "get_attr" and target.rpartition(".")[0] in layers:
            return i
    return len(nodes) - 1


def is_inside(layer: str, module: str) -> bool:
    """Whether the layer of that name is the module or a part of it."""
    return module in ("", layer) or layer.startswith(f"{module}.")


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has no children."""
    return next(module.children(), None) is None


def is_hooked(module: nn.Module) -> bool:
    """Whether something is called in front of a module or behind it, forward or backward."""
    kinds = ("forward_pre", "forward", "backward_pre", "backward")
    return any(getattr(module, f"_{kind}_hooks") for kind in kinds)


def only_reads(network: nn.Module, user: fx.Node, value: fx.Node) -> bool:
    """Whether a step surely leaves a value alone and returns no other view of it."""
    if user.op == "call_module":
        module = network.get_submodule(str(user.target))
        known = type(module).__module__.startswith("torch.nn.modules.")
        return known and next(module.parameters(recurse=False), None) is not None
    if user.op != "call_function":
        return False
    if getattr(user.target, "__name__", "") in WRITERS:
        return user.args[0] is not value
    if user.target is getattr:
        return user.args[1] in ("shape", "dtype", "device", "ndim", "is_cuda", "requires_grad")
    return user.target in _READERS and "out" not in user.kwargs


def may_be_written(network: nn.Module, value: fx.Node, steps: Sequence[fx.Node]) -> bool:
    """Whether one of the steps may write to a value or to a view that they make of it."""
    views = {value}
    for step in steps:
        read = [node for node in step.all_input_nodes if node in views]
        if any(not only_reads(network, step, node) for node in read):
            if _writes(network, step):
                return True
            views.add(step)
    return False


def _writes(network: nn.Module, step: fx.Node) -> bool:
    """Whether a step may write to one of its arguments."""
    if step.op == "call_module":
        parts = list(network.get_submodule(str(step.target)).modules())
        ours = not all(type(part).__module__.startswith("torch.nn.modules.") for part in parts)
        return ours or any(getattr(p, "inplace", False) or is_hooked(p) for p in parts)
    name = str(getattr(step.target, "__name__", step.target))
    home = "torch" if step.op != "call_function" else str(getattr(step.target, "__module__", ""))
    flagged = any(value is True for value in (*step.args, step.kwargs.get("inplace")))
    return (
        flagged
        or "out" in step.kwargs
        or name in (*WRITERS, "setitem", "__setitem__")
        or (name.endswith("_") and not name.startswith("_"))
        or home.split(".")[0] not in ("torch", "None", "_operator", "builtins", "math")
    )


def origins(network: nn.Module, nodes: Sequence[fx.Node]) -> dict[fx.Node, set[fx.Node]]:
    """For each step those of which its result may be a view."""
    found: dict[fx.Node, set[fx.Node]] = {}
    for node in nodes:
        viewed = [value for value in node.all_input_nodes if not only_reads(network, node, value)]
        if node.op == "call_module" and isinstance(network.get_submodule(str(node.target)), _POOLS):
            viewed = []
        found[node] = {node}.union(*(found[value] for value in viewed))
    return found


def differing(
    views: Sequence[nn.Module],
    prefix: Callable[..., Any],
    tails: Sequence[Callable[[Any], Any]],
    example: Any,
) -> str:
    """How a split network and the whole ones differ on an example; empty where they do not.

    Outputs and gradients are compared, in training and evaluation mode. No random number is drawn
    from the global generators.

    Args:
        views: the network of each tail. Copies, which may be changed.
        prefix: what comes first, made of the modules of the views.
        tails: the rest; all work on what the prefix has returned once.
        example: see :func:`as_call`.

    Raises:
        ValueError: the whole network cannot be called with the example.
    """
    wholes = [copy.deepcopy(view) for view in views]

    def kept(function: Callable[..., Any], *values: Any, **options: Any) -> Any:
        with _random_state_kept(views[0]), torch.enable_grad():
            return function(*values, **options)

    def parts(*inputs: Any, **options: Any) -> list[Any]:
        values = prefix(*inputs, *options.values())
        return [kept(tail, values) for tail in tails]  # each draws as if it were the only one

    for mode in (False, True):  # training last, as it moves running statistics
        given = [
            tree_map_only(Tensor, lambda t: t.detach().clone(), as_call(example))
            for _ in range(len(views) + 1)
        ]
        for module in (*views, *wholes):
            module.train(mode)
        where = f"{'training' if mode else 'evaluation'} mode"
        try:
            expected = [
                kept(whole, *inputs, **options)
                for whole, (inputs, options) in zip(wholes, given, strict=False)
            ]
        except Exception as error:
            name = type(views[0]).__name__
            raise ValueError(f"example must be what {name} takes in {where}. {error}") from error
        right = [(pair[1], _gradients(*pair)) for pair in zip(wholes, expected, strict=True)]
        try:
            results = kept(parts, *given[-1][0], **given[-1][1])
            ours = [(pair[1], _gradients(*pair)) for pair in zip(views, results, strict=True)]
            torch.testing.assert_close(ours, right, rtol=0.02, atol=1e-4, equal_nan=True)
        except Exception as error:  # noqa: BLE001 - whatever fails in the parts alone is a difference
            what = " ".join(str(error).split())
            return f"in {where} the example gives other outputs or gradients: {what}"
    return ""


def _gradients(network: nn.Module, result: Any) -> dict[str, Tensor | None]:
    """Gradients of some sum of the results on every parameter."""
    leaves = [v for v in tree_leaves(result) if isinstance(v, Tensor) and v.requires_grad]
    parameters = {name: p for name, p in network.named_parameters() if p.requires_grad}
    if not leaves or not parameters:
        return {}
    weights = [torch.linspace(-1, 2, v.numel()).view(v.shape).to(v) for v in leaves]
    found = torch.autograd.grad(
        leaves, list(parameters.values()), weights, retain_graph=True, allow_unused=True
    )
    return dict(zip(parameters, found, strict=True))


@contextmanager
def _random_state_kept(network: nn.Module) -> Iterator[None]:
    """Leave the global generators of Python, NumPy and PyTorch as they are."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002 - forward may use it
    devices = sorted({p.device.index for p in network.parameters() if p.is_cuda})
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)  # noqa: NPY002


def _trace_in(probe: nn.Module, mode: bool, call: Call) -> fx.Graph:
    """Trace in training or evaluation mode, and refuse what the steps do not show."""
    with _random_state_kept(probe), torch.set_grad_enabled(mode), ExitStack() as stack:
        before = _state(probe.train(mode))
        for owner, name in _UNSEEN:
            stack.enter_context(mock.patch.object(owner, name, _refusing(owner, name)))
        graph = _Tracer(call).trace(probe)
        stack.close()
        if before != _state(probe):
            raise TraceError("a block works at random or keeps something of what it computes")
    return graph


def _refusing(owner: Any, name: str) -> Any:
    """What stands in for a method: an error in this thread, the method itself in others."""
    thread, usual = threading.get_ident(), vars(owner)[name]

    def refuse(self: Any, *args: Any, **kwargs: Any) -> Any:
        if threading.get_ident() == thread:
            raise TraceError("a block has its own backward pass, or sets gradients or precision")
        return (
            usual.__get__(None, self)(*args, **kwargs) if is_class else usual(self, *args, **kwargs)
        )

    is_class = owner is _FUNCTION
    return classmethod(refuse) if is_class else refuse


def _state(network: nn.Module) -> list[Any]:
    """What a forward pass may change besides tensors: generators, attributes of blocks."""
    usual, state = vars(nn.Module()), bytes(torch.get_rng_state().tolist())
    held = [random.getstate(), np.random.get_state(), state]  # noqa: NPY002 - forward may use it
    for part in network.modules():
        if part is network or not is_leaf(part):
            held += [value for name, value in vars(part).items() if name not in usual]
    return [_contents(value) for value in held]


def _contents(value: Any) -> Any:
    try:
        return pickle.dumps(value)
    except Exception:  # noqa: BLE001 - functions, open files and traced values
        return id(value)


def _not_exact(network: nn.Module, train: fx.Graph, evaluation: fx.Graph) -> str:
    """Why the traced steps would not be what the network computes; empty if they are."""
    steps = [
        [(node.op, node.target, repr(node.args), repr(node.kwargs)) for node in graph.nodes]
        for graph in (train, evaluation)
    ]
    if steps[0] != steps[1]:
        return "a block works differently in training and evaluation mode, or at random"
    known = {name for name, _ in network.named_parameters(remove_duplicate=False)}
    known |= {name for name, _ in network.named_buffers(remove_duplicate=False)}
    for node in train.nodes:
        if node.op == "get_attr" and node.target not in known:
            return "a block makes a tensor in its forward pass or keeps one that is not a buffer"
    return ""


class _Proxy(fx.Proxy):
    """Records ``x += y`` as what it is, and tells no block of a class that it does not have."""

    @property  # type: ignore[misc]
    def __class__(self) -> type:
        frame = sys._getframe(1)  # noqa: SLF001 - isinstance has no frame of its own
        while frame.f_back and frame.f_globals.get("__name__") in ("torch", "abc", "typing"):
            frame = frame.f_back
        if not str(frame.f_globals.get("__name__")).startswith("torch."):
            raise TraceError("a block asks for the type of a value or has its own backward pass")
        return _Proxy

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            raise TraceError(f"a block sets {name!r} of a tensor")
        super().__setattr__(name, value)


def _recorded(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy(
        "call_function", function, (self, other), {}
    )


for _name in WRITERS:
    setattr(_Proxy, f"__{_name}__", _recorded(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Looks into blocks only: a module without children is one step, whatever it does."""

    proxy_buffer_attributes = True

    def __init__(self, call: Any) -> None:
        super().__init__()
        self.call = call

    def create_args_for_root(self, *_: Any, **__: Any) -> tuple[Any, list[fx.Proxy]]:
        """Arguments that are not given keep their defaults."""
        count, names = self.call
        given = [*(f"input_{i}" for i in range(count)), *names]
        forward = self.root.forward
        return (
            lambda *values: forward(
                *values[:count], **dict(zip(names, values[count:], strict=True))
            ),
            [self.create_proxy("placeholder", name, (), {}) for name in given],
        )

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or is_hooked(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)
