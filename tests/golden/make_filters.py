"""Writes tests/golden/filters.json: what datatrove decides about the documents of tests/filter_documents.py.

Needs datatrove[processing]==0.10.1 and spacy. Run it from the root of the repository:

    PYTHONPATH=.:tests python tests/golden/make_filters.py [BOOKS]

With BOOKS, a directory of texts, it also compares our decisions with datatrove's on chapters of these, shuffled and
repeated in several ways, and prints those that differ, with our words and with spaCy's, which datatrove uses.
"""

import hashlib
import itertools
import json
import random
import sys
from collections import Counter
from pathlib import Path

from datatrove.data import Document
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.word_tokenizers import WordTokenizer
from filter_documents import documents
from filter_rules import RULES, decide

from data.filters.words import split_sentences, split_words

GOLDEN = Path(__file__).resolve().parent / "filters.json"
FILTERS = {
    "gopher_repetition": GopherRepetitionFilter,
    "gopher_quality": GopherQualityFilter,
    "c4": C4QualityFilter,
    "fineweb": FineWebQualityFilter,
}


class OurWords(WordTokenizer):
    """Our words and sentences, in datatrove's interface."""

    def word_tokenize(self, text: str) -> list[str]:
        """Returns the words of a text."""
        return split_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Returns the sentences of a text."""
        return split_sentences(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Returns one pair per sentence; the filters count them."""
        return [(0, 0)] * len(split_sentences(text))


def oracle(text: str, name: str, language: object) -> tuple[str, str]:
    """Returns (datatrove's reason to remove a text or "", the text that remains)."""
    document = Document(text=text, id="")
    found = FILTERS[name](language=language).filter(document)
    return ("", document.text) if found is True else (found[1], "")


def short(text: str) -> str:
    """Returns the first characters of a text's hash."""
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def book_documents(folder: Path) -> list[str]:
    """Returns chapters of books as they are, with sentences shuffled, as lists, and with parts repeated."""
    draw, found = random.Random(0), []
    for path in sorted(folder.rglob("*.txt")):
        text = path.read_text()
        start = draw.randrange(max(1, len(text) - 4000))
        part = text[start : start + draw.randrange(200, 4000)]
        lines = [line for line in part.split("\n") if line] or [part]
        found += [part, "\n".join(lines), "\n- ".join(lines), "\n".join(line[:40] for line in lines)]
        found += [part + "\n\n" + part[: len(part) // draw.randrange(1, 12)], part.replace(". ", "...\n")]
        sentences = split_sentences(part)
        draw.shuffle(sentences)
        found += [" ".join(sentences), "\n".join(sentences * 2), " ".join(sentences[: len(sentences) // 3] * 2)]
    return found


def compare(texts: list[str], language: object) -> None:
    """Prints the numbers of decisions that differ from ours, by filter and pair of reasons."""
    different, all_reasons = Counter(), Counter()
    for text, name in itertools.product(texts, FILTERS):
        theirs, kept = oracle(text, name, language)
        ours, text_left = decide(text, name)
        all_reasons[theirs or "kept"] += 1
        if RULES.get(ours, ours) != theirs or (name == "c4" and not ours and text_left != kept):
            different[name, ours, theirs] += 1
    print(f"{len(texts)} documents, {sum(different.values())} of {4 * len(texts)} decisions differ: {dict(different)}")
    print(dict(all_reasons))


if __name__ == "__main__":
    texts = documents(360)
    golden = {name: [] for name in FILTERS}
    for text, name in itertools.product(texts, FILTERS):
        reason, kept = oracle(text, name, OurWords())
        golden[name].append(reason or (f"+{short(kept)}" if name == "c4" else "+"))
    stored = {"documents": short("\0".join(texts)), **{name: " ".join(found) for name, found in golden.items()}}
    GOLDEN.write_text(json.dumps(stored, indent=1) + "\n")
    compare(texts, OurWords())
    for folder in sys.argv[1:]:
        for language in (OurWords(), "eng"):
            compare(book_documents(Path(folder)), language)
