"""Pre-trains a language model on unlabeled text.

Run the same command again to resume. The model, its tokenizer and its metrics are written to --workdir, which is all
that finetune, evaluate and generate need.

  rootstock pretrain --config=configs/pretrain/tiny.py --workdir=runs/tiny --config.data.path='texts/*.txt'
"""

from absl import flags

from data.storage.paths import at

REQUIRED = ("config", "workdir")
CONFIG_FIELDS = (*("", "model", "mesh", "data", "optimizer", "loss", "evaluation", "checkpoint", "faults", "logging"),)
MULTI_PROCESS = True
PREEMPTIBLE = True


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("workdir", None, "Directory of the run; created if missing.", flag_values=values)
    flags.DEFINE_string(
        "init_from", "", "Continued pre-training: run that provides model, weights and tokenizer.",
        flag_values=values,
    )  # fmt: skip
    flags.DEFINE_boolean("accept_changed_data", False, "Resume although the data changed.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from train.pretraining import pretrain

    parent = at(values.init_from) if values.init_from else None
    pretrain(values.config.to_dict(), at(values.workdir), parent, values.accept_changed_data)
