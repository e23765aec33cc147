"""The words of a document as arrays, computed once and read by every rule and by MinHash.

A word is a run of letters, digits and underscores, with apostrophes inside; a character of a script that is written
without spaces (Chinese characters, kana); or any other single character that is not white space.
"""

import dataclasses
import hashlib
import re
from array import array
from functools import cached_property, lru_cache

import numpy as np

# Chinese characters and kana.
_UNSPACED = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff"
HAS_UNSPACED = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(r"\w+(?:['\u2019]\w+)*|[^\w\s]")
_WORD_UNSPACED = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+(?:['\u2019][^\W{_UNSPACED}]+)*|[^\w\s]")
# A sentence ends at a terminal mark, its closing quotes and brackets, and white space or the end of the text.
_SENTENCE_END = re.compile(r"[.!?…。\uff01\uff1f]+[\"'”\u2019)\]]*(?=\s|$)")

# Unicode's property Sentence_Terminal, as ranges of code points.
_TERMINAL_RANGES = (
    "21 2E 3F 589 61D-61F 6D4 700-702 7F9 837 839 83D-83E 964-965 104A-104B 1362 1367-1368 166E 1735-1736 17D4-17D6 "
    "17D9-17DA 1803 1809 1944-1945 1AA8-1AAB 1B5A-1B5B 1B5E-1B5F 1B7D-1B7E 1C3B-1C3C 1C7E-1C7F 203C-203D 2047-2049 "
    "2E2E 2E3C 2E53-2E54 3002 A4FF A60E-A60F A6F3 A6F7 A876-A877 A8CE-A8CF A92F A9C8-A9C9 AA5D-AA5F AAF0-AAF1 ABEB "
    "FE52 FE56-FE57 FF01 FF0E FF1F FF61 10A56-10A57 10F55-10F59 10F86-10F89 11047-11048 110BE-110C1 11141-11143 "
    "111C5-111C6 111CD 111DE-111DF 11238-11239 1123B-1123C 112A9 1144B-1144C 115C2-115C3 115C9-115D7 11641-11642 "
    "1173C-1173E 11944 11946 11A42-11A43 11A9B-11A9C 11C41-11C42 11EF7-11EF8 11F43-11F44 16A6E-16A6F 16AF5 "
    "16B37-16B38 16B44 16E98 1BC9F 1DA88"
)


def _characters(ranges: str) -> frozenset[str]:
    ends = [part.split("-") for part in ranges.split()]
    return frozenset(chr(code) for part in ends for code in range(int(part[0], 16), int(part[-1], 16) + 1))


TERMINAL_MARKS = _characters(_TERMINAL_RANGES)
# Punctuation of ASCII and the marks that CCNet's normalization removes, so that Gopher's rules count the words that
# other implementations count; "１" is among them there, too.
PUNCTUATION = TERMINAL_MARKS | _characters(
    "21-2F 3A-40 5B-60 7B-7E AB B4 BB 2013-2014 2019 201C-201E 2026 2236 2501 25BA 3001 3008-300D 3010-3011 FF05 "
    "FF08-FF09 FF0C FF11 FF1A-FF1B FF5E"
)

_MAX_CHUNKS, _MAX_CHUNK = 1 << 20, 40
# At most about 64 MB of words are kept.
_SHORT_TEXT, _SHORT_TEXTS = 1 << 14, 512
_BASE = 0x9E3779B97F4A7C15
_INVERSE = pow(_BASE, -1, 1 << 64)
_U64 = (1 << 64) - 1
_SYMBOL, _LETTER = 1, 2


class _WordTable(dict[str, int]):
    """Word -> row of `columns`; a new word gets a row when it is looked up."""

    def __init__(self) -> None:
        super().__init__()
        # hash of the characters, hash of the lower-case word, length, flags
        self.columns: list[np.ndarray] = [
            np.zeros(1 << 12, dtype) for dtype in (np.uint64, np.uint64, np.int64, np.uint8)
        ]

    def __missing__(self, word: str) -> int:
        row = self[word] = len(self)
        if row == len(self.columns[0]):
            self.columns = [np.concatenate([column, np.zeros_like(column)]) for column in self.columns]
        letter = any(character.isalpha() for character in word)
        symbol = not letter and all(character in PUNCTUATION for character in word)
        values = (character_hash(word), word_id(word), len(word), _SYMBOL * symbol + _LETTER * letter)
        for column, value in zip(self.columns, values, strict=True):
            column[row] = value
        return row


class _ChunkTable(dict[str, bytes]):
    """Text between white space -> the rows of its words as int32, so that most text is split by looking it up."""

    def __init__(self) -> None:
        super().__init__()
        self.words = _WordTable()

    def __missing__(self, chunk: str) -> bytes:
        rows = array("i", map(self.words.__getitem__, split_words(chunk))).tobytes()
        if len(chunk) <= _MAX_CHUNK:
            self[chunk] = rows
        return rows


_table = _ChunkTable()


def word_id(word: str) -> int:
    """Returns a 64-bit hash of a word in lower case; the same in every process."""
    return int.from_bytes(hashlib.blake2b(word.lower().encode("utf-8", "replace"), digest_size=8).digest(), "little")


def character_hash(word: str) -> int:
    """Returns a 64-bit polynomial hash of the characters of a word."""
    value = 0
    for character in word:
        value = (value * _BASE + ord(character)) & _U64
    return value


@dataclasses.dataclass(frozen=True)
class Words:
    """A document and its words; n is their number.

    Attributes:
        text: the document.
        hashes: uint64[n], `character_hash` of each word.
        ids: uint64[n], `word_id` of each word.
        lengths: int64[n], characters of each word.
        is_symbol: bool[n], whether a word consists of punctuation.
        has_letter: bool[n], whether a word contains a letter.
    """

    text: str
    hashes: np.ndarray
    ids: np.ndarray
    lengths: np.ndarray
    is_symbol: np.ndarray
    has_letter: np.ndarray

    @cached_property
    def content_ids(self) -> np.ndarray:
        """uint64: the ids of the words that are not punctuation; near-duplicates are compared by these."""
        return self.ids[~self.is_symbol]

    @cached_property
    def ends(self) -> np.ndarray:
        """int64[n + 1]: the number of characters in the first words."""
        return np.concatenate([[0], np.cumsum(self.lengths)])

    @cached_property
    def _prefix_hashes(self) -> np.ndarray:
        scaled = self.hashes * _powers(int(self.ends[-1]))[1][self.ends[1:]]
        return np.concatenate([np.zeros(1, np.uint64), np.cumsum(scaled, dtype=np.uint64)])

    @cached_property
    def _end_powers(self) -> np.ndarray:
        return _powers(int(self.ends[-1]))[0][self.ends]

    def joined_hashes(self, n: int) -> np.ndarray:
        """Returns uint64: the hash of the characters of each n adjacent words, wherever a word ends."""
        if len(self.hashes) < n:
            return np.zeros(0, np.uint64)
        sums = self._prefix_hashes
        return (sums[n:] - sums[:-n]) * self._end_powers[n:]


_powers_cache = [np.ones(1, np.uint64), np.ones(1, np.uint64)]


def _powers(exponent: int) -> list[np.ndarray]:
    """Returns the powers of the hash's base and of its inverse, up to at least an exponent."""
    if len(_powers_cache[0]) <= exponent:
        size = 2 * exponent + 2
        for place, base in enumerate((_BASE, _INVERSE)):
            factors = np.full(size, base, np.uint64)
            factors[0] = 1
            _powers_cache[place] = np.multiply.accumulate(factors)
    return _powers_cache


def split_words(text: str) -> list[str]:
    """Returns the words of a text."""
    if text.isascii() or not HAS_UNSPACED.search(text):
        return _WORD.findall(text)
    return _WORD_UNSPACED.findall(text)


def split_sentences(text: str) -> list[str]:
    """Returns the sentences of a text, without the white space between them."""
    ends = [match.end() for match in _SENTENCE_END.finditer(text)]
    pieces = (text[start:end].strip() for start, end in zip([0, *ends], [*ends, len(text)], strict=True))
    return [piece for piece in pieces if piece]


def count_words(text: str) -> Words:
    """Returns the words of a text with their hashes, lengths and kinds."""
    # Several rules and MinHash ask for the words of a document one after the other.
    return _count_short(text) if len(text) < _SHORT_TEXT else _count(text)


@lru_cache(_SHORT_TEXTS)
def _count_short(text: str) -> Words:
    return _count(text)


def _count(text: str) -> Words:
    global _table
    if len(_table) > _MAX_CHUNKS or len(_table.words) > _MAX_CHUNKS:
        _table = _ChunkTable()
    rows = np.frombuffer(b"".join(map(_table.__getitem__, text.split())), np.int32)
    hashes, ids, lengths, flags = (column[rows] for column in _table.words.columns)
    return Words(text, hashes, ids, lengths, (flags & _SYMBOL) != 0, (flags & _LETTER) != 0)


def ngram_hashes(ids: np.ndarray, n: int) -> np.ndarray:
    """Returns uint64: a hash of each n adjacent ids; empty if there are fewer than n."""
    if len(ids) < n:
        return np.zeros(0, np.uint64)
    stop = len(ids) - n + 1
    hashes = ids[:stop].copy()
    for shift in range(1, n):
        hashes *= np.uint64(_BASE)
        hashes += ids[shift : shift + stop]
    # The low bits of a product depend on few bits of its factors.
    hashes ^= hashes >> np.uint64(32)
    hashes *= np.uint64(0xD6E8FEB86659FD93)
    hashes ^= hashes >> np.uint64(32)
    return hashes
