"""What a checkpoint's manifest says of its leaves: path, shape, dtype and checksum of each."""

from typing import Any

from configs.errors import UserError
from train.checkpoint.orbax_handlers import GROUPS
from train.step import TrainState
from train.trees import leaf_paths


def leaves_of(state: TrainState) -> dict[str, Any]:
    """Returns {path: leaf} of what a checkpoint holds of a state."""
    return leaf_paths({group: getattr(state, group) for group in GROUPS})


def describe(state: TrainState, sums: dict[str, str] | None = None) -> dict[str, dict[str, Any]]:
    """Returns {path: {"shape", "dtype", "checksum"}} of the state's arrays; the checksum only where given."""
    return {
        path: {"shape": list(leaf.shape), "dtype": str(leaf.dtype)} | ({"checksum": sums[path]} if sums else {})
        for path, leaf in leaves_of(state).items()
    }


def compare_leaves(where: str, theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    """Raises UserError listing leaves that are missing, unexpected, or of another shape or dtype."""
    faults = [f"missing: {path}" for path in ours if path not in theirs]
    faults += [f"unexpected: {path}" for path in theirs if path not in ours]
    for path in ours.keys() & theirs.keys():
        a, b = theirs[path], ours[path]
        if (a["shape"], a["dtype"]) != (b["shape"], b["dtype"]):
            faults.append(f"{path} is {a['dtype']}{a['shape']}, the model has {b['dtype']}{b['shape']}")
    if faults:
        shown = "; ".join(sorted(faults)[:8]) + (f"; and {len(faults) - 8} more" if len(faults) > 8 else "")
        raise UserError(f"{where} does not match the model: {shown}")
