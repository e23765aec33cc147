"""Small tokenizers of every common design, for tests of what must hold for all of them."""

import functools
import json

import tokenizers
from tokenizers import decoders, models, normalizers, pre_tokenizers, trainers

from data.tokenizer import Tokenizer
from data.tokenizer_training import train_tokenizer

SPECIALS = ("<pad>", "<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|eot_id|>")
# Added tokens that are not special, as in Qwen3.
ORDINARY = ("<think>", "</think>", "<tool_response>", "</tool_response>")
WORDS = "the cat sat on a mat and saw dog run far away home again good bad label review user assistant system"
# Merges that a seam can split: line feeds, and words with the space or the punctuation before them.
TEXTS = [f"{WORDS}: {WORDS}. review: good\n\nlabel: bad\n\n\n"] * 20

DESIGNS = (
    "byte-level BPE", "byte-level BPE with a prefix space", "metaspace always", "metaspace first", "metaspace never",
    "prepend normalizer", "unigram", "WordPiece", "bytes", "characters",
)  # fmt: skip


@functools.cache
def design(name: str, chat_template: str = "") -> Tokenizer:
    """Returns the tokenizer of a design, with the added tokens `SPECIALS`, and `ORDINARY` ones."""
    if name in ("bytes", "characters"):
        spec = {"bytes": "bytes", "characters": "chars"}[name]
        backend = tokenizers.Tokenizer.from_str(train_tokenizer(spec, TEXTS).serialized)
    else:
        backend = _MAKERS[name.split()[0]](name)
    backend.add_special_tokens(list(SPECIALS))
    backend.add_tokens([tokenizers.AddedToken(text, normalized=False) for text in ORDINARY])
    pad, bos, eos = (backend.token_to_id(text) for text in SPECIALS[:3])
    return Tokenizer(backend.to_str(), bos, eos, pad, chat_template)


def _byte_level(name: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space="prefix" in name)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    backend.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    )
    return backend


def _sentence_piece(name: str) -> tokenizers.Tokenizer:
    """Llama 2 and Mistral v0.1 ("prepend normalizer"), and what transformers writes for newer ones."""
    backend = tokenizers.Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    fallback = [f"<0x{byte:02X}>" for byte in range(256)]
    trainer = trainers.BpeTrainer(vocab_size=500, special_tokens=["<unk>", *fallback], show_progress=False)
    backend.train_from_iterator([line for text in TEXTS for line in text.splitlines()], trainer)
    # The bytes are entries of the vocabulary, not special tokens.
    layout = json.loads(backend.to_str())
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["content"] == "<unk>"]
    backend = tokenizers.Tokenizer.from_str(json.dumps(layout))
    if name == "prepend normalizer":
        backend.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        backend.pre_tokenizer = None
    else:
        scheme = name.split()[1]
        backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=scheme != "first")
    strip = [] if name == "metaspace never" else [decoders.Strip(" ", 1, 0)]
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip])
    return backend


def _unigram(_: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.Unigram())
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always")
    backend.decoder = decoders.Metaspace(prepend_scheme="always")
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>"], unk_token="<unk>", initial_alphabet=["\n"], show_progress=False
    )
    backend.train_from_iterator(TEXTS, trainer)
    return backend


def _word_piece(_: str) -> tokenizers.Tokenizer:
    backend = tokenizers.Tokenizer(models.WordPiece(unk_token="[UNK]"))
    backend.normalizer = normalizers.BertNormalizer()
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    backend.train_from_iterator(
        TEXTS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=["[UNK]"], show_progress=False)
    )
    return backend


_MAKERS = {
    "byte-level": _byte_level, "metaspace": _sentence_piece, "prepend": _sentence_piece, "unigram": _unigram,
    "WordPiece": _word_piece,
}  # fmt: skip
