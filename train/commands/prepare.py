"""Turns text into a token store: collect, clean, remove duplicates, split, tokenize, shuffle.

--input is a file, a glob, several with commas, or hf:NAME: .txt .md (a document a file), .jsonl .csv .parquet (a
document a row; .gz and .zst too).

  rootstock prepare --input='texts/*.txt' --output=stores/texts --tokenizer=bpe:8192
"""

import json
from pathlib import Path

from absl import flags

from data import prepare as preparation
from train.console import step_progress

REQUIRED = ("input", "output")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("input", None, "File, glob, comma-separated list, or hf:NAME.", flag_values=values)
    flags.DEFINE_string("output", None, "Directory of the store.", flag_values=values)
    flags.DEFINE_string("tokenizer", "bpe:8192", "bpe:N, bytes, chars, or a tokenizer's path.", flag_values=values)
    flags.DEFINE_string("text_field", "text", "Column of JSONL, CSV and Parquet.", flag_values=values)
    flags.DEFINE_float("validation_fraction", 0.1, "Part held out.", flag_values=values)
    flags.DEFINE_enum(
        "validation_split", "documents", ["documents", "tail"],
        "Hold out whole documents, or the tail of each.", flag_values=values,
    )  # fmt: skip
    flags.DEFINE_integer("seed", 0, "Of the documents' order.", flag_values=values)
    flags.DEFINE_boolean("strict", True, "Stop at a bad row; --nostrict skips and counts it.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints the store's counts as JSON."""
    with step_progress() as progress:
        manifest = preparation.prepare(
            values.input,
            Path(values.output),
            values.tokenizer,
            text_field=values.text_field,
            validation_fraction=values.validation_fraction,
            validation_split=values.validation_split,
            seed=values.seed,
            strict=values.strict,
            progress=progress,
        )
    print(json.dumps({"output": values.output, "vocab_size": manifest["vocab_size"], **manifest["splits"]}, indent=1))
