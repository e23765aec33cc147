"""Trains, loads and saves tokenizers: one class and one format, Hugging Face's `tokenizer.json`."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import Regex, decoders, models, pre_tokenizers, processors, trainers

from configs.errors import UserError

PAD, BOS, EOS, UNKNOWN = "<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>"
LEGAL_SPECS = "bpe:N (N of at least 259), bytes, chars, or the path of a tokenizer.json or its directory"

_WELL_KNOWN = {
    "bos": (BOS, "<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|startoftext|>", "<|endoftext|>"),
    "eos": (EOS, "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|endoftext|>"),
    "pad": (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>"),
}
_SMALLEST_BPE = 259  # 256 bytes and three special tokens
_PIECE_CHARACTERS = 1 << 16
_ANY_CHARACTER = r"[\s\S]"
_EVERYWHERE = re.compile(r"(?=[\s\S])")
# GPT-2's pattern never joins a letter with the space after it, so a cut there leaves the tokens as they are.
_BETWEEN_WORDS = re.compile(r"(?<=[a-zA-Z]) (?=[a-zA-Z])")
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text <-> token ids. Two tokenizers are equal when their files and special ids are; pickles as its file.

    Attributes:
        serialized: the content of `tokenizer.json`, as the tokenizers library writes it.
        bos_id: starts a document.
        eos_id: ends a document.
        pad_id: fills rows; never trained on.
        chat_template: Jinja, as Hugging Face writes it (see `data.templates`); "": none.
    """

    serialized: str = dataclasses.field(repr=False)
    bos_id: int
    eos_id: int
    pad_id: int
    chat_template: str = dataclasses.field(default="", repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self.serialized)
        # Not part of the file. Without it "<|eos|>" in a text would become the token that ends documents.
        backend.encode_special_tokens = True
        return backend

    @functools.cached_property
    def _matching(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self.serialized)
        # Some files leave them out of the list of tokens that are matched as a whole.
        backend.add_special_tokens([self.token_name(index) for index in (self.bos_id, self.eos_id, self.pad_id)])
        return backend

    @functools.cached_property
    def _layout(self) -> dict[str, Any]:
        return json.loads(self.serialized)

    @functools.cached_property
    def vocab_size(self) -> int:
        """The highest token id + 1, special tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def sha256(self) -> str:
        """Names what a text's tokens are: the hash of `serialized`, whatever the chat template."""
        return hashlib.sha256(self.serialized.encode()).hexdigest()

    @functools.cached_property
    def _cut(self) -> re.Pattern[str] | None:
        """Where a long text may be cut without changing a token; None: nowhere that is known."""
        splitters = _parts(self._layout["pre_tokenizer"])
        if self._layout["normalizer"] or any(not token["special"] for token in self._layout["added_tokens"]):
            return None
        if [part["type"] for part in splitters] == ["ByteLevel"] and not splitters[0]["add_prefix_space"]:
            return _BETWEEN_WORDS if splitters[0]["use_regex"] else None
        if len(splitters) == 1 and splitters[0].get("pattern") == {"Regex": _ANY_CHARACTER}:
            return _EVERYWHERE
        return None

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of `text`; none is special, even where a special token's name stands in the text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Returns `encode` of each text, several at once and long ones in pieces."""
        pieces = [_pieces(text, self._cut) for text in texts]
        flat = [piece for parts in pieces for piece in parts]
        encoded = iter(self._backend.encode_batch_fast(flat, add_special_tokens=False))
        return [[token for _ in parts for token in next(encoded).ids] for parts in pieces]

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """Name -> id of the tokens that no text has: those that the file calls special, and bos, eos and pad."""
        added = self._matching.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    @functools.cached_property
    def added_tokens(self) -> dict[str, int]:
        """Name -> id of the tokens that `encode_with_specials` matches as a whole: special ones and a few others."""
        return {token.content: index for index, token in self._matching.get_added_tokens_decoder().items()}

    def token_name(self, index: int) -> str:
        """Returns a token as the vocabulary spells it."""
        name = self._backend.id_to_token(index)
        assert name is not None, f"no token has the id {index}"
        return name

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the tokens of `encode` and the place of each, (first character, last + 1)."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_with_specials(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the tokens of a text in which a special token's name is that token, and their places.

        A place is (first character, last + 1) in `text`; tokens that are parts of one character share theirs.
        """
        encoding = self._matching.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int], specials: bool = False) -> str:
        """Returns the text of the tokens, special ones skipped, or their names in it with `specials`."""
        return self._backend.decode(list(ids), skip_special_tokens=not specials)

    @functools.cached_property
    def starts_with_bos(self) -> bool:
        """Whether a text by itself begins with bos: as the file says; our own, which say nothing, do."""
        if self._layout["post_processor"] is None:
            return self.token_name(self.bos_id) == BOS
        return self._backend.encode("a", add_special_tokens=True).ids[0] == self.bos_id

    def encode_alone(self, text: str) -> list[int]:
        """Returns the tokens of a text that nothing stands before, as a model reads it: with bos where it is due."""
        return [self.bos_id] * self.starts_with_bos + self.encode(text)

    def token_bytes(self, size: int | None = None) -> np.ndarray:
        """Returns int32[size]: the UTF-8 bytes of text each token stands for, 0 for special tokens.

        Exact for byte-level BPE, bytes and chars, where the sum over a text's tokens is the text's length in bytes.
        For vocabularies that mark word starts, the mark counts as a space: one too many where a text gets one in front.

        Args:
            size: entries, at least `vocab_size`, which it is by default; those beyond the vocabulary are 0.
        """
        counts = np.zeros(size or self.vocab_size, np.int32)
        added = {token["id"]: token for token in self._layout["added_tokens"]}
        kinds = {part["type"] for name in ("pre_tokenizer", "decoder") for part in _parts(self._layout[name])}
        for token, index in self._backend.get_vocab(with_added_tokens=True).items():
            if index in added:
                counts[index] = 0 if added[index]["special"] else len(token.encode())
            elif "ByteLevel" in kinds:
                counts[index] = len(token)
            elif "ByteFallback" in kinds and _BYTE_TOKEN.fullmatch(token):
                counts[index] = 1
            elif kinds & {"Metaspace", "Replace"}:
                counts[index] = len(token.replace("▁", " ").encode())
            else:
                counts[index] = len(token.encode())
        return counts

    def with_frame(self, eos: bool) -> "Tokenizer":
        """Returns the tokenizer whose file says that a text begins with bos and, with `eos`, ends with eos.

        `encode` adds neither; other readers of the file do as it says.
        """
        backend = tokenizers.Tokenizer.from_str(self.serialized)
        names = {index: self.token_name(index) for index in (self.bos_id, self.eos_id)}
        bos, end = names[self.bos_id], f" {names[self.eos_id]}" if eos else ""
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A{end}", special_tokens=[(name, index) for index, name in names.items()]
        )
        return dataclasses.replace(self, serialized=backend.to_str())

    def save(self, directory: str | Path) -> None:
        """Writes `tokenizer.json` and `tokenizer_config.json`: the names of bos, eos and pad, and the chat template."""
        directory = Path(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(self.serialized, encoding="utf-8")
        names = {f"{role}_token": self.token_name(getattr(self, f"{role}_id")) for role in _WELL_KNOWN}
        chat = {"chat_template": self.chat_template} if self.chat_template else {}
        config = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names, **chat}, indent=1)
        (directory / "tokenizer_config.json").write_text(config, encoding="utf-8")


def _parts(section: dict[str, Any] | None) -> list[dict[str, Any]]:
    """Returns the components of a section of `tokenizer.json`, sequences flattened."""
    if section is None:
        return []
    for name in ("pretokenizers", "decoders"):
        if name in section:
            return [part for inner in section[name] for part in _parts(inner)]
    return [section]


def _pieces(text: str, cut: re.Pattern[str] | None) -> list[str]:
    """Returns `text` cut at matches of `cut` into pieces of about `_PIECE_CHARACTERS`."""
    pieces, start = [], 0
    while cut is not None and len(text) - start > _PIECE_CHARACTERS:
        match = cut.search(text, start + _PIECE_CHARACTERS)
        if match is None:
            break
        pieces.append(text[start : match.start()])
        start = match.start()
    return [*pieces, text[start:]]


def is_trainable(spec: str) -> bool:
    """Returns whether `spec` asks for a tokenizer to be trained ("bpe:N", "bytes", "chars"), not for a saved one."""
    return spec in ("bytes", "chars") or _bpe_size(spec) is not None


def planned_vocab_size(spec: str) -> int | None:
    """Returns how many tokens the tokenizer of `spec` will have at most; None where only the text can tell ("chars").

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
    """Returns a new tokenizer; `decode(encode(x)) == x` for every text ("chars": of characters seen in `texts`).

    Args:
        spec: "bpe:N", byte-level BPE (Sennrich et al. 2016; Radford et al. 2019) with at most N tokens in all, "bytes",
            one token a byte, or "chars", one token a character.
        texts: what BPE counts pairs on and "chars" takes its characters from; "bytes" doesn't read it.

    Raises:
        UserError: `spec` is none of these.
    """
    if spec == "bytes":
        backend = _byte_level(models.BPE({name: i for i, name in enumerate((PAD, BOS, EOS, *_byte_symbols()))}, []))
    elif spec == "chars":
        characters = sorted(set().union(*texts))
        vocabulary = {name: i for i, name in enumerate((PAD, BOS, EOS, UNKNOWN, *characters))}
        backend = tokenizers.Tokenizer(models.WordLevel(vocabulary, unk_token=UNKNOWN))
        backend.pre_tokenizer = pre_tokenizers.Split(Regex(_ANY_CHARACTER), "isolated")
        backend.decoder = decoders.Fuse()
        backend.add_special_tokens([UNKNOWN])
    else:
        size = _bpe_size(spec)
        if size is None:
            raise UserError(f"tokenizer {spec!r} is unknown; legal: {LEGAL_SPECS}")
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
    """Returns the character that stands for each byte: itself where it is visible, else the next one from 256 on."""
    alphabet = set(pre_tokenizers.ByteLevel.alphabet())
    beyond = iter(sorted(symbol for symbol in alphabet if ord(symbol) > 255))
    return [chr(byte) if chr(byte) in alphabet else next(beyond) for byte in range(256)]


def _training_pieces(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        yield from _pieces(text, _BETWEEN_WORDS)


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns a saved tokenizer, of this codebase or any other that writes Hugging Face's format.

    bos, eos and pad are those of `tokenizer_config.json` beside it, else those with well-known names. Without a bos,
    eos serves as bos; without a pad, eos serves as pad. The chat template is that of `chat_template.jinja` beside it,
    else that of `tokenizer_config.json`: of several, the one named "default".

    Args:
        path: a `tokenizer.json`, or a directory that holds one.

    Raises:
        UserError: missing or broken files, no eos, or a special token that the vocabulary lacks.
    """
    file = Path(path) / "tokenizer.json" if Path(path).is_dir() else Path(path)
    if not file.is_file():
        raise UserError(f"{path}: no tokenizer there; legal: a tokenizer.json or a directory that holds one")
    try:
        backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare `Exception`
        raise UserError(f"{file} is not a tokenizer.json: {_one_line(error)}") from None
    # A cut or filled-up text would be a silent change of the data.
    backend.no_truncation()
    backend.no_padding()
    config = _read_config(file.with_name("tokenizer_config.json"))
    ids = {role: _special_id(role, config, file, backend) for role in _WELL_KNOWN}
    eos = ids["eos"]
    if eos is None:
        raise UserError(
            f"{file}: no end-of-sequence token; legal: eos_token in tokenizer_config.json beside it, or a token named "
            f"{', '.join(_WELL_KNOWN['eos'])}"
        )
    bos, pad = ids["bos"], ids["pad"]
    chat = _chat_template(config, file)
    return Tokenizer(backend.to_str(), eos if bos is None else bos, eos, eos if pad is None else pad, chat)


def _read_config(path: Path) -> dict[str, Any]:
    """Returns `tokenizer_config.json`, or an empty dict where there is none."""
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{path} is not a JSON object: {_one_line(error)}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object: it holds {config!r:.80}")
    return config


def _special_id(role: str, config: dict[str, Any], file: Path, backend: tokenizers.Tokenizer) -> int | None:
    value = config.get(f"{role}_token")
    name = value.get("content") if isinstance(value, dict) else value
    if name is not None:
        if not isinstance(name, str) or backend.token_to_id(name) is None:
            path = file.with_name("tokenizer_config.json")
            raise UserError(f"{path}: {role}_token is {name!r}; legal: a token of {file.name}")
        return backend.token_to_id(name)
    found = (backend.token_to_id(name) for name in _WELL_KNOWN[role])
    return next((index for index in found if index is not None), None)


def _chat_template(config: dict[str, Any], file: Path) -> str:
    own = file.with_name("chat_template.jinja")
    if own.is_file():
        return own.read_text(encoding="utf-8")
    value = config.get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        path = file.with_name("tokenizer_config.json")
        raise UserError(f"{path}: chat_template is {value!r:.80}; legal: a text, or a list of names and templates")
    return value or ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:200]


def get_tokenizer(spec: str, texts_factory: Callable[[], Iterable[str]]) -> Tokenizer:
    """Returns the tokenizer that `spec` names: trained on what `texts_factory()` yields, or loaded from a path.

    Raises:
        UserError: `spec` is no legal form, or see `load_tokenizer`.
    """
    if is_trainable(spec):
        return train_tokenizer(spec, texts_factory() if spec != "bytes" else ())
    if not Path(spec).exists():
        raise UserError(f"tokenizer {spec!r} is unknown, and no such path exists; legal: {LEGAL_SPECS}")
    return load_tokenizer(spec)
