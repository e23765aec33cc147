"""Reports the training loop one step behind, so that reading a step's metrics never delays the next step."""

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from configs.errors import UserError
from data.loader import BatchFunction, batch_number
from model.dtypes import dtype_of_products
from train.console import Bar, progress, say, warn
from train.distributed.processes import is_process_zero
from train.hardware import peak_flops
from train.job import Job
from train.run import goodput
from train.run.goodput import Goodput
from train.run.history import Writer, open_writer
from train.settings import Settings
from train.step import ROUTER_METRICS, Metrics

# The metrics of one step: numbers, and lists with one number per layer with experts.
Values = dict[str, Any]

# The phase of the lines that `write_length` writes.
LENGTH_PHASE = "length"


class Diverged(UserError):
    """Too many consecutive steps were skipped; `step` is the last of them."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Outputs(NamedTuple):
    """Where a reporter writes: records of metrics.jsonl, a progress bar, and the wall time by part."""

    write: Writer
    progress: Bar
    goodput: Goodput


class StepReporter:
    """Turns device metrics into records and progress; time outside training steps does not count in throughput."""

    def __init__(self, job: Job, settings: Settings, batches: BatchFunction, start: int, outputs: Outputs) -> None:
        self.title, self.flops_per_step = job.title, job.flops_per_step
        self.batches, self.start = batches, start
        self.write, self.progress, self.goodput = outputs
        self.max_consecutive_skips = min(settings.faults.max_consecutive_skips, max(settings.num_steps // 2, 1))
        self.consecutive_skips = 0
        self.every, self.num_steps = settings.logging.every, settings.num_steps
        self.tokens_per_step = settings.batch_size * settings.sequence_length
        self.peak_flops = peak_flops()
        self.compute_dtype = str(dtype_of_products(settings.model["compute_dtype"]))
        self.started = time.perf_counter()
        # Throughput is measured from here; after the first step, which compiles, it starts again.
        self.mark, self.marked_step, self.outside = self.started, start, 0.0
        self.pending: tuple[int, Metrics] | None = None

    def step_done(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that was dispatched and reports the previous step.

        Raises:
            Diverged: the previous step was skipped, as were too many before it.
        """
        self._flush()
        self.pending = (step, metrics)

    @contextlib.contextmanager
    def outside_steps(self, part: str) -> Iterator[None]:
        """A context whose time counts as `part` and not as training; the pending step is reported first."""
        self._flush()
        begin = time.perf_counter()
        with self.goodput.part(part):
            yield
        self.outside += time.perf_counter() - begin

    def write_length(self, step: int, before: int, after: int) -> None:
        """Writes and prints that the run was going to have `before` steps up to `step`, and since then `after`."""
        self.write({"step": step, "phase": LENGTH_PHASE, "before": before, "after": after})
        say(f"{self.title}: config.num_steps {before} -> {after} from step {step} on")

    def write_wall_time(self, step: int) -> None:
        """Writes the seconds spent in each part of the run up to now, after `step` steps."""
        seconds = time.perf_counter() - self.started
        parts, timeline = self.goodput.seconds(), self.goodput.timeline()
        account = {"seconds": seconds, "parts": parts, "timeline": timeline, "compute_dtype": self.compute_dtype}
        self.write({"step": step, "phase": goodput.PHASE, **account})

    def evaluated(self, step: int, metrics: dict[str, float], better: dict[str, str]) -> None:
        """Writes and prints the metrics of an evaluation after `step` steps; for `better`, see `Job`."""
        cost = {"tokens": step * self.tokens_per_step, "seconds": time.perf_counter() - self.started}
        self.write({"step": step, "phase": "eval", **metrics, **cost, **({"better": better} if better else {})})
        say(f"{self.title}: step {step}: held-out {_described(metrics)}")

    def _flush(self) -> None:
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        values = {name: np.asarray(value).tolist() for name, value in jax.device_get(metrics).items()}
        self.consecutive_skips = self.consecutive_skips + 1 if values["skipped"] else 0
        if self.consecutive_skips:
            self._skipped(step, values)
        if step == self.start + 1:
            self.mark, self.marked_step, self.outside = time.perf_counter(), step, 0.0
        if step % self.every == 0 or step == self.num_steps:
            self._record(step, values)

    def _skipped(self, step: int, values: Values) -> None:
        """Writes the batch of a skipped step and prints a warning."""
        t = step - 1
        batch = batch_number(t, self.batches.skipped)
        loss, grad_norm = values["loss"], values["grad_norm"]
        place = {"step": step, "phase": "skipped", "batch": batch, **self.batches.places(t)}
        self.write({**place, "loss": loss, "grad_norm": grad_norm})
        found = f"loss {loss:.4g}, gradient norm {grad_norm:.4g}"
        warn(f"{self.title}: step {step} is skipped: {found} in batch {batch} ({self.consecutive_skips} consecutive)")
        if self.consecutive_skips >= self.max_consecutive_skips:
            self.write_wall_time(step)
            raise Diverged(
                f"{self.consecutive_skips} consecutive steps were skipped, the last is step {step}: {found}; none "
                "of them changed the state: lower config.optimizer.learning_rate, check the data, or set "
                "config.faults.on_divergence to roll_back; then run again",
                step,
            )

    def _record(self, step: int, values: Values) -> None:
        now = time.perf_counter()
        steps = step - self.marked_step
        steps_per_second = steps / max(now - self.mark - self.outside, 1e-9)
        if steps:
            self.mark, self.marked_step, self.outside = now, step, 0.0
        # None: the first step's time is that of compiling; and the chip's peak may not be known, as on a CPU.
        tokens_per_second = steps_per_second * self.tokens_per_step if steps else None
        mfu = steps_per_second * self.flops_per_step / self.peak_flops if steps and self.peak_flops else None
        self.write(
            {
                "step": step,
                "phase": "train",
                "loss": values["loss"],
                "tokens": step * self.tokens_per_step,
                "seconds": now - self.started,
                "tokens_per_second": tokens_per_second,
                "mfu": mfu,
                "learning_rate": values["learning_rate"],
                "grad_norm": values["grad_norm"],
                **{name: values[name] for name in ROUTER_METRICS if name in values},
                "timeline": self.goodput.timeline(),
            }
        )
        parts = [f"loss {values['loss']:.3f}"]
        parts += [f"{tokens_per_second:,.0f} tokens/s"] if tokens_per_second is not None else []
        parts += [f"MFU {mfu:.0%}"] if mfu is not None else []
        self.progress(step, " · ".join(parts))


def _described(metrics: Mapping[str, float]) -> str:
    """Returns metrics as text; those of a source, "METRIC/NAME", after its name: "loss 3.1 · books: loss 2.9"."""
    shown: dict[str, list[str]] = {}
    for name, value in metrics.items():
        metric, _, source = name.partition("/")
        text = f"{value:,}" if isinstance(value, int) else f"{value:.4f}"
        shown.setdefault(source, []).append(f"{metric.replace('_', ' ')} {text}")
    parts = (f"{source}: {', '.join(texts)}" if source else " · ".join(texts) for source, texts in shown.items())
    return " · ".join(parts)


@contextlib.contextmanager
def open_reporter(
    job: Job, settings: Settings, workdir: Path, batches: BatchFunction, start: int, times: Goodput
) -> Iterator[StepReporter]:
    """Yields a `StepReporter` of a run that continues after `start` steps; only process 0 writes records."""
    with (
        open_writer(workdir, start, settings, is_process_zero()) as write,
        progress(job.title, settings.num_steps) as move,
    ):
        yield StepReporter(job, settings, batches, start, Outputs(write, move, times))
