"""Conversations in rows: OpenAI's and ShareGPT's messages, questions with answers, prompts with completions."""

import json
from collections.abc import Mapping, Sequence
from typing import TypeGuard

from configs.errors import UserError
from data.columns import DEFAULT_RULES, MissingValue, Row, RowRules, described, find, is_missing, text_of
from data.templates import ROLES

Conversation = list[dict[str, str]]

# Columns of conversations that are read although `config.task.target` names another.
_CONVERSATIONS = ("messages", "conversations")
# Columns of single-turn rows: Alpaca's, and other common names of question and answer.
_PAIRS = (("instruction", "output"), ("prompt", "completion"), ("prompt", "response"), ("question", "answer"))
# The speakers of ShareGPT ("from") and our roles.
_SPEAKERS = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
# Fields of a message that change what it says, and that no template here renders.
_UNSUPPORTED = ("tool_calls", "function_call", "reasoning_content", "reasoning", "thinking")


def messages_of(row: Row, name: str, rules: RowRules = DEFAULT_RULES) -> Conversation:
    """Returns the conversation in a row: its column `name` of messages, or its instruction (with input) and output.

    Args:
        row: the row.
        name: the column of messages, which may be nested, or hold the messages as JSON.
        rules: see `data.columns.text_of`.

    Raises:
        UserError: the row has neither, or a message is not one (names it).
    """
    if found := _messages(row, name, rules):
        return found
    present = [pair for pair in _PAIRS if all(column in row for column in pair)]
    for question, answer in present:
        if not any(is_missing(row[column]) or row[column] == "" for column in (question, answer)):
            return _question_and_answer(row, question, answer, rules)
    empty = [column for column in (name, *(c for pair in present for c in pair)) if find(row, column)]
    if empty:
        raise MissingValue(f"{', '.join(map(repr, dict.fromkeys(empty)))}: null or empty", "expected a conversation")
    pairs = ", ".join(f"{question} and {answer}" for question, answer in _PAIRS)
    columns = ", ".join(map(str, row))
    raise UserError(f"no {name!r}; columns found: {columns}; set config.task.target, or use columns {pairs}")


def _messages(row: Row, name: str, rules: RowRules) -> Conversation | None:
    """Returns the conversation in the column `name` or a column of that purpose, or None if the row has none."""
    for column in dict.fromkeys((name, *_CONVERSATIONS)):
        found = find(row, column)
        if found and not is_missing(found[0]):
            return conversation(found[0], column, rules)
    return None


def prompt_of(row: Row, name: str, rules: RowRules = DEFAULT_RULES) -> Conversation:
    """Returns the turns in a row up to the last one of the user, which is to be answered; see `messages_of`.

    An answer that the row contains is left out.

    Raises:
        UserError: the row has neither messages nor a question, or no turn of the user.
    """
    if found := _messages(row, name, rules):
        turns = found
    elif question := next((q for q, _ in _PAIRS if not is_missing(row.get(q)) and row[q] != ""), ""):
        asked = row[question]
        turns = conversation(asked, question, rules) if is_conversation(asked) else [_question(row, question, rules)]
    else:
        questions = ", ".join(dict.fromkeys(question for question, _ in _PAIRS))
        columns = ", ".join(map(str, row))
        raise UserError(f"no {name!r}; columns found: {columns}; expected messages in it, or one of {questions}")
    last = max((number for number, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    if last < 0:
        raise UserError("the conversation has no message of the user; expected at least one to answer")
    return turns[: last + 1]


def conversation(value: object, name: str, rules: RowRules = DEFAULT_RULES) -> Conversation:
    """Returns the messages [{"role", "content"}] of a list of {role, content} or, as ShareGPT writes, {from, value}.

    Raises:
        UserError: the value is not such a list, or JSON of one.
    """
    if isinstance(value, str):
        value = _from_json(value)
    if isinstance(value, Mapping) and all(isinstance(items, list) for items in value.values()):
        # `datasets` stores a list of objects as an object of lists.
        value = [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=False)]
    if not is_conversation(value):
        raise UserError(f"{name!r} is {described(value)}; expected a list of {{role, content}} or {{from, value}}")
    return [_message(message, f"message {number} of {name!r}", rules) for number, message in enumerate(value, 1)]


def is_conversation(value: object) -> TypeGuard[list[Mapping[str, object]]]:
    """Returns whether a value is a list of messages."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, Mapping) and ("role" in m or "from" in m) for m in value)
    )


def without_system(messages: Sequence[Mapping[str, str]]) -> str:
    """Returns the content of a conversation without its system messages, which many conversations share."""
    turns = [[m["role"], m["content"]] for m in messages if m["role"] != "system"]
    return json.dumps(turns, ensure_ascii=False)


def _message(message: Mapping[str, object], name: str, rules: RowRules) -> dict[str, str]:
    sharegpt = "role" not in message
    role, content = ("from", "value") if sharegpt else ("role", "content")
    speaker = message[role]
    found = _SPEAKERS.get(str(speaker), str(speaker)) if sharegpt else speaker
    if found not in ROLES:
        expected = ", ".join([*ROLES, *(["human", "gpt"] if sharegpt else [])])
        raise UserError(f"{name} has the {role} {speaker!r:.60}; expected one of {expected}")
    for field in _UNSUPPORTED:
        if message.get(field):
            raise UserError(
                f"{name} has {field!r}, which is not supported; write it into {content!r} as text, or remove the row"
            )
    if message.get("weight") not in (None, 1) or message.get("train") not in (None, True):
        raise UserError(f"{name} is excluded from the loss (weight or train), which is not supported; remove the row")
    if content not in message:
        raise UserError(f"{name} has no {content!r}; its fields are {', '.join(map(str, message))}")
    return {"role": str(found), "content": text_of(message[content], f"{content!r} of {name}", rules)}


def _question_and_answer(row: Row, question: str, answer: str, rules: RowRules) -> Conversation:
    if is_conversation(row[question]) or is_conversation(row[answer]):
        return [message for name in (question, answer) for message in conversation(row[name], name, rules)]
    asked = _question(row, question, rules)
    return [asked, {"role": "assistant", "content": text_of(row[answer], repr(answer), rules)}]


def _question(row: Row, name: str, rules: RowRules) -> dict[str, str]:
    """Returns the question in a row, with its input, as a message of the user."""
    texts = [text_of(row[name], repr(name), rules)]
    if not is_missing(row.get("input")):
        texts.append(text_of(row["input"], "'input'", rules))
    return {"role": "user", "content": "\n".join(text for text in texts if text)}


def _from_json(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text
