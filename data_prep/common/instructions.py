"""Sets of instructions with answers, in the forms in which their publishers hand them out.

LIMA (Zhou et al., 2023), No Robots (Rajani et al., 2023), Alpaca-GPT4 (Peng et al., 2023), LIMO (Ye
et al., 2025) and s1.1 (Muennighoff et al., 2025). A row of each is recognised by its columns, so a
file of one's own in one of these forms can be used in the same way.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from data_prep.common.conversations import Conversation, Turn, conversation
from data_prep.common.files import DataError

FORMS = (
    "messages (No Robots)",
    "conversations (LIMA, ShareGPT)",
    "instruction, input and output (Alpaca)",
    "question, deepseek_thinking_trajectory and deepseek_attempt (s1.1)",
    "question and solution (LIMO)",
    "prompt and completion",
)


class RowError(ValueError):
    """A row does not have a known form."""


SPEAKERS = {"human": "user", "gpt": "assistant", "user": "user", "assistant": "assistant",
            "system": "system"}  # fmt: skip


def parse_row(row: Mapping[str, Any], source: str) -> Conversation | None:
    """The conversation in a row of one of :data:`FORMS`; None where it has no answer.

    Of several turns the assistant's last one is the answer. That of s1.1 is the line of thought,
    an empty line, and the reply.

    Raises:
        ValueError: the row has none of the forms.
    """
    return conversation(list(_turns(row)), source)


def _turns(row: Mapping[str, Any]) -> Iterable[Turn]:
    if not isinstance(row, Mapping):
        raise RowError(f"a row must be an object. Found {type(row).__name__}.")
    columns = row.keys()
    if "messages" in columns:
        return [_turn(message, "role", "content") for message in _list(row, "messages")]
    if "conversations" in columns:
        return [
            Turn(("user", "assistant")[i % 2], said)
            if isinstance(said, str)
            else _turn(said, "from", "value")
            for i, said in enumerate(_list(row, "conversations"))
        ]
    if columns >= {"instruction", "output"}:
        more = _text(row, "input") if row.get("input") else ""
        asked = _text(row, "instruction") + (f"\n\n{more}" if more else "")
        return _pair(asked, _text(row, "output"))
    if columns >= {"question", "deepseek_thinking_trajectory", "deepseek_attempt"}:
        answer = [_text(row, f"deepseek_{key}") for key in ("thinking_trajectory", "attempt")]
        return _pair(_text(row, "question"), "\n\n".join(answer))
    for asked, answered in (("question", "solution"), ("prompt", "completion")):
        if columns >= {asked, answered}:
            return _pair(_text(row, asked), _text(row, answered))
    raise RowError(f"a row must have {'; or '.join(FORMS)}. Found {', '.join(sorted(columns))}.")


def _pair(asked: str, answered: str) -> list[Turn]:
    return [Turn("user", asked), Turn("assistant", answered)]


def _turn(said: Any, role: str, content: str) -> Turn:
    if not isinstance(said, Mapping) or said.get(role) not in SPEAKERS:
        raise RowError(f"a turn must have {role!r}, one of {', '.join(SPEAKERS)}. Found {said}.")
    return Turn(SPEAKERS[said[role]], _text(said, content))


def _list(row: Mapping[str, Any], column: str) -> list[Any]:
    if not isinstance(row[column], list):
        raise RowError(f"{column} must be a list. Found {type(row[column]).__name__}.")
    return list(row[column])


def _text(row: Mapping[str, Any], column: str) -> str:
    if not isinstance(row.get(column), str):
        raise RowError(f"{column} must be text. Found {row.get(column)!r}.")
    return str(row[column])


def read_rows(content: bytes, file: str, source: str) -> list[Conversation]:
    """The conversations in a ``.jsonl`` file (a row on each line) or a ``.json`` file (a list).

    Args:
        content: The bytes of the file.
        file: Its name, for the messages; its ending tells the form.
        source: What the conversations name as their source.

    Raises:
        DataError: it is empty or damaged, or a row has no known form; with the number of the row.
    """
    found = []
    for number, row in enumerate(decode_rows(content, file), start=1):
        try:
            found.append(parse_row(row, source))
        except ValueError as error:
            raise DataError(f"Row {number} of {file} is not as expected: {error}") from error
    kept = [one for one in found if one is not None]
    if not kept:
        raise DataError(f"{file} must hold conversations with answers. Found none.")
    return kept


def decode_rows(content: bytes, file: str) -> list[Any]:
    """The rows in a ``.jsonl`` or ``.json`` file, whatever they are.

    Raises:
        DataError: it cannot be read as such.
    """
    try:
        text = content.decode("utf-8")
        if file.endswith(".jsonl"):
            # Not splitlines(): text in JSON may hold other signs that end a line.
            return [json.loads(line) for line in text.split("\n") if line.strip()]
        rows = json.loads(text)
    except ValueError as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise DataError(f"{file} cannot be read: {error}.") from error
    if not isinstance(rows, list):
        raise DataError(f"{file} must hold a list. Found {type(rows).__name__}.")
    return rows
