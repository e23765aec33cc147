"""Which parameters fine-tuning trains; without JAX, for code that only reads a config."""

import dataclasses
from typing import Annotated, Literal

from configs.schema import at_least

# How the kernels of a frozen base are kept; "none": in the compute dtype.
Quantization = Literal["none", "int8", "nf4"]


@dataclasses.dataclass(frozen=True)
class Adaptation:
    """`config.adapt`.

    Attributes:
        method: "full", "head", "last" or "lora".
        last_layers: number of layers that "last" trains.
        rank: r of "lora".
        alpha: "lora" multiplies the product of its factors by alpha / r.
        targets: names of the projections that "lora" adds factors to.
        base_quantization: how "lora" keeps the frozen kernels: "none" (in the compute dtype), "int8" or "nf4" (QLoRA).
        task_text_steps: steps of pre-training on the texts of the training rows, before the task is trained; 0: none.
    """

    method: Literal["full", "head", "last", "lora"]
    last_layers: int
    rank: int
    alpha: float
    targets: tuple[str, ...]
    base_quantization: Quantization = "none"
    task_text_steps: Annotated[int, at_least(0)] = 0
