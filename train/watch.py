"""Times the loop and reports it one step behind, so that reading a step's metrics never holds up the next step."""

import contextlib
import math
import time
from collections.abc import Iterator

import jax

from configs.errors import UserError
from train.hardware import peak_flops
from train.metrics import Bar, Writer, console
from train.settings import Settings
from train.step import Metrics


class Watch:
    """Turns device metrics into records and the progress bar; time spent outside steps is left out of throughput."""

    def __init__(
        self, title: str, settings: Settings, flops_per_step: float, write: Writer, bar: Bar, start: int
    ) -> None:
        self.title, self.write, self.bar = title, write, bar
        self.every, self.last_step = settings.logging.every, settings.num_steps
        self.tokens_per_step = settings.batch_size * settings.sequence_length
        self.flops_per_step = flops_per_step
        # Before the first step: a CPU is measured, and must not be busy then.
        self.peak_flops = peak_flops()
        self.start = start
        self.started = time.perf_counter()
        # Throughput is counted from here: the first step, which compiles, moves it.
        self.mark, self.marked_step, self.outside = self.started, start, 0.0
        self.pending: tuple[int, Metrics] | None = None

    def step_done(self, step: int, metrics: Metrics) -> None:
        """Takes the metrics of a step that was dispatched and reports the one before.

        Raises:
            UserError: the loss of that one is not finite.
        """
        self._flush()
        self.pending = (step, metrics)

    @contextlib.contextmanager
    def outside_steps(self) -> Iterator[None]:
        """A context whose time is no training time; the pending step is reported first."""
        self._flush()
        begin = time.perf_counter()
        yield
        self.outside += time.perf_counter() - begin

    def evaluated(self, step: int, figures: dict[str, float]) -> None:
        """Writes the figures of an evaluation after `step` steps."""
        place = {"step": step, "phase": "eval"}
        spent = {"tokens": step * self.tokens_per_step, "seconds": time.perf_counter() - self.started}
        self.write({**place, **figures, **spent})
        shown = {name: f"{value:,}" if isinstance(value, int) else f"{value:.4f}" for name, value in figures.items()}
        text = " · ".join(f"{name.replace('_', ' ')} {value}" for name, value in shown.items())
        console.print(f"{self.title}: step {step}: held-out {text}", highlight=False)

    def _flush(self) -> None:
        if self.pending is None:
            return
        step, metrics = self.pending
        self.pending = None
        values = {name: float(value) for name, value in jax.device_get(metrics).items()}
        if not math.isfinite(values["loss"]):
            raise UserError(
                f"loss is {values['loss']} at step {step}; nothing of it was saved: "
                "lower config.optimizer.learning_rate or look at the data, then run again"
            )
        if step == self.start + 1:
            self.mark, self.marked_step, self.outside = time.perf_counter(), step, 0.0
        if step % self.every == 0 or step == self.last_step:
            self._record(step, values)

    def _record(self, step: int, values: dict[str, float]) -> None:
        now = time.perf_counter()
        steps = step - self.marked_step
        steps_per_second = steps / max(now - self.mark - self.outside, 1e-9)
        if steps:
            self.mark, self.marked_step, self.outside = now, step, 0.0
        rate = steps_per_second * self.tokens_per_step
        mfu = steps_per_second * self.flops_per_step / self.peak_flops
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
        self.bar(step, f"loss {values['loss']:.3f} · {rate:,.0f} tokens/s · MFU {mfu:.0%}")
