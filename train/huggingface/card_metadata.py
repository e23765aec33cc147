"""The front matter of a model card: what the Hub indexes a model by."""

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from configs.errors import UserError
from data.sources import match_sources
from data.storage.paths import at
from train.checkpoint.manager import BEST_DIR, saved_steps
from train.huggingface.sources import IMPORTED
from train.run.history import read_records
from train.run.record import Run
from train.tasks.loading import is_file

_LICENSE = re.compile(r"[a-z0-9][a-z0-9.-]*")
_LANGUAGE = re.compile(r"[a-z]{2,3}(-[A-Za-z0-9]{2,8})*|multilingual|code")
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FOUNDATION_METRICS = ("loss", "bits_per_byte")
# Names of metrics on the Hub where ours differ.
_METRICS = {"macro_f1": "f1", "micro_f1": "f1", "mean_absolute_error": "mae", "rouge_1": "rouge", "rouge_2": "rouge",
            "rouge_l": "rouge", "chrf": "chrf"}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class CardOptions:
    """What a run does not know of its model.

    Attributes:
        license: of the model, an identifier of the Hub such as "apache-2.0"; "": not stated.
        languages: ISO 639 codes.
        base_model: id of the foundation on the Hub; "": that of an imported model, if it has one.
        datasets: ids of the training data on the Hub; empty: that of `hf:NAME`.
    """

    license: str = ""
    languages: tuple[str, ...] = ()
    base_model: str = ""
    datasets: tuple[str, ...] = ()


DEFAULT_OPTIONS = CardOptions()


def check_options(options: CardOptions) -> None:
    """Checks the form of what a user says of a model.

    Raises:
        UserError: a value that the Hub would refuse.
    """
    if options.license and not _LICENSE.fullmatch(options.license):
        raise UserError(
            f"--license={options.license!r} is not an identifier; expected one of the Hub's, such as apache-2.0, mit, "
            "cc-by-4.0 or other"
        )
    for language in options.languages:
        if not _LANGUAGE.fullmatch(language):
            raise UserError(f"--language={language!r} is not a code; expected ISO 639 codes, such as en or en,de")
    named = [("base_model", options.base_model), *(("dataset", name) for name in options.datasets)]
    for flag, name in named:
        if name and not _HUB_ID.fullmatch(name):
            raise UserError(f"--{flag}={name!r} is not a name on the Hub; expected OWNER/NAME")


def pipeline_of(run: Run) -> str:
    """Returns the Hub's name of the run's task."""
    if run.is_language_model:
        return "text-generation"
    return "token-classification" if run.record.task["name"] == "tagging" else "text-classification"


def task_name(run: Run) -> str:
    """Returns the name of the run's task; that of a file of the user is the file's."""
    name = run.record.task.get("name", "language modeling")
    return Path(name).stem if is_file(name) else name


def data_path(run: Run) -> str:
    """Returns what a run reads, as `config.data.path`: of a mixture its sources, with commas."""
    data = run.record.config["data"]
    return data["path"] or ",".join(path for _, path, _ in data["mixture"])


def data_name(run: Run) -> str:
    """Returns a name for the data that the run trained on."""
    path = data_path(run)
    if not path:
        return "unknown"
    ids = dataset_ids(path)
    if ids:
        return ids[0]
    first = at(path.split(",")[0])
    # Of a pattern, or of a file whose name says little, the directory.
    generic = first.stem.split(".")[0] in ("train", "all", "data", "rows") or "*" in first.name
    return (first.parent.name if generic and first.parent.name else first.name) or "data"


def dataset_ids(path: str) -> tuple[str, ...]:
    """Returns the names on the Hub of a source `hf:NAME`; a local directory has none."""
    parts = [part.strip() for part in path.split(",")]
    sources = [source for part in parts if part.startswith("hf:") for source in match_sources(part)]
    names = [getattr(source, "name", "") for source in sources]
    return tuple(dict.fromkeys(n for n in names if _HUB_ID.fullmatch(n) and not Path(n).exists()))


def base_model_of(run: Run) -> str:
    """Returns the name on the Hub of the imported model that a run starts from; "": it has none."""
    prints = [run.record.data_fingerprint, *(entry["data_fingerprint"] for entry in reversed(run.record.lineage))]
    names = [found.removeprefix(IMPORTED) for found in prints if found.startswith(IMPORTED)]
    return next((name for name in names if name.count("/") == 1 and _HUB_ID.fullmatch(name)), "")


def metadata(run: Run, name: str, results: Mapping[str, Any], options: CardOptions) -> dict[str, Any]:
    """Returns the fields of the front matter.

    Args:
        run: the run.
        name: of the model.
        results: the contents of `results.json`.
        options: what the user says.
    """
    base, datasets = options.base_model or base_model_of(run), options.datasets
    datasets = datasets or dataset_ids(data_path(run))
    evaluated = _evaluated(run, results)
    found = {
        "language": list(options.languages),
        "license": options.license,
        "library_name": "transformers",
        "pipeline_tag": pipeline_of(run),
        "tags": ["rootstock", *([task_name(run)] if run.record.stage == "finetune" else [])],
        "base_model": base,
        "datasets": list(datasets),
        "metrics": list(dict.fromkeys(metric["type"] for metric in evaluated)),
        "model-index": [{"name": name, "results": [_result(run, datasets, evaluated)]}] if evaluated else [],
    }
    return {field: value for field, value in found.items() if value}


def held_out_of(run: Run, results: Mapping[str, Any]) -> Mapping[str, Any]:
    """Returns the evaluation of the parameters that are exported: the best ones, if they were kept, or the last."""
    if run.checkpoint_dir != BEST_DIR:
        return results.get("training", {}).get("held_out", {})
    step = saved_steps(run.directory, BEST_DIR)[0]
    return next((r for r in reversed(read_records(run.directory, "eval")) if r["step"] == step), {})


def _evaluated(run: Run, results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Returns the metrics of the model itself, as the Hub writes them."""
    if run.record.stage == "finetune":
        tuned = results.get("models", {}).get("fine-tuned", {})
        figures = {name: figure for name, figure in tuned.items() if name != "rows"}
    else:
        held_out = held_out_of(run, results)
        figures = {name: {"value": held_out[name]} for name in _FOUNDATION_METRICS if held_out.get(name) is not None}
    return [
        {
            "type": _METRICS.get(name, name),
            "name": name.replace("_", "-"),
            "value": figure["value"],
            **({"args": {"low": figure["low"], "high": figure["high"]}} if "low" in figure else {}),
        }
        for name, figure in figures.items()
    ]


def _result(run: Run, datasets: tuple[str, ...], metrics: list[dict[str, Any]]) -> dict[str, Any]:
    name = data_name(run)
    return {
        "task": {"type": pipeline_of(run), "name": task_name(run)},
        "dataset": {"type": datasets[0] if datasets else "custom", "name": name, "split": "held-out rows"},
        "metrics": metrics,
    }
