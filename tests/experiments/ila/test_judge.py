"""Conversations: answers of a model, and a judge's grades of them."""

import json

import pytest
import torch

from experiments.ila.judge import (
    Answer,
    Grade,
    Question,
    answer_questions,
    grade_answers,
    judge_prompt,
    mean_grades,
    parse_grade,
    read_answers,
    read_questions,
    rows_of,
    write_answers,
)
from experiments.models.language import tiny_language_model

TWO_TURNS = Question(81, "writing", ("Write a poem.", "Make it shorter."), ("Ah,", "A"))
ONE_TURN = Question(1, "", ("Why is the sky blue?",))


def write_lines(path, *entries):
    path.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return path


def test_questions_in_both_published_forms(tmp_path):
    path = write_lines(
        tmp_path / "question.jsonl",
        {
            "question_id": 81,
            "category": "writing",
            "turns": ["Write a poem.", "Make it shorter."],
            "reference": ["Ah,", "A"],
        },
        {"question_id": 1, "text": "Why is the sky blue?"},
    )
    path.write_text(path.read_text() + "\n")
    assert read_questions(path) == [TWO_TURNS, ONE_TURN]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1}\n', r"Line 1 of .* has \['question_id'\]"),
        ('{"turns": ["a"]}\n', r"must have `question_id` and `turns`.*has \['turns'\]"),
        ('{"question_id": 1, "turns": [2]}\n', "must have `question_id` and `turns`"),
        ('{"question_id": 1, "turns": []}\n', "must have `question_id` and `turns`"),
        ('{"question_id": 1, "turns": ["a"]}\n{nonsense\n', "Line 2 of .* is not JSON"),
        ("[1]\n", r"Line 1 of .* must be an object. Found \[1\]"),
        ("\n", "must hold at least one. Found none"),
    ],
)
def test_bad_questions(tmp_path, text, message):
    path = tmp_path / "question.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        read_questions(path)


def test_missing_questions_say_where_they_are(tmp_path):
    with pytest.raises(FileNotFoundError, match="lm-sys/FastChat"):
        read_questions(tmp_path / "question.jsonl")


@torch.no_grad()
def by_hand(model, tokenizer, text, length):
    """Greedy continuation, one whole pass per token."""
    ids = tokenizer.encode(text)
    start = len(ids)
    while len(ids) - start < length and ids[-1] != tokenizer.eos_token_id:
        ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
    return tokenizer.decode(ids[start:], skip_special_tokens=True).strip()


def test_answers_are_greedy_and_see_what_was_said():
    model, tokenizer = tiny_language_model()
    model.train()
    answers = answer_questions(model, tokenizer, [TWO_TURNS], name="tiny", max_new_tokens=6)
    assert all(module.training for module in model.modules())
    model.eval()
    first, second = answers[0].turns
    start = "<|im_start|>user\nWrite a poem.<|im_end|>\n<|im_start|>assistant\n"
    assert first == by_hand(model, tokenizer, start, 6)
    later = f"{start}{first}<|im_end|>\n<|im_start|>user\nMake it shorter.<|im_end|>\n"
    assert second == by_hand(model, tokenizer, f"{later}<|im_start|>assistant\n", 6)
    assert answers == [Answer(81, "tiny", (first, second))]
    again = answer_questions(model, tokenizer, [TWO_TURNS], name="tiny", max_new_tokens=6)
    assert again == answers


def test_answers_end_where_the_context_ends():
    model, tokenizer = tiny_language_model()
    long = Question(7, "", ("x" * 470,))  # with marks and names some 500 of 512 tokens
    answers = answer_questions(model, tokenizer, [long], name="tiny", max_new_tokens=100)
    assert len(answers[0].turns) == 1
    with pytest.raises(ValueError, match="leave room for an answer. Question 7 takes"):
        answer_questions(model, tokenizer, [Question(7, "", ("x" * 600,))], name="tiny")


def test_answers_need_a_chat_model():
    model, tokenizer = tiny_language_model()
    with pytest.raises(ValueError, match="max_new_tokens must be at least 1"):
        answer_questions(model, tokenizer, [ONE_TURN], name="tiny", max_new_tokens=0)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="tokenizer must have a chat template"):
        answer_questions(model, tokenizer, [ONE_TURN], name="tiny")


def test_answers_come_back_from_the_file(tmp_path):
    answers = [Answer(81, "tiny", ("Ü\n1", "2")), Answer(1, "tiny", ("3",))]
    path = tmp_path / "answers" / "tiny.jsonl"
    write_answers(path, answers)
    assert read_answers(path) == answers
    first = json.loads(path.read_text().splitlines()[0])
    assert first["choices"] == [{"index": 0, "turns": ["Ü\n1", "2"]}]
    write_lines(path, {"question_id": 1, "model_id": "tiny", "choices": []})
    with pytest.raises(ValueError, match="Line 1 of .* has"):
        read_answers(path)


def test_the_judge_sees_question_answer_and_reference():
    asked = []

    def judge(question, answer, reference):
        asked.append((question, answer, reference))
        return len(answer)

    answers = [Answer(81, "m", ("four", "sixsix")), Answer(1, "m", ("ten chars.",))]
    grades = grade_answers([TWO_TURNS, ONE_TURN], answers, judge)
    conversation = "User: Write a poem.\n\nAssistant: four\n\nUser: Make it shorter."
    assert asked == [
        ("Write a poem.", "four", "Ah,"),
        (conversation, "sixsix", "A"),
        ("Why is the sky blue?", "ten chars.", None),
    ]
    assert grades == [
        Grade(81, "writing", 1, 4),
        Grade(81, "writing", 2, 6),
        Grade(1, "", 1, 10),
    ]
    means = {"all": 20 / 3, "turn 1": 7, "turn 2": 6, "writing": 5}
    assert mean_grades(grades) == pytest.approx(means)
    assert rows_of(grades)[0] == {"identity": 81, "category": "writing", "turn": 1, "grade": 4}


@pytest.mark.parametrize("grade", [0, 11, float("nan")])
def test_grades_outside_the_scale(grade):
    with pytest.raises(ValueError, match=r"A grade must lie in \[1, 10\].*turn 1 of question 1"):
        grade_answers([ONE_TURN], [Answer(1, "m", ("a",))], lambda *_: grade)


def test_answers_to_other_questions():
    for answer in (Answer(2, "m", ("a",)), Answer(1, "m", ("a", "b"))):
        with pytest.raises(ValueError, match="answers must be to these questions"):
            grade_answers([ONE_TURN], [answer], lambda *_: 5)
    with pytest.raises(ValueError, match="grades must hold at least one grade"):
        mean_grades([])


@pytest.mark.parametrize(
    ("text", "grade"),
    [
        ("[[7]]", 7),
        ("Well done. Rating: [[ 8.5 ]]", 8.5),
        ("[[10]]!", 10),
        ("A [[3]] at first, [[4]]", 4),
    ],
)
def test_parse_grade(text, grade):
    assert parse_grade(text) == grade


@pytest.mark.parametrize("text", ["", "[7]", "seven", "[[0]]", "[[11]]", "[[x]]", "[[-3]]"])
def test_no_grade(text):
    with pytest.raises(ValueError, match=r"must hold a grade from 1 to 10 such as \[\[7\]\]"):
        parse_grade(text)


def test_prompt_for_a_judge():
    prompt = judge_prompt("Why?", "Because.", "Physics.")
    assert all(part in prompt for part in ("Why?", "Because.", "Physics.", "[[5]]"))
    assert "compare" not in judge_prompt("Why?", "Because.", None)
