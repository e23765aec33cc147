r"""Fine-tunes with 8, 32, 128, 512, ... labels per class, and says whether more labels help.

Each point is an ordinary fine-tuning run in a directory of its own below --workdir, with nested subsets of the training
rows, drawn by each seed; validation rows shrink in proportion, test rows are always the same. Beside the fine-tuned
model are the baselines that use the same labels, and the untrained foundation. A point whose gain is clear with two
seeds has no third one, and the curve ends after two steps without a clear gain. Run the same command again to resume;
finished points are only read. Writes learning_curve.json and learning_curve.html to --workdir.

  rootstock learning-curve --config=configs/finetune/intent.py --init_from=runs/books --workdir=runs/curve \
      --config.data.path=train.jsonl --config.task.test_path=test.jsonl
"""

from absl import flags

from configs.errors import UserError
from data.storage.paths import at
from train.commands.finetune import CONFIG_FIELDS as CONFIG_FIELDS
from train.files import check_output_directory

REQUIRED = ("config", "init_from", "workdir")
MULTI_PROCESS = True
PREEMPTIBLE = True


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("init_from", None, "Run of the base model.", flag_values=values)
    flags.DEFINE_string("workdir", None, "Directory of the curve; created if missing.", flag_values=values)
    text = "Labels per class of the points; all labels are the last point. Default: 8, 32, 128, 512 and so on."
    flags.DEFINE_list("labels", [], text, flag_values=values)
    text = "Runs per point; one alone could not tell a gain from chance."
    flags.DEFINE_integer("seeds", 3, text, lower_bound=2, flag_values=values)
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from train.distributed.processes import is_process_zero
    from train.learning_curve.report import publish
    from train.learning_curve.sweep import learning_curve
    from train.run.lock import claim

    workdir = at(values.workdir)
    check_output_directory(workdir, "workdir")
    for text in values.labels:
        if not text.isdecimal() or not int(text):
            raise UserError(f"--labels contains {text!r}; expected comma-separated whole numbers above 0")
    labels = [int(text) for text in values.labels]
    with claim(workdir):
        found = learning_curve(values.config.to_dict(), at(values.init_from), workdir, labels, values.seeds)
        if is_process_zero():
            publish(found, workdir, values.json)
