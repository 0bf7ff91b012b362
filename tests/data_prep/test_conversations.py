"""Conversations: what is read, how it is split, and the generated tasks."""

import gzip
import json
from dataclasses import replace

import pytest

from data_prep import chatterbot, checksums, human_eval, is_current, moby_dick, reasoning
from data_prep.common import conversations as module
from data_prep.common.conversations import (
    SPLITS,
    Conversation,
    Turn,
    conversation,
    digest,
    split_conversations,
)
from data_prep.common.files import DataError
from data_prep.common.instructions import parse_row, read_rows
from data_prep.reasoning import FAMILIES, reasoning_tasks
from data_prep.texts import CONVERSATION_SETS, load_conversations, load_text
from tests.data_prep.small_set import known_files, write_files


def pair(question, answer, source="made"):
    return Conversation((Turn("user", question),), answer, source)


def questions(found):
    return [one.prompt[-1].content for one in found]


MANY = [pair(f"Question {i}?", f"Answer {i}.") for i in range(50)]


def test_a_conversation_has_the_form_of_chat_templates():
    one = pair("Hello", "Hi")
    assert one.prompt_messages == [{"role": "user", "content": "Hello"}]
    assert one.messages[1:] == [{"role": "assistant", "content": "Hi"}]


def test_the_last_answer_is_learned_and_what_follows_left_out():
    turns = [Turn("system", "S"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c")]
    assert conversation(turns, "made") == Conversation(tuple(turns[:2]), "b", "made")
    assert conversation([*turns, Turn("assistant", "d")], "made").answer == "d"
    assert conversation(turns[:2], "made") is None
    assert conversation([Turn("user", "a"), Turn("assistant", "  ")], "made") is None
    with pytest.raises(ValueError, match="must follow the user. Found 'assistant'"):
        conversation([*turns[:3], Turn("assistant", "e")], "made")
    with pytest.raises(ValueError, match="role must be system, user or assistant. Found 'bot'"):
        conversation([Turn("bot", "a")], "made")


def test_splits_take_fixed_parts_whatever_the_order():
    parts = {split: split_conversations(MANY, split) for split in SPLITS}
    assert {split: len(found) for split, found in parts.items()} == {
        "train": 35, "validation": 5, "test": 10,
    }  # fmt: skip
    assert sorted(q for found in parts.values() for q in questions(found)) == sorted(
        questions(MANY)
    )
    assert parts["test"] == split_conversations(MANY[::-1], "test")
    assert questions(parts["test"])[:3] == ["Question 49?", "Question 1?", "Question 11?"]


def test_one_question_more_moves_hardly_any_other():
    """The splits of a set that grows a little stay nearly the same."""
    before = set(questions(split_conversations(MANY, "test")))
    after = set(questions(split_conversations([*MANY, pair("New?", "Yes, new")], "test")))
    assert len(before & after) >= 9


def test_all_answers_to_a_question_are_in_one_split():
    twice = [*MANY, *(pair(f"question  {i}", f"Other {i}") for i in range(50))]
    for split in SPLITS:
        found = split_conversations(twice, split)
        numbers = {q.casefold().strip("?").split()[-1] for q in questions(found)}
        assert len(found) == 2 * len(numbers)


def test_no_held_out_answer_is_in_another_split():
    """Half of the questions share one of five answers, and differ in how it is written."""
    forms = ("Yes.", "yes", " YES ", "Yes!")
    shared = [pair(f"Shared {i}?", f"{forms[i % 4]}{i % 5}"[::-1]) for i in range(50)]
    parts = {split: split_conversations([*MANY, *shared], split) for split in SPLITS}
    plain = {split: {module._plain(c.answer) for c in found} for split, found in parts.items()}
    assert not plain["test"] & plain["train"]
    assert not plain["validation"] & (plain["train"] | plain["test"])
    assert len(parts["train"]) > 50  # and training loses nothing


def test_repetitions_are_taken_once():
    again = [*MANY, *(pair(f" question {i}", f"answer {i}") for i in range(50))]
    for split in SPLITS:
        assert split_conversations(again, split) == split_conversations(MANY, split)


def test_too_small_a_set_is_refused():
    with pytest.raises(DataError, match="made must have 3 different questions. Found 2"):
        split_conversations([pair("a", "1"), pair("A ", "2"), pair("b", "3")], "train", "made")
    same = [pair(str(i), "the same") for i in range(5)]
    assert split_conversations(same, "train")
    with pytest.raises(DataError, match="all answers of its test split are in another"):
        split_conversations(same, "test")


FORMS = {
    "no_robots": {"prompt": "Q", "prompt_id": "0", "category": "Chat", "messages": [
        {"role": "system", "content": "S"}, {"role": "user", "content": "Q"},
        {"role": "assistant", "content": "A"}]},
    "lima": {"conversations": ["Q", "A"], "source": "stackexchange"},
    "sharegpt": {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
    "alpaca_gpt4": {"instruction": "Q", "input": "", "output": "A", "text": "..."},
    "limo": {"question": "Q", "solution": "A", "answer": "7"},
    "own": {"prompt": "Q", "completion": "A"},
}  # fmt: skip


@pytest.mark.parametrize("name", FORMS)
def test_the_form_of_each_set_is_known(name):
    one = parse_row(FORMS[name], name)
    assert (one.prompt[-1], one.answer, one.source) == (Turn("user", "Q"), "A", name)
    assert (one.prompt[0].role == "system") == (name == "no_robots")


def test_further_parts_of_a_row_are_joined():
    row = {"instruction": "Sort.", "input": "b, a", "output": "a, b"}
    assert parse_row(row, "x").prompt[0].content == "Sort.\n\nb, a"
    row = {"question": "Q", "solution": "S", "deepseek_thinking_trajectory": "Hm.",
           "deepseek_attempt": "7"}  # fmt: skip
    assert parse_row(row, "s1k").answer == "Hm.\n\n7"
    assert parse_row({"conversations": ["only a question"]}, "lima") is None


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"a": 1, "b": 2}, r"a row must have messages .*; or prompt and completion\. Found a, b"),
        ({"conversations": "text"}, "conversations must be a list. Found str"),
        ({"instruction": "Q", "output": None}, "output must be text. Found None"),
        ({"messages": [{"role": "bot", "content": "A"}]}, "a turn must have 'role', one of human"),
    ],
)
def test_other_rows_are_refused(row, message):
    with pytest.raises(ValueError, match=message):
        parse_row(row, "made")


def test_a_file_is_read_line_by_line_or_as_a_list(tmp_path):
    rows = [{"prompt": f"Q{i}\u2028", "completion": f"A{i}"} for i in range(9)]
    lines = tmp_path / "own.jsonl"
    lines.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n\n")
    (tmp_path / "own.json").write_text(json.dumps(rows))
    for split in SPLITS:
        found = load_conversations(str(lines), split)
        assert found == load_conversations(str(tmp_path / "own.json"), split)
        assert {one.source for one in found} == {"own"}
    assert list(checksums(str(lines))) == ["own.jsonl"]
    assert len(load_conversations(str(lines), "train", size=2)) == 2
    with pytest.raises(ValueError, match="size must be at most 6, the train .* Found size=7"):
        load_conversations(str(lines), "train", size=7)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "own.jsonl must hold conversations with answers. Found none"),
        (b'{"prompt": "a"', "own.jsonl cannot be read"),
        (b"\xff\xfe", "own.jsonl cannot be read"),
        (b'{"prompt": "a", "completion": "b"}\n[1]', "Row 2 of own.jsonl is not as expected"),
    ],
)
def test_a_damaged_file_is_told(content, message):
    with pytest.raises(DataError, match=message):
        read_rows(content, "own.jsonl", "own")
    with pytest.raises(DataError, match="must hold a list. Found dict"):
        read_rows(b"{}", "own.json", "own")


def test_unknown_names_and_splits_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"name must be one of chatterbot, .*Found name='lma'"):
        load_conversations("lma", "train")
    with pytest.raises(ValueError, match="name must be 'moby_dick'. Found name='lima'"):
        load_text("lima")
    with pytest.raises(DataError, match=r"There is no file .*none\.jsonl"):
        load_conversations(str(tmp_path / "none.jsonl"), "train")
    for name in CONVERSATION_SETS:
        with pytest.raises(ValueError, match="split must be one of train, .* Found split='val'"):
            load_conversations(name, "val", root=tmp_path)
    with pytest.raises(ValueError, match="size must be at least 1. Found size=0"):
        load_conversations("chatterbot", "test", size=0)


@pytest.mark.parametrize("name", [n for n in CONVERSATION_SETS if n != "reasoning"])
def test_a_set_that_is_not_prepared_names_the_command(name, tmp_path):
    with pytest.raises(DataError, match=f"run: python -m data_prep.{name}$"):
        load_conversations(name, "train", root=tmp_path)


@pytest.fixture
def small_files(monkeypatch, tmp_path):
    """Dialogues, programs and a text in the forms of the real files."""
    talk = "categories:\n- t\nconversations:\n- - Hello\n  - Hi\n  - How are you?\n  - Fine.\n"
    talk += "".join(f"- - Question {i}\n  - '{i}'\n" for i in range(20)) + "- no answer\n"
    programs = [
        {"task_id": f"HumanEval/{i}", "prompt": f'\n\ndef f{i}(x):\n    """Add."""\n',
         "entry_point": f"f{i}", "canonical_solution": f"    return x + {i}\n", "test": "assert"}
        for i in range(10)
    ]  # fmt: skip
    packed = gzip.compress("".join(json.dumps(p) + "\n" for p in programs).encode(), mtime=0)
    paragraphs = ["CHAPTER 1.", "Call me\nIshmael. " * 20, "short", "whale " * 50]
    text = "\n\n".join(paragraphs).encode()
    for form, files in (
        (chatterbot, {"talk.yml": talk.encode()}),
        (human_eval, {"HumanEval.jsonl.gz": packed}),
        (moby_dick, {"moby_dick.txt": text}),
    ):
        write_files(tmp_path / form.DATA.name, files)
        monkeypatch.setattr(form, "DATA", replace(form.DATA, files=known_files(files)))
    return tmp_path


def all_of(name, root):
    return [c for split in SPLITS for c in load_conversations(name, split, root=root)]


def test_dialogues_alternate_and_end_with_the_second_side(small_files):
    found = {c.prompt[-1].content: c for c in all_of("chatterbot", small_files)}
    assert len(found) == 21
    longest = found["How are you?"]
    assert [turn.role for turn in longest.prompt] == ["user", "assistant", "user"]
    assert (longest.answer, longest.source) == ("Fine.", "chatterbot/talk")


def test_programs_keep_their_indentation(small_files):
    found = all_of("human_eval", small_files)
    assert len(found) == 10
    start = 'Complete this Python function.\n\ndef f3(x):\n    """Add."""'
    (third,) = [c for c in found if c.prompt[0].content == start]
    assert third.answer == "    return x + 3"


def test_a_text_gives_its_longer_paragraphs_as_one_line_each(small_files):
    first, second = load_text(root=small_files)
    assert first.startswith("Call me Ishmael. Call me")
    assert second == ("whale " * 50).strip()


def test_an_altered_file_is_told(small_files):
    path = small_files / "human_eval/HumanEval.jsonl.gz"
    path.write_bytes(path.read_bytes()[:-1] + b"?")
    with pytest.raises(DataError, match="is altered: its SHA-256"):
        load_conversations("human_eval", "test", root=small_files)


@pytest.mark.parametrize(
    ("name", "numbers", "expected"),
    [
        ("chatterbot", (635, 85, 165), "2b6e695aab02"),
        ("human_eval", (115, 16, 33), "68f1d437d2d9"),
    ],
)
def test_the_splits_of_the_real_sets_never_change(name, numbers, expected):
    if not is_current(name):
        pytest.skip(f"{name} is not prepared here")
    assert tuple(len(load_conversations(name, split)) for split in SPLITS) == numbers
    assert digest(load_conversations(name, "test"))[:12] == expected


def test_tasks_follow_from_the_seed_and_are_verified():
    tasks = reasoning_tasks("train", families=list(FAMILIES), size=15, seed=3)
    assert [task.family for task in tasks] == list(FAMILIES) * 3
    for task in tasks:
        assert task.score(f" {task.answer}\n") == 1
        assert task.score("no") < 1
        assert task.conversation.prompt == (Turn("user", task.question),)
    assert tasks == reasoning_tasks("train", families=list(FAMILIES), size=15, seed=3)
    # What is generated does not depend on how much of it is asked for.
    assert tasks[:5] == reasoning_tasks("train", families=list(FAMILIES), size=5, seed=3)
    known = digest([t.conversation for t in reasoning_tasks("test", size=20)])
    assert known == digest(load_conversations("reasoning", "test", size=20))


def test_no_seed_puts_a_held_out_question_into_another_split():
    """Two-digit sums, of which there are few: nearly each one would occur on both sides."""
    found = {
        (split, seed): {
            t.question for t in reasoning_tasks(split, families=["gcd"], size=150, seed=seed)
        }
        for split in SPLITS
        for seed in (0, 1)
    }
    for split in SPLITS:
        own = found[split, 0] | found[split, 1]
        others = [found[other, seed] for other in SPLITS if other != split for seed in (0, 1)]
        assert not own & set().union(*others)
    assert found["train", 0] != found["train", 1]
    assert all(len(tasks) == 150 for tasks in found.values())  # no repetition


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"families": ["sudoku"]}, r"families must be among chain_sum, .* Found 'sudoku'"),
        ({"families": []}, r"families must be among .* Found \[\]"),
        ({"size": 0}, "size must be positive"),
        ({"seed": -1}, "seed not negative"),
        ({"split": "dev"}, "split must be one of"),
        ({"families": ["gcd"], "size": 5000}, "enough different test tasks of gcd. Found size=5"),
    ],
)
def test_impossible_tasks_are_refused(changes, message, monkeypatch):
    monkeypatch.setattr(reasoning, "PATIENCE", 3)
    with pytest.raises(ValueError, match=message):
        reasoning_tasks(**{"split": "test"} | changes)
