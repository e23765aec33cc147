"""Filters, then near-duplicates of what they keep: Rootstock and datatrove on the same text, in one process.

Needs datatrove[processing]==0.10.1 and spacy beside numpy and scipy. CPU seconds of this process; the documents are
parts of books, of which some are edited copies. datatrove runs as it is, with spaCy's words, and with our words.

    PYTHONPATH=. python benchmarks/filters.py BOOKS [MEGABYTES]
"""

import functools
import json
import logging
import random
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from datatrove.data import Document
from datatrove.executor import LocalPipelineExecutor
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup import MinhashDedupCluster, MinhashDedupFilter, MinhashDedupSignature
from datatrove.pipeline.dedup.minhash import MinhashDedupBuckets
from datatrove.pipeline.filters import (
    C4QualityFilter,
    FineWebQualityFilter,
    GopherQualityFilter,
    GopherRepetitionFilter,
)
from datatrove.utils.word_tokenizers import WordTokenizer

from data.filters.c4 import C4
from data.filters.chain import FilterOptions, filter_documents
from data.filters.fineweb import FineWeb
from data.filters.gopher import GopherQuality, GopherRepetition
from data.filters.words import split_sentences, split_words
from data.near_duplicates import bands_for, find_near_duplicates, signature
from data.preparation.reading import content_digest

THRESHOLD = 0.8


class OurWords(WordTokenizer):
    """Our words in datatrove's interface."""

    def word_tokenize(self, text: str) -> list[str]:
        """Returns the words of a text."""
        return split_words(text)

    def sent_tokenize(self, text: str) -> list[str]:
        """Returns the sentences of a text."""
        return split_sentences(text)

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        """Returns one pair per sentence."""
        return [(0, 0)] * len(split_sentences(text))


# An executor copies its steps, so a step cannot keep what it collects.
collected: list[str] = []


class Collect(PipelineStep):
    """Ends a pipeline: adds the documents to `collected`."""

    type, name = "benchmark", "collect"

    def run(self, data, rank: int = 0, world_size: int = 1):
        """Adds the texts that arrive."""
        for document in data:
            collected.append(document.text)
            yield document


def read_parts(folder: Path, megabytes: float) -> list[str]:
    """Returns parts of books of about 3.4 kB; a fifth are copies in which 1 % of the words are replaced."""
    draw, texts, size = random.Random(0), [], 0
    while True:
        for path in sorted(folder.rglob("*.txt")):
            text = path.read_text(encoding="utf-8")
            start = draw.randrange(max(1, len(text) - 7000))
            part = text[start : start + draw.randrange(800, 6000)]
            if draw.random() < 0.2 and texts:
                words = draw.choice(texts).split(" ")
                part = " ".join(draw.choice(words) if draw.random() < 0.01 else word for word in words)
            texts.append(part)
            size += len(part.encode())
            if size > megabytes * 1e6:
                return texts


def timed(work: Callable[[list[str]], list[str]], texts: list[str]) -> tuple[float, list[str]]:
    """Returns (CPU seconds, the result)."""
    start = time.process_time()
    found = work(texts)
    return time.process_time() - start, found


def our_filters(texts: list[str]) -> list[str]:
    """Returns the documents that our rules keep."""
    options = FilterOptions(GopherQuality(), GopherRepetition(), C4(), FineWeb())
    return [document.text for document in filter_documents(texts, options) if not document.removed]


def our_duplicates(texts: list[str]) -> list[str]:
    """Returns the documents that remain of near-duplicates."""
    texts = list({content_digest(text): text for text in texts}.values())
    bands = bands_for(THRESHOLD)
    columns = np.stack([signature(text, bands) for text in texts]).T
    digests = np.array([content_digest(text) for text in texts], "V16")
    sizes = np.array([len(text) for text in texts])
    found = find_near_duplicates(digests, columns, sizes, lambda numbers: [texts[n] for n in numbers], THRESHOLD)
    removed = {pair.removed for pair in found}
    return [text for number, text in enumerate(texts) if number not in removed]


def their_filters(texts: list[str], language: object) -> list[str]:
    """Returns the documents that datatrove's filters keep, in the order of FineWeb."""
    filters = [
        kind(language=language)
        for kind in (GopherRepetitionFilter, GopherQualityFilter, C4QualityFilter, FineWebQualityFilter)
    ]
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    return [document.text for document in documents if all(one.filter(document) is True for one in filters)]


def their_duplicates(texts: list[str], language: object) -> list[str]:
    """Returns the documents that datatrove's four MinHash stages keep."""
    documents = [Document(text=text, id=str(number)) for number, text in enumerate(texts)]
    collected.clear()
    with tempfile.TemporaryDirectory() as folder:
        stages = [
            [documents, MinhashDedupSignature(f"{folder}/signatures", language=language)],
            [MinhashDedupBuckets(f"{folder}/signatures", f"{folder}/buckets")],
            [MinhashDedupCluster(f"{folder}/buckets", f"{folder}/removed")],
            [documents, MinhashDedupFilter(f"{folder}/removed"), Collect()],
        ]
        for number, stage in enumerate(stages):
            tasks = 14 if number == 1 else 1
            LocalPipelineExecutor(stage, tasks=tasks, workers=1, logging_dir=f"{folder}/log-{number}").run()
    return list(collected)


def main(folder: Path, megabytes: float) -> None:
    """Prints the figures as JSON."""
    logging.disable(logging.CRITICAL)
    texts = read_parts(folder, megabytes)
    size = sum(len(text.encode()) for text in texts) / 1e6
    # Imports and the first words are not counted.
    our_filters(texts[:20])
    our_duplicates(texts[:20])
    systems = {"rootstock": (our_filters, our_duplicates)}
    for name, language in (("datatrove, our words", OurWords()), ("datatrove", "eng")):
        their_filters(texts[:20], language)
        systems[name] = (
            functools.partial(their_filters, language=language),
            functools.partial(their_duplicates, language=language),
        )
    rows = {}
    for name, (filters, duplicates) in systems.items():
        seconds, kept = timed(filters, texts)
        more, left = timed(duplicates, kept)
        rows[name] = {
            "filters_MB_per_cpu_second": round(size / seconds, 3),
            "near_duplicates_MB_per_cpu_second": round(sum(len(text.encode()) for text in kept) / 1e6 / more, 3),
            "together_MB_per_cpu_second": round(size / (seconds + more), 3),
            "kept_by_filters": len(kept),
            "left_of_near_duplicates": len(left),
        }
    ours = rows["rootstock"]["together_MB_per_cpu_second"]
    for name in list(systems)[1:]:
        rows[name]["rootstock_is_faster"] = round(ours / rows[name]["together_MB_per_cpu_second"], 1)
    print(json.dumps({"documents": len(texts), "MB": round(size, 2), **rows}, indent=1))


if __name__ == "__main__":
    main(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 4.0)
