"""Renders chats as tokens and a loss mask: one renderer for training, evaluation and chat.

A built-in template is five strings. The content of a message is always text: "<|im_end|>" in a content never becomes
the token that ends a turn.
"""

import dataclasses
import functools
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

from configs.errors import UserError
from data.chat_length import Message, shorten, shortened
from data.jinja import START, STOP, has_generation, render_jinja
from data.marked import GUARD, RESERVED, Names, Run, encode_joint, encode_turns, guard
from data.tokenizer import Tokenizer

ROLES = ("system", "user", "assistant")
# Not characters; removed from contents.
_OWN = str.maketrans("", "", START + STOP + RESERVED)


@dataclasses.dataclass(frozen=True)
class Template:
    """The text of a chat. Names in <> are tokens if the tokenizer has them, and ordinary text otherwise.

    Attributes:
        system: a system message; {content} is its text, {stripped} its text without surrounding white space.
        user: a user message; if it contains {system}, the system message is part of the first user message.
        assistant: an answer; the part in [] is in the loss. If the tokenizer lacks the token that ends the answer, the
            answer ends with eos.
        start: the text before the first message; {bos} and {eos} are those of the tokenizer, {bos} nothing if its files
            name none.
        preset: the system message of a chat without one, or "".
        alternating: user and assistant messages must alternate.
    """

    system: str
    user: str
    assistant: str
    start: str = ""
    preset: str = ""
    alternating: bool = False


_BUILT_IN = {
    # For an input and its output; longer chats are rendered as "plain_chat".
    "plain": Template("{content}\n", "{content}\n", "[{content}{eos}]", "{bos}"),
    "plain_chat": Template("{content}\n", "User: {content}\n", "Assistant: [{content}{eos}]", "{bos}"),
    # Qwen, without the system message that its own template adds.
    "chatml": Template(
        "<|im_start|>system\n{content}<|im_end|>\n",
        "<|im_start|>user\n{content}<|im_end|>\n",
        "<|im_start|>assistant\n[{content}<|im_end|>]\n",
    ),
    "llama3": Template(
        "<|start_header_id|>system<|end_header_id|>\n\n{stripped}<|eot_id|>",
        "<|start_header_id|>user<|end_header_id|>\n\n{stripped}<|eot_id|>",
        "<|start_header_id|>assistant<|end_header_id|>\n\n[{stripped}<|eot_id|>]",
        "{bos}",
    ),
    "gemma": Template(
        "{content}\n\n",
        "<start_of_turn>user\n{system}{stripped}<end_of_turn>\n",
        "<start_of_turn>model\n[{stripped}<end_of_turn>]\n",
        "{bos}",
        alternating=True,
    ),
    # Taori et al. 2023; later turns follow the eos of the first.
    "alpaca": Template(
        "{content}\n\n",
        "### Instruction:\n{content}\n\n",
        "### Response:\n[{content}{eos}]",
        "{bos}",
        "Below is an instruction that describes a task. Write a response that appropriately completes the request.",
        alternating=True,
    ),
}
NAMES = (*_BUILT_IN, "tokenizer")


class Rendered(NamedTuple):
    """A chat as tokens.

    Attributes:
        tokens: token ids.
        mask: whether each token is in the loss as a target: the assistant's text and the token that ends its turn.
        cut: True if text was removed to make the chat fit.
    """

    tokens: list[int]
    mask: list[bool]
    cut: bool


def render(
    messages: Sequence[Message], template: str, tokenizer: Tokenizer, length: int = 0, prompt: bool = False
) -> Rendered:
    """Returns the tokens of a chat and its loss mask.

    A chat that is too long loses its oldest turns first (never the system message), then the end of the longest user
    message, then the end of the longest answer. If it still does not fit, the result has no tokens.

    Args:
        messages: {"role": "system", "user" or "assistant", "content": text} each.
        template: one of `NAMES`; "tokenizer" is the tokenizer's Jinja template.
        tokenizer: the tokenizer of the model.
        length: maximum number of tokens; 0: no limit.
        prompt: end with the start of the assistant's turn; no token is in the loss.

    Raises:
        UserError: the template is unknown, cannot render the messages or (Jinja) does not mark the assistant's text, or
            a prompt does not fit.
    """
    _check_template(template, tokenizer, prompt)
    check_messages(messages, template, prompt)
    encode = _encoder(messages, template, tokenizer, prompt)
    tokens, mask = encode(messages)
    if not length or len(tokens) <= length:
        return Rendered(tokens, mask, False)
    tokens, mask = encode(shortened(messages, lambda shorter: len(encode(shorter)[0]) <= length))
    if len(tokens) <= length:
        return Rendered(tokens, mask, True)
    if prompt:
        raise UserError(
            f"a prompt of template {template!r} does not fit into {length} tokens, even without the user's text; "
            "use a larger config.sequence_length, or a shorter system message"
        )
    return Rendered([], [], True)


def render_answers(
    messages: Sequence[Message], answers: Sequence[str], template: str, tokenizer: Tokenizer, length: int
) -> list[Rendered]:
    """Returns a chat followed by each of the answers; only these are in the loss, not earlier turns of the assistant.

    All answers follow the same text: the chat is cut as in `render`, until the longest answer fits. Then the end of an
    answer is cut. A result that still does not fit has no tokens.

    Args:
        messages: see `render`.
        answers: of the assistant.
        template: see `render`.
        tokenizer: the tokenizer of the model.
        length: maximum number of tokens of each result.

    Raises:
        UserError: see `render`.
    """

    def answered(some: Sequence[Message], answer: str) -> list[Message]:
        return [*some, {"role": "assistant", "content": answer}]

    def fits(some: Sequence[Message]) -> bool:
        return len(encode(some)[0]) <= length

    _check_template(template, tokenizer, prompt=False)
    check_messages(answered(messages, answers[0]), template)
    encode = _encoder(answered(messages, answers[0]), template, tokenizer, prompt=False)
    context = shortened(messages, lambda some: all(fits(answered(some, answer)) for answer in answers))
    earlier = sum(encode(context)[1]) if any(message["role"] == "assistant" for message in context) else 0
    found = []
    for answer in answers:
        chat = answered(context, answer)
        chat = chat if fits(chat) else shorten(chat, len(chat) - 1, 1, fits)
        tokens, mask = encode(chat)
        for place in [place for place, trained in enumerate(mask) if trained][:earlier]:
            mask[place] = False
        cut = chat != answered(messages, answer)
        found.append(Rendered(tokens, mask, cut) if len(tokens) <= length else Rendered([], [], True))
    return found


def end_of_turn(template: str, tokenizer: Tokenizer) -> int:
    """Returns the token that ends an answer: the last token in the loss, or eos if that is a token of ordinary text.

    If a tokenizer's template does not mark the loss, it is the first special token after the answer.
    """
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "answer"}]
    if template == "tokenizer" and not has_generation(tokenizer.chat_template):
        after = render_jinja(tokenizer.chat_template, messages, tokenizer.template_names, False).rpartition("answer")[2]
        added = tokenizer.added_tokens.values()
        return next((index for index in tokenizer.encode_with_specials(after)[0] if index in added), tokenizer.eos_id)
    tokens, mask, _ = render(messages, template, tokenizer)
    last = tokens[max(place for place, trained in enumerate(mask) if trained)]
    return last if last in tokenizer.added_tokens.values() else tokenizer.eos_id


def _check_template(name: str, tokenizer: Tokenizer, prompt: bool) -> None:
    built_in = ", ".join(_BUILT_IN)
    if name not in NAMES:
        raise UserError(f"config.task.template={name!r}; expected one of {', '.join(NAMES)}")
    if name == "tokenizer" and not tokenizer.chat_template:
        raise UserError(
            "config.task.template='tokenizer', but the tokenizer has no chat_template; expected one in "
            f"tokenizer_config.json or chat_template.jinja, or config.task.template set to one of {built_in}"
        )
    if name == "tokenizer" and not prompt and not has_generation(tokenizer.chat_template):
        raise UserError(
            "the tokenizer's chat_template does not mark the assistant's text; expected {% generation %} and "
            "{% endgeneration %} around it, or config.task.template set to one of " + built_in
        )


def check_messages(messages: Sequence[Message], template: str, prompt: bool = False) -> None:
    """Raises UserError if a template cannot render the messages: their roles, contents or order."""
    if not messages:
        raise UserError("a chat has no messages; expected at least one")
    for number, message in enumerate(messages, 1):
        role, content = message.get("role"), message.get("content")
        if role not in ROLES:
            raise UserError(f"message {number} has role {role!r}; expected one of {', '.join(ROLES)}")
        if not isinstance(content, str):
            raise UserError(f"message {number} has content {content!r:.80}; expected a string")
    if prompt and messages[-1]["role"] == "assistant":
        raise UserError("the last message of a prompt is the assistant's; expected the user's")
    if template in _BUILT_IN and _BUILT_IN[template].alternating:
        _check_turns([message["role"] for message in messages], template)


def _check_turns(roles: list[str], template: str) -> None:
    first = 1 if roles[0] == "system" else 0
    expected = ("user", "assistant")
    wrong = [place for place in range(first, len(roles)) if roles[place] != expected[(place - first) % 2]]
    if wrong or len(roles) == first:
        found = f"message {wrong[0] + 1} is the {roles[wrong[0]]}'s" if wrong else "a chat has no user message"
        raise UserError(
            f"{found}; template {template!r} expects user and assistant messages in turns, starting with the user, "
            "and at most one system message before them"
        )


def _encoder(
    messages: Sequence[Message], name: str, tokenizer: Tokenizer, prompt: bool
) -> Callable[[Sequence[Message]], tuple[list[int], list[bool]]]:
    """Returns a function that encodes these messages, or some of them, as tokens and mask."""
    if name == "tokenizer":
        return lambda some: _jinja(some, tokenizer, prompt)
    template = _built_in_form(messages, name)

    def encode(some: Sequence[Message]) -> tuple[list[int], list[bool]]:
        runs, names = _built_in_runs(some, template, tokenizer, prompt)
        return encode_turns(runs, tokenizer, names, prompt)

    return encode


def _built_in_form(messages: Sequence[Message], name: str) -> Template:
    roles = [message["role"] for message in messages if message["role"] != "system"]
    longer = roles not in ([], ["user"], ["user", "assistant"])
    return _BUILT_IN["plain_chat" if name == "plain" and longer else name]


def render_text(messages: Sequence[Message], template: str, tokenizer: Tokenizer, prompt: bool = False) -> str:
    """Returns a chat as text, in which names of tokens in contents are split; see `render` and `data.marked`."""
    _check_template(template, tokenizer, prompt)
    check_messages(messages, template, prompt)
    if template == "tokenizer":
        return _jinja_text(messages, tokenizer, prompt).replace(START, "").replace(STOP, "")
    runs, _ = _built_in_runs(messages, _built_in_form(messages, template), tokenizer, prompt)
    return "".join(text for text, _ in runs)


def _built_in_runs(
    messages: Sequence[Message], template: Template, tokenizer: Tokenizer, prompt: bool
) -> tuple[list[Run], Names]:
    """Returns a chat as texts that are in the loss or not, and the names that are tokens in them."""
    added = _names(tokenizer, "".join(dataclasses.astuple(template)[:4]))
    messages = [{**message, "content": guard(message["content"].translate(_OWN), added)} for message in messages]
    names = {role: tokenizer.template_names.get(f"{role}_token", "") for role in ("bos", "eos")}
    opening, answer, closing = parts_of_answer(template, tokenizer)
    if template.preset and messages[0]["role"] != "system":
        messages = [{"role": "system", "content": template.preset}, *messages]
    runs: list[Run] = []
    text, system = template.start.format(**names), ""
    for message in messages:
        content, role = message["content"], message["role"]
        fields = names | {"content": content, "stripped": content.strip(), "system": system}
        if role == "assistant":
            runs += [(text + opening, False), (answer.format(**fields), not prompt)]
            text = closing
        elif role == "system" and "{system}" in template.user:
            system = template.system.format(**fields)
        else:
            text += getattr(template, role).format(**fields)
            system = ""
    runs.append((text + opening if prompt else text, False))
    return runs, added


def conversation_template(name: str) -> str:
    """Returns the template of conversations: the one of this name, or "plain_chat" for "plain".

    The text of "plain" depends on the number of turns, so a first turn would not look like the first of several.
    """
    return "plain_chat" if name == "plain" else name


def built_in(name: str) -> Template:
    """Returns a built-in template."""
    return _BUILT_IN[name]


def parts_of_answer(template: Template, tokenizer: Tokenizer) -> tuple[str, str, str]:
    """Returns the text of an assistant message before, in and after the loss."""
    opening, _, rest = template.assistant.partition("[")
    answer, _, closing = rest.partition("]")
    end = answer.partition("}")[2]
    return opening, answer if end in ("{eos}", *tokenizer.added_tokens) else answer.replace(end, "{eos}"), closing


def _jinja(messages: Sequence[Message], tokenizer: Tokenizer, prompt: bool) -> tuple[list[int], list[bool]]:
    runs: list[Run] = []
    trained = False
    for part in re.split(f"([{START}{STOP}])", _jinja_text(messages, tokenizer, prompt)):
        if part in (START, STOP):
            trained = part == START and not prompt
        else:
            runs.append((part, trained))
    return encode_joint(runs, tokenizer, _names(tokenizer, tokenizer.chat_template))


def _jinja_text(messages: Sequence[Message], tokenizer: Tokenizer, prompt: bool) -> str:
    """Returns a chat with the marks of the assistant's text, in which names of tokens in contents are split."""
    source = tokenizer.chat_template

    def rendered(some: Sequence[Message]) -> str:
        return render_jinja(source, some, tokenizer.template_names, prompt)

    names = _names(tokenizer, source)
    delimiters = _names(tokenizer, _user_turn(tokenizer))
    of_role = {"assistant": delimiters, "user": names, "system": names}
    return _guarded(messages, rendered, of_role)


@functools.lru_cache(maxsize=16)
def _names(tokenizer: Tokenizer, text: str) -> Names:
    """Returns the names that are text in a content: special tokens, and other added tokens that occur in `text`."""
    return frozenset(name for name in tokenizer.added_tokens if name in tokenizer.special_tokens or name in text)


@functools.lru_cache(maxsize=16)
def _user_turn(tokenizer: Tokenizer) -> str:
    """Returns a chat without an answer: it has the tokens that start and end turns, but not those of a thought."""
    try:
        turn = [{"role": "user", "content": "a"}]
        return render_jinja(tokenizer.chat_template, turn, tokenizer.template_names, False)
    except UserError:  # the template expects other messages
        return tokenizer.chat_template


def _guarded(
    messages: Sequence[Message], rendered: Callable[[Sequence[Message]], str], of_role: Mapping[str, Names]
) -> str:
    """Returns a chat as the template renders it, in which names of tokens that come from a content are split.

    Some templates look for names in contents, such as "</think>" in an answer: a split that would change the text or
    the loss mask is left out, so that the name becomes the token, as in the transformers library.
    """
    clean = [{**message, "content": message["content"].translate(_OWN)} for message in messages]
    text = rendered(clean)
    splits = []
    for number, message in enumerate(clean):
        pieces = guard(message["content"], of_role[message["role"]]).split(GUARD)
        splits += [(number, place) for place in itertools.accumulate(map(len, pieces[:-1]))]

    def split_at(chosen: Sequence[tuple[int, int]]) -> str:
        contents = [message["content"] for message in clean]
        for number, place in reversed(chosen):
            contents[number] = contents[number][:place] + GUARD + contents[number][place:]
        return rendered([{**message, "content": content} for message, content in zip(clean, contents, strict=True)])

    def added_to(kept: list[tuple[int, int]], more: list[tuple[int, int]]) -> list[tuple[int, int]]:
        if split_at([*kept, *more]).replace(GUARD, "") == text:
            return [*kept, *more]
        if len(more) == 1:
            return kept
        return added_to(added_to(kept, more[: len(more) // 2]), more[len(more) // 2 :])

    return split_at(added_to([], splits)) if splits else text
