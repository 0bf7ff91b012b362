"""Conversations and texts as tokens: what is learned is the answer, given the prompt.

A batch is a dictionary of ``input_ids``, ``attention_mask`` and ``labels``, each (batch, length),
int64. Labels are -100, which the loss ignores, on the prompt and on padding.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from data_prep.common.conversations import Conversation
from ktlib.ila.targets import IGNORED
from ktlib.seeding import generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

# For tokenizers that have no template of their own.
PLAIN_TEMPLATE = (
    "{% if bos_token is defined and bos_token %}{{ bos_token }}{% endif %}"
    "{% for message in messages %}{{ '### ' + message['role'] + ':\\n' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{{ '\\n\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '### assistant:\\n' }}{% endif %}"
)
POOL = 16  # batches whose examples are ordered by length together


@dataclass(frozen=True)
class Example:
    """Tokens of one conversation or text; the first ``prompt_length`` of them are not learned."""

    tokens: tuple[int, ...]
    prompt_length: int

    def __len__(self) -> int:
        return len(self.tokens)


@dataclass(frozen=True)
class Encoded:
    """Examples, and what became of the conversations.

    Attributes:
        examples: In the order of the conversations.
        dropped: Conversations left out, as nothing of their answer was among the first tokens.
        shortened: Examples whose answer lost its end.
    """

    examples: tuple[Example, ...]
    dropped: int
    shortened: int


def encode_conversations(
    conversations: Iterable[Conversation],
    tokenizer: PreTrainedTokenizerBase,
    *,
    context: int,
    max_tokens: int | None = None,
) -> Encoded:
    """Conversations as tokens, in the tokenizer's own chat template where it has one.

    The tokens of the prompt are always those that a model is given when it is to answer, so the
    answer continues them: where tokenizing both together would join a letter of each, they are
    tokenized one after the other. What a template puts after the end of the answer is left out.

    Args:
        conversations: What to encode.
        tokenizer: Of the model.
        context: The model's longest input, see :func:`context_length`.
        max_tokens: Longer examples lose their end, and one that loses its whole answer is left out
            and counted. None refuses what is longer than ``context``.

    Raises:
        ValueError: ``max_tokens`` is not in [2, context]; an example is longer than the context;
            the template rewrites the prompt when an answer follows; or nothing is left.
    """
    if max_tokens is not None and not 2 <= max_tokens <= context:
        raise ValueError(f"max_tokens must lie in [2, {context}]. Found max_tokens={max_tokens}.")
    examples = []
    dropped = shortened = total = 0
    for total, conversation in enumerate(conversations, start=1):  # noqa: B007 - counted
        example = encode_conversation(conversation, tokenizer)
        if max_tokens is None and len(example) > context:
            raise ValueError(
                f"A conversation of {conversation.source} has {len(example)} tokens, and the model "
                f"reads {context} at most. Set max_tokens to shorten such answers."
            )
        if max_tokens is not None and len(example) > max_tokens:
            if example.prompt_length >= max_tokens:
                dropped += 1
                continue
            shortened += 1
            example = Example(example.tokens[:max_tokens], example.prompt_length)
        examples.append(example)
    if not examples:
        raise ValueError(
            f"There must be a conversation with an answer within max_tokens={max_tokens}. Found "
            f"none in {total}."
        )
    return Encoded(tuple(examples), dropped, shortened)


def encode_conversation(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> Example:
    """One conversation as tokens, however long.

    Raises:
        ValueError: the template refuses the turns, or rewrites the prompt when an answer follows.
    """
    before = chat_text(conversation.prompt_messages, tokenizer, answer_follows=True)
    whole = chat_text(conversation.messages, tokenizer).rstrip()
    if not whole.startswith(before) or len(whole) == len(before):
        raise ValueError(
            "The tokenizer's chat template must write the prompt in the same way with and without "
            f"its answer. Found {before[-60:]!r} and {whole[: len(before)][-60:]!r}."
        )
    prompt = _tokens(before, tokenizer)
    tokens = _tokens(whole, tokenizer)
    if tokens[: len(prompt)] != prompt:
        tokens = prompt + _tokens(whole[len(before) :], tokenizer)
    return Example(tuple(tokens), len(prompt))


def encode_prompt(conversation: Conversation, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens after which the model is to answer."""
    text = chat_text(conversation.prompt_messages, tokenizer, answer_follows=True)
    return _tokens(text, tokenizer)


def encode_text(
    texts: Iterable[str], tokenizer: PreTrainedTokenizerBase, *, max_tokens: int
) -> tuple[Example, ...]:
    """Texts as tokens that are all learned, or measured: the first ``max_tokens`` of each.

    Raises:
        ValueError: ``max_tokens`` is less than 2, or no text has 2 tokens.
    """
    if max_tokens < 2:
        raise ValueError(f"max_tokens must be at least 2. Found max_tokens={max_tokens}.")
    cut = (_tokens(text, tokenizer)[:max_tokens] for text in texts)
    examples = tuple(Example(tuple(tokens), 0) for tokens in cut if len(tokens) > 1)
    if not examples:
        raise ValueError("texts must hold one of 2 tokens at least. Found none.")
    return examples


def chat_text(
    messages: list[dict[str, str]],
    tokenizer: PreTrainedTokenizerBase,
    *,
    answer_follows: bool = False,
) -> str:
    """Messages in the tokenizer's chat template, or in :data:`PLAIN_TEMPLATE` without one.

    Raises:
        ValueError: the template refuses them, such as one that knows no system turn.
    """
    from jinja2 import TemplateError  # comes with the chat templates of transformers

    try:
        text = tokenizer.apply_chat_template(
            messages,
            chat_template=None if tokenizer.chat_template else PLAIN_TEMPLATE,
            tokenize=False,
            add_generation_prompt=answer_follows,
        )
    except TemplateError as error:
        roles = [message["role"] for message in messages]
        raise ValueError(f"The chat template refuses turns of {roles}: {error}") from error
    return str(text)


def context_length(model: PreTrainedModel) -> int:
    """The longest input of a model, in tokens.

    Raises:
        ValueError: its configuration does not say.
    """
    length = getattr(model.config, "max_position_embeddings", None)
    if length is None:
        name = type(model).__name__
        raise ValueError(f"The configuration of {name} must have max_position_embeddings.")
    return int(length)


def batches(
    examples: Sequence[Example],
    batch_size: int,
    tokenizer: PreTrainedTokenizerBase,
    *,
    seed: int | None = 0,
    steps: int | None = None,
    epochs: int | None = None,
    by_length: bool = False,
) -> list[dict[str, Tensor]]:
    """Batches in a shuffled order, each padded to its longest example.

    Args:
        examples: From :func:`encode_conversations` or :func:`encode_text`.
        batch_size: Examples in a batch.
        tokenizer: Its padding token pads the rows.
        seed: Of the order, which differs between epochs; None keeps the order given.
        steps: Number of full batches; the examples are gone through as often as needed.
        epochs: Number of passes over the examples; the last batch of a pass may be smaller. One
            pass where neither is given.
        by_length: Put examples of similar length into one batch, which saves time and makes the
            batches less mixed.

    Raises:
        ValueError: fewer examples than ``batch_size``, both ``steps`` and ``epochs``, or a number
            that is not positive.
    """
    if not 1 <= batch_size <= len(examples):
        rule = f"batch_size must lie in [1, {len(examples)}], the number of examples"
        raise ValueError(f"{rule}. Found batch_size={batch_size}.")
    if steps is not None and epochs is not None:
        raise ValueError(f"Give steps or epochs. Found steps={steps} and epochs={epochs}.")
    for name, number in (("steps", steps), ("epochs", epochs)):
        if number is not None and number < 1:
            raise ValueError(f"{name} must be at least 1. Found {name}={number}.")
    rounds: Iterator[list[int]] = (
        _order(examples, batch_size, seed, epoch, by_length) for epoch in _count(epochs, steps)
    )
    chosen: list[list[int]] = []
    if steps is None:
        for order in rounds:
            chosen += _chunks(order, batch_size)
    else:
        waiting: list[int] = []
        while len(chosen) < steps:
            waiting += next(rounds)
            full = len(waiting) // batch_size * batch_size
            chosen += _chunks(waiting[:full], batch_size)
            waiting = waiting[full:]
    return [collate([examples[i] for i in rows], tokenizer) for rows in chosen[:steps]]


def collate(examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase) -> dict[str, Tensor]:
    """One batch, padded on the right.

    Raises:
        ValueError: the tokenizer has no padding token, or there is no example.
    """
    if tokenizer.pad_token_id is None or not examples:
        raise ValueError("collate needs examples, and a tokenizer with a padding token.")
    length = max(len(example) for example in examples)
    ids = torch.full((len(examples), length), int(tokenizer.pad_token_id))
    mask = torch.zeros_like(ids)
    labels = torch.full_like(ids, IGNORED)
    for row, example in enumerate(examples):
        tokens = torch.tensor(example.tokens)
        ids[row, : len(tokens)] = tokens
        mask[row, : len(tokens)] = 1
        labels[row, example.prompt_length : len(tokens)] = tokens[example.prompt_length :]
    return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def _order(
    examples: Sequence[Example], batch_size: int, seed: int | None, epoch: int, by_length: bool
) -> list[int]:
    """The examples of one epoch in their order."""
    order = list(range(len(examples)))
    random = None if seed is None else generator(seed, "order of the examples", epoch)
    if random is not None:
        order = torch.randperm(len(examples), generator=random).tolist()
    if not by_length:
        return order
    rows = [
        batch
        for pool in _chunks(order, POOL * batch_size)
        for batch in _chunks(sorted(pool, key=lambda i: len(examples[i])), batch_size)
    ]
    if random is not None:  # else the shortest batch of each pool would come first
        rows = [rows[i] for i in torch.randperm(len(rows), generator=random).tolist()]
        rows.sort(key=len, reverse=True)  # a smaller one has to be the last; the sort is stable
    return [i for batch in rows for i in batch]


def _chunks(order: list[int], size: int) -> list[list[int]]:
    return [order[start : start + size] for start in range(0, len(order), size)]


def _count(epochs: int | None, steps: int | None) -> Iterator[int]:
    """The numbers of the epochs: endless where steps are counted."""
    epoch = 0
    while steps is not None or epoch < (epochs or 1):
        yield epoch
        epoch += 1


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Tokens of a text; marks in it were written by the template, so none is added."""
    # Quiet: what is longer than the model reads is cut, or refused, by the caller.
    encoding: Any = tokenizer(text, add_special_tokens=False, verbose=False)
    return [int(token) for token in encoding["input_ids"]]
