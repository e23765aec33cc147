"""Generates text: continues prompts with a pre-trained model, or answers them with a fine-tuned one.

rootstock generate --run=runs/tiny --prompt='Once upon a time' --max_new_tokens=64 --temperature=0.8
rootstock generate --run=runs/german --prompts=sentences.txt --output=german.jsonl --temperature=0
rootstock generate --run=runs/mistral --raw --prompt='<s>[INST] Hello [/INST]' --stop='</s>'
"""

import json
import re

from absl import flags

from configs.errors import UserError
from data.columns import DEFAULT_RULES, fill
from data.readers import read_documents, read_placed_rows
from data.storage.paths import at
from data.templates import NAMES
from train.commands.sampling_flags import define_sampling_flags, options_of
from train.files import check_not_read, check_output_file

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
    flags.DEFINE_string("output", "", "JSONL file to write; empty: print.", flag_values=values)
    define_sampling_flags(values, temperature=0.8)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints the prompt with its continuation, the answer alone, or one JSON object per prompt."""
    import jax

    from train.generation.decode import continuations
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
    prompts = [values.prompt] if values.prompt else _read(values.prompts)
    language_model = open_language_model(at(values.run), values.template, cache_dtype=values.cache_dtype)
    with jax.set_mesh(language_model.mesh):
        texts = continuations(language_model, prompts, options, raw=values.raw)
    if values.prompt and not values.output:
        print(texts[0] if language_model.template and not values.raw else values.prompt + texts[0])
        return
    pairs = zip(prompts, texts, strict=True)
    lines = [json.dumps({"prompt": prompt, "completion": text}, ensure_ascii=False) + "\n" for prompt, text in pairs]
    if values.output:
        at(values.output).write_text("".join(lines), encoding="utf-8")
    else:
        print("".join(lines), end="")


def _read(path: str) -> list[str]:
    """Returns the prompts of a file.

    Raises:
        UserError: the file is unreadable or empty, or a row has no "prompt".
    """
    if path.lower().endswith(".txt"):
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
