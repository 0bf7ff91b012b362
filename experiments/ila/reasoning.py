"""How many generated tasks a model solves, judged by their exact verifiers (form of table 5.18).

Only answers that can be verified without running them are judged: code that a model writes, as for
HumanEval, is never run, and the loss on the published programs is measured instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from data_prep.reasoning import ReasoningTask
from experiments.ila.adapters import merged_adapters
from experiments.ila.chat import context_length, encode_prompt
from experiments.ila.evaluation import in_mode

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Accuracy:
    """What a model solved.

    Attributes:
        accuracy: Share of the tasks with a right answer, in [0, 1].
        by_family: The same for each family of tasks.
        mean_score: Mean of reasoning-gym's scores, which may give a wrong answer a part of 1.
        answers: What the model said, in the order of the tasks.
    """

    accuracy: float
    by_family: dict[str, float]
    mean_score: float
    answers: tuple[str, ...]


def accuracy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Sequence[ReasoningTask],
    *,
    batch_size: int = 16,
    max_new_tokens: int = 24,
) -> Accuracy:
    """Let a model answer tasks by greedy decoding, and verify its answers.

    An answer is right if reasoning-gym's verifier gives it the full score; only spaces around it
    are stripped.

    Args:
        model: A causal language model, with or without adapters, which are merged while it answers;
            left as it was.
        tokenizer: Its tokenizer.
        tasks: From :func:`data_prep.reasoning.reasoning_tasks`.
        batch_size: Tasks that are answered at once.
        max_new_tokens: The longest answer.

    Raises:
        ValueError: no task, a number that is not positive, or a task and its answer do not fit the
            model's context.
    """
    if not tasks or batch_size < 1 or max_new_tokens < 1:
        rule = "tasks must not be empty, batch_size and max_new_tokens be at least 1"
        raise ValueError(f"{rule}. Found {len(tasks)}, {batch_size} and {max_new_tokens}.")
    prompts = [encode_prompt(task.conversation, tokenizer) for task in tasks]
    longest = max(map(len, prompts)) + max_new_tokens
    if longest > context_length(model):
        rule = f"a task and max_new_tokens must fit the context of {context_length(model)} tokens"
        raise ValueError(f"{rule}. Found {longest}.")
    # Prompts of similar length together: less padding, so less wasted computation.
    order = sorted(range(len(tasks)), key=lambda i: len(prompts[i]))
    groups = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    answers = [""] * len(tasks)
    with in_mode(model, training=False), merged_adapters(model):
        for rows in tqdm(groups, desc="answering", total=len(groups), leave=False):
            said = _generate(model, tokenizer, [prompts[i] for i in rows], max_new_tokens)
            for i, answer in zip(rows, said, strict=True):
                answers[i] = answer
    return judged(tasks, answers)


def judged(tasks: Sequence[ReasoningTask], answers: Sequence[str]) -> Accuracy:
    """Verify one answer to each task.

    Raises:
        ValueError: no task, or another number of answers.
    """
    if not tasks or len(tasks) != len(answers):
        rule = "there must be one answer to each task, and a task"
        raise ValueError(f"{rule}. Found {len(answers)} answers to {len(tasks)} tasks.")
    scores = [task.score(answer) for task, answer in zip(tasks, answers, strict=True)]
    right: dict[str, list[bool]] = {}
    for task, score in zip(tasks, scores, strict=True):
        right.setdefault(task.family, []).append(score >= 1)
    return Accuracy(
        accuracy=sum(score >= 1 for score in scores) / len(scores),
        by_family={family: sum(found) / len(found) for family, found in right.items()},
        mean_score=sum(scores) / len(scores),
        answers=tuple(answers),
    )


def _generate(
    model: Any, tokenizer: Any, prompts: Sequence[list[int]], max_new_tokens: int
) -> list[str]:
    """Answers to prompts that are padded on the left, so that all end at the same position."""
    length = max(map(len, prompts))
    ids = torch.full((len(prompts), length), int(tokenizer.pad_token_id))
    mask = torch.zeros_like(ids)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt) :] = torch.tensor(prompt)
        mask[row, length - len(prompt) :] = 1
    with torch.no_grad():
        found = model.generate(
            input_ids=ids.to(model.device),
            attention_mask=mask.to(model.device),
            max_new_tokens=max_new_tokens,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id,
        )
    texts = tokenizer.batch_decode(found[:, length:], skip_special_tokens=True)
    return [text.strip() for text in texts]
