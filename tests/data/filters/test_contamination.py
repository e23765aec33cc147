import json
import unicodedata

import numpy as np
import pytest

from configs.errors import UserError
from data.filters import contamination
from data.filters.compared_words import compared_words
from data.filters.contamination import EvaluationSet, build_index, report, texts_of
from data.filters.evaluation_sets import read_evaluation_sets, task_columns

QUESTION = "In what country is Normandy located, and when did the Normans give it its name?"
OTHER = "Which of the following rivers flows through the most countries on its long way to the sea?"
FILLER = "Some text of a page that has nothing to do with any question at all. "


def found(document, *rows, **more):
    sets = [EvaluationSet("set", [(row,) if isinstance(row, str) else row for row in rows])]
    sets += [EvaluationSet(name, texts) for name, texts in more.items()]
    return build_index(sets).find(document).tolist()


@pytest.mark.parametrize(
    "document",
    [
        QUESTION,
        FILLER + QUESTION + FILLER,
        FILLER + QUESTION.upper().replace(",", " --"),
        FILLER + " ".join(QUESTION.split()[:13]),
        FILLER + " ".join(QUESTION.split()[2:]) + " And so on.",
        FILLER + QUESTION.replace(" ", "\n"),
    ],
)
def test_a_row_is_found_by_13_words(document):
    assert found(document, OTHER, QUESTION) == [1]


PROSE = (
    "The café's two roads diverged in a yellow wood, and the office hadn't traveled \"both\" of its well-known ways."
)


@pytest.mark.parametrize(
    "copy",
    [
        PROSE.replace("'", "\u2019"),
        PROSE.replace("'", "\u02bc"),
        PROSE.replace(" ", " • "),
        PROSE.replace(" ", " → "),
        PROSE.replace(" ", "\u200b"),
        PROSE.replace("diverged", "di\u00adverged"),
        PROSE.replace("roads", "_roads_").replace("yellow", "**yellow**"),
        PROSE.replace("-", "\u2010"),
        PROSE.replace("-", "\u2212"),
        PROSE.replace('"', "“"),
        PROSE.replace("fi", "\ufb01"),
        unicodedata.normalize("NFD", PROSE),
        PROSE.upper(),
    ],
)
def test_a_copy_that_differs_in_typography_is_found(copy):
    assert copy != PROSE
    assert found(FILLER + copy, PROSE) == found(FILLER + PROSE, copy) == [0]


@pytest.mark.parametrize("text", ["─" * 40, "• " * 40, "_ " * 40, "\u200b " * 40, "❤\ufe0f " * 40])
def test_a_row_of_symbols_is_not_checked(text):
    assert found(text, text) == []


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The CAN'T-do list", ["the", "cant", "do", "list"]),
        ("日本語。\uff27\uff4f 東京", ["日", "本", "語", "go", "東", "京"]),
        ("हिन्दी में", [unicodedata.normalize("NFKC", "हनद"), "म"]),
        ("كِتَابٌ", ["كتاب"]),
        ("Straße x_1 3.5²", ["strasse", "x", "1", "3", "52"]),
    ],
)
def test_what_is_compared_of_a_text(text, words):
    assert compared_words(text) == words


@pytest.mark.parametrize(
    "document", ["", FILLER, " ".join(QUESTION.split()[:12]), QUESTION.replace("and", "or"), OTHER[:30], "the " * 50]
)
def test_fewer_words_are_not_enough(document):
    assert found(document, QUESTION) == []


@pytest.mark.parametrize("words", [8, 9, 12])
def test_a_short_text_must_occur_as_a_whole(words):
    text = " ".join(QUESTION.split()[:words])
    assert found(FILLER + text + " and more", text, OTHER) == [0]
    assert found(FILLER + " ".join(text.split()[:-1]) + " of more", text) == []


@pytest.mark.parametrize("text", ["", "Yes", "in the city of north by night"])
def test_a_very_short_text_is_not_checked(text):
    index = build_index([EvaluationSet("set", [(text,), (QUESTION, text)])])
    assert index.find(f"{FILLER} {text} {FILLER}").tolist() == []
    assert index.checked.tolist() == [False, True]
    assert report(index, np.array([1]), [3])["set"] == {
        "rows": 2, "rows_checked": 1, "rows_found": 1, "documents": 3,
    }  # fmt: skip


def test_the_words_of_a_prompt_that_many_texts_share_do_not_count():
    prompt = "Read the following question carefully and then choose the best one of the four answers below: "
    many = [f"{prompt} {number} {OTHER if number == 5 else 'short'}" for number in range(11)]
    assert found(prompt, *many[:10]) == list(range(10))
    assert found(prompt, *many) == []
    assert found(OTHER, *many) == [5]
    # One paragraph that many questions are about is one text.
    assert found(OTHER, *[(OTHER, f"What is {number}?") for number in range(40)]) == list(range(40))


def test_any_text_of_a_row_counts_and_rows_of_several_sets_are_numbered_together():
    assert found(QUESTION + FILLER + OTHER, ("a", OTHER), more=[("b",), ("c", QUESTION), (OTHER,)]) == [0, 2, 3]


def test_a_report_counts_per_set():
    index = build_index([EvaluationSet("one", [(QUESTION,), (OTHER,)]), EvaluationSet("two", [(OTHER,)])])
    assert report(index, np.array([0, 2]), [1, 5]) == {
        "one": {"rows": 2, "rows_checked": 2, "rows_found": 1, "documents": 1},
        "two": {"rows": 1, "rows_checked": 1, "rows_found": 1, "documents": 5},
    }


def test_the_fingerprint_changes_with_the_rows():
    prints = {build_index([EvaluationSet(n, r)]).fingerprint for n in "ab" for r in ([(QUESTION,)], [(OTHER,)], [])}
    assert len(prints) == 6


def test_the_fingerprint_changes_with_the_way_words_are_compared(monkeypatch):
    before = build_index([EvaluationSet("set", [(QUESTION,)])]).fingerprint
    monkeypatch.setattr(contamination, "_VERSION", 1)
    assert build_index([EvaluationSet("set", [(QUESTION,)])]).fingerprint != before


def test_texts_of_nested_values():
    row = {"a": "x", "b": ["y", {"c": "z", "d": 3}], "e": None, "f": 1.5}
    assert list(texts_of(row)) == ["x", "y", "z"]


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"id": OTHER, "question": QUESTION, "context": "c", "answers": {"text": ["France"]}}]
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "plain.txt").write_text(QUESTION)
    (tmp_path / "empty.jsonl").write_text("\n")
    return tmp_path


@pytest.mark.parametrize(
    ("avoid", "name", "texts"),
    [
        ("a.jsonl", "a.jsonl", (OTHER, QUESTION, "c", "France")),
        ("squad=a.jsonl", "squad", (OTHER, QUESTION, "c", "France")),
        ("question_answering=a.jsonl", "question_answering", ("c", QUESTION, "France")),
        ("plain.txt", "plain.txt", (QUESTION,)),
    ],
)
def test_what_avoid_names(files, avoid, name, texts):
    assert read_evaluation_sets([avoid]) == [EvaluationSet(name, [texts])]


def test_several_sets(files):
    assert [(one.name, len(one.rows)) for one in read_evaluation_sets(["a.jsonl", "x=[ab].jsonl", "plain.txt"])] == [
        ("a.jsonl", 1), ("x", 2), ("plain.txt", 1),
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("avoid", "message"),
    [
        (["missing.jsonl"], "'missing.jsonl' matches no readable file"),
        (["intent"], "avoid=intent: the task has no rows of its own; expected --avoid=intent=FILES"),
        (["intent=a.jsonl"], "a.jsonl: row 1: the row has the columns .*; expected text, label"),
        (["x="], "avoid='x=' names no files"),
        (["=a.jsonl"], "avoid='=a.jsonl' names no files"),
        (["a.jsonl", "a.jsonl=b.jsonl"], "the name 'a.jsonl' is used twice"),
        (["empty.jsonl"], "empty"),
    ],
)
def test_an_invalid_set_is_named(files, avoid, message):
    with pytest.raises(UserError, match=message):
        read_evaluation_sets(avoid)


def test_the_columns_of_a_task():
    assert task_columns("intent") == ("text", "label") and task_columns("no_such_task") == ()
