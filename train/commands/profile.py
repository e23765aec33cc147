"""Shows where the time of a run went: by part of the run and, of profiled steps, by module, kind and operation.

rootstock pretrain ... --config.logging.profile_steps='(20,5)'
rootstock profile --run=runs/tiny

A kind is products (of matrices), copies (what moves or converts values), collectives, other, or idle. The time per step
is that from the first operation of the profiled steps to the last, divided by their number, as the mean of the devices;
the parts add up to it. The command also writes RUN/timeline.html, which draws the run's time line.
"""

import json
from typing import TYPE_CHECKING

from absl import flags
from rich.table import Table

from configs.errors import UserError
from data.storage.paths import at
from data.strict_json import finite
from train.console import results_console

if TYPE_CHECKING:
    from train.profiling.summary import Summary

REQUIRED = ("run",)


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of the run.", flag_values=values)
    text = "Show the profile that has this step; 0: the last one of the run."
    flags.DEFINE_integer("step", 0, text, lower_bound=0, flag_values=values)
    text = "Number of operations to print, the longest first."
    flags.DEFINE_integer("operations", 10, text, lower_bound=0, flag_values=values)
    flags.DEFINE_boolean("json", False, "Print JSON.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    from data.storage.files import local_copy
    from train.profiling.page import write_timeline
    from train.profiling.summary import newest_profile, summarize
    from train.profiling.timeline import stretches_of, totals
    from train.run.history import read_records

    workdir = at(values.run)
    if not (workdir / "run.json").is_file():
        raise UserError(f"{workdir} is not a run directory: run.json is missing")
    directory = newest_profile(workdir, values.step)
    summary = None
    if directory is not None:
        with local_copy(directory, lambda path: not path.name.endswith(".trace.json.gz")) as copy:
            summary = summarize(copy)
    stretches = stretches_of(read_records(workdir))
    page = workdir / "timeline.html"
    write_timeline(page, f"Where the time of {workdir.name} went", stretches, summary)
    sums = totals(stretches)
    if values.json:
        step = None if summary is None else summary.as_json(values.operations)
        print(json.dumps(finite({"run": sums, "step": step, "page": str(page)}), indent=1))
        return
    out = results_console()
    if sums:
        whole = sum(sums.values())
        shares = sorted(sums.items(), key=lambda item: -item[1])
        out.print(f"run: {whole:,.1f} s: " + " · ".join(f"{name} {value / whole:.1%}" for name, value in shares))
    if summary is None:
        out.print(
            "no step was profiled; add --config.logging.profile_steps='(FIRST,COUNT)' to the command that trains, with "
            "steps that are not done"
        )
    else:
        _show(summary, values.operations)
        _say_how_to_open(str(workdir / "profile"), str(directory))
    out.print(f"time line: {page}", soft_wrap=True)


def _show(summary: "Summary", count: int) -> None:
    from train.profiling.program import KINDS
    from train.profiling.summary import OTHER_PROGRAMS
    from train.profiling.tables import described, measured

    out = results_console()
    for name, value in described(summary):
        out.print(f"{name}: {value}", soft_wrap=True)
    if summary.steps < summary.window.count:
        out.print(f"the trace has {summary.steps:g} of {summary.window.count} steps: the profiler dropped the others")
    if OTHER_PROGRAMS in summary.modules:
        out.print("an evaluation or a save ran between the steps: its time is in that of a step")
    modules = Table(title="ms per step, by module and kind")
    for name in ("module", "all", "share", *KINDS):
        modules.add_column(name, justify="left" if name == "module" else "right")
    for module, times in summary.modules.items():
        whole = sum(times.values())
        cells = (f"{times[kind] * 1e3:,.2f}" if kind in times else "" for kind in KINDS)
        modules.add_row(module, f"{whole * 1e3:,.2f}", f"{whole / summary.seconds:.1%}", *cells)
    modules.add_row("idle", f"{summary.idle * 1e3:,.2f}", f"{summary.idle / summary.seconds:.1%}")
    out.print(modules)
    if count:
        operations = Table(title="longest operations")
        for name in ("operation", "kind", "module", "per step", "ms", "share", "FLOPs", "bytes"):
            operations.add_column(name, justify="right" if name in ("per step", "ms", "share") else "left")
        for one in summary.operations[:count]:
            operations.add_row(*measured(one, summary))
        out.print(operations)


def _say_how_to_open(logdir: str, directory: str) -> None:
    out = results_console()
    out.print(f"XProf: pip install xprof, then xprof --logdir={logdir}", soft_wrap=True)
    out.print(f"Perfetto: open {directory}/process-0.trace.json.gz at https://ui.perfetto.dev", soft_wrap=True)
