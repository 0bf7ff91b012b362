"""Conversations and texts by name: of a data set, of generated tasks, or of a file."""

from __future__ import annotations

import importlib
from pathlib import Path

from data_prep import FILE_TYPES, INSTRUCTION_SETS, REASONING, moby_dick
from data_prep.common.conversations import SPLITS, Conversation, split_conversations
from data_prep.common.files import DataError, check_split
from data_prep.common.instructions import read_rows
from data_prep.reasoning import reasoning_tasks

CONVERSATION_SETS = ("chatterbot", "human_eval", REASONING, *INSTRUCTION_SETS)


def load_conversations(
    name: str,
    split: str,
    *,
    root: Path | None = None,
    size: int | None = None,
    seed: int = 0,
) -> list[Conversation]:
    """Conversations of one split, in an order that is shuffled once and for all.

    Args:
        name: One of :data:`CONVERSATION_SETS`; or the path of a ``.jsonl`` or ``.json`` file in a
            form that :func:`data_prep.common.instructions.parse_row` knows.
        split: "train", "validation" or "test".
        root: The data root; None stands for :func:`data_prep.data_root`.
        size: Take the first so many; None takes all, and of generated tasks 1,000.
        seed: Which tasks are generated; sets of files do not look at it, so that what is held out
            stays the same from run to run.

    Raises:
        ValueError: an unknown name or split, or fewer conversations than ``size``.
        DataError: the set is not prepared, damaged or empty; the message says what to do.
    """
    check_split(split, SPLITS)
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1. Found size={size}.")
    if name == REASONING:
        tasks = reasoning_tasks(split, size=size or 1000, seed=seed)
        return [task.conversation for task in tasks]
    if name in CONVERSATION_SETS:
        chosen: list[Conversation] = importlib.import_module(f"data_prep.{name}").DATA.load(
            split, root
        )
    elif name.endswith(FILE_TYPES):
        chosen = split_conversations(_read_file(Path(name).expanduser()), split, name)
    else:
        rule = f"name must be one of {', '.join(CONVERSATION_SETS)}, or the path of a"
        raise ValueError(f"{rule} {' or '.join(FILE_TYPES)} file. Found name={name!r}.")
    if size is not None and size > len(chosen):
        rule = f"size must be at most {len(chosen)}, the {split} conversations of {name}"
        raise ValueError(f"{rule}. Found size={size}.")
    return chosen[:size]


def _read_file(path: Path) -> list[Conversation]:
    """The conversations in a file of one's own."""
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    return read_rows(path.read_bytes(), path.name, path.stem)


def load_text(name: str = "moby_dick", root: Path | None = None) -> list[str]:
    """Passages of a general text, to measure what a model forgets: the paragraphs of a novel.

    Raises:
        ValueError: another name.
        DataError: the text is not prepared or damaged.
    """
    if name != "moby_dick":
        raise ValueError(f"name must be 'moby_dick'. Found name={name!r}.")
    return moby_dick.load(root)
