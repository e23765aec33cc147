"""Where two texts meet, the tokens are those of both together, for tokenizers of every design."""

import pytest

from data.seams import decode_after, encode_after, encode_endings, encode_words
from data.templates import NAMES, render
from data.tokenizer_training import train_tokenizer
from tests.designs import DESIGNS, design

PROMPTS = ("review: the cat sat\nlabel:", "label", "label: ", "a mat\n\n", "(a dog")
ENDINGS = (" good", " bad", "s", "\n\nreview", ": label", ")")
every_design = pytest.mark.parametrize("name", DESIGNS)


@every_design
@pytest.mark.parametrize("prompt", PROMPTS)
def test_choices_have_the_tokens_of_prompt_and_choice_together(name, prompt):
    tokenizer = design(name)
    context, endings = encode_endings(tokenizer.encode, prompt, ENDINGS)
    for ending, tokens in zip(ENDINGS, endings, strict=True):
        assert [*context, *tokens] == tokenizer.encode(prompt + ending) and tokens
    assert context == tokenizer.encode(prompt)[: len(context)]


@every_design
def test_a_choice_after_a_word_is_the_rest_of_the_joint_tokens(name):
    tokenizer = design(name)
    context, endings = encode_endings(tokenizer.encode, PROMPTS[0], [" good", " bad"])
    assert context == tokenizer.encode(PROMPTS[0])
    assert endings == [tokenizer.encode(PROMPTS[0] + choice)[len(context) :] for choice in (" good", " bad")]


@every_design
@pytest.mark.parametrize("text", [" sat", "sat", "\nsat", " good bad"])
def test_text_after_a_word_or_a_line_has_no_mark_of_a_start(name, text):
    tokenizer = design(name)
    for before in ("the cat", "the cat:\n"):
        joint = tokenizer.encode(before + text)
        tokens = encode_after(tokenizer.encode, before, text)
        head = tokenizer.encode(before)
        assert tokens == joint[len(head) :] or joint[: len(head)] != head
        assert tokenizer.decode([*head, *tokens]) == tokenizer.decode(joint)


def test_a_token_is_not_shared_by_two_turns():
    """A merge of "\\n" and "\\n\\n" would take the last token of the prompt away."""
    tokenizer = design("byte-level BPE")
    assert tokenizer.encode("label:\n\n\nbad")[:3] != tokenizer.encode("label:\n")[:3]
    tokens = encode_after(tokenizer.encode, "label:\n", "\n\nbad")
    assert tokens == tokenizer.encode("\n\nbad") and tokenizer.decode(tokens) == "\n\nbad"


@every_design
@pytest.mark.parametrize("words", [["the", "cat", "sat"], ["cat", ",", "dog", "(a)"], ["on", "", "\u200b", "mat"]])
def test_words_have_the_tokens_of_the_sentence(name, words):
    tokenizer = design(name)
    tokens, ends = encode_words(tokenizer, words)
    assert tokens == tokenizer.encode(" ".join(words)) and len(ends) == len(words)
    assert ends == sorted(ends) and ends[-1] == len(tokens)
    for number, word in enumerate(words):
        assert (ends[number] > ([0, *ends][number])) == bool(tokenizer.encode(word.strip())) or word in ("", "\u200b")


def test_words_that_a_token_would_join_have_tokens_of_their_own():
    tokenizer = train_tokenizer("bpe:300", ["x"])
    layout = tokenizer.serialized.replace('"use_regex":true', '"use_regex":false').replace("[]", "[]")
    assert layout != tokenizer.serialized
    joined = design("byte-level BPE").__class__(layout, 1, 2, 0)
    tokens, ends = encode_words(joined, ["a", "b", "a"])
    assert len(set(ends)) == 3 and joined.decode(tokens) == "a b a"


@every_design
def test_decoded_parts_are_the_decoded_text(name):
    tokenizer = design(name)
    text = "the cat sat on a mat. review: good"
    ids = tokenizer.encode(text)
    for cut in range(len(ids) + 1):
        parts = tokenizer.decode(ids[:cut]) + decode_after(tokenizer, ids[:cut], ids[cut:])
        assert parts == tokenizer.decode(ids)


@every_design
@pytest.mark.parametrize("template", ["plain", "plain_chat", "chatml", "alpaca", "llama3"])
def test_the_first_word_of_an_answer_is_decoded_as_it_was_encoded(name, template):
    tokenizer = design(name)
    user = {"role": "user", "content": "the cat"}
    prompt = render([user], template, tokenizer, prompt=True).tokens
    for answer in ("good dog", "sat"):
        whole = render([user, {"role": "assistant", "content": answer}], template, tokenizer)
        assert whole.tokens[: len(prompt)] == prompt and not any(whole.mask[: len(prompt)])
        ids = [t for t, trained in zip(whole.tokens, whole.mask, strict=True) if trained][:-1]
        # The space before an answer can be a part of its first token.
        joined = name == "WordPiece" or template == "plain_chat"
        assert decode_after(tokenizer, prompt, ids).lstrip(" " if joined else "") == answer


@every_design
@pytest.mark.parametrize("template", NAMES)
def test_a_chat_has_the_tokens_of_its_text(name, template):
    source = (
        "{{ bos_token }}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}<|im_end|>\n{% endif %}"
        "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    tokenizer = design(name, source)
    contents = ("the cat sat", "good dog", "a mat", "bad: cat")
    chat = [{"role": ("user", "assistant")[i % 2], "content": text} for i, text in enumerate(contents)]
    whole = render(chat, template, tokenizer)
    texts = {
        **dict.fromkeys(
            ("plain", "plain_chat"),
            "<s>User: the cat sat\nAssistant: good dog</s>User: a mat\nAssistant: bad: cat</s>",
        ),
        "chatml": "<|im_start|>user\nthe cat sat<|im_end|>\n<|im_start|>assistant\ngood dog<|im_end|>\n"
        "<|im_start|>user\na mat<|im_end|>\n<|im_start|>assistant\nbad: cat<|im_end|>\n",
        "tokenizer": "<s><|im_start|>user\nthe cat sat<|im_end|>\n<|im_start|>assistant\ngood dog<|im_end|>"
        "<|im_start|>user\na mat<|im_end|>\n<|im_start|>assistant\nbad: cat<|im_end|>",
    }
    if template in texts:
        joint, _ = tokenizer.encode_with_specials(texts[template])
        assert whole.tokens == joint
    for end in (3,) if template == "plain" else (1, 3):
        prompt = render(chat[:end], template, tokenizer, prompt=True).tokens
        assert whole.tokens[: len(prompt)] == prompt
