"""Tokenizes text into a token store: collect, clean, remove duplicates, split, tokenize, shuffle.

--input is a file, a glob, several with commas, or hf:NAME:CONFIG:SPLIT: .txt .md (one document per file), .jsonl .csv
.parquet (one document per row; .gz and .zst too).

  rootstock prepare --input='texts/*.txt' --output=stores/texts --tokenizer=bpe:8192

The work is cut into units for all cores; the store is the same for any number of them. If the command is killed, the
same command continues with the units that are not done. docs/data.md: clusters, and text of any size.
"""

import json
import shlex

from absl import flags

from configs.errors import UserError
from data.engines import ENGINES, Engine, parse_part
from data.prepare import SPLIT_METHODS, Execution, NotYet, StoreOptions, prepare, skipped_rows
from data.storage.paths import at
from data.store import shards_of
from data.store_check import verify_store
from train.commands.filter_flags import FLAG_NEEDS as FILTER_NEEDS
from train.commands.filter_flags import define_filter_flags, filter_options, score_function
from train.console import say_skipped, say_unknown, say_unread, step_progress

REQUIRED = ("output",)
FLAG_NEEDS = FILTER_NEEDS
_MEGABYTE = 1 << 20
_SHOWN = ("removed", "changed", "languages", "contamination")  # of what filters did


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
    text, most = "Random seed of the document order.", 2**63 - 1
    flags.DEFINE_integer("seed", 0, text, lower_bound=0, upper_bound=most, flag_values=values)
    flags.DEFINE_boolean("strict", True, "Stop at a bad row; --nostrict skips and counts it.", flag_values=values)
    flags.DEFINE_enum("engine", "processes", list(ENGINES), "Processes of this machine, or Ray.", flag_values=values)
    text = "At a time; 0: one per core."
    flags.DEFINE_integer("processes", 0, text, lower_bound=0, upper_bound=1 << 16, flag_values=values)
    text = "I/N: do only part I (from 0) of N of the current stage, as one of N tasks that share --output."
    flags.DEFINE_string("unit", "", text, flag_values=values)
    text = "Megabytes of input in a unit; 0: 16, and more above 64 GB."
    flags.DEFINE_float("unit_megabytes", 0.0, text, lower_bound=0.0, flag_values=values)
    text = "Megabytes of tokens in a file of the store at most, on average."
    flags.DEFINE_float("shard_megabytes", 256.0, text, lower_bound=1e-3, flag_values=values)
    define_filter_flags(values)
    text = "License of the sources for card.html: LICENSE, or FILE=LICENSE; repeatable."
    flags.DEFINE_multi_string("license", [], text, flag_values=values)
    text = "Make nothing: check the checksums and every document of the store at --output."
    flags.DEFINE_boolean("verify", False, text, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints the store's counts as JSON."""
    if values.verify:
        verify_store(at(values.output))
        print(f"{values.output}: every file matches the manifest, and every document starts with bos and ends with eos")
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
        filters=filter_options(values),
        near_duplicates=values.near_duplicates,
    )
    engine = Engine(values.engine, values.processes, parse_part(values.unit) if values.unit else None)
    execution = Execution(
        engine,
        int(values.unit_megabytes * _MEGABYTE),
        int(values.shard_megabytes * _MEGABYTE) if values["shard_megabytes"].present else 0,
        score=score_function(values),
        command=shlex.join(["rootstock", "prepare", *_given(values)]),
        licenses=tuple(values.license),
    )
    say_unread("prepare", values.input)
    try:
        with step_progress() as progress:
            manifest = prepare(values.input, at(values.output), options, progress=progress, execution=execution)
    except NotYet as reason:
        print(f"{values.output}: {reason}; run the next part, or the same command for the next stage")
        return
    splits = {name: split | {"shards": len(shards_of(manifest, name))} for name, split in manifest["splits"].items()}
    found = {name: manifest["filtered"][name] for name in _SHOWN if name in manifest.get("filtered", {})}
    say_unknown("prepare", manifest)
    if "unknown_tokens" in manifest:
        found["unknown_tokens"] = manifest["unknown_tokens"]
    skipped = skipped_rows(manifest)
    if skipped:
        say_skipped("prepare", skipped)
        found["skipped"] = skipped
    print(json.dumps({"output": values.output, "vocab_size": manifest["vocab_size"], **splits, **found}, indent=1))


def _given(values: flags.FlagValues) -> list[str]:
    """Returns the flags that were given, as on the command line."""
    own = {flag.name: flag for flags_of in values.flags_by_module_dict().values() for flag in flags_of}
    # A flag that is repeated serializes as one text with line feeds.
    return [text for flag in own.values() if flag.present for text in _serialized(flag)]


def _serialized(flag: flags.Flag) -> list[str]:
    if isinstance(flag, flags.MultiFlag):
        return [f"--{flag.name}={value}" for value in flag.value or ()]
    return [flag.serialize()]
