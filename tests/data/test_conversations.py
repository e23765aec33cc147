"""Conversations in rows: every layout gives the same messages, and what would train something else is an error."""

import json

import pytest

from configs.errors import UserError
from data.columns import RowRules
from data.conversations import messages_of, without_system

MESSAGES = [
    {"role": "system", "content": "Be kind."},
    {"role": "user", "content": "hi"},
    {"role": "assistant", "content": "hello"},
]
SHAREGPT = [
    {"from": "system", "value": "Be kind."},
    {"from": "human", "value": "hi"},
    {"from": "gpt", "value": "hello", "weight": None},
]
PARTS = [m | {"content": [{"type": "text", "text": part} for part in (m["content"][:1], m["content"][1:])]}
         for m in MESSAGES]  # fmt: skip


@pytest.mark.parametrize(
    "row",
    [
        {"messages": MESSAGES},
        {"messages": json.dumps(MESSAGES)},
        {"messages": {name: [m[name] for m in MESSAGES] for name in ("role", "content")}},
        {"messages": PARTS},
        {"messages": [m | {"tool_calls": None, "name": "x"} for m in MESSAGES]},
        {"messages": SHAREGPT},
        {"conversations": SHAREGPT, "id": 0},
        {"conversations": MESSAGES, "messages": None},
        {"prompt": MESSAGES[:2], "completion": MESSAGES[2:]},
    ],
)
def test_every_layout_gives_the_same_messages(row):
    assert messages_of(row, "messages") == MESSAGES
    assert messages_of({"data": {"turns": MESSAGES}}, "data.turns") == MESSAGES


@pytest.mark.parametrize(
    ("row", "texts"),
    [
        ({"instruction": "Add.", "input": "1", "output": "3"}, ["Add.\n1", "3"]),
        ({"instruction": "Add.", "input": 0, "output": 0}, ["Add.\n0", "0"]),
        ({"instruction": "Add.", "input": None, "output": 1.5}, ["Add.", "1.5"]),
        ({"instruction": "Add.", "input": "", "output": False}, ["Add.", "false"]),
        ({"prompt": 0, "completion": "zero"}, ["0", "zero"]),
        ({"instruction": "", "output": "", "question": "q", "answer": "a\r\nb"}, ["q", "a\nb"]),
    ],
)
def test_questions_and_answers_may_be_zero(row, texts):
    assert [message["content"] for message in messages_of(row, "messages")] == texts


def test_missing_content_is_empty_only_by_config():
    row = {"messages": [MESSAGES[1], {"role": "assistant", "content": None}]}
    assert messages_of(row, "messages", RowRules(missing="empty"))[1]["content"] == ""
    with pytest.raises(UserError, match=r"^'content' of message 2 of 'messages' is null; expected text"):
        messages_of(row, "messages")


def with_last(**changes):
    return {"messages": [*MESSAGES[:2], MESSAGES[2] | changes]}


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (with_last(content={"a": 1}), "'content' of message 3 of 'messages' is an object"),
        (with_last(content=float("nan")), "'content' of message 3 of 'messages' is NaN"),
        (with_last(content=["a"]), "'content' of message 3 of 'messages' is a list"),
        (with_last(content=[{"type": "image_url"}]), "'content' of message 3 of 'messages' is a list"),
        (with_last(content=None, tool_calls=[{"id": "1"}]), "message 3 of 'messages' has 'tool_calls', which is not"),
        (with_last(reasoning_content="so"), "message 3 of 'messages' has 'reasoning_content'"),
        (with_last(weight=0), "message 3 of 'messages' is excluded from the loss"),
        (with_last(role="tool"), "message 3 of 'messages' has the role 'tool'; expected one of system, user, assist"),
        (with_last(role=None), "message 3 of 'messages' has the role None"),
        ({"conversations": [{"from": "observation", "value": "x"}]}, "has the from 'observation'; expected one of"),
        ({"messages": [{"role": "user"}]}, "message 1 of 'messages' has no 'content'; its fields are role"),
        ({"messages": []}, "'messages' is a list: []; expected a list of {role, content} or {from, value}"),
        ({"messages": "hello"}, "'messages' is 'hello'; expected a list of"),
        ({"messages": 3}, "'messages' is of type int: 3"),
        ({"messages": None}, "'messages': null or empty; expected a conversation"),
        ({"instruction": None, "output": "a"}, "'instruction', 'output': null or empty"),
        ({"instruction": "a", "output": {"a": 1}}, "'output' is an object"),
        ({"text": "a"}, "no 'messages'; columns found: text; set config.task.target"),
    ],
)  # fmt: skip
def test_what_is_not_a_conversation_is_a_one_line_error(row, message):
    with pytest.raises(UserError) as caught:
        messages_of(row, "messages")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_conversations_that_share_a_system_message_differ_without_it():
    other = [MESSAGES[0], {"role": "user", "content": "bye"}, MESSAGES[2]]
    assert without_system(MESSAGES) == without_system(MESSAGES[1:]) != without_system(other)
