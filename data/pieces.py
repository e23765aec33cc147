"""Encodes texts piece by piece and remembers the tokens of each piece: most of a text is words that came before."""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
import tokenizers

ANY_CHARACTER = r"[\s\S]"
_CHARACTERS = re.compile(ANY_CHARACTER)
_LETTERS = "A-Za-zÀ-ÖØ-öø-ɏḀ-ỿЀ-ҁҊ-ԣ"  # Latin and Cyrillic: letters in every version of Unicode
# A text is cut where the patterns of GPT-2, Llama 3 and Qwen 2 all end one match and start the next, whatever surrounds
# the two characters: between anything and the first of some spaces, a letter or digit and a new line, a letter or digit
# and punctuation. The first alternative is the usual case, for speed; the last takes what follows the last cut.
_WORDS = re.compile(
    rf" ?[{_LETTERS}]++(?=[ \n!-/:;?])"
    rf"|(?:[^ \n!-/:;?]++|[ \n!-/:;?])+?(?:(?<=\S)(?= )|(?<=[{_LETTERS}0-9])(?=[\n!-/:;?]))"
    r"|[\s\S]+"
)
# How texts are split before merging, by models of these families; GPT-2's pattern is part of the library's ByteLevel.
CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_FIRST = rf"{CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = rf"{_FIRST}|\p{{N}}{{1,3}}|{_REST}"
QWEN2_PATTERN = rf"{_FIRST}|\p{{N}}|{_REST}"
_MAX_BYTES = 1 << 26
# Of a string, its tokens and their place in the dictionary.
_BYTES_PER_PIECE, _BYTES_PER_CHARACTER = 160, 8
# Encoding a piece alone costs about as much as 20 characters of a text, so where most pieces are new, as in lists of
# hashes, texts are encoded whole, unless few pieces are known at all.
_CHARACTERS_PER_PIECE, _FEW = 20, 50_000


class PieceEncoder:
    """Encodes texts piece by piece; each piece is encoded once, until 300,000 of them are known and all are forgotten.

    The pieces are such that their tokens, one after another, are those of the text.
    """

    def __init__(self, backend: tokenizers.Tokenizer, pattern: re.Pattern[str]) -> None:
        """Keeps what encodes a piece, and the pattern whose matches are the pieces of a text (`piece_pattern`)."""
        self._backend, self._pattern = backend, pattern
        self._known: dict[str, bytes] = {}
        self._bytes = 0

    def __call__(self, texts: list[str]) -> list[np.ndarray]:
        """Returns uint32[number of tokens] for each text."""
        known = self._known  # of this call alone from here on, if another thread starts a new one
        pieces = [self._pattern.findall(text) for text in texts]
        new = list(set().union(*pieces).difference(known))
        if len(known) > _FEW and len(new) * _CHARACTERS_PER_PIECE > sum(map(len, texts)):
            return encode_whole(self._backend, texts)
        known.update(zip(new, (ids.tobytes() for ids in encode_whole(self._backend, new)), strict=True))
        self._bytes += _BYTES_PER_PIECE * len(new) + _BYTES_PER_CHARACTER * sum(map(len, new))
        if self._bytes > _MAX_BYTES:
            self._known, self._bytes = {}, 0
        return [np.frombuffer(b"".join(map(known.__getitem__, parts)), np.uint32) for parts in pieces]


def encode_whole(backend: tokenizers.Tokenizer, texts: list[str]) -> list[np.ndarray]:
    """Returns uint32[number of tokens] for each text, encoded by the library alone."""
    return [
        np.array(encoding.ids, np.uint32) for encoding in backend.encode_batch_fast(texts, add_special_tokens=False)
    ]


def piece_pattern(layout: Mapping[str, Any]) -> re.Pattern[str] | None:
    """Returns a pattern whose matches, one after another, are pieces of a text that can be encoded alone.

    Args:
        layout: the content of a `tokenizer.json`.

    Returns:
        The pattern, or None if it is not known that any piece of a text keeps its tokens.
    """
    splitters = components(layout["pre_tokenizer"])
    if [splitter.get("pattern") for splitter in splitters] == [{"Regex": ANY_CHARACTER}]:
        pattern = _CHARACTERS
    elif _is_byte_level(splitters):
        pattern = _WORDS
    else:
        return None
    # NFC composes no character with what comes before a space, a new line or punctuation.
    if any(part["type"] != "NFC" for part in components(layout["normalizer"])):
        return None
    # Special tokens are text here; the others are found before anything is split, so none may lie across a cut.
    found = [token for token in layout["added_tokens"] if not token["special"]]
    if any(token["lstrip"] or token["rstrip"] or token["single_word"] for token in found):
        return None
    return pattern if all(len(pattern.findall(token["content"])) == 1 for token in found) else None


def _is_byte_level(splitters: list[dict[str, Any]]) -> bool:
    """Returns whether a text is split by GPT-2's, Llama 3's or Qwen 2's pattern, and perhaps at digits."""
    byte_level = [part for part in splitters if part["type"] == "ByteLevel" and not part["add_prefix_space"]]
    digits = [part for part in splitters if part["type"] == "Digits"]
    by_pattern = [
        part
        for part in splitters
        if part["type"] == "Split"
        and part["pattern"].get("Regex") in (LLAMA3_PATTERN, QWEN2_PATTERN)
        and (part["behavior"], part["invert"]) == ("Isolated", False)
    ]
    known = len(byte_level) + len(digits) + len(by_pattern) == len(splitters)
    return known and len(byte_level) == 1 and (byte_level[0]["use_regex"] or bool(by_pattern))


def components(section: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the components of a section of `tokenizer.json`, with sequences flattened."""
    if section is None:
        return []
    for name in ("normalizers", "pretokenizers", "decoders"):
        if name in section:
            return [part for inner in section[name] for part in components(inner)]
    return [section]
