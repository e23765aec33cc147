"""What an import found, and the commands to type next."""

import dataclasses
import os
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path

from data.tokenizer import Tokenizer
from model.config import ModelConfig
from train.huggingface.adapter_tensors import Adapter


@dataclasses.dataclass(frozen=True)
class Imported:
    """An imported model.

    Attributes:
        run: its run directory.
        family: its architecture in Hugging Face's words.
        model: its architecture.
        parameters: how many it has.
        stored_as: how its weights were stored.
        tokenizer: its tokenizer.
    """

    run: Path
    family: str
    model: ModelConfig
    parameters: int
    stored_as: str
    tokenizer: Tokenizer


def summary(imported: Imported) -> list[str]:
    """Returns the lines to print after an import."""
    tokenizer, model = imported.tokenizer, imported.model
    bos = f"prompts start with {tokenizer.token_name(tokenizer.bos_id)}, " if tokenizer.starts_with_bos else ""
    ends = ", ".join(tokenizer.token_name(index) for index in (tokenizer.eos_id, *tokenizer.end_ids))
    run = shlex.quote(str(imported.run))
    facts = {
        "family": imported.family,
        "parameters": f"{imported.parameters:,}, read from {imported.stored_as}",
        "context": f"{model.context_length:,} tokens{_windows(model)}",
        "tokenizer": f"{tokenizer.vocab_size:,} tokens; {bos}texts end with {ends}",
        "template": "the tokenizer's own" if tokenizer.chat_template else "none found; the model continues texts",
    }
    if tokenizer.chat_template:
        first = f"rootstock chat --run={run}"
    else:
        first = f"rootstock generate --run={run} --prompt='Once upon a time' --max_new_tokens=32"
    # A text that is on every machine with Python.
    text = Path(os.__file__).with_name("LICENSE.txt")
    if text.is_file():
        second = f"rootstock evaluate --run={run} --text={shlex.quote(str(text))}"
    else:
        second = f"rootstock export-hf {run} --output={shlex.quote(f'{imported.run}-exported')}"
    return _lines(imported.run, facts, [first, second])


def adapter_summary(run: Path, base: Path, trained_on: str, adapter: Adapter, parameters: int) -> list[str]:
    """Returns the lines to print after the import of an adapter.

    Args:
        run: its run directory.
        base: the run of its base model.
        trained_on: the name of the model that it was trained on; "": unknown.
        adapter: the adapter.
        parameters: how many it has.
    """
    facts = {
        "adapter": f"LoRA of rank {adapter.rank}, alpha {adapter.alpha:g}, on {', '.join(adapter.targets)}",
        "parameters": f"{parameters:,}",
        "base": f"{base}" + (f"; the adapter was trained on {trained_on}" if trained_on else ""),
    }
    first = f"rootstock generate --run={shlex.quote(str(run))} --prompt='Once upon a time' --max_new_tokens=32"
    second = f"rootstock merge --run={shlex.quote(str(run))} --workdir={shlex.quote(f'{run}-merged')}"
    return _lines(run, facts, [first, second])


def _lines(run: Path, facts: Mapping[str, str], commands: Sequence[str]) -> list[str]:
    width = max(map(len, facts))
    return [
        f"import-hf: {run}",
        *(f"  {name:<{width}}  {fact}" for name, fact in facts.items()),
        "next:",
        *(f"  {command}" for command in commands),
    ]


def _windows(model: ModelConfig) -> str:
    """Returns what the sliding windows of a model are, for people."""
    windows = [window for window in model.windows if window]
    return f"; {len(windows)} of {model.num_layers} layers attend to the last {max(windows):,}" if windows else ""
