"""Predicts rows without labels with a fine-tuned model of any task.

Writes the columns of the input with the prediction beside them, in the order of the input: classes with their
probabilities, numbers, tags, the part of a text that answers a question, summaries, replies, or scores of answers. A
row that cannot be read gets the reason in the column "error". Run the same command again to go on after an
interruption. In Python: `from train.prediction import load`.

  rootstock predict --run=runs/intent --data=messages.csv --output=intents.csv --top_k=3
  rootstock predict --run=runs/intent --data='messages/*.parquet' --output=part-1.parquet --part=1/4
"""

from typing import TYPE_CHECKING

from absl import flags

from configs.errors import UserError
from data.row_writers import check_format
from data.storage.paths import at
from train.console import say, say_unread, warn
from train.files import check_output_file

if TYPE_CHECKING:
    from train.prediction.files import Summary

REQUIRED = ("run", "data", "output")


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of a fine-tuned run.", flag_values=values)
    text = "Rows: CSV, TSV, JSONL, Parquet or hf:NAME, with the columns that the run was trained on but the target."
    flags.DEFINE_string("data", None, text, flag_values=values)
    flags.DEFINE_string("output", None, "File to write: .csv, .jsonl or .parquet.", flag_values=values)
    flags.DEFINE_boolean("overwrite", False, "Replace the output if it exists.", flag_values=values)
    flags.DEFINE_integer("top_k", 1, "Classes per row, most likely first.", lower_bound=1, flag_values=values)
    text = "Leave out a prediction whose probability is below this; 0: none."
    flags.DEFINE_float("abstain_below", 0.0, text, lower_bound=0.0, upper_bound=1.0, flag_values=values)
    text = "Add a column of sets of classes, of which this share contains the right one, e.g. 0.95; 0: none."
    flags.DEFINE_float("coverage", 0.0, text, lower_bound=0.0, upper_bound=1.0, flag_values=values)
    text = "Longest generated text in tokens; 0: the run's config.task.max_new_tokens."
    flags.DEFINE_integer("max_new_tokens", 0, text, lower_bound=0, flag_values=values)
    text = "I/N: predict only the I-th of N parts of the rows, for N processes at the same time."
    flags.DEFINE_string("part", "", text, flag_values=values)
    flags.DEFINE_string("prefix", "", "Put before the names of the added columns.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from train.prediction.files import FileOptions, predict_file
    from train.prediction.task_model import PredictOptions, calibration_line, load

    # Before the model is loaded, which takes longer.
    check_format(at(values.output))
    check_output_file(at(values.output), "output")
    options = PredictOptions(values.top_k, values.abstain_below, values.coverage, values.max_new_tokens)
    model = load(at(values.run), options)
    if line := calibration_line(model):
        say(f"predict: {line}")
    files = FileOptions(values.part, values.overwrite, values.prefix)
    say_unread("predict", values.data)
    done = predict_file(model, values.data, at(values.output), files)
    writes = model.task.generates or model.task.replies
    room = f" with their answer of up to {model.settings.task.max_new_tokens}" if writes else ""
    _say(done, values.output, model.settings.sequence_length, room)
    if done.broken and done.broken == done.rows:
        raise UserError(f"none of the {done.rows:,} rows of --data={values.data} could be predicted: {done.reason}")


def _say(done: "Summary", output: str, length: int, room: str) -> None:
    now = done.rows - done.resumed_at
    before = f", {done.resumed_at:,} of them before" if done.resumed_at else ""
    say(f"predict: {done.rows:,} rows in {output}{before}; {now / max(done.seconds, 1e-9):,.0f} rows/s")
    if done.broken:
        warn(f"predict: {done.broken:,} rows have no prediction but a reason; the first one: {done.reason}")
    if done.truncated:
        warn(
            f"predict: of {done.truncated:,} rows only a part was read, because they have more than "
            f"config.sequence_length={length} tokens{room}"
        )
