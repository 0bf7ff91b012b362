"""Networks that share some of their modules and tensors, and have copies of the others."""

from __future__ import annotations

import copy
from typing import Any

from torch import nn

from ktlib.tracing import is_inside, is_leaf


def copy_with_own(whole: nn.Module, layers: set[str], task_specific: set[str]) -> nn.Module:
    """A copy of the trunk that shares all its modules and tensors but the named ones.

    Args:
        whole: the trunk.
        layers: names of modules whose parameters are copied.
        task_specific: names of modules whose buffers are copied.
    """
    memo: dict[int, Any] = {}
    for name, part in whole.named_modules():
        if not any(is_inside(other, name) for other in task_specific):
            memo[id(part)] = part
        if name not in layers:
            memo.update((id(tensor), tensor) for tensor in part.parameters(recurse=False))
        if name not in task_specific:
            memo.update((id(tensor), tensor) for tensor in part.buffers(recurse=False))
    return copy.deepcopy(whole, memo)


def shared_and_task_modules(
    whole: nn.Module, views: dict[str, nn.Module], layers: set[str], task_specific: set[str]
) -> tuple[nn.Module, nn.Module]:
    """The shared layers, and those of each task, as modules that list each tensor once.

    Where a view has a block of its own, the block and the tree hold the same dictionary of
    tensors: a tensor that is exchanged in one, as moving to a device does, is exchanged in both.
    """
    own = nn.Module()
    for task in views:
        own.add_module(task, nn.Module())
    if not task_specific:
        return whole, own
    shared = nn.Module()
    for name, part in whole.named_modules():
        if not any(is_inside(other, name) for other in task_specific):
            parent, _, last = name.rpartition(".")
            if any(is_inside(other, parent) for other in task_specific):
                _node(shared, parent).add_module(last, part)
            continue
        for task, view in views.items():
            mine, tree = view.get_submodule(name), own.get_submodule(task)
            if name in layers and name and is_leaf(part):
                parent, _, last = name.rpartition(".")
                _node(tree, parent).add_module(last, mine)
                continue
            for kind, kept in (
                ("_parameters", name in layers),
                ("_buffers", name in task_specific),
            ):
                if not part.__dict__[kind]:
                    continue
                # A shared one starts as the trunk's, one of its own as the copy in the view.
                node, start = _node(tree if kept else shared, name), mine if kept else part
                if not node.__dict__[kind]:
                    node.__dict__[kind] = start.__dict__[kind]
                    unsaved = "_non_persistent_buffers_set"
                    node.__dict__[unsaved] = node.__dict__[unsaved] | start.__dict__[unsaved]
                mine.__dict__[kind] = node.__dict__[kind]
    return shared, own


def _node(tree: nn.Module, name: str) -> nn.Module:
    """The module of that name; empty ones are made on the way."""
    for part in filter(None, name.split(".")):
        if part not in dict(tree.named_children()):
            tree.add_module(part, nn.Module())
        tree = tree.get_submodule(part)
    return tree
