"""Where two texts meet: tokens of a continuation, such that `encode(a) + continuation == encode(a + b)`.

Encoding `b` by itself is not enough: many tokenizers mark the start of a text (Metaspace, the Prepend normalizer), and
BPE can merge characters of `a` and `b` into one token. Every place that joins texts uses one of these functions.
"""

from collections.abc import Callable, Sequence

from data.tokenizer import Tokenizer

Encode = Callable[[str], list[int]]

# After one of these, most tokenizers start a new token: a line feed before letters, a letter before white space.
_ANCHORS = ("\n", "a", ".", "a\n")
# Tokens of the context that are decoded together with a continuation; at least those of one character.
_CONTEXT_TOKENS = 16


def encode_endings(encode: Encode, text: str, endings: Sequence[str]) -> tuple[list[int], list[list[int]]]:
    """Returns the tokens of a text and of each of its endings: together those of `encode(text + ending)`.

    The seam is where all endings are separate tokens: before the white space at the end of the text (as in
    lm-evaluation-harness), or further to the left if a token contains the end of the text and the start of an ending.

    Args:
        encode: text -> tokens.
        text: the text before the endings.
        endings: texts that may follow, not empty.
    """
    before = text.rstrip()
    head = encode(before)
    wholes = [encode(text + ending) for ending in endings]
    # An ending has at least one token.
    shared = min(min(_common_prefix(head, whole), len(whole) - 1) for whole in wholes)
    return head[:shared], [whole[shared:] for whole in wholes]


def encode_after(encode: Encode, before: str, text: str) -> list[int]:
    """Returns the tokens of `text` after those of `before`.

    They are the rest of `encode(before + text)`, if that starts with `encode(before)`. If a token would contain
    characters of both, there is a new token at the seam, and the tokens of `text` are those after another text.
    """
    for anchor in (before, *_ANCHORS):
        head = encode(anchor)
        whole = encode(anchor + text)
        if whole[: len(head)] == head:
            return whole[len(head) :]
    return encode(text)


def split_spaces(tokenizer: Tokenizer, text: str) -> tuple[str, str]:
    """Returns a text that a word will follow, and the spaces at its end that belong to the tokens of that word."""
    kept = text.rstrip(" ") if tokenizer.joins_spaces else text
    return (kept, text[len(kept) :]) if kept else (text, "")


def encode_words(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[list[int], list[int]]:
    """Returns the tokens of words that are separated by spaces, and the number of tokens up to the end of each word.

    Words have tokens of their own: the tokens are those of `encode(" ".join(words))`, unless one of these contains
    characters of two words. A word without tokens (such as a control character that the tokenizer drops) has the same
    number as the word before it.
    """
    tokens, offsets = tokenizer.encode_with_offsets(" ".join(words))
    ends, start, count = [], 0, 0
    for word in words:
        stop = start + len(word)
        while count < len(tokens) and offsets[count][0] < stop:
            if offsets[count][1] > stop:
                return _word_by_word(tokenizer, words)
            count += 1
        ends.append(count)
        start = stop + 1
    return tokens, ends


def _word_by_word(tokenizer: Tokenizer, words: Sequence[str]) -> tuple[list[int], list[int]]:
    tokens: list[int] = []
    ends = []
    for number, word in enumerate(words):
        tokens += encode_after(tokenizer.encode, words[number - 1], f" {word}") if number else tokenizer.encode(word)
        ends.append(len(tokens))
    return tokens, ends


def decode_after(tokenizer: Tokenizer, context: Sequence[int], ids: Sequence[int]) -> str:
    """Returns the text that tokens add to the text of a context, where special tokens are dropped.

    `decode(ids)` would be wrong for tokenizers that drop the space at the start of a text, as the start of `ids` is in
    the middle of one.

    Args:
        tokenizer: of the tokens.
        context: the tokens before; not cut within a character.
        ids: tokens.
    """
    special = set(tokenizer.special_tokens.values())
    tail: list[int] = []
    for token in reversed(context[-_CONTEXT_TOKENS:]):
        if token in special:
            break
        tail.insert(0, token)
    if not tail and len(context) > 1 and not tokenizer.marks_each_start:
        tail = tokenizer.encode("a")
    before, whole = tokenizer.decode(tail), tokenizer.decode([*tail, *ids])
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids)


def _common_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """Returns the number of tokens that two sequences start with."""
    differ = (i for i, (a, b) in enumerate(zip(first, second, strict=False)) if a != b)
    return next(differ, min(len(first), len(second)))
