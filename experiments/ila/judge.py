"""Conversations of Vicuna and MT-Bench: answers of a model, and grades by a judge of your choice.

Questions and answers are JSON lines in the format in which both benchmarks are published. A judge
is a function of question, answer and reference that returns a grade: a person, a program, or a
model behind an interface of some provider, such as GPT-4o in the thesis::

    judge = lambda *question: parse_grade(ask_my_model(judge_prompt(*question)))
"""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from experiments.ila.evaluation import device_of, in_mode
from experiments.run.atomic import write_text

Judge = Callable[[str, str, str | None], float]
"""``(question, answer, reference) -> grade`` from 1 to 10; of later turns the question holds the
conversation so far, and the reference is ``None`` where none is published."""

LOWEST, HIGHEST = 1.0, 10.0
_GRADE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")


@dataclass(frozen=True)
class Question:
    """One conversation to hold.

    Attributes:
        identity: its number in the benchmark.
        category: such as ``writing``; empty where the file has none.
        turns: what the user says, turn by turn.
        references: good answers to the turns, as far as there are any.
    """

    identity: int | str
    category: str
    turns: tuple[str, ...]
    references: tuple[str, ...] = ()


@dataclass(frozen=True)
class Answer:
    """What a model said, turn by turn."""

    identity: int | str
    model: str
    turns: tuple[str, ...]


@dataclass(frozen=True)
class Grade:
    """A grade of one turn, from 1 to 10."""

    identity: int | str
    category: str
    turn: int
    grade: float


def read_questions(path: Path) -> list[Question]:
    """Questions of a file of JSON lines: ``question_id`` and ``turns``, or ``text`` for one turn.

    Optional are ``category`` and ``reference``, one per turn.

    Raises:
        FileNotFoundError: there is no such file; the message says where the published ones are.
        ValueError: a line is not in the format; it is named.
    """
    questions = []
    for number, entry in _json_lines(path):
        turns = entry.get("turns", [entry["text"]] if "text" in entry else None)
        references = entry.get("reference", [])
        references = [references] if isinstance(references, str) else references
        good = _are_texts(turns) and _are_texts(references)
        if "question_id" not in entry or not good or not turns:
            raise ValueError(
                f"A question must have `question_id` and `turns`, a list of texts (or `text`). "
                f"Line {number} of {path} has {sorted(entry)}."
            )
        category = str(entry.get("category", ""))
        questions.append(Question(entry["question_id"], category, tuple(turns), tuple(references)))
    if not questions:
        raise ValueError(f"A file of questions must hold at least one. Found none in {path}.")
    return questions


def answer_questions(
    model: nn.Module,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    name: str,
    max_new_tokens: int = 1024,
) -> list[Answer]:
    """Answers of a model, greedy, so that they can be had again; later turns see the earlier ones.

    Args:
        model: a causal language model of transformers, with adapters or without.
        tokenizer: with a chat template.
        questions: see :func:`read_questions`.
        name: of the model, for the file of answers.
        max_new_tokens: longest answer; less where the context ends.

    Raises:
        ValueError: the tokenizer has no chat template, or a question fills the whole context.
    """
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError("tokenizer must have a chat template. Found none: take a chat model.")
    if max_new_tokens < 1:
        raise ValueError(
            f"max_new_tokens must be at least 1. Found max_new_tokens={max_new_tokens!r}."
        )
    answers = []
    with in_mode(model, training=False):
        for question in tqdm(list(questions), desc="answering", leave=False):
            conversation: list[dict[str, str]] = []
            said = []
            for turn in question.turns:
                conversation.append({"role": "user", "content": turn})
                said.append(_reply(model, tokenizer, conversation, question, max_new_tokens))
                conversation.append({"role": "assistant", "content": said[-1]})
            answers.append(Answer(question.identity, name, tuple(said)))
    return answers


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers as JSON lines in the published format; all at once, or not at all."""
    lines = (
        {
            "question_id": answer.identity,
            "model_id": answer.model,
            "choices": [{"index": 0, "turns": list(answer.turns)}],
        }
        for answer in answers
    )
    write_text(path, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def read_answers(path: Path) -> list[Answer]:
    """Answers of a file of JSON lines; of several choices the first.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not in the format; it is named.
    """
    answers = []
    for number, entry in _json_lines(path):
        try:
            turns = entry["choices"][0]["turns"]
            answers.append(Answer(entry["question_id"], str(entry["model_id"]), tuple(turns)))
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(
                f"An answer must have `question_id`, `model_id` and `choices` with `turns`. "
                f"Line {number} of {path} has {sorted(entry)}."
            ) from error
    return answers


def grade_answers(
    questions: Sequence[Question], answers: Iterable[Answer], judge: Judge
) -> list[Grade]:
    """Have every turn of every answer graded.

    Args:
        questions: all that were answered.
        answers: of one model.
        judge: see ``Judge``.

    Raises:
        ValueError: an answer to an unknown question or with other turns, or a grade outside 1 to
            10.
    """
    known = {question.identity: question for question in questions}
    grades = []
    for answer in tqdm(list(answers), desc="grading", leave=False):
        question = known.get(answer.identity)
        if question is None or len(question.turns) != len(answer.turns):
            raise ValueError(
                f"answers must be to these questions, turn by turn. Found one to "
                f"{answer.identity!r} with {len(answer.turns)} turns."
            )
        for turn, said in enumerate(answer.turns):
            reference = question.references[turn] if turn < len(question.references) else None
            grade = float(judge(_conversation(question, answer, turn), said, reference))
            if not LOWEST <= grade <= HIGHEST:
                raise ValueError(
                    f"A grade must lie in [1, 10]. Found {grade} for turn {turn + 1} of question "
                    f"{answer.identity!r}."
                )
            grades.append(Grade(answer.identity, question.category, turn + 1, grade))
    return grades


def mean_grades(grades: Sequence[Grade]) -> dict[str, float]:
    """Mean grade of everything (``all``), of every turn (``turn 1``) and of every category.

    Raises:
        ValueError: there are no grades.
    """
    if not grades:
        raise ValueError("grades must hold at least one grade. Found none.")
    groups: dict[str, list[float]] = {"all": []}
    for grade in grades:
        for name in ("all", f"turn {grade.turn}", grade.category):
            if name:
                groups.setdefault(name, []).append(grade.grade)
    return {name: statistics.fmean(values) for name, values in groups.items()}


def judge_prompt(question: str, answer: str, reference: str | None) -> str:
    """What to ask a model that judges; :func:`parse_grade` reads its reply."""
    parts = [
        "You grade the answer of an assistant. Look at whether it helps, is correct, goes deep "
        "enough and follows the instructions; its length does not count by itself. Give your "
        "reasons in a few sentences. End with the grade, a number from 1 (useless) to 10 "
        "(excellent) in double brackets, like this: [[5]].",
        f"Question:\n{question}",
    ]
    if reference is not None:
        parts.append(f"A correct answer, to compare with:\n{reference}")
    parts.append(f"Answer to grade:\n{answer}")
    return "\n\n".join(parts)


def parse_grade(text: str) -> float:
    """The grade in a judge's reply: the last number in double brackets, such as ``[[7]]``.

    Raises:
        ValueError: there is none, or it lies outside 1 to 10.
    """
    found = _GRADE.findall(text)
    grade = float(found[-1]) if found else math.nan
    if not LOWEST <= grade <= HIGHEST:
        raise ValueError(
            f"A judge's reply must hold a grade from 1 to 10 such as [[7]]. Found {text[-200:]!r}."
        )
    return grade


def rows_of(grades: Iterable[Grade]) -> list[dict[str, Any]]:
    """Grades as rows of a table."""
    return [asdict(grade) for grade in grades]


@torch.no_grad()
def _reply(
    model: nn.Module,
    tokenizer: Any,
    conversation: list[dict[str, str]],
    question: Question,
    max_new_tokens: int,
) -> str:
    from transformers import GenerationConfig

    ids = tokenizer.apply_chat_template(
        conversation, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )["input_ids"].to(device_of(model))
    config: Any = model.config
    room = getattr(config, "max_position_embeddings", math.inf) - ids.shape[1]
    if room < 1:
        raise ValueError(
            f"A conversation must leave room for an answer. Question {question.identity!r} takes "
            f"{ids.shape[1]} tokens of {config.max_position_embeddings}."
        )
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=int(min(max_new_tokens, room)),
        eos_token_id=tokenizer.eos_token_id if ends is None else ends,
        pad_token_id=tokenizer.eos_token_id
        if tokenizer.pad_token_id is None
        else tokenizer.pad_token_id,
    )
    generate: Any = model.generate
    made = generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    text: str = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


def _conversation(question: Question, answer: Answer, turn: int) -> str:
    """What the user said in a turn, after all that was said before."""
    if turn == 0:
        return question.turns[0]
    said = [
        line
        for user, assistant in zip(question.turns[:turn], answer.turns[:turn], strict=True)
        for line in (f"User: {user}", f"Assistant: {assistant}")
    ]
    return "\n\n".join([*said, f"User: {question.turns[turn]}"])


def _are_texts(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(text, str) for text in value)


def _json_lines(path: Path) -> list[tuple[int, dict[str, Any]]]:
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing. The questions of both benchmarks are in the repository "
            f"lm-sys/FastChat, under fastchat/llm_judge/data/: vicuna_bench/question.jsonl and "
            f"mt_bench/question.jsonl."
        )
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"Line {number} of {path} is not JSON: {error}.") from error
        if not isinstance(entry, dict):
            raise ValueError(  # noqa: TRY004 - it is a value of the file
                f"Line {number} of {path} must be an object. Found {entry!r}."
            )
        found.append((number, entry))
    return found
