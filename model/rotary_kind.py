"""The kinds of rotary positions that a model's layers can have; without JAX, for code that only reads a config."""

import dataclasses
import math
from typing import Literal

# Contexts up to this many tokens multiply positions by frequencies in float32: the last angle is off by up to 0.008
# radians, as much as bfloat16 rounds rotated queries and keys.
FLOAT32_POSITIONS = 2**16

Scaling = Literal["none", "linear", "dynamic", "llama3", "yarn", "longrope"]


@dataclasses.dataclass(frozen=True)
class Rotary:
    """One kind of rotary positions; fields that its scaling does not read keep their defaults.

    Attributes:
        width: columns of each head that are rotated, an even number; the others have no position.
        theta: base of the frequencies.
        scaling: how the frequencies change for contexts that are longer than the original one.
        factor: how much longer the context becomes.
        original_context: context length before scaling, in tokens.
        low: llama3: wavelengths longer than original_context / low are divided by the factor.
        high: llama3: wavelengths shorter than original_context / high are kept.
        beta_fast: yarn: frequencies with more turns than this in the original context are kept.
        beta_slow: yarn: frequencies with fewer turns than this in the original context are divided by the factor.
        round_range: yarn: the columns at which these ranges end are rounded to whole columns.
        attention_factor: factor of the rotated queries and keys.
        short_factors: longrope: the divisor of each frequency in texts up to the original context.
        long_factors: longrope: the divisor of each frequency in longer texts.
        exact: angles are exact to float32 at any position; otherwise their error grows with it.
    """

    width: int
    theta: float
    scaling: Scaling = "none"
    factor: float = 1.0
    original_context: int = 0
    low: float = 0.0
    high: float = 0.0
    beta_fast: float = 0.0
    beta_slow: float = 0.0
    round_range: bool = True
    attention_factor: float = 1.0
    short_factors: tuple[float, ...] = ()
    long_factors: tuple[float, ...] = ()
    exact: bool = False

    @property
    def needs_length(self) -> bool:
        """Whether the frequencies depend on the length of the text."""
        return self.scaling in ("dynamic", "longrope")


def default_attention_factor(scaling: str, factor: float, original_context: int) -> float:
    """Returns the factor of queries and keys in the papers of YaRN (arXiv:2309.00071) and LongRoPE (2402.13753)."""
    if factor <= 1.0:
        return 1.0
    if scaling == "yarn":
        return 0.1 * math.log(factor) + 1.0
    if scaling == "longrope":
        return math.sqrt(1.0 + math.log(factor) / math.log(original_context))
    return 1.0
