"""The tokenizer of an imported model, without tokens that the model has no embedding for."""

import dataclasses
import json

import tokenizers

from configs.errors import UserError
from data.tokenizer import Tokenizer
from train.console import warn


def with_rows(tokenizer: Tokenizer, rows: int, where: str) -> Tokenizer:
    """Returns the tokenizer without added tokens beyond the rows of the embedding, which are listed in a warning.

    Fine-tuning adds such tokens, often [PAD], without resizing the embedding. `transformers` loads the model and fails
    at a text that contains one; here the names of these tokens are ordinary text.

    Args:
        tokenizer: the tokenizer.
        rows: of the embedding.
        where: names the model in messages.

    Raises:
        UserError: bos, eos or a token that is not an added one has no row.
    """
    if tokenizer.vocab_size <= rows:
        return tokenizer
    backend = tokenizers.Tokenizer.from_str(tokenizer.serialized)
    needed = max(*backend.get_vocab(with_added_tokens=False).values(), tokenizer.bos_id, tokenizer.eos_id)
    if needed >= rows:
        raise UserError(
            f"{where}: the tokenizer has {tokenizer.vocab_size} tokens, but the embedding has {rows} rows, and "
            f"token {needed} ({backend.id_to_token(needed)}) has none; expected the tokenizer of this model"
        )
    layout = json.loads(tokenizer.serialized)
    dropped = [f"{token['content']} ({token['id']})" for token in layout["added_tokens"] if token["id"] >= rows]
    layout["added_tokens"] = [token for token in layout["added_tokens"] if token["id"] < rows]
    padding = "; rows are padded with eos" if tokenizer.pad_id >= rows else ""
    warn(
        f"{where}: the embedding has {rows} rows, so the tokenizer's {', '.join(dropped)} cannot be used and are "
        f"dropped: their names are ordinary text (transformers fails at such a text){padding}"
    )
    return dataclasses.replace(
        tokenizer,
        serialized=tokenizers.Tokenizer.from_str(json.dumps(layout)).to_str(),
        pad_id=tokenizer.eos_id if padding else tokenizer.pad_id,
        end_ids=tuple(index for index in tokenizer.end_ids if index < rows),
    )
