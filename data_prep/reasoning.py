"""Generated tasks with exact verifiers, from the package reasoning-gym.

reasoning-gym draws task ``i`` from the seed ``seed + i``, so two runs with neighbouring seeds have
nearly all tasks in common. Here every seed and split has a block of seeds of its own, and the
checksum of a question decides which split may have it: no seed puts a test question into training.
"""

from __future__ import annotations

import hashlib
import importlib
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from data_prep.common.conversations import Conversation, Turn

# Small enough that a model of some hundred million weights learns them in part.
FAMILIES: dict[str, dict[str, int]] = {
    "chain_sum": {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 2},
    "gcd": {"max_value": 50},
    "letter_counting": {"min_words": 2, "max_words": 4},
    "spell_backward": {"min_word_len": 3, "max_word_len": 4},
    "number_sorting": {"min_numbers": 3, "max_numbers": 4, "max_decimals": 0},
}
# Sorting is left out unless asked for: its instructions take 150 tokens.
DEFAULT_FAMILIES = ("chain_sum", "gcd", "letter_counting", "spell_backward")
BLOCK = 1_000_000
CLASSES = {"test": (0, 1), "validation": (2,), "train": (3, 4, 5, 6, 7, 8, 9)}
# How many tasks are drawn at most for each one that is wanted, before it is given up.
PATIENCE = 200


@dataclass(frozen=True)
class ReasoningTask:
    """A task: ``entry`` is what reasoning-gym made, which its verifier needs."""

    family: str
    question: str
    answer: str
    entry: dict[str, Any]

    @property
    def conversation(self) -> Conversation:
        """The task as something to learn from."""
        return Conversation((Turn("user", self.question),), self.answer, f"reasoning/{self.family}")

    def score(self, answer: str) -> float:
        """reasoning-gym's own score: 1 for a right answer; a wrong one may get a part of it."""
        verifier = _reasoning_gym().get_score_answer_fn(self.family)
        return float(verifier(answer.strip(), self.entry))


def reasoning_tasks(
    split: str,
    *,
    families: Sequence[str] = DEFAULT_FAMILIES,
    size: int = 1000,
    seed: int = 0,
) -> list[ReasoningTask]:
    """Different tasks of some families in turn, so that each has its equal part.

    Args:
        split: "train", "validation" or "test"; questions of different splits differ for all seeds.
        families: Names in :data:`FAMILIES`.
        size: Number of tasks.
        seed: The same one gives the same tasks.

    Raises:
        ValueError: an unknown split or family, no family, a negative seed, or more tasks than there
            are different ones.
    """
    if split not in CLASSES:
        raise ValueError(f"split must be one of {', '.join(CLASSES)}. Found split={split!r}.")
    unknown = [family for family in families if family not in FAMILIES]
    if unknown or not families:
        found = unknown[0] if unknown else list(families)
        raise ValueError(f"families must be among {', '.join(FAMILIES)}. Found {found!r}.")
    if size < 1 or seed < 0:
        raise ValueError(f"size must be positive and seed not negative. Found {size}, {seed}.")
    streams = {family: _stream(family, split, seed, size) for family in dict.fromkeys(families)}
    tasks: list[ReasoningTask] = []
    while len(tasks) < size:
        for family, stream in streams.items():
            task = next(stream, None)
            if task is None:
                rule = f"size must leave enough different {split} tasks of {family}"
                raise ValueError(f"{rule}. Found size={size}.")
            tasks.append(task)
    return tasks[:size]


def _stream(family: str, split: str, seed: int, size: int) -> Iterator[ReasoningTask]:
    """Different tasks of one family that belong to one split."""
    first = (len(CLASSES) * seed + list(CLASSES).index(split)) * BLOCK
    drawn = min(BLOCK, PATIENCE * size)
    seen = set()
    # It is a virtual list: each entry is made when it is asked for.
    entries = _reasoning_gym().create_dataset(family, seed=first, size=drawn, **FAMILIES[family])
    for number in range(drawn):
        entry = entries[number]
        question = entry["question"].strip()
        if question in seen or _class(question) not in CLASSES[split]:
            continue
        seen.add(question)
        yield ReasoningTask(family, question, str(entry["answer"]), entry)


def _class(question: str) -> int:
    """A number from 0 to 9 that follows from the question."""
    return int.from_bytes(hashlib.sha256(question.encode()).digest()[:8], "big") % 10


def _reasoning_gym() -> Any:
    """The package, whose import takes seconds; one of those it needs has careless comparisons."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)
        return importlib.import_module("reasoning_gym")
