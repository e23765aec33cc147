"""Functions on documents, features and deletion passes: counted, sampled, and the same for any units."""

import dataclasses
from collections import Counter

import numpy as np
import pytest

from data.engines import run_here
from data.preparation.reading import SAMPLES, Outcome, ReadOptions, read_unit
from data.preparation.splitting import SplitOptions, split_units, texts_of
from data.preparation.unit_files import UnitFiles
from data.sources import match_sources
from data.units import plan_units, scan_source
from tests.data.preparation.corpus import write_corpus


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus"))


@dataclasses.dataclass(frozen=True)
class TooShort:
    """Removes documents below a number of words."""

    words: int

    def __call__(self, texts):
        return [Outcome("", ("too short",)) if len(text.split()) < self.words else Outcome(text) for text in texts]


def masked(texts):
    return [Outcome(text.replace("kanu", "MASK"), ("masked",) * ("kanu" in text)) for text in texts]


def length(text):
    return np.array([len(text)], np.int64)


def remove_even(units, keep):
    """Removes what remains with an even number of characters."""
    removed = Counter()
    for unit, kept in zip(units, keep, strict=True):
        even = (unit.array("length")[:, 0] % 2 == 0) & kept
        kept &= ~even
        removed["even"] += int(even.sum())
    return removed


def run(source, folder, unit_bytes):
    folder.mkdir()
    units = plan_units([scan_source(found, unit_bytes) for found in match_sources(source)], unit_bytes)
    options = ReadOptions(functions=(TooShort(10), masked), features=(("length", length),))
    run_here(lambda job: read_unit(folder, options, job), list(enumerate(units)), lambda: None)
    files = [UnitFiles(folder, number) for number in range(len(units))]
    split = split_units(files, SplitOptions(0.2, "documents", (remove_even,)), source)
    return files, split


def test_hooks_do_not_depend_on_units(source, tmp_path):
    found = {}
    for unit_bytes in (1 << 24, 30_000):
        files, split = run(source, tmp_path / str(unit_bytes), unit_bytes)
        results = [unit.results() for unit in files]
        counts = {
            name: sum((Counter(result[name]) for result in results), Counter()) for name in ("removed", "changed")
        }
        texts = [text for unit in files for text in texts_of(unit, None)]
        found[unit_bytes] = (split, counts, texts)
        assert (len(files) > 1) == (unit_bytes < 1 << 24)
    assert found[1 << 24] == found[30_000]
    split, counts, texts = found[30_000]
    assert counts["removed"]["too short"] > 50 and counts["changed"]["masked"] > 50 and split["removed"]["even"] > 500
    assert texts and all(len(text) % 2 and len(text.split()) >= 10 and "kanu" not in text for text in texts)
    assert len(set(texts)) == len(texts)


def test_samples_are_the_documents_before_the_change(source, tmp_path):
    files, _ = run(source, tmp_path / "one", 1 << 24)
    samples = files[0].results()["samples"]
    assert set(samples) == {"too short", "masked"}
    for reason, kept in samples.items():
        assert len(kept) == SAMPLES and kept == sorted(kept)
        assert all(len(text.split()) < 10 if reason == "too short" else "kanu" in text for _, text in kept)
