"""Encodes text in which some names of tokens are these tokens and others are text: the text of a chat.

"<|im_end|>" is a token where a template writes it, and text in the content of a message, where `GUARD` splits it. The
text is encoded as a whole, because the tokens at the start of a text differ from those in the middle of one.
"""

import functools
import json
import re
from collections.abc import Sequence

import tokenizers
from tokenizers import AddedToken

from data.seams import encode_after, split_spaces
from data.tokenizer import Tokenizer

# Unicode reserves these code points for internal use. GUARD splits a name that is text, and is removed from the text;
# the other two enclose the number of a token that is not text.
GUARD, _OPEN, _CLOSE = "\ufdd2", "\ufdd3", "\ufdd4"
RESERVED = GUARD + _OPEN + _CLOSE
_ENCLOSED = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")

Names = frozenset[str]
Run = tuple[str, bool]  # text, and whether it is in the loss


def guard(text: str, names: Names) -> str:
    """Returns the text with each name (of two or more characters) split, so that it is encoded as text."""
    pattern = _pattern(frozenset(name for name in names if len(name) > 1))
    while pattern.search(text):
        text = pattern.sub(lambda match: match[0][0] + GUARD + match[0][1:], text)
    return text


def encode_marked(text: str, tokenizer: Tokenizer) -> list[int]:
    """Returns the tokens of a text in which all names of added tokens are tokens, unless split."""
    return encode_joint([(text, False)], tokenizer, frozenset(tokenizer.added_tokens))[0]


def encode_joint(runs: Sequence[Run], tokenizer: Tokenizer, names: Names) -> tuple[list[int], list[bool]]:
    """Returns the tokens of the concatenated runs, and whether each contains a character that is in the loss.

    Args:
        runs: texts without `RESERVED` characters except `GUARD`.
        tokenizer: the tokenizer.
        names: the added tokens whose names are tokens, unless split; the others are tokens wherever they occur.
    """
    texts = [_enclose(text, tokenizer, names) for text, _ in runs]
    trained = [flag for text, (_, flag) in zip(texts, runs, strict=True) for _ in text]
    encoding = _backend(tokenizer, names).encode("".join(texts), add_special_tokens=False)
    mask = [any(trained[first : max(last, first + 1)]) for first, last in encoding.offsets]
    return _original_ids(encoding.ids, tokenizer, names), mask


def encode_turns(
    runs: Sequence[Run], tokenizer: Tokenizer, names: Names, prompt: bool = False
) -> tuple[list[int], list[bool]]:
    """Returns the tokens of the concatenated runs, and whether each is in the loss; see `encode_joint`.

    Each run has tokens of its own, which do not depend on the runs after it: an answer follows the same tokens in
    training and in inference. They differ from those of `encode_joint` only where that merges characters of two runs.
    Where a tokenizer has tokens for words with the space before them, a space at the end of a run belongs to the next.

    Args:
        runs: texts without `RESERVED` characters except `GUARD`.
        tokenizer: the tokenizer.
        names: see `encode_joint`.
        prompt: another run will follow the last one.
    """

    def encode(text: str) -> list[int]:
        return backend.encode(text, add_special_tokens=False).ids

    backend = _backend(tokenizer, names)
    tokens: list[int] = []
    mask: list[bool] = []
    before = space = ""
    for number, (run, trained) in enumerate(runs, 1):
        text = space + _enclose(run, tokenizer, names)
        text, space = split_spaces(tokenizer, text) if prompt or number < len(runs) else (text, "")
        ids = encode_after(encode, before, text)
        tokens += ids
        mask += [trained] * len(ids)
        # Tokens do not depend on the text before a special token.
        before += text
        before = before[max(before.rfind(_OPEN), 0) :]
    return _original_ids(tokens, tokenizer, names), mask


def _enclose(text: str, tokenizer: Tokenizer, names: Names) -> str:
    """Returns the text with the number of the token in place of each name, and without guards."""
    ids = tokenizer.added_tokens
    return _pattern(names).sub(lambda match: f"{_OPEN}{ids[match[0]]}{_CLOSE}", text).replace(GUARD, "")


@functools.lru_cache(maxsize=16)
def _pattern(names: Names) -> re.Pattern[str]:
    longest_first = sorted(names, key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")


@functools.lru_cache(maxsize=4)
def _backend(tokenizer: Tokenizer, names: Names) -> tokenizers.Tokenizer:
    """Returns a tokenizer in which `names` are text, and enclosed numbers are added tokens with their properties."""
    layout = json.loads(tokenizer.serialized)
    for token in layout["added_tokens"]:
        token["special"] |= token["content"] in names
    backend = tokenizers.Tokenizer.from_str(json.dumps(layout))
    backend.encode_special_tokens = True
    stored = {token["content"]: token for token in layout["added_tokens"]}
    added = []
    for name in sorted(names):
        properties = ("single_word", "lstrip", "rstrip", "normalized")
        flags = {key: name in stored and stored[name][key] for key in properties}
        added.append(AddedToken(f"{_OPEN}{tokenizer.added_tokens[name]}{_CLOSE}", special=False, **flags))
    backend.add_tokens(added)
    return backend


def _original_ids(ids: Sequence[int], tokenizer: Tokenizer, names: Names) -> list[int]:
    """Returns token ids with those of enclosed numbers replaced by the numbers."""
    originals = _originals(tokenizer, names)
    return [originals.get(index, index) for index in ids]


@functools.lru_cache(maxsize=4)
def _originals(tokenizer: Tokenizer, names: Names) -> dict[int, int]:
    added = _backend(tokenizer, names).get_added_tokens_decoder().items()
    return {index: int(match[1]) for index, token in added if (match := _ENCLOSED.fullmatch(token.content))}
