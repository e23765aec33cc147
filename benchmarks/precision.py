"""The dtype of a comparison with a peer that computes in float32."""

from model import dtypes


def in_float32() -> None:
    """Makes `compute_dtype="auto"` mean float32 on every CPU, for runs whose record says "auto"."""
    dtypes.cpu_is_fast_in_bfloat16 = lambda: False
