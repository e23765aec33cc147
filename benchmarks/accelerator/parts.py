"""The parts of the benchmark in the order in which they run.

Each is a function in a process of its own: their peak memory is kept apart, and a part that fails costs only itself.
"""

import dataclasses
import importlib
from typing import Any

from benchmarks.accelerator.sizes import SIZES, Size, TrainWork


@dataclasses.dataclass(frozen=True)
class Part:
    """One measurement.

    Attributes:
        name: unique; also the name of its file.
        function: `module.function` in this package; called with `arguments`, returns what is written as JSON.
        arguments: JSON values.
        limit: seconds after which the part is stopped.
        peer: runs under `--peer_python`.
    """

    name: str
    function: str
    arguments: dict[str, Any]
    limit: float
    peer: bool = False


def parts_of(size: Size) -> list[Part]:
    """Returns the parts of a size, the most telling first: a run that is cut off keeps what it has."""
    found = [Part("device", "chip.measure", {"width": size.product_width}, 90)]
    models = size.models
    main = models[size.main]
    found += [_train(name, models[name], 0) for name in size.train_order]
    found += [_peer_train(size.main, main, compiled) for compiled in (False, True)]
    decode = {"model": main.model, "prompt": size.prompt, "new": size.new_tokens}
    found += [Part(f"decode-{rows}", "decoding.measure", decode | {"rows": rows}, 90) for rows in size.decode_rows]
    found += [Part(f"peer-decode-{rows}", "decode", decode | {"rows": rows}, 90, peer=True) for rows in size.peer_rows]
    found.append(_train(size.main, main, 0, attention="xla"))
    found.append(Part("checkpoint", "disk.measure", {"model": size.saved}, 120))
    adapted = dataclasses.asdict(models[size.saved]) | {"steps": size.steps}
    for name, how in (("lora", "none"), ("qlora-int8", "int8"), ("qlora-nf4", "nf4")):
        found.append(Part(name, "training.adapter", adapted | {"quantization": how}, 90))
    found.append(Part("equal-runs", "runs.equal", {"steps": size.repeat_steps, "embed_dim": size.repeat_width}, 240))
    found.append(Part("fine-tune", "runs.finetune", {"scale": size.demo_scale}, 300))
    found += [_train(name, models[name], 1) for name in size.train_order]
    return found


def _train(key: str, work: TrainWork, rank: int, attention: str = "auto") -> Part:
    name = "-".join(("train", key, *([] if attention == "auto" else [attention]), str(rank + 1)))
    return Part(name, "training.measure", dataclasses.asdict(work) | {"rank": rank, "attention": attention}, 180)


def _peer_train(key: str, work: TrainWork, compiled: bool) -> Part:
    name = f"peer-train-{key}-{'compiled' if compiled else 'eager'}"
    return Part(name, "train", dataclasses.asdict(work) | {"compiled": compiled}, 180, peer=True)


def run_part(part: Part) -> dict[str, Any]:
    """Returns what a part measured; called in its own process."""
    module, _, function = part.function.rpartition(".")
    return getattr(importlib.import_module(f"benchmarks.accelerator.{module}"), function)(**part.arguments)


def part_named(size: str, name: str) -> Part:
    """Returns the part of a size by its name."""
    return next(part for part in parts_of(SIZES[size]) if part.name == name)
