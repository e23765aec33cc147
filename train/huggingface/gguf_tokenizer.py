"""The tokenizer in a GGUF file's metadata -> a `Tokenizer`: byte-level BPE ("gpt2"), or SentencePiece BPE ("llama").

Merges that a SentencePiece vocabulary does not list follow from its scores. How a byte-level vocabulary splits a text
before merging is not in the file, which only names it; a name that is not known here is refused.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, processors

from configs.errors import UserError, one_line
from data.pieces import CONTRACTIONS, LLAMA3_PATTERN, QWEN2_PATTERN
from data.tokenizer import Tokenizer
from train.huggingface.gguf_file import Gguf

_CONTROL, _USER_DEFINED, _UNUSED = 3, 4, 5
_BYTE_LEVEL, _SENTENCEPIECE = "gpt2", "llama"
_SPACE = "▁"

_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+%s|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*%s"
_CASED_REST = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_TEKKEN = rf"{_CASED % ('', '')}|\p{{N}}|{_CASED_REST}"
_GPT4O = rf"{_CASED % (f'{CONTRACTIONS}?', f'{CONTRACTIONS}?')}|\p{{N}}{{1,3}}|{_CASED_REST}"


@dataclasses.dataclass(frozen=True)
class _Split:
    """How a byte-level tokenizer prepares a text.

    Attributes:
        pattern: of the parts that are encoded apart; "": that of GPT-2.
        digits: each digit is a part.
        normalized: text is brought into the normal form NFC.
        whole_words: a part that is a token is that token, whatever the merges say.
        bos: whether a text starts with bos where the file does not say it.
    """

    pattern: str = ""
    digits: bool = False
    normalized: bool = False
    whole_words: bool = False
    bos: bool = False


# tokenizer.ggml.pre -> what it stands for (llama.cpp, src/llama-vocab.cpp).
_SPLITS = (
    dict.fromkeys(("gpt-2", "olmo"), _Split())
    | dict.fromkeys(("smollm", "starcoder", "refact"), _Split(digits=True))
    | dict.fromkeys(("llama-bpe", "llama-v3", "llama3", "falcon3"), _Split(LLAMA3_PATTERN, whole_words=True, bos=True))
    | dict.fromkeys(("dbrx", "smaug-bpe"), _Split(LLAMA3_PATTERN))
    | dict.fromkeys(("qwen2", "deepseek-r1-qwen"), _Split(QWEN2_PATTERN, normalized=True))
    | {
        "stablelm2": _Split(QWEN2_PATTERN),
        "command-r": _Split(digits=True, normalized=True),
        "tekken": _Split(_TEKKEN, whole_words=True, bos=True),
        "gpt-4o": _Split(_GPT4O),
    }
)


def gguf_tokenizer(gguf: Gguf) -> Tokenizer:
    """Returns the tokenizer of a GGUF file, with its chat template.

    Raises:
        UserError: a kind of tokenizer that is not supported, or a value that is missing or has the wrong type.
    """
    values = {
        key.removeprefix("tokenizer.").removeprefix("ggml."): value
        for key, value in gguf.metadata.items()
        if key.startswith("tokenizer.")
    }
    kind = values.get("model")
    if kind not in (_BYTE_LEVEL, _SENTENCEPIECE):
        raise UserError(
            f"{gguf.path}: tokenizer.ggml.model={kind!r:.60} is not supported; expected "
            f"{_BYTE_LEVEL} (byte-level BPE) or {_SENTENCEPIECE} (SentencePiece BPE)"
        )
    for key in ("precompiled_charsmap", "remove_extra_whitespaces"):
        if values.get(key):
            raise UserError(f"{gguf.path}: tokenizer.ggml.{key} is not supported")
    try:
        return _build(values, kind, str(gguf.path))
    except UserError:
        raise
    except Exception as error:  # the library raises bare `Exception`
        raise UserError(f"{gguf.path}: the tokenizer is damaged: {one_line(error)}") from None


def _build(values: Mapping[str, Any], kind: str, where: str) -> Tokenizer:
    tokens = values["tokens"]
    types = values.get("token_type") or [1] * len(tokens)
    if len(types) != len(tokens):
        raise UserError(f"{where}: tokenizer.ggml.token_type has {len(types)} values for {len(tokens)} tokens")
    if kind == _BYTE_LEVEL:
        backend, bos = _byte_level(values, tokens, types, where)
    else:
        backend, bos = _sentencepiece(values, tokens, types), True
    added = [index for index, type_ in enumerate(types) if type_ in (_CONTROL, _USER_DEFINED)]
    # In the order of their ids, so that each keeps its own.
    backend.add_tokens([AddedToken(tokens[i], normalized=False, special=types[i] == _CONTROL) for i in added])
    wrong = next((i for i in added if backend.token_to_id(tokens[i]) != i), None)
    if wrong is not None:
        raise UserError(f"{where}: the token {tokens[wrong]!r:.60} has two ids, {wrong} and another one")
    eos = values.get("eos_token_id")
    if eos is None:
        raise UserError(f"{where}: tokenizer.ggml.eos_token_id is missing")
    ids = {role: values.get(f"{name}_token_id") for role, name in (("bos", "bos"), ("pad", "padding"))}
    ids = {role: eos if index is None else index for role, index in ids.items()} | {"eos": eos}
    ends = dict.fromkeys(values[name] for name in ("eot_token_id", "eom_token_id") if values.get(name) is not None)
    unknown = next((index for index in (*ids.values(), *ends) if not 0 <= index < len(tokens)), None)
    if unknown is not None:
        raise UserError(f"{where}: the special token {unknown} is not one of {len(tokens)} tokens")
    framed = values.get("add_bos_token", bos) and "bos_token_id" in values
    backend.post_processor = _starts_with(tokens[ids["bos"]], ids["bos"]) if framed else _unchanged()
    return Tokenizer(
        backend.to_str(),
        ids["bos"],
        eos,
        ids["pad"],
        values.get("chat_template", ""),
        tuple(index for index in ends if index != eos),
        "bos_token_id" in values,
    )


def _starts_with(name: str, index: int) -> processors.PostProcessor:
    """Returns the post-processor that adds a token before a text."""
    return processors.TemplateProcessing(single=f"{name} $A", special_tokens=[(name, index)])


def _unchanged() -> processors.PostProcessor:
    """Returns a post-processor that adds no token; without one, our own name of bos would mean that texts have it."""
    return processors.ByteLevel(trim_offsets=False)


def _byte_level(
    values: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int], where: str
) -> tuple[tokenizers.Tokenizer, bool]:
    """Returns (tokenizer without added tokens, whether a text starts with bos)."""
    name = values.get("pre")
    if name not in _SPLITS:
        raise UserError(
            f"{where}: tokenizer.ggml.pre={name!r:.60} is not supported; expected one of {', '.join(_SPLITS)}"
        )
    split = _SPLITS[name]
    merges = [tuple(merge.split(" ")) for merge in values["merges"]]
    vocabulary = {token: i for i, token in enumerate(tokens) if types[i] not in (_UNUSED, _CONTROL, _USER_DEFINED)}
    # Tokens that are added are part of the vocabulary too, or they would get new ids.
    vocabulary |= {tokens[i]: i for i, type_ in enumerate(types) if type_ in (_CONTROL, _USER_DEFINED)}
    backend = tokenizers.Tokenizer(models.BPE(vocabulary, merges, ignore_merges=split.whole_words))
    if split.normalized:
        backend.normalizer = normalizers.NFC()
    parts: list[pre_tokenizers.PreTokenizer] = [pre_tokenizers.Digits(individual_digits=True)] if split.digits else []
    if split.pattern:
        parts.append(pre_tokenizers.Split(Regex(split.pattern), behavior="isolated"))
    parts.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not split.pattern))
    backend.pre_tokenizer = pre_tokenizers.Sequence(parts) if len(parts) > 1 else parts[0]
    backend.decoder = decoders.ByteLevel()
    return backend, split.bos


def _sentencepiece(values: Mapping[str, Any], tokens: Sequence[str], types: Sequence[int]) -> tokenizers.Tokenizer:
    """Returns the tokenizer without added tokens."""
    vocabulary = {token: i for i, token in enumerate(tokens) if types[i] != _UNUSED}
    merges = values.get("merges")
    pairs = [tuple(merge.split(" ")) for merge in merges] if merges else _merges(tokens, types, values["scores"])
    unknown = values.get("unknown_token_id", 0)
    model = models.BPE(vocabulary, pairs, unk_token=tokens[unknown], fuse_unk=True, byte_fallback=True)
    backend = tokenizers.Tokenizer(model)
    prefixed = values.get("add_space_prefix", True)
    replace = normalizers.Replace(" ", _SPACE)
    parts = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if prefixed:
        backend.normalizer = normalizers.Sequence([normalizers.Prepend(_SPACE), replace])
        parts.append(decoders.Strip(" ", 1, 0))
    else:
        backend.normalizer = replace
    backend.decoder = decoders.Sequence(parts)
    return backend


def _merges(tokens: Sequence[str], types: Sequence[int], scores: Sequence[float]) -> list[tuple[str, str]]:
    """Returns the merges of a SentencePiece vocabulary: every way to make a token of two others, best score first.

    SentencePiece merges the neighbors whose union has the best score. Tokens that are added are not merged.
    """
    usable = {token: i for i, token in enumerate(tokens) if types[i] == 1}
    merges = []
    # Python's sort is stable: tokens with the same score keep their order.
    for token in sorted(usable, key=lambda token: -scores[usable[token]]):
        pairs = ((token[:cut], token[cut:]) for cut in range(1, len(token)))
        ways = [(left, right) for left, right in pairs if left in usable and right in usable]
        merges += sorted(ways, key=lambda way: (usable[way[0]], usable[way[1]]))
    return merges
