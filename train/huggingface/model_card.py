"""README.md and results.json of an exported model: what it is, how good, how sure, from what data, and how to load it.

The card has only what the run's files say; what they do not know is a flag of `rootstock export-hf` or is left out.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from configs.errors import UserError, one_line
from data.storage.paths import at
from train.console import warn
from train.huggingface.card_metadata import (
    CardOptions,
    data_name,
    data_path,
    held_out_of,
    metadata,
    pipeline_of,
    task_name,
)
from train.huggingface.sources import IMPORTED
from train.run.calibration import newest_step
from train.run.language_model import chat_template_of
from train.run.record import Run
from train.run.results import NAME as RESULTS_FILE

CARD_FILE = "README.md"
_MAX_DATA_CARD = 3000  # characters
_MAX_CLASSES = 100
_NOT_EXPORTED = "\n\nThese files are the row `fine-tuned`, without the linear model that joins it in the last row."
Cells = Sequence[str]


def write_card(run: Run, directory: Path, name: str, options: CardOptions) -> None:
    """Writes README.md and results.json of an exported run.

    Args:
        run: the run.
        directory: where its weights are.
        name: of the model.
        options: what the run does not know.

    Raises:
        UserError: the run's results.json cannot be read.
    """
    import yaml

    results = _read_results(run)
    fields = metadata(run, name, results, options)
    front = yaml.safe_dump(fields, sort_keys=False, allow_unicode=True, width=1000)
    adapter = (directory / "adapter_config.json").exists()
    facts = {"card": fields, "model": _model_facts(run), "data": _data_facts(run), "results": results}
    sections = [*_sections(run, name, results, options, adapter), *_quoted(facts["data"]["card"])]
    body = "\n\n".join(sections)
    (directory / CARD_FILE).write_text(f"---\n{front}---\n\n{body}\n", encoding="utf-8", errors="backslashreplace")
    (directory / RESULTS_FILE).write_text(json.dumps(facts, indent=1))


def _read_results(run: Run) -> dict[str, Any]:
    path = run.directory / RESULTS_FILE
    try:
        found = json.loads(path.read_text()) if path.exists() else {}
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} cannot be read: {error}") from None
    return found if isinstance(found, dict) else {}


def _model_facts(run: Run) -> dict[str, Any]:
    task = {name: value for name, value in run.record.task.items() if name not in ("name", "weights", "absent_weights")}
    return {
        "stage": run.record.stage,
        "task": {"name": task_name(run), **task},
        "architecture": run.record.architecture,
        "context_length": run.model.context_length,
        "sequence_length": run.record.config["sequence_length"],
        "lineage": run.record.lineage,
    }


def _data_facts(run: Run) -> dict[str, Any]:
    record = run.record
    files = [{"name": name, "size": size, "sha256": digest} for name, size, digest in record.data_files]
    return {"name": data_name(run), "files": files, "fingerprint": record.data_fingerprint, "card": _data_card(run)}


def _sections(run: Run, name: str, results: Mapping[str, Any], options: CardOptions, adapter: bool) -> Iterator[str]:
    yield f"# {name}\n\n{_what(run)}"
    yield f"## How to load it\n\n{_how_to_load(run, name, adapter)}"
    if table := _results_table(run, results):
        verdict = results.get("verdict", "").removeprefix("finetune: ")
        said = f"\n\n{verdict[0].upper()}{verdict[1:]}." if verdict else ""
        said += _NOT_EXPORTED if "ensemble" in results else ""
        yield f"## Results\n\n{table}{said}"
    if "calibration" in results:
        yield f"## How sure it is\n\n{_calibration(results['calibration'])}"
    yield f"## Training\n\n{_training(run, results)}"
    yield f"## Limits\n\n{_limits(run, results, options)}"


def _quoted(card: str) -> Iterator[str]:
    """Yields the section that quotes the card of the training data, if there is one."""
    if card:
        quoted = "\n".join(f"> {line}".rstrip() for line in card.splitlines())
        yield f"## The card of the training data\n\n{quoted}"


def _what(run: Run) -> str:
    """Returns a sentence about what the model does."""
    task = run.record.task
    classes = task.get("classes", ())
    if classes:
        kind = "tags each word with" if task["name"] == "tagging" else "gives a text"
        number = "any number of" if task.get("multi_label") else "one of"
        names = ", ".join(f"`{name}`" for name in classes[:_MAX_CLASSES])
        more = f" and {len(classes) - _MAX_CLASSES} more" if len(classes) > _MAX_CLASSES else ""
        return f"A model for {task_name(run)}: it {kind} {number} {len(classes)} classes: {names}{more}."
    if run.is_language_model and chat_template_of(run):
        return "A chat model: it answers the messages of a user."
    if run.record.stage == "pretrain":
        return "A language model: it continues texts. It was not fine-tuned."
    return f"A model for {task_name(run)}, fine-tuned with Rootstock."


def _how_to_load(run: Run, name: str, adapter: bool) -> str:
    """Returns three lines of Python, which a test runs."""
    if adapter:
        base = str(run.base().directory)
        lines = [
            "from peft import AutoPeftModelForCausalLM",
            "",
            f"model = AutoPeftModelForCausalLM.from_pretrained({name!r})",
        ]
        return f"{_code(lines)}\n\nThis is a LoRA adapter; its base model is `{base}`, which `export-hf` writes too."
    kind = pipeline_of(run)
    given = "'Once upon a time'"
    if run.is_language_model and chat_template_of(run):
        given = "[{'role': 'user', 'content': 'Hello'}]"
    call = f"model({given}, max_new_tokens=32)" if kind == "text-generation" else f"model({given})"
    lines = ["from transformers import pipeline", "", f"model = pipeline({kind!r}, model={name!r})", f"print({call})"]
    return f"{_code(lines)}\n\n`model` is the path of this directory, or its name on the Hub."


def _code(lines: Sequence[str]) -> str:
    return "\n".join(["```python", *lines, "```"])


def _table(head: Cells, rows: Sequence[Cells]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(_cell(cell) for cell in line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _results_table(run: Run, results: Mapping[str, Any]) -> str:
    """Returns the table of a fine-tuned model and its baselines, or the held-out losses of a language model."""
    models = results.get("models", {})
    if not models:
        held_out = held_out_of(run, results)
        figures = [(n, f"{held_out[n]:.4f}") for n in ("loss", "bits_per_byte") if held_out.get(n) is not None]
        return _table(("held-out text", "value"), [(n.replace("_", " "), v) for n, v in figures]) if figures else ""
    names = [name for name in list(models.values())[-1] if name != "rows"]
    head = ("model", "held-out rows", *(name.replace("_", "-") for name in names))
    rows = [
        (model, f"{figures['rows']:,}", *(_figure(figures.get(name)) for name in names))
        for model, figures in models.items()
    ]
    return f"{_table(head, rows)}\n\nIntervals are 95 % bootstraps over held-out rows."


def _figure(figure: Mapping[str, float] | None) -> str:
    if figure is None:
        return "-"
    return f"{figure['value']:.3f} [{figure['low']:.3f}, {figure['high']:.3f}]"


def _calibration(found: Mapping[str, Any]) -> str:
    rows = [
        (when, _figure(found[key]["brier"]), _figure(found[key]["calibration_error"]))
        for when, key in (("before", "before"), ("after", "after"))
    ]
    temperature, fitted_on = found["temperature"], f"{found['validation_rows']:,} validation rows"
    used = (
        "No temperature is clearly better than 1: the probabilities are used as they are."
        if temperature == 1.0
        else f"Divide the logits by the temperature {temperature:.3f}, which was fitted on {fitted_on}: the "
        "weights do not contain it."
    )
    return f"{used}\n\n{_table(('temperature', 'Brier score', 'calibration error'), rows)}\n\nLower is better in both."


def _training(run: Run, results: Mapping[str, Any]) -> str:
    config, record = run.record.config, run.record
    if record.data_fingerprint.startswith(IMPORTED):
        return f"Imported from `{record.data_fingerprint.removeprefix(IMPORTED)}`, whose card says how it was trained."
    planned = config["num_steps"]
    step = newest_step(run) or planned  # less where the run stopped early or its best parameters are exported
    steps = f"{planned:,} steps" if step == planned else f"{step:,} of {planned:,} planned steps"
    lines = [
        f"- data: {data_name(run)}" + (f", {results['train_rows']:,} rows" if "train_rows" in results else ""),
        *(f"  - `{file}` ({size:,}, SHA-256 `{digest[:16]}`)" for file, size, digest in record.data_files[:20]),
        f"- {steps} of {config['batch_size']} x {config['sequence_length']} tokens, "
        f"{config['optimizer']['name']}, learning rate {config['optimizer']['learning_rate']:g}, seed {config['seed']}",
    ]
    if record.stage == "finetune":
        lines.append(f"- parameters that were trained: {config['adapt']['method']}")
        lines.append(f"- from: {' → '.join(Path(entry['directory']).name for entry in record.lineage)}")
    if len(record.data_files) > 20:
        lines.insert(21, f"  - and {len(record.data_files) - 20:,} more files")
    return "\n".join(lines)


def _limits(run: Run, results: Mapping[str, Any], options: CardOptions) -> str:
    length = run.record.config["sequence_length"] if not run.is_language_model else run.model.context_length
    lines = [
        f"- texts are cut at {length:,} tokens",
        "- the held-out rows come from the same source as the training rows; other texts may give worse results",
    ]
    if not options.languages:
        lines.append("- its languages are not stated: use it for those of its training data")
    if not options.license:
        lines.append("- no license is stated: ask its owner before you use it")
    labels = results.get("labels", {})
    for part, count in labels.get("leaked_rows", {}).items():
        if count:
            lines.append(f"- {count:,} {part} rows are near-duplicates of training rows, so the scores may be too high")
    if count := labels.get("near_duplicates_with_different_labels", {}).get("count"):
        lines.append(f"- {count:,} pairs of near-duplicate rows have different labels")
    if count := labels.get("suspicious_labels", {}).get("count"):
        lines.append(f"- {count:,} rows have suspicious labels")
    if count := results.get("unseen_label_rows"):
        lines.append(f"- {count:,} held-out rows have labels that the training rows lack; they count as errors")
    return "\n".join(lines)


def _data_card(run: Run) -> str:
    """Returns the README.md beside the training data, without its front matter and cut; "": there is none.

    A bucket that cannot be read from here is no reason to export nothing.
    """
    path = data_path(run).split(",")[0]
    if not path or path.startswith("hf:"):
        return ""
    try:
        source = at(path)
        card = (source if source.is_dir() else source.parent) / CARD_FILE
        if not card.is_file():
            return ""
        text = card.read_text(encoding="utf-8", errors="replace")
    except Exception as error:  # the libraries of buckets raise their own
        warn(f"the model card leaves out that of the training data, {path}, which cannot be read: {one_line(error)}")
        return ""
    if text.startswith("---\n"):
        text = text[4:].partition("\n---")[2]
    text = text.strip()
    return text if len(text) <= _MAX_DATA_CARD else f"{text[:_MAX_DATA_CARD]} …"
