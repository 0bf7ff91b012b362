"""Conversations that a language model learns to answer: a prompt of some turns, and the answer.

The splits are made here, the same ones for every run: a question is in one split only, and what is
held out has no answer that the training split has.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from data_prep.common.files import DataError

SPLITS = ("train", "validation", "test")
# Parts of the different questions that are held out; the rest is for training.
HELD_OUT = {"validation": 0.1, "test": 0.2}


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
