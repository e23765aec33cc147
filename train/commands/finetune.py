r"""Fine-tunes a model on labeled rows and compares it with baselines.

Architecture, weights and tokenizer come from --init_from; the task head is new. Ends with a table of metrics on
held-out rows: zero-shot and few-shot baselines, the same head trained from random weights, and the fine-tuned model.
The table is also written to results.json and, with curves, samples and rows that deserve a look, to report.html.

  rootstock finetune --config=configs/finetune/intent.py --init_from=runs/books --workdir=runs/intent \
      --config.data.path=train.jsonl --config.task.test_path=test.jsonl
"""

from absl import flags

from data.storage.paths import at
from model.config import EXECUTION_FIELDS
from train.files import check_output_directory

REQUIRED = ("config", "init_from", "workdir")
CONFIG_FIELDS = (
    *("seed", "batch_size", "sequence_length", "num_steps", "microbatches", "xla_flags"),
    *(f"model.{name}" for name in EXECUTION_FIELDS),
    *("mesh", "data.path", "data.strict", "data.num_workers", "data.prefetch", "task", "adapt", "optimizer", "loss"),
    *("evaluation", "checkpoint", "faults", "logging"),
)
MULTI_PROCESS = True
PREEMPTIBLE = True


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("init_from", None, "Run of the base model.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of this run; created if missing.", flag_values=values)
    text = "Also list rows whose label a model of the other rows contradicts with high confidence."
    flags.DEFINE_boolean("suspicious", False, text, flag_values=values)
    text = "Train this many seeds, from config.seed on, and print mean and range; the run is that of the first."
    flags.DEFINE_integer("seeds", 1, text, lower_bound=1, flag_values=values)
    flags.DEFINE_boolean("accept_changed_data", False, "Resume although the data changed.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from train.finetuning.seeds import finetune_seeds

    workdir = at(values.workdir)
    check_output_directory(workdir, "workdir")
    config = values.config.to_dict()
    finetune_seeds(config, at(values.init_from), workdir, values.seeds, values.accept_changed_data, values.suspicious)
