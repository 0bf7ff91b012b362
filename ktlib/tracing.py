"""Cutting the forward pass of any network in two, exactly: what :mod:`torch.fx` traces of it."""

from __future__ import annotations

import copy
import operator
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn

# Tracing replaces methods of nn.Module while it runs: two at once would trace each other.
_TRACING = threading.Lock()

# `x += y` would be traced as `x = x + y`, which differs where x has a second name.
WRITERS = ("iadd", "isub", "imul", "itruediv", "ifloordiv", "imod", "ipow", "iand", "ior", "ixor")


def trace(network: nn.Module, consequence: str, stacklevel: int) -> fx.Graph | None:
    """The steps of a network's forward pass, each module without children as one step.

    Args:
        network: stays as it is.
        consequence: ends the warning about a network that cannot be traced.
        stacklevel: of that warning, as in :func:`warnings.warn`.

    Returns:
        The graph; None, with a warning, if it would not compute what the network computes.
    """
    # A copy, as forward may store what it computes: here these are no tensors.
    probe = copy.deepcopy(network)
    try:
        with _TRACING, torch.random.fork_rng(devices=[]):
            graph, other = (_Tracer().trace(probe.train(mode)) for mode in (True, False))
        reason = _not_exact(probe, graph, other)
    except Exception as error:  # noqa: BLE001 - fx raises many kinds, from TraceError to TypeError
        reason = str(error)
    if not reason:
        return graph
    warnings.warn(
        f"{type(network).__name__} cannot be traced ({reason}); {consequence}: exact, but slower.",
        stacklevel=stacklevel + 1,
    )
    return None


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
        arguments, and their nodes in ``graph``: with skip connections several.
    """
    nodes = list(graph.nodes)
    before, after = nodes[:first], dict.fromkeys(nodes[first:])
    crossing = [node for node in before if any(user in after for user in node.users)]
    prefix, tail = fx.Graph(), fx.Graph()
    copied: dict[fx.Node, fx.Node] = {}
    for node in before:
        copied[node] = prefix.node_copy(node, copied.__getitem__)
    values = tuple(copied[node] for node in crossing)
    prefix.output(values[0] if single else values)
    copied = {node: tail.placeholder(f"value_{i}") for i, node in enumerate(crossing)}
    for node in after:
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


def is_leaf(module: nn.Module) -> bool:
    """Whether a module has no children."""
    return next(module.children(), None) is None


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
    """Records ``x += y`` as what it is."""


def _recorded(function: Callable[[Any, Any], Any]) -> Callable[[fx.Proxy, Any], fx.Proxy]:
    return lambda self, other: self.tracer.create_proxy(
        "call_function", function, (self, other), {}
    )


for _name in WRITERS:
    setattr(_Proxy, f"__{_name}__", _recorded(getattr(operator, _name)))


class _Tracer(fx.Tracer):
    """Looks into blocks only: a module without children is one step, whatever it does."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return is_leaf(m) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)
