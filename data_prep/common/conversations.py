"""Conversations that a language model learns to answer: a prompt of some turns, and the answer.

``load_conversations(name, split)`` gives those of a data set by name, of generated tasks, or of a
file. The splits are made here, the same ones for every run: a question is in one split only, and
what is held out has no answer that the training split has.
"""

from __future__ import annotations

import hashlib
import importlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from data_prep import FILE_TYPES, INSTRUCTION_SETS, REASONING
from data_prep.common.files import DataError, check_split

SPLITS = ("train", "validation", "test")
# Parts of the different questions that are held out; the rest is for training.
HELD_OUT = {"validation": 0.1, "test": 0.2}
CONVERSATION_SETS = ("chatterbot", "human_eval", REASONING, *INSTRUCTION_SETS)


class Turn(NamedTuple):
    """What one side says: ``role`` is "system", "user" or "assistant"."""

    role: str
    content: str


@dataclass(frozen=True)
class Conversation:
    """One example.

    Attributes:
        prompt: The turns before the answer; the last one is the user's.
        answer: What the assistant says then.
        source: The data set, and after a slash its part, such as "chatterbot/trivia".
    """

    prompt: tuple[Turn, ...]
    answer: str
    source: str

    @property
    def prompt_messages(self) -> list[dict[str, str]]:
        """The prompt as chat templates want it."""
        return [turn._asdict() for turn in self.prompt]

    @property
    def messages(self) -> list[dict[str, str]]:
        """Prompt and answer as chat templates want them."""
        return [*self.prompt_messages, {"role": "assistant", "content": self.answer}]


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
        from data_prep.reasoning import reasoning_tasks

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
    from data_prep.common.instructions import read_rows

    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    return read_rows(path.read_bytes(), path.name, path.stem)


def split_conversations(
    conversations: Iterable[Conversation], split: str, name: str = "the data set"
) -> list[Conversation]:
    """The conversations of one split, without repetitions.

    Different questions are ordered by a checksum; 20 % of them are the test split, 10 % the
    validation split, and at least one each. All answers to a question go with it. From the test
    split, conversations are left out whose answer the training split has as well, and likewise
    from the validation split with regard to both others. Texts that differ only in case, spaces
    and final punctuation count as the same.

    Raises:
        DataError: fewer than three different questions, or nothing is left of the split.
    """
    groups: dict[str, dict[str, Conversation]] = {}
    for conversation in conversations:
        question = "\n".join(_plain(turn.content) for turn in conversation.prompt)
        groups.setdefault(question, {}).setdefault(_plain(conversation.answer), conversation)
    if len(groups) < 3:
        raise DataError(f"{name} must have 3 different questions. Found {len(groups)}.")
    order = sorted(groups, key=lambda question: hashlib.sha256(question.encode()).digest())
    test, validation = (max(1, round(HELD_OUT[s] * len(order))) for s in ("test", "validation"))
    parts = {
        "test": order[:test],
        "validation": order[test : test + validation],
        "train": order[test + validation :],
    }
    answers = {part: {a for q in questions for a in groups[q]} for part, questions in parts.items()}
    # Whose answers a split must not have.
    others = {"train": [], "test": ["train"], "validation": ["train", "test"]}[split]
    taken = set().union(*(answers[other] for other in others))
    chosen = [
        conversation
        for question in parts[split]
        for answer, conversation in groups[question].items()
        if answer not in taken
    ]
    if not chosen:
        raise DataError(f"{name} is too small: all answers of its {split} split are in another.")
    return chosen


def load_text(name: str = "moby_dick", root: Path | None = None) -> list[str]:
    """Passages of a general text, to measure what a model forgets: the paragraphs of a novel.

    Raises:
        ValueError: another name.
        DataError: the text is not prepared or damaged.
    """
    if name != "moby_dick":
        raise ValueError(f"name must be 'moby_dick'. Found name={name!r}.")
    from data_prep import moby_dick

    return moby_dick.load(root)


def digest(conversations: Sequence[Conversation]) -> str:
    """SHA-256 of conversations in their order: what generated tasks are recorded by."""
    lines = (json.dumps([c.prompt, c.answer]) for c in conversations)
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def conversation(turns: Sequence[Turn], source: str) -> Conversation | None:
    """A conversation whose answer is the assistant's last turn; None where there is no such turn.

    What comes after that turn is left out.

    Raises:
        ValueError: an unknown role, or the turn before the answer is not the user's.
    """
    for turn in turns:
        if turn.role not in ("system", "user", "assistant"):
            raise ValueError(f"role must be system, user or assistant. Found {turn.role!r}.")
    last = max((i for i, turn in enumerate(turns) if turn.role == "assistant"), default=0)
    if not last or not turns[last].content.strip():
        return None
    if turns[last - 1].role != "user":
        raise ValueError(f"the answer must follow the user. Found {turns[last - 1].role!r}.")
    return Conversation(tuple(turns[:last]), turns[last].content, source)


def _plain(text: str) -> str:
    """The text without what makes no difference between two questions or answers."""
    return " ".join(text.casefold().split()).rstrip(".!?, ")
