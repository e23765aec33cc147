"""Sends what a run measures to TensorBoard, Weights & Biases or Trackio; none of them can stop or delay the run.

A service is only used by a thread of its own, which takes records from a queue. When the service fails, one warning is
printed and the run goes on without it; when it hangs, the run ends without waiting for it.
"""

import dataclasses
import importlib
import queue
import subprocess
import sys
import tempfile
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol, TextIO

from configs.errors import UserError
from data.storage.files import write_atomically
from data.storage.paths import is_remote
from train.console import warn
from train.settings import LoggingSettings, Settings

SERVICES = ("wandb", "trackio")
# Seconds that the end of a run waits for a service to take what is in the queue.
_PATIENCE = 60.0
_QUEUED = 10_000  # records; a service that is this far behind loses the following ones
_IDENTITY = "tracker_id"


class Tracker(Protocol):
    """Something that shows the numbers of a run."""

    def log(self, step: int, values: dict[str, float]) -> None:
        """Takes the numbers of a step, by names such as "train/loss"."""

    def publish(self, results: dict[str, Any], report: Path | None) -> None:
        """Takes `results.json` and the report of a run that has ended."""

    def flush(self) -> None:
        """Writes what was taken to where it can be read."""

    def close(self) -> None:
        """Ends the tracker."""


def numbers(record: dict[str, Any]) -> dict[str, float]:
    """Returns the numbers of a record of `metrics.jsonl` by name, without its step.

    A list has one number per layer with experts.
    """
    found = {}
    for name, value in record.items():
        each = {f"{name}/{i}": x for i, x in enumerate(value)} if isinstance(value, list) else {name: value}
        if isinstance(value, dict):
            each = {f"{name}/{key}": x for key, x in value.items()}
        for label, number in each.items():
            if name != "step" and isinstance(number, int | float):
                found[f"{record['phase']}/{label}"] = number
    return found


def check_trackers(logging: LoggingSettings) -> None:
    """Checks that the packages that a config asks for are installed.

    Raises:
        UserError: one is not.
    """
    if logging.tensorboard:
        _import("tensorboardX", "config.logging.tensorboard", "tensorboard")
    if logging.tracker != "none":
        _import(logging.tracker, f"config.logging.tracker={logging.tracker}", logging.tracker)


def open_trackers(workdir: Path, local: Path, settings: Settings) -> Iterator[Tracker]:
    """Yields the trackers that a config asks for.

    Args:
        workdir: the run directory, which names the run.
        local: the same, or a directory whose files will be uploaded to it.
        settings: the run's settings, which the services show.
    """
    check_trackers(settings.logging)
    if settings.logging.tensorboard:
        yield _TensorBoard(importlib.import_module("tensorboardX").SummaryWriter(str(local / "tensorboard")))
    if settings.logging.tracker != "none":
        identity = _identity(workdir)
        yield InBackground(settings.logging.tracker, lambda: _Service(workdir, local, settings, identity))


def publish_results(workdir: Path, settings: Settings, results: dict[str, Any], report: Path | None = None) -> None:
    """Sends the results of a run that has ended to the services that follow it.

    Args:
        workdir: the run directory, on this machine or in a bucket.
        settings: the run's settings.
        results: the contents of `results.json`.
        report: the HTML report.
    """
    if settings.logging.tracker == "none":
        return
    identity = _identity(workdir)
    with tempfile.TemporaryDirectory(prefix="rootstock-") as scratch:
        local = Path(scratch) if is_remote(workdir) else workdir
        tracker = InBackground(settings.logging.tracker, lambda: _Service(workdir, local, settings, identity))
        tracker.publish(results, report)
        tracker.close()


def _import(module: str, field: str, extra: str) -> ModuleType:
    try:
        found = importlib.import_module(module)
    except ImportError:
        found = None
    # Without a file it is a folder that runs left behind, such as wandb/, not the package.
    if found is None or getattr(found, "__file__", None) is None:
        raise UserError(f"{field} needs the package {module}: pip install -e '.[{extra}]'")
    return found


def _identity(directory: Path) -> str:
    """Returns the identity that the services know a run by; made at its first start, so that a resumed run goes on."""
    path = directory / _IDENTITY
    if not path.is_file():
        write_atomically(path, uuid.uuid4().hex[:12])
    return path.read_text().strip()


class InBackground:
    """A tracker that another thread opens and uses; no call waits for it, and no error of it is raised."""

    def __init__(self, name: str, opened: Callable[[], Tracker], patience: float = _PATIENCE) -> None:
        self.name, self.patience = name, patience
        self.waiting: queue.Queue[Callable[[Tracker], None] | None] = queue.Queue(_QUEUED)
        self.lost = 0
        self.thread = threading.Thread(target=self._work, args=(opened,), daemon=True, name=f"tracker {name}")
        self.thread.start()

    def _work(self, opened: Callable[[], Tracker]) -> None:
        # Not `redirect_stdout`, which is for all threads: while a service hangs, results must be printed.
        muted = _WithoutThread(sys.stdout, threading.get_ident())
        sys.stdout = muted
        try:
            tracker = opened()
            while (call := self.waiting.get()) is not None:
                call(tracker)
            tracker.close()
        # A service may raise anything, and some end the process when no key is found.
        except (Exception, SystemExit) as error:
            text = " ".join(str(error).split())
            warn(f"{self.name} follows this run no longer: {type(error).__name__}: {text:.300}; training goes on")
        finally:
            if sys.stdout is muted:
                sys.stdout = muted.inner

    def _put(self, call: Callable[[Tracker], None] | None) -> None:
        try:
            self.waiting.put_nowait(call)
        except queue.Full:
            self.lost += 1

    def log(self, step: int, values: dict[str, float]) -> None:
        """Queues the numbers of a step."""
        self._put(lambda tracker: tracker.log(step, values))

    def publish(self, results: dict[str, Any], report: Path | None) -> None:
        """Queues the results of a run."""
        self._put(lambda tracker: tracker.publish(results, report))

    def flush(self) -> None:
        """Nothing: the thread sends what it has."""

    def close(self) -> None:
        """Waits for the thread for a limited time."""
        if self.thread.is_alive():
            self._put(None)
            self.thread.join(self.patience)
        if self.thread.is_alive():
            warn(f"{self.name} did not take all records within {self.patience:g} s; metrics.jsonl has them")
        elif self.lost:
            warn(f"{self.name} was too slow for {self.lost:,} records; metrics.jsonl has them")


@dataclasses.dataclass(frozen=True)
class _TensorBoard:
    writer: Any

    def log(self, step: int, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.writer.add_scalar(name, value, step)

    def publish(self, results: dict[str, Any], report: Path | None) -> None:
        pass

    def flush(self) -> None:
        self.writer.flush()

    def close(self) -> None:
        self.writer.close()


class _Service:
    """A run of Weights & Biases or of Trackio, which have the same interface."""

    def __init__(self, workdir: Path, local: Path, settings: Settings, identity: str) -> None:
        self.is_wandb = settings.logging.tracker == "wandb"
        self.module = importlib.import_module(settings.logging.tracker)
        config = dataclasses.asdict(settings) | {"workdir": str(workdir), "git_revision": git_revision()}
        options: dict[str, Any] = {"name": f"{workdir.name}-{identity}"}
        if self.is_wandb:
            options = {
                "name": str(workdir), "id": identity, "dir": local,
                # Everything a run prints stays where it is printed.
                "settings": self.module.Settings(console="off", silent=True),
            }  # fmt: skip
        project = settings.logging.project
        self.run = self.module.init(project=project, config=config, resume="allow", **options)
        if self.is_wandb:
            # Steps that are trained again after a kill come a second time, which its own counter refuses.
            self.run.define_metric("*", step_metric="step")

    def log(self, step: int, values: dict[str, float]) -> None:
        if self.is_wandb:
            self.run.log({"step": step, **values})
        else:
            self.run.log(values, step=step)

    def publish(self, results: dict[str, Any], report: Path | None) -> None:
        shown: dict[str, Any] = dict(_flat("results", results))
        if results.get("models"):
            shown["comparison"] = _comparison(self.module, results["models"])
        if report is not None:
            shown["report"] = self.module.Html(report.read_text())
        self.run.log(shown)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        self.run.finish()


class _WithoutThread:
    """Standard output without what one thread prints; a command's results go there, from other threads."""

    def __init__(self, inner: TextIO, thread: int) -> None:
        self.inner, self.thread = inner, thread

    def write(self, text: str) -> int:
        return len(text) if threading.get_ident() == self.thread else self.inner.write(text)

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)


def _flat(name: str, value: object) -> Iterator[tuple[str, float]]:
    """Yields the numbers in nested objects, by their path."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _flat(f"{name}/{key}", inner)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def _comparison(module: ModuleType, models: dict[str, Any]) -> object:
    """Returns the table of a fine-tuning run as a table of a service."""
    metrics = list(dict.fromkeys(name for scores in models.values() for name in scores if name != "rows"))
    rows = [[name, *(scores.get(metric, {}).get("value") for metric in metrics)] for name, scores in models.items()]
    return module.Table(columns=["model", *metrics], data=rows)


def git_revision() -> str | None:
    """Returns the commit of this code, with "-dirty" if files differ from it; None outside a repository."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=False, timeout=10
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
