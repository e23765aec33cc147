"""How sure a model is: probabilities of classes, the temperature that corrects them, and scores of both.

N rows (or words, or decisions), V classes.
"""

import numpy as np


def softmax(logits: np.ndarray) -> np.ndarray:
    """Returns probabilities over the last axis, float64."""
    z = logits.astype(np.float64)
    powers = np.exp(z - z.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def sigmoid(logits: np.ndarray | np.floating) -> np.ndarray:
    """Returns the probability of each decision, float64."""
    # Equal to 1 / (1 + exp(-z)) without overflow.
    return 0.5 * (1.0 + np.tanh(0.5 * logits.astype(np.float64)))
