"""Built-in chat templates exported as Jinja write the same tokens and the same loss mask."""

import dataclasses

import pytest

from configs.errors import UserError
from data.chat_export import to_jinja
from data.jinja import has_generation
from data.templates import render
from data.tokenizer_training import train_tokenizer

BYTES = train_tokenizer("bytes", [])
TURNS = [("user", " hi\n"), ("assistant", "\nyes  "), ("user", "more {x} {{ y }}"), ("assistant", "no \"'\\ é")]
CHATS = {
    "one question": TURNS[:1],
    "question and answer": TURNS[:2],
    "system": [("system", " be brief "), *TURNS[:2]],
    "turns": TURNS,
    "system and turns": [("system", "be brief"), *TURNS],
    "third question": [*TURNS, ("user", "last")],
}
NAMES = ("plain", "plain_chat", "chatml", "llama3", "gemma", "alpaca")


def with_tokens():
    """The byte tokenizer with the tokens that the templates name."""
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(BYTES.serialized)
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>", "<|eot_id|>", "<|start_header_id|>", "<|end_header_id|>"])
    backend.add_special_tokens(["<start_of_turn>", "<end_of_turn>"])
    return dataclasses.replace(BYTES, serialized=backend.to_str())


TOKENIZERS = {"text": BYTES, "tokens": with_tokens()}


def chat(turns):
    return [{"role": role, "content": content} for role, content in turns]


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
@pytest.mark.parametrize("name", NAMES)
def test_the_exported_template_writes_the_same_tokens_and_mask(name, tokenizer):
    own = TOKENIZERS[tokenizer]
    jinja = dataclasses.replace(own, chat_template=to_jinja(name, own))
    assert has_generation(jinja.chat_template)
    for turns in CHATS.values():
        messages = chat(turns)
        for prompt in (True, False) if turns[-1][0] == "user" else (False,):
            assert render(messages, "tokenizer", jinja, prompt=prompt) == render(messages, name, own, prompt=prompt)


@pytest.mark.parametrize(
    ("name", "messages"),
    [
        ("chatml", [{"role": "tool", "content": "x"}]),
        ("plain", [{"role": "user", "content": [{"type": "text", "text": "x"}]}]),
        ("gemma", chat([TURNS[0], TURNS[0]])),
        ("alpaca", chat([("system", "a"), ("system", "b"), TURNS[0]])),
    ],
)
def test_what_a_template_cannot_write_is_an_error_in_jinja_too(name, messages):
    from data.jinja import render_jinja

    with pytest.raises(UserError, match=r"expected (messages with a role|user and assistant messages in turns)"):
        render_jinja(to_jinja(name, BYTES), messages, BYTES.template_names, True)
