"""Re-runs one training step bit for bit and ranks the documents in its batch by loss."""

import json
import math
from typing import TYPE_CHECKING, Any

from absl import flags
from rich.table import Table

from configs.errors import UserError
from data.storage.paths import at
from data.strict_json import finite
from train.console import results_console, visible

if TYPE_CHECKING:
    from train.evaluation.document_losses import Document

REQUIRED = ("run", "step")
RENAMED_FLAGS = {"workdir": "run"}
MULTI_PROCESS = True
_SHOWN_CHARACTERS = 160


def define_flags(values: flags.FlagValues) -> None:
    """Adds this command's flags to `values`."""
    flags.DEFINE_string("run", None, "Directory of the run.", flag_values=values)
    flags.DEFINE_integer("step", None, "Step to re-run, counted from 1 as in metrics.jsonl.", flag_values=values)
    text = "Path of the run's data, if it is no longer at config.data.path."
    flags.DEFINE_string("data", "", text, flag_values=values)
    flags.DEFINE_integer(
        "documents", 5, "Number of documents with the highest loss to print.", lower_bound=0, flag_values=values
    )
    flags.DEFINE_boolean("json", False, "Print JSON.", flag_values=values)


def run(values: flags.FlagValues) -> None:
    """Runs the command; exits with 1 if the loss differs from the logged one, unless the mesh has another size."""
    from train.distributed.processes import is_process_zero
    from train.replay import ran_on_another_mesh_size, replay

    found = replay(at(values.run), values.step, values.data)
    if is_process_zero():
        if values.json:
            shown = found | {"documents": [d._asdict() for d in found["documents"][: values.documents]]}
            print(json.dumps(finite(shown), ensure_ascii=False, indent=1))
        else:
            _show(found, values.documents)
    if found["equal"] is False and not ran_on_another_mesh_size(found):
        raise UserError(
            f"{values.run}: step {values.step} has loss {found['loss']!r}, but {found['logged_loss']!r} was logged; "
            "bitwise equality needs the run's machine, JAX version and config.mesh"
        )


def _show(found: dict[str, Any], count: int) -> None:
    """Prints a step as text and a table."""
    from train.replay import ran_on_another_mesh_size

    documents: list[Document] = found["documents"]
    verdict = {None: "not logged", True: "logged the same, bit for bit", False: f"logged {found['logged_loss']!r}"}
    skipped = "; the step was skipped" if found["skipped"] else ""
    size, saved_size = (math.prod((found[name] or {}).values()) for name in ("mesh", "saved_on"))
    where = f" on {size} device(s), trained on {saved_size}: equal to about 1e-5, not bit for bit"
    out = results_console()
    out.print(
        f"step {found['step']}: loss {found['loss']!r}, {verdict[found['equal']]}; gradient norm "
        f"{found['grad_norm']:.4g}{skipped}\nbatch {found['batch']}, {len(documents)} documents; "
        f"re-run from step {found['from_step']}{where if ran_on_another_mesh_size(found) else ''}",
    )
    if not count:
        return
    table = Table(title="worst documents", show_lines=True)
    for name in ("row", "loss", "targets", "source", "text", "worst tokens"):
        table.add_column(name, justify="right" if name in ("row", "loss", "targets") else "left")
    for d in documents[:count]:
        text = visible(d.text if len(d.text) <= _SHOWN_CHARACTERS else f"{d.text[:_SHOWN_CHARACTERS]}…")
        worst = " ".join(f"{token!r} {loss:.2f}" for token, loss in d.worst)
        table.add_row(str(d.row), f"{d.loss:.4f}", str(d.targets), d.source, text, worst)
    out.print(table)
