"""A run -> a directory that transformers, vLLM and llama.cpp's converter load: safetensors, config, tokenizer.

Language models become ...ForCausalLM, classifiers that read the last token ...ForSequenceClassification. An adapter is
merged into its foundation on the way.

  rootstock export-hf runs/books --output=exported
"""

from pathlib import Path

from absl import flags

from train.huggingface.exporting import _DTYPES, export_hf

POSITIONAL = ("checkpoint",)


REQUIRED = ("checkpoint", "output")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("checkpoint", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_string("output", None, "Directory to write; new.", flag_values=values)
    flags.DEFINE_enum("dtype", "float32", list(_DTYPES), "Of the weights.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    export_hf(Path(values.checkpoint), Path(values.output), values.dtype)
