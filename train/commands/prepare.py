"""Tokenizes text into a token store: collect, clean, remove duplicates, split, tokenize, shuffle.

--input is a file, a glob, several with commas, or hf:NAME:CONFIG:SPLIT: .txt .md (one document per file), .jsonl .csv
.parquet (one document per row; .gz and .zst too).

  rootstock prepare --input='texts/*.txt' --output=stores/texts --tokenizer=bpe:8192
"""

import json

from absl import flags

from configs.errors import UserError
from data.prepare import SPLIT_METHODS, StoreOptions, prepare
from data.storage.paths import at
from data.store import verify_store
from train.console import step_progress

REQUIRED = ("output",)


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string(
        "input", None, "File, glob, comma-separated list, or hf:NAME; required unless --verify.", flag_values=values
    )
    flags.DEFINE_string("output", None, "Directory of the store.", flag_values=values)
    flags.DEFINE_string("tokenizer", "bpe:8192", "bpe:N, bytes, chars, or a tokenizer's path.", flag_values=values)
    flags.DEFINE_string("text_field", "text", "Column of JSONL, CSV and Parquet.", flag_values=values)
    flags.DEFINE_float("validation_fraction", 0.1, "Fraction of the text to hold out.", flag_values=values)
    flags.DEFINE_enum(
        "validation_split", "documents", list(SPLIT_METHODS),
        "Hold out whole documents, or the tail of each.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("seed", 0, "Random seed of the document order.", flag_values=values)
    flags.DEFINE_boolean("strict", True, "Stop at a bad row; --nostrict skips and counts it.", flag_values=values)
    text = "Make nothing: compare the files of the store at --output with the checksums in its manifest."
    flags.DEFINE_boolean("verify", False, text, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints the store's counts as JSON."""
    if values.verify:
        verify_store(at(values.output))
        print(f"{values.output}: every file matches the manifest")
        return
    if values.input is None:
        raise UserError("--input is missing; expected a file, a glob, a comma-separated list, or hf:NAME")
    options = StoreOptions(
        tokenizer=values.tokenizer,
        text_field=values.text_field,
        validation_fraction=values.validation_fraction,
        validation_split=values.validation_split,
        seed=values.seed,
        strict=values.strict,
    )
    with step_progress() as progress:
        manifest = prepare(values.input, at(values.output), options, progress=progress)
    print(json.dumps({"output": values.output, "vocab_size": manifest["vocab_size"], **manifest["splits"]}, indent=1))
