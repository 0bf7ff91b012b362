"""Conversations of Vicuna and MT-Bench: answers of a model, and grades by a judge of your choice.

Files are those of FastChat's ``llm_judge`` (JSON lines), so that its tools can grade the answers. A
judge here is a function of question, answer and reference that returns a grade: a person, a
program, or a model behind an interface of some provider, such as GPT-4o in the thesis::

    judge = lambda *question: parse_grade(ask_my_model(judge_prompt(*question)))
"""

from __future__ import annotations

import math
import re
import statistics
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

import torch
from pydantic import AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError
from torch import nn
from tqdm import tqdm

from experiments.ila.adapters import merged_adapters
from experiments.ila.evaluation import device_of, in_mode
from experiments.run.atomic import write_text

Judge = Callable[[str, str, str | None], float]
"""``(question, answer, reference) -> grade`` from 1 to 10; of later turns the question holds the
conversation so far, and the reference is ``None`` where none is published."""

Line = TypeVar("Line", bound=BaseModel)
Texts = Annotated[tuple[str, ...], BeforeValidator(lambda v: [v] if isinstance(v, str) else v)]
_GRADE = re.compile(r"\[\[\s*(\d+(?:\.\d+)?)\s*\]\]")


class Question(BaseModel):
    """One conversation: what the user says in each turn, and good answers where there are any."""

    model_config = ConfigDict(frozen=True)

    question_id: int | str
    category: str = ""
    turns: Texts = Field(min_length=1, validation_alias=AliasChoices("turns", "text"))
    reference: Texts = ()


class Choice(BaseModel):
    """One of several answers of a model: what it said in each turn."""

    model_config = ConfigDict(frozen=True)

    index: int = 0
    turns: tuple[str, ...]


class Answer(BaseModel):
    """What a model said to a question; of several choices the first counts."""

    model_config = ConfigDict(frozen=True, protected_namespaces=())

    question_id: int | str
    model_id: str
    choices: tuple[Choice, ...] = Field(min_length=1)

    @property
    def turns(self) -> tuple[str, ...]:
        """The answers, turn by turn."""
        return self.choices[0].turns


class Grade(NamedTuple):
    """A grade of one turn, from 1 to 10; turns are counted from 1."""

    question_id: int | str
    category: str
    turn: int
    grade: float


def read_questions(path: Path) -> list[Question]:
    """Questions of a file.

    Raises:
        FileNotFoundError: there is no such file; the message says where the published ones are.
        ValueError: a line is not in the format, or there is none.
    """
    if not path.exists():
        raise FileNotFoundError(
            f"{path} is missing. The questions of both benchmarks are in the repository "
            "lm-sys/FastChat, under fastchat/llm_judge/data/: vicuna_bench/question.jsonl and "
            "mt_bench/question.jsonl."
        )
    return _read(path, Question)


def answer_questions(
    model: nn.Module,
    tokenizer: Any,
    questions: Iterable[Question],
    *,
    name: str,
    max_new_tokens: int = 1024,
) -> list[Answer]:
    """Greedy, thus reproducible, answers of a model; later turns see the earlier ones.

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
        raise ValueError(f"max_new_tokens must be at least 1. Found {max_new_tokens=}.")
    answers = []
    with in_mode(model, training=False), merged_adapters(model):
        for question in tqdm(list(questions), desc="answering", leave=False):
            conversation: list[dict[str, str]] = []
            said: list[str] = []
            for turn in question.turns:
                conversation.append({"role": "user", "content": turn})
                said.append(_reply(model, tokenizer, conversation, question, max_new_tokens))
                conversation.append({"role": "assistant", "content": said[-1]})
            choice = Choice(turns=tuple(said))
            answers.append(
                Answer(question_id=question.question_id, model_id=name, choices=(choice,))
            )
    return answers


def write_answers(path: Path, answers: Iterable[Answer]) -> None:
    """Write answers as JSON lines; all at once, or not at all."""
    write_text(path, "".join(answer.model_dump_json() + "\n" for answer in answers))


def read_answers(path: Path) -> list[Answer]:
    """Answers of a file.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a line is not in the format, or there is none.
    """
    return _read(path, Answer)


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
    known = {question.question_id: question for question in questions}
    grades = []
    for answer in tqdm(list(answers), desc="grading", leave=False):
        question = known.get(answer.question_id)
        if question is None or len(question.turns) != len(answer.turns):
            raise ValueError(
                "answers must be to these questions, turn by turn. Found one to "
                f"{answer.question_id!r} with {len(answer.turns)} turns."
            )
        context = ""
        for turn, (asked, said) in enumerate(zip(question.turns, answer.turns, strict=True)):
            reference = question.reference[turn] if turn < len(question.reference) else None
            grade = judge(f"{context}User: {asked}" if turn else asked, said, reference)
            if not 1 <= grade <= 10:
                raise ValueError(
                    f"A grade must lie in [1, 10]. Found {grade} for turn {turn + 1} of question "
                    f"{answer.question_id!r}."
                )
            grades.append(Grade(answer.question_id, question.category, turn + 1, grade))
            context += f"User: {asked}\n\nAssistant: {said}\n\n"
    return grades


def mean_grades(grades: Sequence[Grade]) -> dict[str, float]:
    """Mean grade over everything (``all``), of every turn (``turn 1``) and of every category.

    Raises:
        ValueError: there are no grades.
    """
    if not grades:
        raise ValueError("grades must hold at least one grade. Found none.")
    groups: dict[str, list[float]] = {"all": []}
    for grade in grades:
        for name in filter(None, ("all", f"turn {grade.turn}", grade.category)):
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
        ValueError: there is none; whether it lies in 1 to 10, :func:`grade_answers` checks.
    """
    found = _GRADE.findall(text)
    if not found:
        raise ValueError(f"A judge's reply must hold a grade such as [[7]]. Found {text[-200:]!r}.")
    return float(found[-1])


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
            "A conversation must leave room for an answer. Question "
            f"{question.question_id!r} takes {ids.shape[1]} tokens of "
            f"{config.max_position_embeddings}."
        )
    end = tokenizer.eos_token_id
    ends = getattr(getattr(model, "generation_config", None), "eos_token_id", None)
    settings = GenerationConfig(
        do_sample=False,
        max_new_tokens=int(min(max_new_tokens, room)),
        eos_token_id=end if ends is None else ends,
        pad_token_id=end if tokenizer.pad_token_id is None else tokenizer.pad_token_id,
    )
    generate: Any = model.generate
    made = generate(input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=settings)
    text: str = tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    return text.strip()


def _read(path: Path, kind: type[Line]) -> list[Line]:
    """The JSON lines of a file, each checked against a format."""
    found = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            try:
                found.append(kind.model_validate_json(line))
            except ValidationError as error:
                raise ValueError(
                    f"Line {number} of {path} is not in the format: {error}"
                ) from error
    if not found:
        raise ValueError(f"{path} must hold at least one line. Found none.")
    return found
