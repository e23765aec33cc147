"""Generates text: continues prompts with a pre-trained model, or answers them with a fine-tuned one.

rootstock generate --run=runs/tiny --prompt='Once upon a time' --max_new_tokens=64 --temperature=0.8
rootstock generate --run=runs/german --prompts=sentences.txt --output=german.jsonl --temperature=0
rootstock generate --run=runs/mistral --raw --prompt='<s>[INST] Hello [/INST]' --stop='</s>'

The output grows as texts are generated; run the same command again to go on after an interruption.
"""

import dataclasses
import hashlib
import itertools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from absl import flags

from configs.errors import UserError
from data.columns import DEFAULT_RULES, fill
from data.readers import read_documents, read_placed_rows
from data.row_writers import RowWriter, check_format, open_writer
from data.sources import TEXT_SUFFIXES, suffix_of
from data.storage.paths import at
from data.templates import NAMES
from train.commands.sampling_flags import define_sampling_flags, options_of
from train.console import progress
from train.files import check_not_read, check_output_file

if TYPE_CHECKING:
    from train.generation.language_model import GenerationOptions

REQUIRED = ("run",)
_LINE_END = re.compile("\r\n|\r|\n")
RENAMED_FLAGS = {"checkpoint": "run"}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of a run with a language-model head.", flag_values=values)
    flags.DEFINE_string("prompt", "", "Text to continue, or a message to answer.", flag_values=values)
    flags.DEFINE_string(
        "prompts", "", "File with one prompt per line, or JSONL with a column 'prompt'.", flag_values=values
    )
    text = "Chat template of the prompts; empty: that of the fine-tuned run; without one, prompts are continued."
    flags.DEFINE_enum("template", "", ["", *NAMES], text, flag_values=values)
    text = "Take prompts as they are: no chat template, and names of special tokens in them are these tokens."
    flags.DEFINE_boolean("raw", False, text, flag_values=values)
    text = "File to write, with the columns prompt and completion: .jsonl, .csv or .parquet; empty: print."
    flags.DEFINE_string("output", "", text, flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replace the output if it exists.", flag_values=values)
    define_sampling_flags(values, temperature=0.8)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints the prompt with its continuation, the answer alone, or one JSON object per prompt."""
    import jax

    from train.generation.decode import parts_of_continuations
    from train.run.language_model import open_language_model
    from train.run.record import open_run

    if bool(values.prompt) == bool(values.prompts):
        raise UserError("--prompt is missing; expected either --prompt=TEXT or --prompts=FILE")
    if values.raw and values.template:
        raise UserError(f"--template={values.template} has no effect with --raw; expected one of the two")
    opened = open_run(at(values.run))
    options = options_of(values, opened.record.generation, opened.model.context_length)
    if values.output:
        check_output_file(at(values.output), "output")
        if values.prompts:
            check_not_read(at(values.output), "output", values.prompts, "prompts")
        check_format(at(values.output))
    prompts = [values.prompt] if values.prompt else _read(values.prompts)
    writer = _open_output(values, options, prompts) if values.output else None
    language_model = open_language_model(at(values.run), values.template, cache_dtype=values.cache_dtype)
    with jax.set_mesh(language_model.mesh):
        parts = parts_of_continuations(language_model, prompts, options, values.raw, writer.rows if writer else 0)
        if writer:
            _write(writer, prompts, parts)
        elif values.prompt:
            ((text,),) = parts
            print(text if language_model.template and not values.raw else values.prompt + text)
        else:
            for prompt, text in zip(prompts, itertools.chain.from_iterable(parts), strict=True):
                print(json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False), flush=True)


def _open_output(values: flags.FlagValues, options: "GenerationOptions", prompts: list[str]) -> RowWriter:
    """Returns the writer of the output, which an earlier process may have begun."""
    from train.prediction.document_scores import fingerprint

    run = at(values.run)
    how = [dataclasses.asdict(options), values.template, values.raw, values.cache_dtype]
    made_of = json.dumps([str(run.absolute()), fingerprint(run), how, prompts])
    identity = hashlib.sha256(made_of.encode("utf-8", "surrogatepass")).hexdigest()
    return open_writer(at(values.output), ("prompt", "completion"), identity, values.overwrite)


def _write(writer: RowWriter, prompts: list[str], parts: Iterator[list[str]]) -> None:
    with progress("generate", len(prompts)) as move:
        move(writer.rows)
        for part in parts:
            pairs = zip(prompts[writer.rows : writer.rows + len(part)], part, strict=True)
            writer.write([{"prompt": prompt, "completion": text} for prompt, text in pairs])
            move(writer.rows)
    writer.finish()


def _read(path: str) -> list[str]:
    """Returns the prompts of a file.

    Raises:
        UserError: the file is unreadable or empty, or a row has no "prompt".
    """
    if suffix_of(Path(path)) in TEXT_SUFFIXES:
        prompts = [line for text in read_documents(path) for line in _LINE_END.split(text) if line.strip()]
    else:
        prompts = []
        for place, row in read_placed_rows(path):
            try:
                # The model cleans its prompts itself.
                prompts.append(fill("{prompt}", row, "a column of that name", DEFAULT_RULES.uncleaned))
            except UserError as error:
                raise UserError(f"{place}: {error}") from None
    if not prompts:
        raise UserError(f"--prompts={path} contains no prompt; expected one per line")
    return prompts
