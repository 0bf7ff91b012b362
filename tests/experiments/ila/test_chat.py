"""Conversations as tokens: what is masked, what is cut, and how batches are made."""

from types import SimpleNamespace

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from data_prep.common.conversations import Conversation, Turn
from experiments.ila.chat import (
    IGNORED,
    PLAIN_TEMPLATE,
    Example,
    batches,
    collate,
    context_length,
    encode_conversation,
    encode_conversations,
    encode_prompt,
    encode_text,
)
from experiments.models.language import byte_tokenizer, tiny_language_model


def pair(question, answer):
    return Conversation((Turn("user", question),), answer, "made")


@pytest.fixture(scope="module")
def tokenizer():
    return byte_tokenizer()


def text_of(tokens, tokenizer):
    return tokenizer.decode(tokens)


def test_the_prompt_is_masked_and_the_answer_with_its_end_learned(tokenizer):
    example = encode_conversation(pair("Hi", "Yes"), tokenizer)
    prompt = "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
    assert text_of(example.tokens, tokenizer) == prompt + "Yes<|im_end|>"
    assert example.prompt_length == 1 + 4 + 1 + 2 + 1 + 1 + 1 + 9 + 1
    batch = collate([example], tokenizer)
    answer = example.tokens[example.prompt_length :]
    assert text_of(answer, tokenizer) == "Yes<|im_end|>"
    assert batch["labels"].tolist() == [[IGNORED] * example.prompt_length + list(answer)]
    assert batch["attention_mask"].all()


def test_all_earlier_turns_are_masked(tokenizer):
    turns = (Turn("system", "S"), Turn("user", "a"), Turn("assistant", "b"), Turn("user", "c"))
    example = encode_conversation(Conversation(turns, "d", "made"), tokenizer)
    assert text_of(example.tokens[example.prompt_length :], tokenizer) == "d<|im_end|>"


def test_the_answer_continues_the_very_tokens_of_the_prompt(tokenizer):
    """Also where the tokenizer would join the last letter of one and the first of the other."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    space, line = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(" \n")[0][0]
    marks = ["<|pad|>", "<|im_start|>", "<|im_end|>"]
    vocabulary = {token: i for i, token in enumerate([*marks, *letters, line + space])}
    joining = Tokenizer(models.BPE(vocab=vocabulary, merges=[(line, space)]))
    joining.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    joining.decoder = decoders.ByteLevel()
    special = PreTrainedTokenizerFast(
        tokenizer_object=joining, pad_token=marks[0], bos_token=marks[1], eos_token=marks[2],
        chat_template=tokenizer.chat_template,
    )  # fmt: skip
    one = pair("Hi", "  return x")
    prompt = encode_prompt(one, special)
    together = special(special.apply_chat_template(one.messages, tokenize=False))["input_ids"]
    assert together[: len(prompt)] != prompt  # the case that is meant
    example = encode_conversation(one, special)
    assert list(example.tokens[: example.prompt_length]) == prompt
    assert special.decode(example.tokens[len(prompt) :]) == "  return x<|im_end|>"


def test_without_a_template_the_plain_one_is_used(tokenizer):
    bare = byte_tokenizer()
    bare.chat_template = None
    example = encode_conversation(pair("Hi", "Yes"), bare)
    text = text_of(example.tokens, bare)
    assert text == "<|im_start|>### user:\nHi\n\n### assistant:\nYes<|im_end|>"
    assert text_of(example.tokens[example.prompt_length :], bare) == "Yes<|im_end|>"
    bare.bos_token = None
    assert text_of(encode_prompt(pair("Hi", "Yes"), bare), bare).startswith("### user:")
    assert tokenizer.chat_template != PLAIN_TEMPLATE


def test_a_template_that_rewrites_the_prompt_is_refused():
    odd = byte_tokenizer()
    odd.chat_template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ValueError, match="must write the prompt in the same way"):
        encode_conversation(pair("Hi", "Yes"), odd)
    odd.chat_template = "{{ raise_exception('no system turn') }}"
    with pytest.raises(ValueError, match=r"refuses turns of \['user'\]: no system turn"):
        encode_conversation(pair("Hi", "Yes"), odd)


def test_what_is_too_long_is_shortened_dropped_or_refused(tokenizer):
    short, long, longest = pair("a", "b"), pair("a", "b" * 50), pair("a" * 50, "b")
    length = len(encode_conversation(short, tokenizer))
    found = encode_conversations(
        [short, long, longest], tokenizer, context=512, max_tokens=length + 3
    )
    assert (found.dropped, found.shortened) == (1, 1)
    assert [len(example) for example in found.examples] == [length, length + 3]
    assert text_of(found.examples[1].tokens[found.examples[1].prompt_length :], tokenizer) == (
        "b" * 5  # one for the b, one for the mark, and three more
    )
    whole = encode_conversations([short, long, longest], tokenizer, context=512)
    assert (len(whole.examples), whole.dropped, whole.shortened) == (3, 0, 0)
    with pytest.raises(ValueError, match=r"of made has \d+ tokens, and the model reads 40 at most"):
        encode_conversations([short, long], tokenizer, context=40)
    with pytest.raises(ValueError, match=r"max_tokens must lie in \[2, 40\]. Found max_tokens=41"):
        encode_conversations([short], tokenizer, context=40, max_tokens=41)
    with pytest.raises(ValueError, match="with an answer within max_tokens=30. Found none in 1"):
        encode_conversations([longest], tokenizer, context=40, max_tokens=30)
    with pytest.raises(ValueError, match="Found none in 0"):
        encode_conversations([], tokenizer, context=40)


def test_an_example_whose_last_prompt_token_is_the_limit_has_no_answer(tokenizer):
    one = pair("a", "b")
    limit = encode_conversation(one, tokenizer).prompt_length
    with pytest.raises(ValueError, match="Found none"):
        encode_conversations([one], tokenizer, context=512, max_tokens=limit)
    kept = encode_conversations([one], tokenizer, context=512, max_tokens=limit + 1)
    assert len(kept.examples[0]) - kept.examples[0].prompt_length == 1


def test_texts_are_learned_from_their_first_token(tokenizer):
    examples = encode_text(["abcdef", "", "xy"], tokenizer, max_tokens=4)
    assert [text_of(e.tokens, tokenizer) for e in examples] == ["abcd", "xy"]
    labels = collate(examples, tokenizer)["labels"]
    assert (labels == IGNORED).sum() == 2
    with pytest.raises(ValueError, match="max_tokens must be at least 2"):
        encode_text(["ab"], tokenizer, max_tokens=1)
    with pytest.raises(ValueError, match="texts must hold one of 2 tokens"):
        encode_text(["a"], tokenizer, max_tokens=4)


def test_what_fills_up_a_row_changes_no_loss(tokenizer):
    model, _ = tiny_language_model()
    long, short = (
        encode_conversation(pair("Question", answer), tokenizer) for answer in ("A" * 40, "B")
    )
    with torch.no_grad():
        alone = [model(**collate([e], tokenizer)).loss for e in (long, short)]
        both = model(**collate([long, short], tokenizer)).loss
    targets = torch.tensor([41.0, 2.0])  # the answer and its end mark
    expected = (torch.stack(alone) * targets).sum() / targets.sum()
    assert both.item() == pytest.approx(expected.item(), rel=1e-5)


def test_the_loss_is_that_of_the_answer_alone(tokenizer):
    """By hand: minus the log-probability of each token of the answer, on average."""
    model, _ = tiny_language_model()
    example = encode_conversation(pair("Hi", "Yes"), tokenizer)
    batch = collate([example], tokenizer)
    with torch.no_grad():
        found = model(**batch).loss
        logits = model(batch["input_ids"]).logits[0].log_softmax(-1)
    terms = [-logits[i - 1, example.tokens[i]] for i in range(example.prompt_length, len(example))]
    assert found.item() == pytest.approx(torch.stack(terms).mean().item(), rel=1e-5)


@pytest.fixture(scope="module")
def examples():
    """Thirteen examples that differ in length and first token."""
    return [Example(tuple([10 + i] * (3 + i * 7 % 13)), 1) for i in range(13)]


def firsts(made):
    return [int(row[0]) - 10 for batch in made for row in batch["input_ids"]]


def test_an_epoch_has_each_example_once_in_an_order_of_its_seed(examples, tokenizer):
    made = batches(examples, 4, tokenizer, seed=1)
    assert [len(batch["labels"]) for batch in made] == [4, 4, 4, 1]
    assert sorted(firsts(made)) == list(range(13))
    assert firsts(made) != list(range(13))
    assert firsts(made) == firsts(batches(examples, 4, tokenizer, seed=1))
    assert firsts(made) != firsts(batches(examples, 4, tokenizer, seed=2))
    assert firsts(batches(examples, 4, tokenizer, seed=None)) == list(range(13))
    twice = firsts(batches(examples, 4, tokenizer, seed=1, epochs=2))
    assert twice[:13] == firsts(made)
    assert sorted(twice[13:]) == list(range(13))
    assert twice[13:] != twice[:13]


def test_steps_give_full_batches_that_go_on_over_the_epochs(examples, tokenizer):
    made = batches(examples, 4, tokenizer, seed=1, steps=10)
    assert [len(batch["labels"]) for batch in made] == [4] * 10
    assert firsts(made) == firsts(batches(examples, 4, tokenizer, seed=1, epochs=4))[:40]
    fewer = batches(examples, 4, tokenizer, seed=1, steps=2)
    assert firsts(fewer) == firsts(made)[:8]


@pytest.mark.parametrize("seed", [None, 0, 3])
def test_similar_lengths_together_lose_nothing_and_fill_up_less(seed, examples, tokenizer):
    mixed = batches(examples, 4, tokenizer, seed=seed)
    sorted_ = batches(examples, 4, tokenizer, seed=seed, by_length=True)
    assert sorted(firsts(sorted_)) == list(range(13))
    assert [len(batch["labels"]) for batch in sorted_] == [4, 4, 4, 1]

    def filled(made):
        return sum(int((1 - batch["attention_mask"]).sum()) for batch in made)

    assert filled(sorted_) < filled(mixed)


def test_rows_are_filled_up_on_the_right(examples, tokenizer):
    batch = collate([examples[0], examples[1]], tokenizer)
    assert batch["input_ids"].tolist()[0] == [10] * 3 + [tokenizer.pad_token_id] * 7
    assert batch["attention_mask"].tolist()[0] == [1] * 3 + [0] * 7
    assert batch["labels"].tolist()[0] == [IGNORED] + [10] * 2 + [IGNORED] * 7
    assert all(value.dtype == torch.int64 for value in batch.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 14}, r"batch_size must lie in \[1, 13\].* Found batch_size=14"),
        ({"batch_size": 0}, "Found batch_size=0"),
        ({"steps": 1, "epochs": 1}, "Give steps or epochs. Found steps=1 and epochs=1"),
        ({"steps": 0}, "steps must be at least 1. Found steps=0"),
        ({"epochs": 0}, "epochs must be at least 1. Found epochs=0"),
    ],
)
def test_impossible_batches_are_refused(changes, message, examples, tokenizer):
    with pytest.raises(ValueError, match=message):
        batches(examples, tokenizer=tokenizer, **{"batch_size": 4} | changes)


def test_no_examples_and_no_padding_token_are_refused(examples, tokenizer):
    bare = byte_tokenizer()
    bare.pad_token = None
    for arguments in (([], tokenizer), (examples, bare)):
        with pytest.raises(ValueError, match="needs examples, and a tokenizer with a padding"):
            collate(*arguments)


def test_the_context_is_that_of_the_configuration():
    model, _ = tiny_language_model()
    assert context_length(model) == 512
    with pytest.raises(ValueError, match="SimpleNamespace must have max_position_embeddings"):
        context_length(SimpleNamespace(config=SimpleNamespace()))
