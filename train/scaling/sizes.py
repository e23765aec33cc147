"""The configs of a scaling sweep: sizes are multiples of a config's width, lengths multiples of its steps.

Pure functions of plain config dicts; the config itself has size 1 and length 1.
"""

import copy
import math
from collections.abc import Callable, Sequence
from typing import Any

from configs.errors import UserError
from train.scaling.law import MIN_DISTINCT

Config = dict[str, Any]
_MAX_HEADS = 4096


def scaled(config: Config, size: float, length: float) -> Config:
    """Returns the config with `size` times the width and `length` times the steps.

    The head size is constant, so the width is a multiple of it; layers, MLP and experts keep their ratio to the width,
    and the number of experts is constant. The warmup is the same fraction of each run, each run's schedule ends with
    the run (arXiv:2203.15556, section 3.1), and the weights of a mixture change at the same fractions of each run.
    AdamW's peak learning rate scales as 1 / width (arXiv:2203.03466); Muon's learning rates are constant, because its
    updates do not grow with the width.
    """
    config = copy.deepcopy(config)
    m, o = config["model"], config["optimizer"]
    heads = max(1, round(size * m["num_heads"]))
    ratio = heads / m["num_heads"]
    divisors = [k for k in range(1, heads + 1) if heads % k == 0]
    m["num_kv_heads"] = min(divisors, key=lambda k: abs(math.log(k / (ratio * m["num_kv_heads"]))))
    m["num_heads"] = heads
    m["embed_dim"] = round(ratio * m["embed_dim"])
    m["num_layers"] = max(1, round(ratio * m["num_layers"]))
    for name in ("mlp_dim", "expert_dim", "shared_expert_dim"):
        m[name] = math.ceil(ratio * m[name] / 8) * 8
    if o["name"] == "adamw":
        o["learning_rate"] /= ratio
    o["warmup_steps"] = math.ceil(length * min(o["warmup_steps"], config["num_steps"]))
    changes = [(math.floor(length * step), weights) for step, weights in config["data"]["mixture_schedule"]]
    config["data"]["mixture_schedule"] = tuple((max(step, 1), weights) for step, weights in changes)
    config["num_steps"] = max(1, round(length * config["num_steps"]))
    o["warmup_steps"] = min(o["warmup_steps"], config["num_steps"] - 1)
    # Only the loss of the final evaluation is used, and the last step always evaluates.
    config["evaluation"]["every"] = config["num_steps"]
    return config


def sweep_configs(config: Config, sizes: Sequence[float], lengths: Sequence[float]) -> dict[str, Config]:
    """Returns {directory name: config} for every combination of size and length, sorted by size.

    Raises:
        UserError: fewer than three different model sizes or numbers of steps, or duplicates.
    """
    heads = [scaled(config, size, 1)["model"]["num_heads"] for size in sizes]
    steps = [scaled(config, 1, length)["num_steps"] for length in lengths]
    for flag, factors, found, unit in (("sizes", sizes, heads, "heads"), ("lengths", lengths, steps, "steps")):
        if len(set(found)) < max(len(found), MIN_DISTINCT):
            raise UserError(
                f"--{flag}={','.join(f'{factor:g}' for factor in factors)} gives runs of {found} {unit}; "
                f"expected at least {MIN_DISTINCT} values that give different runs"
            )
    configs = [scaled(config, size, length) for size in sorted(sizes) for length in sorted(lengths)]
    return {f"width{one['model']['embed_dim']}-steps{one['num_steps']}": one for one in configs}


def size_for(config: Config, parameters: float, count: Callable[[Config], int]) -> float:
    """Returns the size whose number of parameters is nearest to `parameters`, as a multiple of one head, up to 4096.

    Args:
        config: the config of size 1.
        parameters: the wanted number of parameters.
        count: config -> number of parameters of its model; must increase with the size.
    """

    def sized(heads: int) -> int:
        return count(scaled(config, heads / config["model"]["num_heads"], 1))

    high = 1
    while high < _MAX_HEADS and sized(high) < parameters:
        high *= 2
    low = max(high // 2, 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if sized(middle) < parameters else (low, middle)
    heads = min(low, high, key=lambda heads: abs(math.log(sized(heads) / parameters)))
    return heads / config["model"]["num_heads"]


def overrides(config: Config, changed: Config) -> list[str]:
    """Returns the command-line flags that turn `config` into `changed`, except for evaluation settings."""
    flags = [
        f"--config.{section}.{name}={f'{value:.3g}' if isinstance(value, float) else value}"
        for section in ("model", "optimizer")
        for name, value in changed[section].items()
        if value != config[section][name]
    ]
    if changed["data"]["mixture_schedule"] != config["data"]["mixture_schedule"]:
        flags.append(f'--config.data.mixture_schedule="{changed["data"]["mixture_schedule"]}"')
    return [*flags, f"--config.num_steps={changed['num_steps']}"]
