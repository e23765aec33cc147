"""Estimates memory, time and cost of a pre-training config on TPUs or GPUs you do not have.

Compiles the real train step ahead of time for the topology; no TPU is needed (pip install -e '.[tpu]').
GPU topologies are estimated, and compiled too where the jax-cuda13 plugin is installed (docs/planning.md).

  rootstock plan --config=configs/pretrain/llm.py:llama2_7b --topology=v5e-16 --config.batch_size=16
"""

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

from absl import flags
from rich.table import Column, Table
from rich.text import Text

from configs.errors import UserError
from train.console import results_console, step_progress
from train.settings import from_config

if TYPE_CHECKING:
    from train.planner.fit import Tried
    from train.planner.pricing import Budget, Plan
    from train.planner.search import Candidate
    from train.planner.topology import Topology

REQUIRED = ("config", "topology")
CONFIG_FIELDS = (
    *("batch_size", "sequence_length", "num_steps", "microbatches", "tokenizer", "xla_flags"),
    *("model", "mesh", "data.path", "data.mixture", "adapt", "optimizer", "loss", "task.attention"),
)
_SHOWN = 16  # rows of a search


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    text = "Chips to plan for: v5e-16, v5p:4x4x4, 2xv5e-256 (two slices), h100-8, a100-64, v100."
    flags.DEFINE_string("topology", None, text, flag_values=values)
    flags.DEFINE_bool("search", False, "Rank all valid meshes, remat policies and batch sizes.", flag_values=values)
    flags.DEFINE_bool(
        "fit",
        False,
        "Find the cheapest remat, loss chunk, microbatches, mesh and, last, smaller moments that fit in memory, and "
        "compile them.",
        flag_values=values,
    )
    flags.DEFINE_float("tokens", 0.0, "Tokens to train on; 0: the config's steps.", flag_values=values)
    flags.DEFINE_float("price", 0.0, "US dollars per chip-hour.", flag_values=values)
    flags.DEFINE_float(
        "tflops",
        0.0,
        "Achieved TFLOP/s per chip, at 6 FLOPs per parameter and token; 0: the roofline.",
        flag_values=values,
    )
    flags.DEFINE_bool("json", False, "Print one JSON object instead of tables.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    import jax

    from train.planner.fit import fit
    from train.planner.pricing import advice, make_plan, priced
    from train.planner.search import search
    from train.planner.topology import compiler_devices, parse_topology

    topology = parse_topology(values.topology)
    budget = _budget(values, topology)
    settings = from_config(values.config.to_dict())
    # Planning must not initialize this machine's accelerators.
    jax.config.update("jax_platforms", "cpu")
    devices, note = compiler_devices(topology)
    if values.fit:
        with step_progress() as progress:
            tried = fit(settings, topology, devices, note, progress)
        publish_fit(tried, topology, values.json)
        return
    found: list[Candidate] = []
    if values.search:
        with step_progress() as progress:
            found = search(settings, topology, devices, note, progress)
        settings = found[0].settings
    plan = found[0].plan if found else None
    if plan is None:
        plan = make_plan(settings, topology, [] if found else devices, note)
    plan = priced(plan, topology, budget)
    if values.json:
        print(json.dumps(_as_json(plan, found)))
    else:
        if found:
            _print_search(found)
        _print_plan(plan, topology)
    if not plan.fits:
        raise UserError(advice(plan, settings, topology))


def _budget(values: flags.FlagValues, topology: "Topology") -> "Budget":
    """Returns what the flags say of tokens and prices.

    Raises:
        UserError: an invalid number, or one that `--fit` does not read; or two searches.
    """
    from train.planner.pricing import Budget

    if values.fit and values.search:
        raise UserError("--fit and --search are two searches; expected one of them")
    budget = Budget(values.tokens, values.price, values.tflops)
    for name, value in dataclasses.asdict(budget).items():
        if not 0 <= value < math.inf:
            raise UserError(f"--{name}={value}; expected a finite number of at least 0")
        if name == "tflops" and value * 1e12 > topology.chip.flops:
            peak = topology.chip.flops / 1e12
            raise UserError(
                f"--tflops={value:g} is more than the peak of {topology.name}, {peak:g} TFLOP/s per chip; expected the "
                "rate that a run achieved"
            )
        if values.fit and value:
            raise UserError(f"--{name}={value} has no effect with --fit; expected it with the flags that --fit prints")
    return budget


def _as_json(plan: "Plan", found: "list[Candidate]") -> dict[str, Any]:
    """Returns the plan as JSON values; after a search, the winner's plan with its flags and all candidates."""
    rows = [
        {
            "flags": c.flags,
            "tokens_per_second": c.tokens_per_second,
            "peak_bytes_per_chip": c.peak_bytes,
            "fits": c.fits,
            "compiled": c.plan is not None,
        }
        for c in found
    ]
    return dataclasses.asdict(plan) | ({"flags": found[0].flags, "candidates": rows} if found else {})


def _print_plan(plan: "Plan", topology: "Topology") -> None:
    out = results_console()
    mesh = ", ".join(f"{axis} {size}" for axis, size in plan.mesh.items() if size > 1) or "one device"
    active = f", {plan.active_parameters:,} per token," if plan.active_parameters < plan.parameters else ""
    title = (f"{plan.parameters:,} parameters{active} on {plan.topology}", "bold")
    out.print(Text.assemble(title, f" ({plan.chips} chips), mesh: {mesh}"))
    source = f"compiled in {plan.compile_seconds:.0f} s" if plan.compiled else f"estimated: {plan.note}"
    if plan.refused:
        source = "XLA ran out of memory while compiling; estimated"
    out.print(f"{plan.tokens_per_step:,} tokens per step; {source}{_over_context(plan)}\n")
    memory = Table("memory per chip", "GB", box=None, pad_edge=False)
    memory.columns[1].justify = "right"
    for name, size in plan.buffers.items():
        if size:
            memory.add_row(name, f"{size / 1e9:.3f}")
    verdict = ("fits", "green") if plan.fits else ("DOES NOT FIT", "red")
    memory.add_row("peak", f"{plan.peak_bytes_per_chip / 1e9:.3f}", style="bold", end_section=True)
    out.print(memory)
    used = plan.peak_bytes_per_chip / plan.hbm_bytes_per_chip
    out.print(Text.assemble(f"of {plan.hbm_bytes_per_chip / 1e9:.1f} GB: {used:.0%}, ", verdict, "\n"))
    step = Table("time per step", "ms", box=None, pad_edge=False)
    step.columns[1].justify = "right"
    for name in ("compute", "memory", "network"):
        step.add_row(f"{name} at its peak rate", f"{getattr(plan, f'{name}_seconds') * 1e3:,.1f}")
    if topology.slices > 1 and not topology.chip.network_bandwidth:
        step.add_row("network between slices: no published bandwidth, not counted", "")
    step.add_row(f"step, bound by {plan.bound_by}", f"{plan.step_seconds * 1e3:,.1f}", style="bold")
    out.print(step)
    ceiling = "MFU" if plan.bound_by == "--tflops" else "MFU at most"
    out.print(
        f"{plan.model_flops_per_step:.3e} model FLOPs, {ceiling} {plan.mfu:.1%}, "
        f"{plan.tokens_per_second:,.0f} tokens/s\n"
    )
    if plan.collectives:
        table = Table("collectives per step", "count", "GB per device", box=None, pad_edge=False)
        for column in table.columns[1:]:
            column.justify = "right"
        for kind, sent in plan.collectives.items():
            table.add_row(kind, f"{sent['count']:,.0f}", f"{sent['bytes'] / 1e9:.3f}")
        out.print(table)
        out.print()
    cost = f", {_amount(plan.usd)} USD" if plan.usd is not None else "; --price=USD_PER_CHIP_HOUR estimates the cost"
    years = plan.chip_hours / 8760
    days = plan.chip_hours / plan.chips / 24
    total = (f"{plan.tokens:.4g} tokens: {_amount(plan.chip_hours)} chip-hours", "bold")
    out.print(Text.assemble(total, f" ({_amount(years)} chip-years, {_amount(days)} days){cost}"))
    if plan.bound_by != "--tflops":
        out.print(
            "Times are a roofline: no real run is faster. --tflops=ACHIEVED_PER_CHIP uses a measured rate instead."
        )


def _amount(value: float) -> str:
    """Returns a number with at least three digits: small runs have a cost, too."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def publish_fit(tried: "list[Tried]", topology: "Topology", as_json: bool) -> None:
    """Prints what `--fit` compiled, and the flags of the last one if it fits.

    Raises:
        UserError: none fits; names the nearest.
    """
    from train.planner.fit import nearest
    from train.planner.pricing import usable_bytes

    room, last = usable_bytes(topology), tried[-1]
    rows = [
        {
            "flags": " ".join(choice.flags),
            "changes_training": list(choice.lossy),
            "peak_bytes_per_chip": plan.peak_bytes_per_chip,
            "tokens_per_second": plan.tokens_per_second,
            "fits": plan.fits,
        }
        for choice, plan in tried
    ]
    if as_json:
        print(json.dumps({"flags": rows[-1]["flags"] if last.plan.fits else None, "tried": rows}))
    else:
        out = results_console()
        table = Table(
            Column("GB", justify="right"), Column("tokens/s", justify="right"), "", "flags", box=None, pad_edge=False
        )
        for choice, plan in tried:
            figures = f"{plan.peak_bytes_per_chip / 1e9:.2f}", f"{plan.tokens_per_second:,.0f}"
            flags_of = " ".join(choice.flags) or "the config as it is"
            table.add_row(*figures, "fits" if plan.fits else "too large", flags_of)
        out.print(table)
        if last.plan.fits and last.choice.flags:
            out.print(Text.assemble("\n", ("flags of the cheapest that fits:", "bold"), f"\n{rows[-1]['flags']}"))
        if last.plan.fits and last.choice.lossy:
            out.print(f"These change what is trained: {' '.join(last.choice.lossy)} (docs/planning.md)")
    if not last.plan.fits:
        best = nearest(tried)
        raise UserError(
            f"nothing that was compiled fits in the usable {room / 1e9:.1f} GB per chip of {topology.name}; the "
            f"nearest needs {best.plan.peak_bytes_per_chip / 1e9:.1f} GB: "
            f"{' '.join(best.choice.flags) or 'the config as it is'}; "
            "use more chips, or a smaller batch or model"
        )


def _over_context(plan: "Plan") -> str:
    """Returns a line about the keys and values of a mesh with a `context` axis."""
    from model.ring import LARGEST_GATHER

    if not plan.context_attention:
        return ""
    return (
        f"\nattention over context: {plan.context_attention}; an all-gather takes "
        f"{plan.gathered_key_bytes / 1e9:.3f} GB of keys and values per layer and device, "
        f"and 'auto' is a ring above {LARGEST_GATHER / 1e9:.3f} GB"
    )


def _print_search(found: "list[Candidate]") -> None:
    out = results_console()
    experts = ("expert",) if found[0].settings.model["num_experts"] else ()
    axes = ("data", *experts, "fsdp", "tensor", "context")
    names = (*axes, "remat", "batch", "GB", "tokens/s", "", "")
    table = Table(*(Column(name, no_wrap=True) for name in names), box=None, pad_edge=False)
    for c in found[:_SHOWN]:
        mesh = c.settings.mesh
        table.add_row(
            *(str(getattr(mesh, axis)) for axis in axes),
            c.settings.model["remat"],
            str(c.settings.batch_size),
            f"{c.peak_bytes / 1e9:.2f}",
            f"{c.tokens_per_second:,.0f}",
            "fits" if c.fits else "too large",
            "compiled" if c.plan else "estimated",
        )
    out.print(table)
    left = len(found) - _SHOWN
    if left > 0:
        misfits = sum(not c.fits for c in found)
        out.print(f"and {left} more; {misfits} of all {len(found)} do not fit")
    if found[0].fits:
        out.print(Text.assemble("\n", ("flags of the best candidate:", "bold"), f"\n{found[0].flags}\n"))
