"""What the tests of adapters share: an adaptation with changes, and a batch to classify."""

import dataclasses

import numpy as np

from configs import default
from configs.schema import build
from model.adaptation import Adaptation


def adaptation(method, **changes):
    """Returns the default `Adaptation` with another method, and other changes."""
    return dataclasses.replace(build(Adaptation, default.adapt(), "config.adapt"), method=method, **changes)


def batch_of(rows=8, length=32, seed=0):
    """Returns a random batch of three classes, whose targets are the last tokens of its rows."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(3, 60, (rows, length)).astype(np.int32)
    return {
        "tokens": tokens,
        "targets": rng.integers(0, 3, (rows, length)).astype(np.int32),
        "segment_ids": np.ones((rows, length), np.int32),
        "positions": np.tile(np.arange(length, dtype=np.int32), (rows, 1)),
        "weights": (np.arange(length) == length - 1).astype(np.float32) * np.ones((rows, 1), np.float32),
    }
