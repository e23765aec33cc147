"""Hugging Face weights -> a run that finetune, evaluate and generate read like one of our own.

Reads safetensors tensor by tensor; no code that comes with a model is run, nothing is unpickled unless a flag says so.

  rootstock import-hf HuggingFaceTB/SmolLM2-135M --output=runs/smollm2
  rootstock import-hf path/to/model --output=runs/model
"""

from pathlib import Path

from absl import flags

from train.huggingface.importing import import_hf

POSITIONAL = ("source",)


REQUIRED = ("source", "output")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("source", None, "Directory of a model, or its name on the hub.", flag_values=values)
    flags.DEFINE_string("output", None, "Directory of the run; new.", flag_values=values)
    text = "Read pytorch_model.bin by torch's restricted unpickler instead of safetensors."
    flags.DEFINE_bool("allow_pickle", False, text, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    import_hf(values.source, Path(values.output), values.allow_pickle)
