"""Trains a foundation model to predict the next token of unlabelled text.

Run it again with the same --workdir and it goes on where it stopped. The model, its tokenizer and its history are
written to --workdir, which is all that finetune, evaluate and generate need.

  rootstock pretrain --config=configs/pretrain/tiny.py --workdir=runs/tiny --config.data.path='texts/*.txt'
"""

from pathlib import Path

from absl import flags

from train.pretraining import pretrain

REQUIRED = ("config", "workdir")


MULTI_PROCESS = True


PREEMPTIBLE = True


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("workdir", None, "Directory of the run; made if need be.", flag_values=values)
    flags.DEFINE_string(
        "init_from", "", "Run to take the model, the weights and the tokenizer from: continued pre-training.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("accept_changed_data", False, "Go on although the data changed.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    parent = Path(values.init_from) if values.init_from else None
    pretrain(values.config.to_dict(), Path(values.workdir), parent, values.accept_changed_data)
