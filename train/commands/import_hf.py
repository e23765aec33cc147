"""Imports a Hugging Face checkpoint as a run that finetune, evaluate and generate can read.

Reads safetensors tensor by tensor. Never runs code that comes with a model; unpickles only with --allow_pickle.

  rootstock import-hf HuggingFaceTB/SmolLM2-135M --workdir=runs/smollm2
  rootstock import-hf path/to/model --workdir=runs/model
"""

from absl import flags

from data.storage.paths import at
from train.files import check_output_directory
from train.huggingface.importing import import_hf

POSITIONAL = ("source",)
REQUIRED = ("source", "workdir")
RENAMED_FLAGS = {"output": "workdir"}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("source", None, "Directory of a model, or its name on the Hub.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of the run; must be new.", flag_values=values)
    text = "Read pytorch_model.bin with torch's restricted unpickler instead of safetensors."
    flags.DEFINE_bool("allow_pickle", False, text, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    check_output_directory(at(values.workdir), "workdir")
    import_hf(values.source, at(values.workdir), values.allow_pickle)
