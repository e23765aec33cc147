"""Trains tokenizers, and resolves the `--tokenizer` argument: "bpe:N", "bytes", "chars" or the path of a saved one."""

import re
from collections.abc import Callable, Iterable, Iterator

import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from configs.errors import UserError
from data.pieces import ANY_CHARACTER
from data.storage.files import exists
from data.storage.paths import at
from data.tokenizer import BOS, EOS, PAD, UNKNOWN, Tokenizer, load_tokenizer

_EXPECTED = "bpe:N (N of at least 259), bytes, chars, or the path of a tokenizer.json or its directory"
_SMALLEST_BPE = 259  # 256 bytes and three special tokens
_PIECE_CHARACTERS = 1 << 16
# GPT-2's pattern never merges a letter with the space after it, so a cut there does not change what is counted.
_BETWEEN_WORDS = re.compile(r"(?<=[a-zA-Z]) (?=[a-zA-Z])")


def is_trainable(spec: str) -> bool:
    """Returns whether `spec` names a tokenizer to train ("bpe:N", "bytes", "chars") rather than a saved one."""
    return spec in ("bytes", "chars") or _bpe_size(spec) is not None


def planned_vocab_size(spec: str) -> int | None:
    """Returns the largest vocabulary size that the tokenizer of `spec` can have, or None if it depends on the text.

    Raises:
        UserError: see `get_tokenizer`.
    """
    if spec == "chars":
        return None
    return _SMALLEST_BPE if spec == "bytes" else _bpe_size(spec) or get_tokenizer(spec, list).vocab_size


def _bpe_size(spec: str) -> int | None:
    match = re.fullmatch(r"bpe:([0-9]{1,9})", spec)
    return int(match[1]) if match and int(match[1]) >= _SMALLEST_BPE else None


def train_tokenizer(spec: str, texts: Iterable[str]) -> Tokenizer:
    """Returns a new tokenizer with `decode(encode(x)) == x` for every text ("chars": of characters in `texts`).

    Args:
        spec: "bpe:N", byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with at most N tokens in total;
            "bytes", one token per byte; or "chars", one token per character.
        texts: the texts on which BPE counts pairs and from which "chars" takes its characters; not read for "bytes".

    Raises:
        UserError: `spec` is not one of these.
    """
    if spec == "bytes":
        backend = _byte_level(models.BPE({name: i for i, name in enumerate((PAD, BOS, EOS, *_byte_symbols()))}, []))
    elif spec == "chars":
        characters = sorted(set().union(*texts))
        vocabulary = {name: i for i, name in enumerate((PAD, BOS, EOS, UNKNOWN, *characters))}
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(ANY_CHARACTER), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([UNKNOWN])
    else:
        size = _bpe_size(spec)
        if size is None:
            raise UserError(f"tokenizer {spec!r} is unknown; expected {_EXPECTED}")
        backend = _byte_level(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            special_tokens=[PAD, BOS, EOS],
            initial_alphabet=_byte_symbols(),
            show_progress=False,
        )
        backend.train_from_iterator(_training_pieces(texts), trainer)
    backend.add_special_tokens([PAD, BOS, EOS])
    return Tokenizer(backend.to_str(), bos_id=1, eos_id=2, pad_id=0)


def _byte_level(model: models.BPE) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(model)
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    return backend


def _byte_symbols() -> list[str]:
    """Returns the character that represents each byte: the byte itself if printable, else the next from U+0100 on."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    beyond = iter(sorted(symbol for symbol in alphabet if ord(symbol) > 255))
    return [chr(byte) if chr(byte) in alphabet else next(beyond) for byte in range(256)]


def _training_pieces(texts: Iterable[str]) -> Iterator[str]:
    """Yields the texts, cut into pieces of about 65,536 characters, because the library needs memory by the text."""
    for text in texts:
        start = 0
        while match := _BETWEEN_WORDS.search(text, start + _PIECE_CHARACTERS):
            yield text[start : match.start()]
            start = match.start()
        yield text[start:]


def get_tokenizer(spec: str, texts_factory: Callable[[], Iterable[str]]) -> Tokenizer:
    """Returns the tokenizer of `spec`, trained on the texts that `texts_factory()` yields or loaded from a path.

    Raises:
        UserError: `spec` is invalid, or the saved tokenizer is (see `load_tokenizer`).
    """
    if is_trainable(spec):
        return train_tokenizer(spec, texts_factory() if spec != "bytes" else ())
    if not exists(at(spec)):
        raise UserError(f"tokenizer {spec!r} is unknown, and no such path exists; expected {_EXPECTED}")
    return load_tokenizer(spec)
