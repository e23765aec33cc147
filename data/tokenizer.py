"""Text <-> token ids: one `Tokenizer` class and one file format, Hugging Face's `tokenizer.json`."""

import dataclasses
import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
from tokenizers import processors

from configs.errors import UserError, one_line
from data.pieces import PieceEncoder, components, encode_whole, piece_pattern
from data.storage.files import is_directory, is_file
from data.storage.paths import at

PAD, BOS, EOS, UNKNOWN = "<|pad|>", "<|bos|>", "<|eos|>", "<|unk|>"

# What names the special tokens; older models have a file for it alone, which the other one overrides.
_NAMED_IN = ("special_tokens_map.json", "tokenizer_config.json")
_WELL_KNOWN = {
    "bos": (BOS, "<s>", "<|begin_of_text|>", "<bos>", "[BOS]", "<|startoftext|>", "<|endoftext|>"),
    "eos": (EOS, "</s>", "<|end_of_text|>", "<eos>", "[EOS]", "<|endoftext|>"),
    "pad": (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>"),
}
# Classes of transformers that have no bos of their own: a file that does not name one has none.
_WITHOUT_BOS = ("PreTrainedTokenizerFast", "TokenizersBackend", "Qwen2Tokenizer", "Qwen2TokenizerFast")
_GENERATION = "generation_config.json"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-F]{2}>")


@dataclasses.dataclass(frozen=True)
class Tokenizer:
    """Text <-> token ids; equal when the files and special ids are equal; pickles as the content of its file.

    Attributes:
        serialized: the content of `tokenizer.json`, as the tokenizers library writes it.
        bos_id: the token that starts a document.
        eos_id: the token that ends a document.
        pad_id: the token that pads rows; never in the loss.
        chat_template: the Jinja chat template (see `data.templates`), or "" if the tokenizer has none.
        end_ids: more tokens than `eos_id` that end a generated text, such as the end of a turn.
        has_bos: False if the model's files say that it has no bos, as those of Qwen do: `bos_id` is another token,
            which starts documents in rows, and chat templates do not see it.
    """

    serialized: str = dataclasses.field(repr=False)
    bos_id: int
    eos_id: int
    pad_id: int
    chat_template: str = dataclasses.field(default="", repr=False)
    end_ids: tuple[int, ...] = ()
    has_bos: bool = True

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    @functools.cached_property
    def _backend(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self.serialized)
        # Not stored in the file. Without it, "<|eos|>" in a text would become the token that ends documents.
        backend.encode_special_tokens = True
        return backend

    @functools.cached_property
    def _matching(self) -> tokenizers.Tokenizer:
        backend = tokenizers.Tokenizer.from_str(self.serialized)
        # Some files do not list them among the tokens that are matched as a whole.
        backend.add_special_tokens([self.token_name(index) for index in (self.bos_id, self.eos_id, self.pad_id)])
        return backend

    @functools.cached_property
    def _layout(self) -> dict[str, Any]:
        return json.loads(self.serialized)

    @functools.cached_property
    def vocab_size(self) -> int:
        """The highest token id plus one, special tokens included."""
        return max(self._backend.get_vocab(with_added_tokens=True).values()) + 1

    @functools.cached_property
    def unknown_id(self) -> int:
        """The token of what the vocabulary lacks; -1: there is none."""
        model = self._layout["model"]
        index = model.get("unk_id", self._backend.token_to_id(model.get("unk_token") or ""))
        return -1 if index is None else index

    @functools.cached_property
    def sha256(self) -> str:
        """The SHA-256 of `serialized`; the chat template does not change it."""
        return hashlib.sha256(self.serialized.encode()).hexdigest()

    @functools.cached_property
    def _pieces(self) -> PieceEncoder | None:
        """Encodes texts piece by piece; None if it is not known which pieces of a text keep their tokens."""
        pattern = piece_pattern(self._layout)
        return None if pattern is None else PieceEncoder(self._backend, pattern)

    def encode(self, text: str) -> list[int]:
        """Returns the tokens of `text`, none of them special: the name of a special token in the text stays text."""
        return self.encode_batch([text])[0]

    def encode_batch(self, texts: list[str]) -> list[list[int]]:
        """Returns `encode` of each text."""
        return [ids.tolist() for ids in self._encode(texts)]

    def encode_documents(self, texts: list[str], dtype: str) -> list[np.ndarray]:
        """Returns the tokens of each text with bos before and eos after them, as a token store has them."""
        bos, eos = np.array([self.bos_id], dtype), np.array([self.eos_id], dtype)
        return [np.concatenate([bos, ids.astype(dtype), eos]) for ids in self._encode(texts)]

    def _encode(self, texts: list[str]) -> list[np.ndarray]:
        """Returns uint32[number of tokens] for each text."""
        return encode_whole(self._backend, texts) if self._pieces is None else self._pieces(texts)

    @functools.cached_property
    def special_tokens(self) -> dict[str, int]:
        """Name -> id of the tokens that `encode` never returns: those marked special in the file, bos, eos and pad."""
        added = self._matching.get_added_tokens_decoder()
        return {token.content: index for index, token in added.items() if token.special}

    @functools.cached_property
    def added_tokens(self) -> dict[str, int]:
        """Name -> id of the tokens that `encode_with_specials` matches by name: special tokens and other added ones."""
        return {token.content: index for index, token in self._matching.get_added_tokens_decoder().items()}

    def token_name(self, index: int) -> str:
        """Returns the vocabulary entry of a token id."""
        name = self._backend.id_to_token(index)
        assert name is not None, f"no token has the id {index}"
        return name

    @functools.cached_property
    def template_names(self) -> dict[str, str]:
        """The special tokens that a chat template can name: eos_token, and bos_token if the model has one."""
        bos = {"bos_token": self.token_name(self.bos_id)} if self.has_bos else {}
        return {**bos, "eos_token": self.token_name(self.eos_id)}

    def encode_with_offsets(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the tokens of `encode` and the span of each, (first character, last character + 1)."""
        encoding = self._backend.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def encode_with_specials(self, text: str) -> tuple[list[int], list[tuple[int, int]]]:
        """Returns the tokens of a text, where names of special tokens become those tokens, and the span of each.

        A span is (first character, last character + 1) in `text`; tokens that are parts of one character share a span.
        """
        encoding = self._matching.encode(text, add_special_tokens=False)
        return encoding.ids, encoding.offsets

    def decode(self, ids: Iterable[int], specials: bool = False) -> str:
        """Returns the text of the tokens; special tokens are dropped, or written by name if `specials` is set."""
        return self._backend.decode(list(ids), skip_special_tokens=not specials)

    @functools.cached_property
    def starts_with_bos(self) -> bool:
        """Whether a prompt starts with bos: as the file's post-processor does; without one, if bos is `BOS`."""
        if self._layout["post_processor"] is None:
            return self.token_name(self.bos_id) == BOS
        return self._backend.encode("a", add_special_tokens=True).ids[0] == self.bos_id

    @functools.cached_property
    def marks_each_start(self) -> bool:
        """Whether a text after a special token is encoded as one at the start of the context."""
        ids, _ = self.encode_with_specials(f"{self.token_name(self.eos_id)}a")
        return ids[1:] == self.encode("a")

    @functools.cached_property
    def joins_spaces(self) -> bool:
        """Whether a token can contain a word with the space before it."""
        return any(name[:1] in (" ", "Ġ", "▁") and name[1:2].isalnum() for name in self._backend.get_vocab())

    def encode_prompt(self, text: str) -> list[int]:
        """Returns the tokens of a text at the start of the context: `encode`, after bos if `starts_with_bos`."""
        return [self.bos_id] * self.starts_with_bos + self.encode(text)

    def encode_raw_prompt(self, text: str) -> list[int]:
        """Returns `encode_with_specials` of a text at the start of the context, `after_bos`."""
        return self.after_bos(self.encode_with_specials(text)[0])

    def after_bos(self, tokens: list[int]) -> list[int]:
        """Returns the tokens of a prompt after bos if `starts_with_bos`, unless the text itself names bos there."""
        framed = self.starts_with_bos and tokens[:1] != [self.bos_id]
        return [self.bos_id] * framed + tokens

    def token_bytes(self, size: int | None = None) -> np.ndarray:
        """Returns int32[size]: the number of UTF-8 bytes of text per token, 0 for special tokens.

        Exact for byte-level BPE, bytes and chars: the sum over the tokens of a text is its length in bytes. In
        vocabularies that mark word starts, the mark counts as a space, which is one byte too many where the tokenizer
        adds a mark at the start of a text.

        Args:
            size: length of the array, at least `vocab_size` (the default); entries beyond the vocabulary are 0.
        """
        counts = np.zeros(size or self.vocab_size, np.int32)
        added = {token["id"]: token for token in self._layout["added_tokens"]}
        kinds = {part["type"] for name in ("pre_tokenizer", "decoder") for part in components(self._layout[name])}
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

    def with_post_processor(self, eos: bool) -> "Tokenizer":
        """Returns a tokenizer whose file has a post-processor that adds bos before a text and, if `eos`, eos after it.

        `encode` adds neither; other libraries that load the file do.
        """
        backend = tokenizers.Tokenizer.from_str(self.serialized)
        names = {index: self.token_name(index) for index in (self.bos_id, self.eos_id)}
        bos, end = names[self.bos_id], f" {names[self.eos_id]}" if eos else ""
        backend.post_processor = processors.TemplateProcessing(
            single=f"{bos} $A{end}", special_tokens=[(name, index) for index, name in names.items()]
        )
        return dataclasses.replace(self, serialized=backend.to_str())

    def save(self, directory: str | Path) -> None:
        """Writes the tokenizer's files in Hugging Face's format.

        `tokenizer.json`; `tokenizer_config.json` with the names of bos (null unless `has_bos`), eos and pad, and the
        chat template; and, if there are `end_ids`, `generation_config.json`.
        """
        directory = at(directory)
        directory.mkdir(parents=True, exist_ok=True)
        (directory / "tokenizer.json").write_text(self.serialized, encoding="utf-8")
        names = {"bos_token": None, **self.template_names, "pad_token": self.token_name(self.pad_id)}
        chat = {"chat_template": self.chat_template} if self.chat_template else {}
        config = json.dumps({"tokenizer_class": "PreTrainedTokenizerFast", **names, **chat}, indent=1)
        (directory / "tokenizer_config.json").write_text(config, encoding="utf-8")
        if self.end_ids:
            ends = json.dumps({"eos_token_id": [self.eos_id, *self.end_ids]}, indent=1)
            (directory / _GENERATION).write_text(ends, encoding="utf-8")


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Returns a tokenizer saved by this codebase or by any library that writes Hugging Face's format.

    bos, eos and pad are read from `tokenizer_config.json` in the same directory, else from `special_tokens_map.json`,
    else found by their usual names. If bos or pad is missing, eos is used for it. `has_bos` is False where
    `tokenizer_config.json` names none by null, or by a class of transformers without a default. The chat template is
    read from `chat_template.jinja`, else from `tokenizer_config.json`; if that lists several, the one named "default"
    is used. All ids in the `eos_token_id` of `generation_config.json`, else of the model's `config.json`, end a
    generated text.

    Args:
        path: a `tokenizer.json`, or a directory that contains one.

    Raises:
        UserError: a file is missing or invalid, there is no eos, or a special token is not in the vocabulary.
    """
    path = at(path)
    file = path / "tokenizer.json" if is_directory(path) else path
    if not is_file(file):
        raise UserError(f"{path}: tokenizer.json is missing; expected a tokenizer.json or its directory")
    try:
        backend = tokenizers.Tokenizer.from_str(file.read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare `Exception`
        raise UserError(f"{file} is not a tokenizer.json: {one_line(error)}") from None
    # Truncated or padded texts would silently change the data.
    backend.no_truncation()
    backend.no_padding()
    files = [read_json(file.with_name(name)) for name in _NAMED_IN]
    named = {name: value for config in files for name, value in config.items() if value is not None}
    ids = {role: _special_id(role, named, file, backend) for role in _WELL_KNOWN}
    eos = ids["eos"]
    if eos is None:
        raise UserError(
            f"{file} has no end-of-sequence token; expected eos_token in the tokenizer_config.json next to it, or a "
            f"token named one of {', '.join(_WELL_KNOWN['eos'])}"
        )
    bos, pad = ids["bos"], ids["pad"]
    chat = chat_template_in(file.parent)
    ends = tuple(index for index in _end_ids(file) if index != eos and backend.id_to_token(index) is not None)
    return Tokenizer(
        backend.to_str(),
        eos if bos is None else bos,
        eos,
        eos if pad is None else pad,
        chat,
        ends,
        "bos_token" in named or not _without_bos(files[-1]),
    )


def _without_bos(config: Mapping[str, Any]) -> bool:
    """Returns whether `tokenizer_config.json` says that the model has no bos."""
    return "bos_token" in config or config.get("tokenizer_class") in _WITHOUT_BOS


def read_json(path: Path) -> dict[str, Any]:
    """Returns the object in a JSON file, or an empty one if the file is missing.

    Raises:
        UserError: the file does not contain a JSON object.
    """
    if not path.is_file():
        return {}
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is not a JSON object: {one_line(error)}") from None
    if not isinstance(config, dict):
        raise UserError(f"{path} is not a JSON object: got {config!r:.80}")
    return config


def _special_id(role: str, named: dict[str, Any], file: Path, backend: tokenizers.Tokenizer) -> int | None:
    value = named.get(f"{role}_token")
    name = value.get("content") if isinstance(value, dict) else value
    if name is not None:
        if not isinstance(name, str) or backend.token_to_id(name) is None:
            files = " or ".join(reversed(_NAMED_IN))
            raise UserError(f"{file.parent}: {files}: {role}_token={name!r}; expected a token of {file.name}")
        return backend.token_to_id(name)
    found = (backend.token_to_id(name) for name in _WELL_KNOWN[role])
    return next((index for index in found if index is not None), None)


def _end_ids(file: Path) -> list[int]:
    """Returns the ids that end a generated text according to the files next to `tokenizer.json`."""
    for path in (file.with_name(_GENERATION), file.with_name("config.json")):
        value = read_json(path).get("eos_token_id")
        if value is None:
            continue
        ids = value if isinstance(value, list) else [value]
        if not all(type(index) is int and index >= 0 for index in ids):
            raise UserError(f"{path}: eos_token_id={value!r:.80}; expected a token id, or a list of them")
        return list(dict.fromkeys(ids))
    return []


def chat_template_in(directory: Path) -> str:
    """Returns the chat template in `chat_template.jinja`, else in `tokenizer_config.json`; "": there is none.

    Raises:
        UserError: it is not a string, or a list of names and strings.
    """
    own = directory / "chat_template.jinja"
    if own.is_file():
        return own.read_text(encoding="utf-8")
    path = directory / "tokenizer_config.json"
    value = read_json(path).get("chat_template")
    if isinstance(value, list):
        named = {item.get("name"): item.get("template") for item in value if isinstance(item, dict)}
        value = named.get("default")
    if value is not None and not isinstance(value, str):
        raise UserError(f"{path}: chat_template={value!r:.80}; expected a string, or a list of names and templates")
    return value or ""
