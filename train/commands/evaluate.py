"""Evaluates a language model on text or on tasks in words, or a fine-tuned model on labeled rows.

rootstock evaluate --run=runs/tiny --text='held_out/*.txt' --json
rootstock evaluate --run=runs/tiny --tasks=intent --data=test.jsonl --shots=3 --limit=200
rootstock evaluate --run=runs/smollm2 --tasks=hellaswag,arc_easy --limit=100
rootstock evaluate --run=runs/intent --data=test.jsonl --json

--tasks are files of configs/evals/, or names of EleutherAI's lm-evaluation-harness (extra: evals). With
--contamination, the share of the questions that are in the training text stands beside each score, and the score on
the other questions.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from absl import flags
from rich.table import Table

from configs.errors import UserError
from data.storage.files import local_copy
from data.storage.paths import at
from train.console import results_console

if TYPE_CHECKING:
    from train.evaluation.contamination import LookUp
    from train.run.record import Run

REQUIRED = ("run",)
RENAMED_FLAGS = {"checkpoint": "run"}
MULTI_PROCESS = True
FLAG_NEEDS = {
    **dict.fromkeys(("window", "stride"), "text"),
    **dict.fromkeys(("task_files", "shots_data", "shots", "limit", "chat"), "tasks"),
}
_WINDOW = 2048
_TASK_FILES = Path(__file__).resolve().parents[2] / "configs" / "evals"


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of a run.", flag_values=values)
    flags.DEFINE_string("text", "", "Language model: file, glob or hf:NAME of text.", flag_values=values)
    text = f"With --text: longest context of a prediction in tokens; 0: the model's, at most {_WINDOW}."
    flags.DEFINE_integer("window", 0, text, lower_bound=0, flag_values=values)
    text = "With --text: new tokens per window; 0: half of it."
    flags.DEFINE_integer("stride", 0, text, lower_bound=0, flag_values=values)
    flags.DEFINE_list("tasks", [], "Language model: comma-separated names of tasks.", flag_values=values)
    text = "Another directory of task files (the harness's YAML), besides configs/evals/."
    flags.DEFINE_string("task_files", "", text, flag_values=values)
    text = "Labeled rows, with columns as in training; with --tasks: with the columns of the task file."
    flags.DEFINE_string("data", "", text, flag_values=values)
    flags.DEFINE_string(
        "shots_data", "", "With --tasks: rows for few-shot examples; empty: other rows of --data.", flag_values=values
    )
    text = "With --tasks: few-shot examples per prompt; -1: as in the task file."
    flags.DEFINE_integer("shots", -1, text, lower_bound=-1, flag_values=values)
    flags.DEFINE_integer("limit", 0, "With --tasks: rows per task; 0: all.", lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("chat", False, "With --tasks: format prompts with the chat template.", flag_values=values)
    text = (
        "With --tasks or --data: look for the questions in the training text: auto, the stores of the run's "
        "pre-training, or a store; empty: do not."
    )
    flags.DEFINE_string("contamination", "", text, flag_values=values)
    text = "File for the results; empty: results.json in the run's directory."
    flags.DEFINE_string("output", "", text, flag_values=values)
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; prints and writes nats_per_token, bits_per_byte, tokens, or the metrics of a task."""
    from train.distributed.processes import is_process_zero
    from train.finetuning.score_rows import score_rows
    from train.run.record import open_run
    from train.run.results import NAME, add_results, check_results

    directory = at(values.run)
    opened = open_run(directory)
    record, language = opened.record, opened.is_language_model
    output = at(values.output) if values.output else directory / NAME
    if is_process_zero():
        check_results(output, "output")
    if values.contamination and values.text:
        raise UserError("--contamination has no effect with --text; expected it with --tasks or --data")
    if values.text and not values.tasks and language:
        name, figures = f"text {values.text}", _score_text(opened, values)
    elif values.tasks and not values.text and language:
        name = f"tasks {','.join(values.tasks)}" + (f" of {values.data}" if values.data else "")
        figures = _score_tasks(directory, values, _look_up(opened, values))
    elif values.data and not values.text and not values.tasks and record.stage == "finetune":
        name, figures = f"data {values.data}", score_rows(opened, values.data, _look_up(opened, values))
    else:
        kind = "pretrain" if record.stage == "pretrain" else record.task["name"]
        expected = (["--text", "--tasks"] if language else []) + (["--data"] if record.stage == "finetune" else [])
        raise UserError(f"{expected[0]} is missing: {directory} is a {kind} run; expected one of {', '.join(expected)}")
    if not is_process_zero():
        return
    add_results(output, lambda held: held.setdefault("evaluations", {}).update({name: figures}))
    if values.json:
        print(json.dumps(figures))
    else:
        _print(name, figures)


def _print(name: str, figures: dict[str, Any]) -> None:
    """Prints one row per source or task, or one row per figure if there is a single source."""
    parts = figures.get("sources") or {k: v for k, v in figures.items() if isinstance(v, dict) and "value" not in v}
    table = Table(title=name, title_justify="left")
    if parts:
        if "sources" in figures:
            parts = parts | {"all": {k: v for k, v in figures.items() if k != "sources"}}
        columns = list(dict.fromkeys(column for part in parts.values() for column in part))
        for column in ("", *columns):
            table.add_column(column)
        for title, part in parts.items():
            table.add_row(title, *(_text(part.get(column, "")) for column in columns))
    else:
        table.show_header = False
        for column, value in figures.items():
            table.add_row(column, _text(value))
    results_console().print(table)


def _text(value: Any) -> str:  # noqa: ANN401 - a figure
    if isinstance(value, dict):
        return f"{value['value']:.3f} [{value['low']:.3f}, {value['high']:.3f}]"
    return f"{value:,}" if isinstance(value, int) else f"{value:.4f}" if isinstance(value, float) else str(value)


def _score_text(opened: "Run", values: flags.FlagValues) -> dict[str, Any]:
    import jax

    from train.evaluation.perplexity import perplexity, summary
    from train.run.language_model import open_language_model

    language_model = open_language_model(opened.directory, spread=True)
    window = values.window or min(language_model.model.context_length, _WINDOW)
    field = opened.record.config["data"]["text_field"]
    with jax.set_mesh(language_model.mesh):
        return summary(perplexity(language_model, values.text, field, window, values.stride or -(-window // 2)))


def _look_up(opened: "Run", values: flags.FlagValues) -> "LookUp | None":
    from train.evaluation.contamination import look_up_in
    from train.run.training_stores import training_stores

    return look_up_in(training_stores(opened, values.contamination)) if values.contamination else None


def _score_tasks(directory: Path, values: flags.FlagValues, look_up: "LookUp | None") -> dict[str, Any]:
    from train.run.language_model import chat_template_of, open_language_model
    from train.run.record import open_run

    try:
        from train.evaluation import harness
    except ImportError as error:
        raise UserError(f"--tasks needs {error.name}: pip install -e '.[evals]'") from None
    own = at(values.task_files or _TASK_FILES)
    if not own.is_dir():
        raise UserError(f"--task_files={values.task_files}: is not a directory")
    data = {"test": values.data, "train": values.shots_data}
    template = chat_template_of(open_run(directory)) if values.chat else ""
    with local_copy(own) as folder:
        options = harness.HarnessOptions(
            list(dict.fromkeys((str(_TASK_FILES), str(folder)))),
            shots=None if values.shots < 0 else values.shots,
            limit=values.limit,
            data={split: path for split, path in data.items() if path},
            chat=values.chat,
            look_up=look_up,
        )
        return harness.evaluate(open_language_model(directory, template, spread=True), values.tasks, options)
