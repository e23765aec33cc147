r"""Grafts a task head onto a foundation model and trains it on labelled rows.

Architecture and tokenizer come from --init_from; the backbone's weights are checked leaf by leaf, the head is new. Ends
with a before/after table on held-out rows: the foundation asked without training, the same head from random weights,
the fine-tuned model. The table is also in results.json and, with curves and samples, in report.html.

  rootstock finetune --config=configs/finetune/intent.py --init_from=runs/books --workdir=runs/intent \
      --config.data.path=train.jsonl --config.task.test_path=test.jsonl
"""

from pathlib import Path

from absl import flags

from train.finetuning.run import finetune

REQUIRED = ("config", "init_from", "workdir")


MULTI_PROCESS = True


PREEMPTIBLE = True


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("init_from", None, "Run of the foundation model.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of this run; made if need be.", flag_values=values)
    flags.DEFINE_boolean("accept_changed_data", False, "Go on although the data changed.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    finetune(values.config.to_dict(), Path(values.init_from), Path(values.workdir), values.accept_changed_data)
