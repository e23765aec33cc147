"""A task by its name, or from a file of the user's own, and as `run.json` stores it."""

import dataclasses
import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
import traceback
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

from configs.errors import UserError, did_you_mean
from configs.schema import build
from data.storage.paths import is_url
from train.settings import TaskSettings
from train.tasks.task import Attention, Task


def is_file(name: str) -> bool:
    """Returns whether `config.task.name` is the path of a file."""
    return name.endswith(".py") or "/" in name


def absolute_name(name: str) -> str:
    """Returns `config.task.name` with the path of a file made absolute."""
    return str(Path(name).expanduser().absolute()) if is_file(name) and not is_url(name) else name


def load_task(name: str) -> type[Task[Any]]:
    """Returns the task class of `train/tasks/NAME.py`, or of the file at path `name`.

    Raises:
        UserError: the task is unknown, or the file is missing, cannot be imported or does not define one task.
    """
    if is_url(name):
        raise UserError(f"config.task.name={name!r}: Python files are read from this machine only; copy it here")
    if is_file(name):
        path = Path(absolute_name(name))
        if not path.is_file():
            raise UserError(
                f"config.task.name={name!r} is not a file; expected a Python file that defines a subclass of Task"
            )
        return _task_of(_import_file(path, path.stat().st_mtime_ns), f"config.task.name={name!r}")
    names = sorted({module.name for module in pkgutil.iter_modules([str(Path(__file__).parent)])} - {"task", "loading"})
    if name not in names:
        raise UserError(
            f"config.task.name={name!r} is unknown{did_you_mean(name, names)}; "
            f"expected one of {', '.join(names)}, or the path of a Python file"
        )
    return _task_of(importlib.import_module(f"train.tasks.{name}"), name)


@functools.lru_cache(maxsize=32)
def _import_file(path: Path, modified_ns: int) -> ModuleType:
    """Returns the module of a file; `modified_ns` makes an edited file a new one."""
    name = f"rootstock_task_{path.stem}_{hashlib.sha256(f'{path} {modified_ns}'.encode()).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look up the module of a class there
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        if isinstance(error, SyntaxError):
            line = error.lineno
        else:
            line = next(
                (f.lineno for f in reversed(traceback.extract_tb(error.__traceback__)) if f.filename == str(path)), 1
            )
        text = " ".join(str(error).split())
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {text}") from None
    return module


def _task_of(module: ModuleType, source: str) -> type[Task[Any]]:
    """Returns the one task class that a module defines; base classes that leave methods undefined do not count."""
    defined = [
        value
        for value in vars(module).values()
        if inspect.isclass(value) and issubclass(value, Task) and value.__module__ == module.__name__
    ]
    complete = [cls for cls in defined if not inspect.isabstract(cls)]
    if len(complete) == 1:
        return complete[0]
    if complete:
        names = ", ".join(cls.__name__ for cls in complete)
        raise UserError(f"{source} defines several subclasses of Task ({names}); expected one")
    if defined:
        missing = ", ".join(sorted(defined[-1].__abstractmethods__))
        raise UserError(f"{source}: class {defined[-1].__name__} does not define {missing}")
    raise UserError(f"{source} does not define a subclass of Task; expected one, see docs/tasks.md")


def attention_of(settings: TaskSettings, method: str) -> Attention:
    """Returns which tokens a task's model attends to: `config.task.attention`, with "auto" decided.

    Frozen weights were trained with causal attention, so "auto" keeps it where the layers' weights are frozen.

    Args:
        settings: `config.task`.
        method: `config.adapt.method`.

    Raises:
        UserError: the task trains a language-model head, which would see the tokens that it predicts.
    """
    cls = load_task(settings.name)
    if cls.trains_lm_head and settings.attention == "bidirectional":
        raise UserError(
            f"config.task.attention='bidirectional' needs a head that does not write text, but "
            f"config.task.name={settings.name!r} trains a language model; expected 'auto' or 'causal'"
        )
    if settings.attention != "auto":
        return settings.attention
    return cls.default_attention if method == "full" and not cls.trains_lm_head else "causal"


def task_to_record(name: str, task: Task[Any]) -> dict[str, Any]:
    """Returns a task as `run.json` stores it: its name, or the absolute path of its file, and its fields."""
    fields = {key: list(v) if isinstance(v, tuple) else v for key, v in dataclasses.asdict(task).items()}
    return {"name": absolute_name(name), **fields}


def task_from_record(record: Mapping[str, Any]) -> Task[Any]:
    """Returns the task stored in a `run.json`.

    Raises:
        UserError: its file is missing, or the class no longer has the stored fields.
    """
    name = record["name"]
    if is_file(name) and not Path(name).is_file():
        raise UserError(
            f"the run's task is defined in {name}, which is missing; "
            "restore the file, or set task.name in run.json to its new path"
        )
    cls = load_task(name)
    fields = {cls.renamed_fields.get(key, key): value for key, value in record.items() if key != "name"}
    return build(cls, fields, f"the task {name!r} in run.json")
