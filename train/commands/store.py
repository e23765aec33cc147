"""Shows what is in a token store: `rootstock store ls|show STORE`.

rootstock store ls stores/texts
rootstock store show stores/texts --document=7
rootstock store show stores/texts --document=7 --count=3 --split=validation --tokens

ls prints a line per split: documents, tokens, bytes of text, shards, and the fingerprint that runs record. show prints
documents by number, counted from 0 in the order of the store.
"""

from pathlib import Path

from absl import flags
from rich.table import Table

from configs.errors import UserError
from data.storage.paths import at
from data.store import SPLITS, open_store, read_manifest, shards_of
from data.tokenizer import load_tokenizer
from train.console import results_console

POSITIONAL = ("action", "store")
REQUIRED = ("action", "store")
FLAG_NEEDS = {"document": "action=show", "count": "action=show", "split": "action=show", "tokens": "action=show"}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_enum("action", None, ["ls", "show"], "ls or show.", flag_values=values)
    flags.DEFINE_string("store", None, "Directory of a token store.", flag_values=values)
    flags.DEFINE_integer("document", 0, "show: number of the first document.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("count", 1, "show: number of documents.", lower_bound=1, flag_values=values)
    flags.DEFINE_enum("split", SPLITS[0], list(SPLITS), "show: the split.", flag_values=values)
    flags.DEFINE_boolean("tokens", False, "show: print token ids in place of text.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints a table, or documents.

    Raises:
        UserError: not a store, it is damaged, or it has no such document.
    """
    path = at(values.store)
    if values.action == "ls":
        _list(path)
    else:
        _show(path, values.split, range(values.document, values.document + values.count), values.tokens)


def _list(path: Path) -> None:
    manifest = read_manifest(path)
    table = Table()
    for column in ("split", "documents", "tokens", "MB of text", "shards", "fingerprint"):
        table.add_column(column)
    for split, counts in manifest["splits"].items():
        text = f"{counts['bytes'] / 1e6:,.1f}" if isinstance(counts.get("bytes"), int) else ""
        shards, fingerprint = len(shards_of(manifest, split)), open_store(path, split).fingerprint
        table.add_row(split, f"{counts['documents']:,}", f"{counts['tokens']:,}", text, f"{shards:,}", fingerprint[:16])
    results_console().print(table)


def _show(path: Path, split: str, numbers: range, as_tokens: bool) -> None:
    store, tokenizer = open_store(path, split), load_tokenizer(path)
    total = len(store.offsets) - 1
    if numbers.stop > total:
        last = f"{numbers.stop - 1:,}"
        raise UserError(f"{path}: document {last} of {split} does not exist; expected 0 to {total - 1:,}")
    offsets = store.offsets[numbers.start : numbers.stop + 1]
    for number, ids in zip(numbers, store.read(offsets[:-1], offsets[1:]), strict=True):
        print(f"--- document {number:,} of {split}: {len(ids):,} tokens")
        print(" ".join(map(str, ids.tolist())) if as_tokens else tokenizer.decode(ids.tolist()))
