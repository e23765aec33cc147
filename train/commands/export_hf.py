"""Exports a run for transformers, vLLM and llama.cpp's converter: safetensors, config.json and tokenizer.

Language models become ...ForCausalLM, with the chat template and generation defaults of a chat model. Classifiers and
regression models with last-token pooling become ...ForSequenceClassification, taggers ...ForTokenClassification. An
adapter is merged into its base model; with --adapter it is written alone, for PEFT. README.md is a model card with the
Hub's metadata, results and calibration, and results.json has the same for programs.

  rootstock export-hf runs/books --output=exported
  rootstock export-hf runs/spam --output=exported --license=apache-2.0 --language=en
  rootstock export-hf runs/lora --adapter --output=adapter
"""

from absl import flags

from data.storage.paths import at
from train.files import check_output_directory

POSITIONAL = ("run",)
REQUIRED = ("run", "output")
RENAMED_FLAGS = {"checkpoint": "run"}


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_string("output", None, "Directory to write; must be new.", flag_values=values)
    text = "Write only the LoRA adapter of a language model, in PEFT's format."
    flags.DEFINE_boolean("adapter", False, text, flag_values=values)
    flags.DEFINE_enum(
        "dtype", "float32", ["float32", "bfloat16", "float16"], "Data type of the weights.", flag_values=values
    )
    text = "Model card: the license of the model, as an identifier of the Hub, e.g. apache-2.0."
    flags.DEFINE_string("license", "", text, flag_values=values)
    flags.DEFINE_list("language", [], "Model card: ISO 639 codes of the model's languages.", flag_values=values)
    text = "Model card: name of the base model on the Hub; default: that of the imported model."
    flags.DEFINE_string("base_model", "", text, flag_values=values)
    text = "Model card: names of the training data on the Hub; default: that of hf:NAME."
    flags.DEFINE_list("dataset", [], text, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from train.huggingface.card_metadata import CardOptions, check_options
    from train.huggingface.exporting import export_hf
    from train.huggingface.exporting_adapter import export_adapter

    check_output_directory(at(values.output), "output")
    card = CardOptions(values.license, tuple(values.language), values.base_model, tuple(values.dataset))
    check_options(card)
    export = export_adapter if values.adapter else export_hf
    export(at(values.run), at(values.output), values.dtype, card)
