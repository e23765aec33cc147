"""Checks that a config gives the same losses on every mesh of 8 virtual CPU devices as on one device, in float32.

Runs a small version of the config through the training code under every layout of the devices, and prints the largest
relative difference of the loss, the gradient norm, the updated parameters and the gradients. Fails above 1e-5 (1e-4 for
gradients) and names the layout and the leaf. A model with experts also takes steps on batches that load its experts
unevenly, or not at all, and has more layouts. A layout with a context axis trains by a ring and by an all-gather. Needs
no accelerator and no data; some minutes on two cores, less with fewer devices.

  rootstock certify --config=configs/pretrain/tiny.py
"""

import dataclasses
import json
from typing import TYPE_CHECKING

from absl import flags
from rich.table import Table

from configs.errors import UserError
from data.strict_json import finite
from train.console import progress, results_console, say
from train.settings import from_config

if TYPE_CHECKING:
    from train.planner.certificate import Verdict

REQUIRED = ("config",)
CONFIG_FIELDS = (
    *("batch_size", "sequence_length", "num_steps", "microbatches", "tokenizer", "xla_flags"),
    *("model", "mesh", "data.path", "data.mixture", "optimizer", "loss", "task.attention"),
)


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    sizes = ["2", "4", "8"]
    flags.DEFINE_enum("devices", sizes[-1], sizes, "Virtual CPU devices to lay the mesh over.", flag_values=values)
    flags.DEFINE_boolean("json", False, "Print one JSON object.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command."""
    import jax

    from train.distributed.mesh import layouts
    from train.planner.certificate import layout_name, shrink, verdicts

    settings = shrink(from_config(values.config.to_dict()))
    count = int(values.devices)
    # Before JAX initializes, and independent of the machine's accelerators.
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", count)
    # This tests the partitioner, not LLVM: without LLVM's expensive passes a layout takes half the time.
    jax.config.update("jax_disable_most_optimizations", True)
    found, meshes = [], layouts(count, experts=settings.model["num_experts"] > 0)
    with progress("certify", len(meshes)) as bar:
        for done, verdict in enumerate(verdicts(settings, meshes, jax.devices()), 1):
            found.append(verdict)
            bar(done, layout_name(verdict.layout))
    publish(found, values.json)


def publish(found: "list[Verdict]", as_json: bool) -> None:
    """Prints the certificate.

    Raises:
        UserError: a layout exceeds the tolerance; names the first one and its worst leaf.
    """
    from train.planner.certificate import TOLERANCE, layout_name

    wrong = [verdict for verdict in found if verdict.mismatch]
    largest = {name: max(getattr(v, name) for v in found) for name in ("loss", "grad_norm", "params", "gradient")}
    if as_json:
        rows = [{**v._asdict(), "layout": dataclasses.asdict(v.layout)} for v in found]
        print(json.dumps(finite({"tolerance": TOLERANCE, "largest": largest, "layouts": rows})))
    else:
        results_console().print(_table(found, largest))
    if wrong:
        first = wrong[0]
        raise UserError(
            f"{len(wrong)} of {len(found)} layouts differ from one device by more than {TOLERANCE:.0e}; first: "
            f"{layout_name(first.layout)}: {first.mismatch}; worst leaf: {first.leaf}"
        )
    say(f"certify: {len(found)} layouts agree with one device to {TOLERANCE:.0e}")


def _table(found: "list[Verdict]", largest: dict[str, float]) -> Table:
    from train.planner.certificate import layout_name

    table = Table(title="Largest relative difference from one device", title_justify="left", box=None, pad_edge=False)
    figures_of = ("loss", "grad norm", "params", "gradient")
    for name in ("layout", *figures_of, "worst leaf", ""):
        table.add_column(name, justify="right" if name in figures_of else "left", no_wrap=True)
    for v in found:
        figures = [f"{x:.0e}" if x else "0" for x in (v.loss, v.grad_norm, v.params, v.gradient)]
        table.add_row(layout_name(v.layout), *figures, v.leaf, "differs" if v.mismatch else "ok")
    table.add_section()
    table.add_row(f"all {len(found)}", *(f"{x:.0e}" if x else "0" for x in largest.values()))
    return table
