"""Imports a model of Hugging Face's format or a GGUF file as a run that finetune, evaluate and generate can read.

Reads safetensors and GGUF tensor by tensor; quantized GGUF tensors are dequantized. Never runs code that comes with a
model; unpickles only with --allow_pickle. With --base, imports a LoRA adapter of PEFT.

  rootstock import-hf HuggingFaceTB/SmolLM2-135M --workdir=runs/smollm2
  rootstock import-hf path/to/model --workdir=runs/model
  rootstock import-hf gemma-3-270m-q4_k_m.gguf --workdir=runs/gemma
  rootstock import-hf path/to/adapter --base=runs/smollm2 --workdir=runs/adapter
"""

from absl import flags

from configs.errors import UserError
from data.storage.paths import at
from train.files import check_output_directory

POSITIONAL = ("source",)
REQUIRED = ("source", "workdir")
RENAMED_FLAGS = {"output": "workdir"}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string(
        "source", None, "Directory of a model, its name on the Hub, or a GGUF file.", flag_values=values
    )
    flags.DEFINE_string("workdir", None, "Directory of the run; must be new.", flag_values=values)
    text = "Import a LoRA adapter of PEFT: the run of the model that it was trained on."
    flags.DEFINE_string("base", "", text, flag_values=values)
    text = "Read pytorch_model.bin with torch's restricted unpickler instead of safetensors."
    flags.DEFINE_bool("allow_pickle", False, text, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from train.huggingface.importing import import_hf
    from train.huggingface.importing_adapter import import_adapter

    check_output_directory(at(values.workdir), "workdir")
    if not values.base:
        import_hf(values.source, at(values.workdir), values.allow_pickle)
        return
    if values.allow_pickle:
        raise UserError("--allow_pickle has no effect with --base; expected one of the two")
    import_adapter(values.source, at(values.base), at(values.workdir))
