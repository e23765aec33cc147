"""The tokenizer files of an exported model, so that `transformers` encodes and pads a text as training did."""

import dataclasses
import itertools
import json
from pathlib import Path
from typing import Any

import tokenizers

from data.tokenizer import PAD, Tokenizer
from train.console import say

# Names of pad tokens that a tokenizer may have without using them.
_PAD_NAMES = (PAD, "<pad>", "[PAD]", "<|finetune_right_pad_id|>")


def with_own_pad(tokenizer: Tokenizer) -> Tokenizer:
    """Returns a tokenizer whose pad token is not its eos: a pad token that it has, or else a new one.

    The ...ForSequenceClassification classes of `transformers` read the rightmost token that is not pad. If pad is eos,
    that is the token before the eos that the head was trained to read.
    """
    if tokenizer.pad_id != tokenizer.eos_id:
        return tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.serialized)
    ids = backend.get_vocab(with_added_tokens=True)
    own = next((ids[name] for name in _PAD_NAMES if name in ids and ids[name] != tokenizer.eos_id), None)
    if own is not None:
        return dataclasses.replace(tokenizer, pad_id=own)
    # The vocabulary has this name already if it is that of eos.
    new_names = itertools.chain([PAD], (f"<|pad_{n}|>" for n in itertools.count(1)))
    pad = next(name for name in new_names if name not in ids)
    backend.add_special_tokens([pad])
    say(f"export-hf: the tokenizer pads with its eos token, which heads of transformers skip; {pad} is added to pad")
    added = backend.get_vocab(with_added_tokens=True)[pad]
    return dataclasses.replace(tokenizer, serialized=backend.to_str(), pad_id=added)


def framed(tokenizer: Tokenizer, classifier: bool) -> Tokenizer:
    """Returns a tokenizer whose file adds the special tokens that `encode` leaves to its caller: bos, and eos."""
    # An imported tokenizer keeps its own post-processor; ours has none and needs one that adds special tokens.
    own = json.loads(tokenizer.serialized)["post_processor"]
    if classifier or (tokenizer.starts_with_bos and not own):
        return tokenizer.with_post_processor(eos=classifier)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, directory: Path, max_length: int, classifier: bool) -> None:
    """Writes the tokenizer's files.

    Args:
        tokenizer: the tokenizer.
        directory: the output directory.
        max_length: number of tokens to which `truncation=True` cuts a text.
        classifier: names of special tokens in a text are text, as in training; prompts of a language model name them.
    """
    tokenizer.save(directory)
    path = directory / "tokenizer_config.json"
    options: dict[str, Any] = {"model_max_length": max_length, "clean_up_tokenization_spaces": False}
    if classifier:
        options |= {"padding_side": "right", "truncation_side": "right", "split_special_tokens": True}
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | options, indent=1), encoding="utf-8")
