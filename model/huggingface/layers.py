"""Which layers have a sliding window, and which have rotary positions, in the config.json of each family."""

from collections.abc import Mapping, Sequence
from typing import Any

from configs.errors import UserError
from model.config import ModelConfig
from model.huggingface.fields import Section, Values

FULL, SLIDING = "full_attention", "sliding_attention"
# {type of layer: the name in `config.model.rope_layers` of its rotary positions}
SAME = {FULL: "rope", SLIDING: "rope"}
LOCAL = {FULL: "rope", SLIDING: "local"}
ONLY_LOCAL = {FULL: "none", SLIDING: "rope"}


def one_window(default: int | None) -> Section:
    """Returns the fields of a family whose layers all have the same window, or none."""

    def read(values: Values) -> dict[str, Any]:
        return {"sliding_window": (_window(values),)}

    def write(c: ModelConfig) -> dict[str, Any]:
        return {"sliding_window": max(c.windows) or None}

    return Section({"sliding_window": default}, read, write)


def _read_switched(values: Values) -> dict[str, Any]:
    return {"sliding_window": (_window(values) if values["use_sliding_window"] else 0,)}


def _write_switched(c: ModelConfig) -> dict[str, Any]:
    window = max(c.windows)
    return {"use_sliding_window": bool(window), "sliding_window": window or None}


# The same window in all layers, where `use_sliding_window` says so.
SWITCHED_WINDOW = Section({"use_sliding_window": False, "sliding_window": 4096}, _read_switched, _write_switched)


def layer_types(default: int, every: int, rotary: Mapping[str, str], pattern_name: str = "") -> Section:
    """Returns the fields of a family that lists the type of each layer.

    Args:
        default: the window where the file has none.
        every: without `layer_types`, one of so many layers has full attention, the last of each group.
        rotary: the rotary positions of each type, `SAME`, `LOCAL` or `ONLY_LOCAL`.
        pattern_name: a field that replaces `every`; "": there is none.
    """

    def read(values: Values) -> dict[str, Any]:
        group = values[pattern_name] if pattern_name else every
        layers = range(1, values["num_hidden_layers"] + 1)
        return _kinds(values, [SLIDING if i % group else FULL for i in layers], rotary)

    def write(c: ModelConfig) -> dict[str, Any]:
        return {"sliding_window": max(c.windows) or default, "layer_types": _types(c)}

    own = {pattern_name: every} if pattern_name else {}
    return Section({"sliding_window": default, "layer_types": None} | own, read, write)


def _read_qwen(values: Values) -> dict[str, Any]:
    windowed = values["use_sliding_window"] and values["sliding_window"] is not None
    first = values["max_window_layers"]
    types = [SLIDING if windowed and i >= first else FULL for i in range(values["num_hidden_layers"])]
    return _kinds(values if windowed else {**values, "sliding_window": None}, types, SAME)


def _write_qwen(c: ModelConfig) -> dict[str, Any]:
    window = max(c.windows)
    found = {"use_sliding_window": bool(window), "sliding_window": window or None}
    return found | ({"layer_types": _types(c)} if window else {})


# Windows only where `use_sliding_window` says so, from layer `max_window_layers` on.
QWEN = Section(
    {"use_sliding_window": False, "sliding_window": 4096, "max_window_layers": 28, "layer_types": None},
    _read_qwen,
    _write_qwen,
)


def _read_smollm3(values: Values) -> dict[str, Any]:
    layers, rotated = values["num_hidden_layers"], values["no_rope_layers"]
    if rotated is None:
        rotated = [(i + 1) % values["no_rope_layer_interval"] != 0 for i in range(layers)]
    if len(rotated) < layers or not set(rotated) <= {0, 1}:
        raise UserError(
            f"no_rope_layers={rotated!r:.80}; expected 1 (rotary positions) or 0 for each of {layers} layers"
        )
    windowed = values["use_sliding_window"] and values["sliding_window"] is not None
    types = [SLIDING if windowed and not rotary else FULL for rotary in rotated[:layers]]
    found = _kinds(values if windowed else {**values, "sliding_window": None}, types, SAME)
    return found | {"rope_layers": shortest(["rope" if rotary else "none" for rotary in rotated[:layers]])}


def _write_smollm3(c: ModelConfig) -> dict[str, Any]:
    window = max(c.windows)
    found: dict[str, Any] = {"no_rope_layers": [int(kind.rotary is not None) for kind in c.kinds]}
    found |= {"use_sliding_window": bool(window), "sliding_window": window or None}
    return found | ({"layer_types": _types(c)} if window else {})


# Every fourth layer has no rotary positions.
SMOLLM3 = Section(
    {"no_rope_layers": None, "no_rope_layer_interval": 4}
    | {"use_sliding_window": False, "sliding_window": None, "layer_types": None},
    _read_smollm3,
    _write_smollm3,
)


def _read_granite_hybrid(values: Values) -> dict[str, Any]:
    layers, types = values["num_hidden_layers"], values["layer_types"]
    if types is None or len(types) != layers or not set(types) <= {"attention", FULL}:
        raise UserError(
            f"layer_types={types!r:.80}: Mamba layers are not supported; expected 'attention' for each of "
            f"{layers} layers"
        )
    if values["num_local_experts"] != 0:
        raise UserError(f"num_local_experts={values['num_local_experts']!r}: mixtures of experts are not supported")
    kind = values["position_embedding_type"]
    if kind not in (None, "rope", "nope"):
        raise UserError(f"position_embedding_type={kind!r:.40} is not supported; expected 'rope' or 'nope'")
    return {"rope_layers": ("rope",) if kind == "rope" else ("none",)}


def _write_granite_hybrid(c: ModelConfig) -> dict[str, Any]:
    rotated = all(kind.rotary is not None for kind in c.kinds)
    kind = "rope" if rotated else "nope"
    return {
        "layer_types": ["attention"] * c.num_layers,
        "num_local_experts": 0,
        "position_embedding_type": kind,
        # transformers checks the sizes of Mamba layers in models without any, against the width.
        "mamba_expand": 1,
        "mamba_n_heads": 1,
    }


# Dense models of a family that has Mamba layers and experts too.
GRANITE_HYBRID = Section(
    {"layer_types": None, "num_local_experts": 8, "position_embedding_type": None},
    _read_granite_hybrid,
    _write_granite_hybrid,
)


def shortest(pattern: Sequence[Any]) -> tuple[Any, ...]:
    """Returns the shortest pattern that, repeated over as many layers, is the same."""
    sizes = range(1, len(pattern) + 1)
    return tuple(next((pattern[:n] for n in sizes if all(x == pattern[i % n] for i, x in enumerate(pattern))), pattern))


def _kinds(values: Values, default: list[str], rotary: Mapping[str, str]) -> dict[str, Any]:
    """Returns `sliding_window` and `rope_layers` from the file's `layer_types`, or from these default types."""
    types, layers = values["layer_types"] or default, values["num_hidden_layers"]
    windowed = SLIDING in types
    window = _window(values) if windowed else 0
    if set(types) - {FULL, SLIDING} or len(types) != layers or (windowed and not window):
        raise UserError(
            f"layer_types={types!r:.80}; expected {FULL!r} or, with a sliding_window, {SLIDING!r} for each of "
            f"{layers} layers"
        )
    return {
        "sliding_window": shortest([window if kind == SLIDING else 0 for kind in types]),
        "rope_layers": shortest([rotary[kind] for kind in types]),
    }


def _window(values: Values) -> int:
    window = values["sliding_window"]
    if window is not None and (isinstance(window, bool) or not isinstance(window, int) or window < 1):
        raise UserError(f"sliding_window={window!r:.40}; expected a number of tokens of at least 1, or null")
    return window or 0


def _types(c: ModelConfig) -> list[str]:
    return [SLIDING if window else FULL for window in c.windows]
