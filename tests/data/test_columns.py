"""The values of rows as text: one conversion for every task; a value that is not text is an error, never a repr."""

import datetime
import decimal

import numpy as np
import pytest

from configs.errors import UserError
from data.columns import MissingValue, RowRules, answers_of, fill, text_of, texts_of

NAN = float("nan")
NOT_TEXT = [
    {"a": 1}, ["a", "b"], [], b"bytes", float("inf"), datetime.date(2026, 1, 1), [{"type": "image_url"}],
    [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": "b"}],
]  # fmt: skip


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("a", "a"), ("", ""), (0, "0"), (0.0, "0.0"), (-3, "-3"), (1.5, "1.5"), (1e22, "1e+22"), (True, "true"),
        (False, "false"), (decimal.Decimal("1.10"), "1.10"), (np.int64(7), "7"), (np.float64(0.5), "0.5"),
        ([{"type": "text", "text": "one "}, {"type": "text", "text": "two"}], "one two"),
        ([{"type": "text", "text": 0}], "0"),
    ],
)  # fmt: skip
def test_numbers_are_written_as_json_and_parts_are_joined(value, text):
    assert text_of(value, "'label'") == text
    assert fill("{label}!", {"label": value} if text else {"label": "x"}, "config.task.input") == f"{text or 'x'}!"


@pytest.mark.parametrize("value", [None, NAN, np.float32("nan"), decimal.Decimal("NaN")], ids=str)
def test_missing_value_is_an_error_or_empty(value):
    with pytest.raises(MissingValue, match=r"^'label' is (null|NaN); expected text: .*config.task.missing=empty"):
        text_of(value, "'label'")
    assert text_of(value, "'label'", RowRules(missing="empty")) == ""
    with pytest.raises(MissingValue, match=r"^value 2 of 'label' is"):
        texts_of(["a", value], "'label'")
    row = {"title": value, "body": "text"}
    assert fill("{title}: {body}", row, "config.task.input", RowRules(missing="empty")) == ": text"
    assert fill("{title}", row, "config.task.input", RowRules(missing="empty")) == ""
    assert answers_of(value, "label", RowRules(missing="empty")) == []
    with pytest.raises(MissingValue, match=r"^'title' is"):
        fill("{title}: {body}", row, "config.task.input")


@pytest.mark.parametrize("value", NOT_TEXT, ids=repr)
def test_a_value_that_is_not_text_is_an_error_that_names_the_column(value):
    for rules in (RowRules(), RowRules(missing="empty"), RowRules(clean=False, first_version=True)):
        with pytest.raises(UserError, match=r"^'body' is (an object|a list|bytes|of type \w+): .*; expected text or"):
            fill("{body}", {"body": value}, "config.task.input", rules)


def test_text_is_cleaned_like_training_text():
    dirty = "\ufeffone\r\ntwo\rthree\x00\x1b\ttab \ud800"
    assert text_of(dirty, "'text'") == "one\ntwo\nthree\ttab "
    assert text_of([{"type": "text", "text": dirty}], "'text'") == "one\ntwo\nthree\ttab "
    assert texts_of(["a\r\n", "\x07b"], "'tags'") == ["a\n", "b"]
    assert text_of(dirty, "'text'", RowRules().uncleaned) == dirty


@pytest.mark.parametrize(
    ("pattern", "row", "text"),
    [
        ("{a} and {b.c}: {d} {{x}}", {"a": 1, "b.c": "two", "d": "{a}"}, "1 and two: {a} {x}"),
        ("{meta.body}", {"meta": {"body": "b"}}, "b"),
        ("{meta.body}", {"meta": {"body": "b"}, "meta.body": "whole"}, "whole"),
        ("{a.b.c}/{a.b.d.e}", {"a.b": {"c": 1}, "a": {"b": {"d.e": 0}}}, "1/0"),
        ("{messages.1.content}", {"messages": [{"content": "x"}, {"content": "y"}]}, "y"),
        ("{Is it good?}|{a:b}|{c!r}|{d[0]}|{e-f g}", {"Is it good?": 1, "a:b": 2, "c!r": 3, "d[0]": 4, "e-f g": 5},
         "1|2|3|4|5"),
    ],
)  # fmt: skip
def test_patterns_name_nested_columns_and_columns_with_punctuation(pattern, row, text):
    assert fill(pattern, row, "config.task.input") == text


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("{meta.title}", "no 'meta.title'; columns found: meta; set config.task.input"),
        ("{meta.body.text}", "no 'meta.body.text'"),
        ("{meta}", "'meta' is an object: {'body': 'b'"),
        ("{}", "braces without a column's name"),
        ("{a", "a single '{'"),
        ("a}", "a single '}'"),
    ],
)
def test_invalid_patterns_and_missing_columns_are_errors(pattern, message):
    with pytest.raises(UserError) as caught:
        fill(pattern, {"meta": {"body": "b"}}, "config.task.input")
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_answers_are_texts_or_in_either_layout_of_squad():
    for value in (["a", "b"], [{"text": "a", "answer_start": 1}, {"text": "b"}], {"text": ["a", "b"]}):
        assert answers_of(value, "answers") == ["a", "b"]
    assert answers_of([{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "answers") == ["ab"]
    assert answers_of(0, "answers") == ["0"] and answers_of([], "answers") == []
    for value in (None, [None], {"text": [None]}, [""], {"a": 1}, [{"a": 1}], b"a"):
        with pytest.raises(UserError, match="'answers' is"):
            answers_of(value, "answers")
