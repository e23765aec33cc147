"""Which parameters fine-tuning trains; without JAX, for code that only reads a config."""

import dataclasses
from typing import Literal


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """`config.adapt`.

    Attributes:
        method: "full", "head", "last" or "lora".
        last_layers: number of layers that "last" trains.
        rank: r of "lora".
        alpha: "lora" multiplies the product of its factors by alpha / r.
        targets: names of the projections that "lora" adds factors to.
    """

    method: Literal["full", "head", "last", "lora"]
    last_layers: int
    rank: int
    alpha: float
    targets: tuple[str, ...]
