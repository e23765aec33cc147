"""Prints a training batch: its tokens, the segments of each row, and which tokens are in the loss.

With --init_from, prints a fine-tuning batch, otherwise a pre-training batch; tokenizes text if necessary. Without
colors on stdout, tokens in the loss are printed in brackets.

  rootstock show-batch --config=configs/pretrain/tiny.py --config.data.path='texts/*.txt' --rows=2
"""

import tempfile
from pathlib import Path

from absl import flags
from ml_collections import config_flags

from configs.errors import UserError
from data.storage.paths import at
from train.console import results_console
from train.settings import from_config

REQUIRED = ("config",)
CONFIG_FIELDS = ("seed", "batch_size", "sequence_length", "tokenizer", "data", "task")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    text = "Run of the base model, for a fine-tuning batch."
    flags.DEFINE_string("init_from", "", text, flag_values=values)
    flags.DEFINE_integer("step", 0, "Index of the batch, from 0.", lower_bound=0, flag_values=values)
    flags.DEFINE_integer("rows", 4, "Maximum number of rows to print.", lower_bound=1, flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from train.show_batch import finetuning_batches, pretraining_batches, show

    settings = from_config(values.config.to_dict())
    file = Path(config_flags.get_config_filename(values["config"]))
    if file.parent.name == "finetune" and not values.init_from:
        raise UserError(f"--init_from is missing: {file.name} uses the tokenizer of the base model")
    with tempfile.TemporaryDirectory() as scratch:
        if values.init_from:
            shown = finetuning_batches(settings, at(values.init_from))
        else:
            shown = pretraining_batches(settings, Path(scratch))
        show(shown, values.step, values.rows, results_console())
