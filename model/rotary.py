"""Rotary positions: the frequencies of each scaling, and the rotation of queries and keys.

B batch, T length, S keys, N heads, K kv heads, H head dim.
"""

import math
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from model.rotary_kind import Rotary


def frequencies(rotary: Rotary, length_BT: jax.Array | None = None) -> jax.Array:
    """Returns the width/2 angular frequencies in radians per position (RoFormer, arXiv:2104.09864, equation 15).

    Args:
        rotary: the kind of rotary positions.
        length_BT: number of tokens of each token's text; the result then has shape (B, T, width/2) if the frequencies
            depend on it. None: a text within the original context.
    """
    columns = jnp.arange(rotary.width // 2, dtype=jnp.float32)
    if rotary.scaling == "longrope":
        short, long = (_frequencies(rotary, columns) / jnp.asarray(x, jnp.float32) for x in _divisors(rotary))
        return short if length_BT is None else jnp.where(_is_long(rotary, length_BT), long, short)
    if rotary.scaling == "dynamic" and length_BT is not None:
        return _dynamic(rotary, length_BT)
    return _frequencies(rotary, columns)


# Columns in float32 give frequencies of JAX, those of NumPy in float64 give the same ones in float64.
_Array = TypeVar("_Array", jax.Array, np.ndarray)


def _frequencies(rotary: Rotary, columns: _Array) -> _Array:
    """Returns the frequencies without what depends on the length of the text."""
    frequency: _Array = rotary.theta ** (-columns / (rotary.width // 2))
    if rotary.scaling == "linear":
        return frequency / rotary.factor
    if rotary.scaling == "llama3":
        return _llama3(rotary, frequency)
    return _yarn(rotary, frequency, columns) if rotary.scaling == "yarn" else frequency


def _divisors(rotary: Rotary) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return rotary.short_factors, rotary.long_factors


def _is_long(rotary: Rotary, length_BT: jax.Array) -> jax.Array:
    return length_BT[..., None] > rotary.original_context


def _llama3(rotary: Rotary, frequency: _Array) -> _Array:
    """Long wavelengths are stretched, short ones kept, others blended (Llama 3.1 model card and reference code)."""
    turns = rotary.original_context * frequency / (2 * math.pi)
    keep = ((turns - rotary.low) / (rotary.high - rotary.low)).clip(0.0, 1.0)
    return frequency * (keep + (1.0 - keep) / rotary.factor)


def _yarn(rotary: Rotary, frequency: _Array, columns: _Array) -> _Array:
    """Few turns are stretched, many kept, others blended column by column (YaRN, arXiv:2309.00071, section 3.2)."""

    def column(turns: float) -> float:
        """Returns the column whose frequency makes this many turns in the original context."""
        return rotary.width * math.log(rotary.original_context / (turns * 2 * math.pi)) / (2 * math.log(rotary.theta))

    first, last = column(rotary.beta_fast), column(rotary.beta_slow)
    if rotary.round_range:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, rotary.width - 1)
    if first == last:
        last += 0.001
    stretched = ((columns - first) / (last - first)).clip(0.0, 1.0)
    return frequency * (1.0 - stretched) + frequency / rotary.factor * stretched


def _dynamic(rotary: Rotary, length_BT: jax.Array) -> jax.Array:
    """The base grows with the text beyond the original context (dynamic NTK; arXiv:2309.00071, section 3.3)."""
    half = rotary.width // 2
    longer_BT = jnp.maximum(length_BT.astype(jnp.float32) / rotary.original_context, 1.0)
    growth_BT = (rotary.factor * longer_BT - (rotary.factor - 1.0)) ** (rotary.width / (rotary.width - 2))
    return (rotary.theta * growth_BT)[..., None] ** (-jnp.arange(half, dtype=jnp.float32) / half)


def rotation(rotary: Rotary, positions_BT: jax.Array, length_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns (sin_BTH, cos_BTH) of the rotary angles, width/2 columns each, times the attention factor."""
    lengths = length_BT if rotary.needs_length else None
    if rotary.exact:
        angles_BTH = _exact_angles(positions_BT, _parts_of_turns(rotary, lengths))
    else:
        angles_BTH = positions_BT[..., None].astype(jnp.float32) * frequencies(rotary, lengths)
    sin, cos = jnp.sin(angles_BTH), jnp.cos(angles_BTH)
    if rotary.attention_factor == 1.0:
        return sin, cos
    return sin * rotary.attention_factor, cos * rotary.attention_factor


# A position is a multiple of this plus a rest.
_STRIDE = 1024


def _exact_angles(positions_BT: jax.Array, parts: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
    """Returns the angles, less whole turns, of positions up to 4 million, with an error of 2e-6 radians.

    A product of two float32 numbers of 12 bits is exact, and so is its difference from the nearest whole number. The
    position and the frequency in turns are both sums of such numbers, up to a rest of the frequency that is so small
    that its own product may be rounded.
    """
    first, second, rest = parts
    low_BT = positions_BT % _STRIDE
    high_BT1, low_BT1 = (x[..., None].astype(jnp.float32) for x in (positions_BT - low_BT, low_BT))
    products = [position * part for position in (high_BT1, low_BT1) for part in (first, second)]
    turns = sum((x - jnp.round(x) for x in products), positions_BT[..., None].astype(jnp.float32) * rest)
    return 2 * math.pi * (turns - jnp.round(turns))


def _parts_of_turns(rotary: Rotary, length_BT: jax.Array | None) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Returns three float32 numbers per frequency, in turns per position; their sum is exact to 2^-50."""
    columns = np.arange(rotary.width // 2, dtype=np.float64)
    if rotary.scaling == "longrope":
        short, long = (_split(_frequencies(rotary, columns) / np.asarray(x)) for x in _divisors(rotary))
        if length_BT is None:
            return short
        return tuple(jnp.where(_is_long(rotary, length_BT), b, a) for a, b in zip(short, long, strict=True))  # type: ignore[return-value]
    if rotary.scaling == "dynamic" and length_BT is not None:
        # The frequency itself is rounded to float32, but it is the same one at every position.
        return _split(_dynamic(rotary, length_BT))
    return _split(_frequencies(rotary, columns))


def _split(frequency: _Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    turns = frequency / (2 * math.pi)
    first = (turns * 2**14).round() / 2**14
    second = ((turns - first) * 2**26).round() / 2**26
    return tuple(jnp.asarray(x, jnp.float32) for x in (first, second, turns - first - second))  # type: ignore[return-value]


def rotate(x_BTNH: jax.Array, sin_BTH: jax.Array, cos_BTH: jax.Array) -> jax.Array:
    """Returns `x_BTNH` with each pair of its first columns rotated by its position's angle.

    sin and cos have half as many columns as are rotated, R; the pairs are (h, h + R/2).
    """
    rotated = 2 * sin_BTH.shape[-1]
    a, b = jnp.split(x_BTNH[..., :rotated].astype(jnp.float32), 2, axis=-1)
    sin, cos = sin_BTH[:, :, None, :], cos_BTH[:, :, None, :]
    y = jnp.concatenate([a * cos - b * sin, b * cos + a * sin], axis=-1).astype(x_BTNH.dtype)
    return y if rotated == x_BTNH.shape[-1] else jnp.concatenate([y, x_BTNH[..., rotated:]], axis=-1)


def rotate_cached(rotary: Rotary, k_BKSH: jax.Array, positions_BS: jax.Array, length_B1: jax.Array) -> jax.Array:
    """Returns unrotated keys of the cache with the rotation of a text of this length."""
    length_BS = jnp.broadcast_to(length_B1, positions_BS.shape)
    k_BSKH = rotate(jnp.swapaxes(k_BKSH, 1, 2), *rotation(rotary, positions_BS, length_BS))
    return jnp.swapaxes(k_BSKH, 1, 2)
