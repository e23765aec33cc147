"""Times the loop and reports it one step behind, so that reading a step's metrics never holds up the next step."""

import contextlib
import time
from collections.abc import Iterator

import jax

from configs.errors import UserError
from data.loader import BatchFunction, batch_number
from train.console import Bar, say, warn
from train.hardware import peak_flops
from train.run import goodput
from train.run.goodput import Goodput
from train.run.history import Writer
from train.settings import Settings
from train.step import Metrics


class Diverged(UserError):
    """Too many steps, one after the other, were skipped; `step` is the last of them."""

    def __init__(self, message: str, step: int) -> None:
        super().__init__(message)
        self.step = step


class Watch:
    """Turns device metrics into records and the progress bar; time spent outside steps is left out of throughput."""

    def __init__(
        self,
        title: str,
        settings: Settings,
        flops_per_step: float,
        write: Writer,
        bar: Bar,
        start: int,
        batches: BatchFunction,
        spent: Goodput,
    ) -> None:
        self.title, self.write, self.bar = title, write, bar
        self.batches, self.spent = batches, spent
        self.limit = min(settings.faults.max_consecutive_skips, max(settings.num_steps // 2, 1))
        self.consecutive_skips = 0
        self.every, self.last_step = settings.logging.every, settings.num_steps
        self.tokens_per_step = settings.batch_size * settings.sequence_length
        self.flops_per_step = flops_per_step
        self.peak_flops = peak_flops()
        self.start = start
        self.started = time.perf_counter()
        # Throughput is counted from here: the first step, which compiles, moves it.
        self.mark, self.marked_step, self.outside = self.started, start, 0.0
        self.pending: tuple[int, Metrics] | None = None

    def step_done(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that was dispatched and reports the one before.

        Raises:
            Diverged: that one was skipped, and too many before it.
        """
        self._flush()
        self.pending = (step, metrics)

    @contextlib.contextmanager
    def outside_steps(self, part: str) -> Iterator[None]:
        """A context whose time is `part`'s and no training time; the pending step is reported first."""
        self._flush()
        begin = time.perf_counter()
        with self.spent.part(part):
            yield
        self.outside += time.perf_counter() - begin

    def account(self, step: int) -> dict[str, float]:
        """Writes, and returns, the seconds that each part of the run took by now, with `step` steps done."""
        parts = self.spent.seconds()
        seconds = time.perf_counter() - self.started
        self.write({"step": step, "phase": goodput.PHASE, "seconds": seconds, "parts": parts})
        return parts

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Writes the figures of an evaluation after `step` steps."""
        place = {"step": step, "phase": "eval"}
        spent = {"tokens": step * self.tokens_per_step, "seconds": time.perf_counter() - self.started}
        self.write({**place, **figures, **spent})
        shown = {name: f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for name, value in figures.items()}
        text = " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
        say(f"{self.title}: step {step}: held-out {text}")

    def _flush(self) -> None:
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        self.consecutive_skips = self.consecutive_skips + 1 if values["skipped"] else 0
        if self.consecutive_skips:
            self._skipped(step, values)
        if step == self.start + 1:
            self.mark, self.marked_step, self.outside = time.perf_counter(), step, 0.0
        if step % self.every == 0 or step == self.last_step:
            self._record(step, values)

    def _skipped(self, step: int, values: dict[str, float]) -> None:
        """Says and writes which batch a skipped step had."""
        t = step - 1
        batch, rows = batch_number(t, self.batches.skipped), self.batches.row_numbers(t).tolist()
        self.write(
            {
                "step": step,
                "phase": "skipped",
                "batch": batch,
                "rows": rows,
                "loss": values["loss"],
                "grad_norm": values["grad_norm"],
            }
        )
        found = f"loss {values['loss']:.4g}, gradient norm {values['grad_norm']:.4g}"
        warn(f"{self.title}: step {step} is skipped: {found} in batch {batch} ({self.consecutive_skips} consecutive)")
        if self.consecutive_skips >= self.limit:
            self.account(step)
            raise Diverged(
                f"{self.consecutive_skips} consecutive steps were skipped, the last is step {step}: {found}; none "
                "of them changed the state: lower config.optimizer.learning_rate, check the data, or set "
                "config.faults.on_divergence to roll_back; then run again",
                step,
            )

    def _record(self, step: int, values: dict[str, float]) -> None:
        now = time.perf_counter()
        steps = step - self.marked_step
        steps_per_second = steps / max(now - self.mark - self.outside, 1e-9)
        if steps:
            self.mark, self.marked_step, self.outside = now, step, 0.0
        rate = steps_per_second * self.tokens_per_step
        mfu = steps_per_second * self.flops_per_step / self.peak_flops if self.peak_flops else None
        self.write(
            {
                "step": step,
                "phase": "train",
                "loss": values["loss"],
                "tokens": step * self.tokens_per_step,
                "seconds": now - self.started,
                "tokens_per_second": rate,
                "mfu": mfu,
                "learning_rate": values["learning_rate"],
                "grad_norm": values["grad_norm"],
            }
        )
        shown_mfu = "" if mfu is None else f" · MFU {mfu:.0%}"
        self.bar(step, f"loss {values['loss']:.3f} · {rate:,.0f} tokens/s{shown_mfu}")
