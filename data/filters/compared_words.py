"""The words by which evaluation rows are looked for in a text: without case, punctuation and typography.

Copies of a text differ in quotation marks, dashes, bullets, markdown, ligatures, composed accents and invisible
characters; these change no word here. A word is a run of letters and digits, or a character of a script that is written
without spaces (Chinese characters, kana).
"""

import re
import unicodedata
from array import array
from functools import lru_cache

import numpy as np

from data.filters.words import HAS_UNSPACED, word_id

# Apostrophes are left out before NFKC, which would make spaces of some; a zero-width space is between words.
_TYPOGRAPHY = {ord(character): None for character in "'`\u00b4\u2018\u2019\u201b\u2032\u02bc\uff07"} | {0x200B: " "}
# Format characters such as soft hyphens, and marks such as vowel signs, are left out: they do not end a word.
_DROPPED = ("Cf", "Mn", "Mc", "Me")
# Thai, Lao, Myanmar and Khmer have no spaces between words, so that a word ends at each sign there.
_SEPARATING_SIGNS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff]")
_MAX_CHUNKS, _MAX_CHUNK = 1 << 20, 40


class _Characters(dict[int, str]):
    """Code point -> what is compared of it: itself, a space, or nothing."""

    def __missing__(self, code: int) -> str:
        character = chr(code)
        if character.isalnum():
            found = f" {character} " if HAS_UNSPACED.match(character) else character
        elif unicodedata.category(character) in _DROPPED and not _SEPARATING_SIGNS.match(character):
            found = ""
        else:
            found = " "
        self[code] = found
        return found


class _ChunkTable(dict[str, bytes]):
    """Text between white space -> the ids of its words as uint64."""

    def __missing__(self, chunk: str) -> bytes:
        ids = array("Q", map(_word_id, compared_words(chunk))).tobytes()
        if len(chunk) <= _MAX_CHUNK:
            self[chunk] = ids
        return ids


_characters = _Characters()
_table = _ChunkTable()
_word_id = lru_cache(1 << 16)(word_id)


def compared_words(text: str) -> list[str]:
    """Returns the words of a text as they are compared."""
    folded = unicodedata.normalize("NFKC", text.translate(_TYPOGRAPHY)).casefold()
    return folded.translate(_characters).split()


def compared_ids(text: str) -> np.ndarray:
    """Returns uint64: the `word_id` of each word of a text as it is compared."""
    if len(_table) > _MAX_CHUNKS:
        _table.clear()
    return np.frombuffer(b"".join(map(_table.__getitem__, text.split())), np.uint64)
