"""Conversations in FastChat's format: answers of a model, and a judge's grades of them."""

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
    write_answers,
)
from experiments.models.language import tiny_language_model

TURNS = ("Write a poem.", "Make it shorter.")
TWO_TURNS = Question(question_id=81, category="writing", turns=TURNS, reference=("Ah,", "A"))
ONE_TURN = Question(question_id=1, turns=("Why is the sky blue?",))


def answer(question, *turns, model="m"):
    return Answer(question_id=question, model_id=model, choices=[{"turns": turns}])


def test_questions_in_both_published_forms(tmp_path):
    path = tmp_path / "question.jsonl"
    multi = {"question_id": 81, "category": "writing", "turns": TURNS, "reference": ["Ah,", "A"]}
    single = {"question_id": 1, "text": "Why is the sky blue?"}
    path.write_text(f"{json.dumps(multi)}\n\n{json.dumps(single)}\n")
    assert read_questions(path) == [TWO_TURNS, ONE_TURN]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"question_id": 1}\n', "Line 1 of .*turns"),
        ('{"turns": ["a"]}\n', "Line 1 of .*question_id"),
        ('{"question_id": 1, "turns": [2]}\n', "Line 1 of .*turns"),
        ('{"question_id": 1, "turns": []}\n', "Line 1 of .*turns"),
        ('{"question_id": 1, "turns": ["a"]}\n{nonsense\n', "Line 2 of .*JSON"),
        ("[1]\n", "Line 1 of "),
        ("\n", "Found none"),
    ],
)
def test_bad_questions(tmp_path, text, message):
    path = tmp_path / "question.jsonl"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"(?s){message}"):
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
    again = answer_questions(model, tokenizer, [TWO_TURNS], name="tiny", max_new_tokens=6)
    assert again == answers == [answer(81, first, second, model="tiny")]


def test_answers_end_where_the_context_ends():
    model, tokenizer = tiny_language_model()
    long, too_long = (Question(question_id=7, turns=("x" * size,)) for size in (470, 600))
    # With marks and names the first takes some 500 of 512 tokens.
    answers = answer_questions(model, tokenizer, [long], name="tiny", max_new_tokens=100)
    assert len(answers[0].turns) == 1
    with pytest.raises(ValueError, match="Question 7"):
        answer_questions(model, tokenizer, [too_long], name="tiny")


def test_answers_need_a_chat_model():
    model, tokenizer = tiny_language_model()
    with pytest.raises(ValueError, match="max_new_tokens=0"):
        answer_questions(model, tokenizer, [ONE_TURN], name="tiny", max_new_tokens=0)
    tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat template"):
        answer_questions(model, tokenizer, [ONE_TURN], name="tiny")


def test_answers_come_back_from_a_file_in_the_published_format(tmp_path):
    answers = [answer(81, "Ü\n1", "2"), answer(1, "3")]
    path = tmp_path / "answers" / "m.jsonl"
    write_answers(path, answers)
    assert read_answers(path) == answers
    choices = [{"index": 0, "turns": ["Ü\n1", "2"]}]
    first = json.loads(path.read_text().splitlines()[0])
    assert first == {"question_id": 81, "model_id": "m", "choices": choices}
    path.write_text('{"question_id": 1, "model_id": "m", "choices": []}\n')
    with pytest.raises(ValueError, match="(?s)Line 1 of .*choices"):
        read_answers(path)


def test_the_judge_sees_question_answer_and_reference():
    asked = []

    def judge(question, said, reference):
        asked.append((question, said, reference))
        return len(said)

    answers = [answer(81, "four", "sixsix"), answer(1, "ten chars.")]
    grades = grade_answers([TWO_TURNS, ONE_TURN], answers, judge)
    conversation = "User: Write a poem.\n\nAssistant: four\n\nUser: Make it shorter."
    assert asked == [
        ("Write a poem.", "four", "Ah,"),
        (conversation, "sixsix", "A"),
        ("Why is the sky blue?", "ten chars.", None),
    ]
    writing = [Grade(81, "writing", 1, 4), Grade(81, "writing", 2, 6)]
    assert grades == [*writing, Grade(1, "", 1, 10)]
    means = {"all": 20 / 3, "turn 1": 7, "turn 2": 6, "writing": 5}
    assert mean_grades(grades) == pytest.approx(means)


@pytest.mark.parametrize("grade", [0, 11, float("nan")])
def test_grades_outside_the_scale(grade):
    with pytest.raises(ValueError, match=f"Found {grade} for turn 1 of question 1"):
        grade_answers([ONE_TURN], [answer(1, "a")], lambda *_: grade)


@pytest.mark.parametrize("other", [answer(2, "a"), answer(1, "a", "b")])
def test_answers_to_other_questions(other):
    with pytest.raises(ValueError, match=f"Found one to {other.question_id} with"):
        grade_answers([ONE_TURN], [other], lambda *_: 5)
    with pytest.raises(ValueError, match="grades must hold at least one"):
        mean_grades([])


def test_a_judges_reply():
    replies = {"[[7]]": 7, "Rating: [[ 8.5 ]]": 8.5, "[[10]]!": 10, "A [[3]] at first, [[4]]": 4}
    assert {text: parse_grade(text) for text in replies} == replies
    for text in ("", "[7]", "seven", "[[x]]", "[[-3]]"):
        with pytest.raises(ValueError, match="must hold a grade"):
            parse_grade(text)
    prompt = judge_prompt("Why?", "Because.", "Physics.")
    assert all(part in prompt for part in ("Why?", "Because.", "Physics.", "[[5]]"))
    assert "compare" not in judge_prompt("Why?", "Because.", None)
